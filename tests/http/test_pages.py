"""What a browser is shown, and at which prefix; tests/browser has the pages at work."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import TableNotFound
from gatherd_server.access.web import Web, check_web
from gatherd_server.errors import ConfigError
from gatherd_server.http.app import create_app
from support.small_engine import SmallEngine
from support.web_server import web_server

HTML = "text/html"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
PAGES = ("/docs", "/docs/docs.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")
PREFIX = "/tables"


@pytest.mark.parametrize("path", [*PAGES, "/"])
def test_a_page_loads_nothing_from_elsewhere_and_runs_no_script_of_its_own(
    ask: Any, path: str
) -> None:
    reply = ask("GET", path, headers=BROWSER)
    assert reply.status_code == 200
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_page_names_only_files_that_the_server_has(ask: Any) -> None:
    page = ask("GET", "/docs").text
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {f"/{name}" for name in named if not name.startswith("data:")} == {
        *PAGES[1:],
        "/openapi.json",
    }
    assert not re.search(r"<script>|<style>| on\w+=| style=", page)


def test_a_file_that_the_page_lacks_is_404(ask: Any) -> None:
    for name in ("nope.js", "%2e%2e%2fpages.py", "index.html"):
        assert ask("GET", f"/docs/{name}").status_code == 404


def test_the_root_says_what_the_server_is_and_links_on(ask: Any) -> None:
    page = ask("GET", "/", headers=BROWSER)
    assert page.headers["content-type"].startswith(HTML)
    told = ask("GET", "/").json()
    assert told["name"] == "gatherd"
    for link in (*told["links"].values(), *re.findall(r'<a href="([^"]+)"', page.text)):
        assert ask("GET", "/" + link.lstrip("/")).status_code != 404, link


def test_redoc_is_the_same_page(ask: Any) -> None:
    reply = ask("GET", "/redoc")
    assert (reply.status_code, reply.headers["location"]) == (308, "docs")


# They list what a server with a data dir has, and take no room on its disk.
LISTED = ("listSnapshots", "listUploads", "getUpload")


def test_a_server_of_files_alone_says_which_forms_it_refuses(ask: Any) -> None:
    document = ask("GET", "/openapi.json").json()
    asked = {
        operation["operationId"]: (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    }
    for name in ("lookup", "lookupMany", "lookupBags", "lookupBagsMany", "keysOf"):
        path, operation = asked.pop(name)
        tables = [p["example"] for p in operation.get("parameters", ()) if p["in"] == "path"]
        body = operation["requestBody"]["content"]["application/json"]["example"]
        reply = ask("POST", path.replace("{table}", "".join(tables)), json=body)
        assert reply.status_code == 200 or "has keys" in operation["description"], name
    for name, (_, operation) in asked.items():
        is_refused = "no data dir" in operation.get("description", "")
        assert is_refused is ("507" in operation["responses"] or name in LISTED), name


# A prefix


@pytest.fixture(scope="module")
def below(small: SmallEngine, runner: Any) -> Callable[..., httpx.Response]:
    app = create_app(small.engine, small.admission, small.offload, Web(root_path=PREFIX))

    async def request(method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy.test") as client:
            return await client.request(method, path, **options)

    def ask(method: str, path: str, **options: Any) -> httpx.Response:
        reply: httpx.Response = runner.run(request(method, path, **options))
        return reply

    return ask


@pytest.mark.parametrize("prefix", [PREFIX, ""], ids=["kept", "removed"])
def test_a_proxy_may_keep_the_prefix_or_remove_it(
    below: Callable[..., httpx.Response], prefix: str
) -> None:
    assert below("GET", f"{prefix}/healthz").json() == {"status": "alive"}
    rest = below("POST", f"{prefix}/v1/tables/words:lookup", json={"ids": [1]})
    connect = below("POST", f"{prefix}/gatherd.v1.TableService/ListTables", json={})
    assert (rest.status_code, connect.status_code) == (200, 200)
    document = below("GET", f"{prefix}/openapi.json").json()
    assert document["servers"] == [{"url": PREFIX}]
    assert "/healthz" in document["paths"]
    assert below("GET", f"{prefix}/redoc").headers["location"] == f"{PREFIX}/docs"
    assert below("GET", f"{prefix}/docs").status_code == 200
    assert f'href="{PREFIX}/docs"' in below("GET", f"{prefix}/", headers=BROWSER).text
    assert below("POST", f"{prefix}/nothing").status_code == 404


@pytest.mark.parametrize("prefix", [PREFIX, ""], ids=["kept", "removed"])
def test_the_sdk_and_the_fast_path_know_the_prefix(small: SmallEngine, prefix: str) -> None:
    octets = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
    ids = np.array([3, 1])
    with web_server(small, web=Web(root_path=PREFIX)) as url:
        with Client(url + prefix) as client:
            for _ in range(3):
                np.testing.assert_array_equal(client.lookup("words", ids), small.rows["words"][ids])
            assert client.table("words").rows == len(small.rows["words"])
            with pytest.raises(TableNotFound):
                client.lookup("nope", ids)
        reply = httpx.post(
            f"{url}{prefix}/v1/tables/words:lookup", content=ids.tobytes(), headers=octets
        )
    rows = np.frombuffer(reply.content, np.float32).reshape(2, -1)
    np.testing.assert_array_equal(rows, small.rows["words"][ids])


def test_the_prefix_alone_is_the_root(below: Callable[..., httpx.Response]) -> None:
    assert below("GET", PREFIX).json()["links"]["docs"] == f"{PREFIX}/docs"
    assert below("GET", f"{PREFIX}longer/healthz").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["tables", "/v1", "/v1/tables", "/docs/a", "/gatherd.v1.TableService", "/a b", "/..", "/a//b"],
)
def test_a_prefix_that_paths_of_ours_or_no_proxy_could_have_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="root_path"):
        check_web((), path)


def test_a_prefix_may_have_several_segments_and_a_slash_behind() -> None:
    assert check_web((), "/team-a/tables/").root_path == "/team-a/tables"
    assert check_web((), "/") == Web()
