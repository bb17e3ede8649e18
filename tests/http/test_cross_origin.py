"""CORS: pages of the origins that are named may ask, on every way a request can take."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gatherd_server.access.web import Web, check_web
from gatherd_server.errors import ConfigError
from support.small_engine import SmallEngine, lookup_request
from support.web_server import web_server

ORIGIN = "https://notebook.example:8888"
OTHER = "https://elsewhere.example"
LOOKUP = "/gatherd.v1.EmbeddingService/Lookup"
PROTO = {"Content-Type": "application/proto"}
OCTETS = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
ALLOWED = "access-control-allow-origin"


@contextlib.contextmanager
def serving(small: SmallEngine, *origins: str) -> Iterator[httpx.Client]:
    with web_server(small, web=Web(cors_origins=origins)) as url:
        with httpx.Client(base_url=url) as client:
            yield client


@pytest.fixture(scope="module")
def opened(small: SmallEngine) -> Iterator[httpx.Client]:
    with serving(small, ORIGIN) as client:
        yield client


def asked(client: httpx.Client, headers: dict[str, str]) -> list[httpx.Response]:
    """Requests of every way, each twice: the second time its head is known."""
    proto = lookup_request("words", [1, 2]).SerializeToString()
    twice: list[httpx.Response] = []
    for _ in range(2):
        twice += [
            client.post(LOOKUP, content=proto, headers={**PROTO, **headers}),
            client.post("/v1/tables/words:lookup", content=bytes(8), headers={**OCTETS, **headers}),
            client.post("/v1/tables/words:lookup", json={"ids": [1]}, headers=headers),
            client.post("/v1/tables/words:lookup", json={"ids": [-1]}, headers=headers),
            client.get("/v1/tables", headers=headers),
        ]
    return twice


def test_answers_and_errors_let_a_page_of_the_origin_read_them(opened: httpx.Client) -> None:
    replies = asked(opened, {"Origin": ORIGIN})
    assert {reply.headers.get(ALLOWED) for reply in replies} == {ORIGIN}
    assert [reply.status_code for reply in replies[:5]] == [200, 200, 200, 422, 200]
    for reply in replies:
        assert "access-control-allow-credentials" not in reply.headers
        assert "origin" in reply.headers["vary"].lower()
        shown = reply.headers["access-control-expose-headers"].lower()
        assert {"gatherd-shape", "gatherd-version", "retry-after", "x-request-id"} <= {
            name.strip() for name in shown.split(",")
        }


def test_pages_of_other_origins_stay_shut_out(opened: httpx.Client) -> None:
    replies = asked(opened, {"Origin": OTHER})
    assert not any(ALLOWED in reply.headers for reply in replies)
    # Without tokens, what isn't a read is refused as well, and not only unread.
    assert [reply.status_code for reply in replies[:5]] == [403, 403, 403, 403, 200]


def test_requests_that_come_from_no_page_are_answered_as_ever(opened: httpx.Client) -> None:
    replies = asked(opened, {})
    assert not any(ALLOWED in reply.headers for reply in replies)
    assert [reply.status_code for reply in replies[:5]] == [200, 200, 200, 422, 200]


def test_a_preflight_lists_what_a_page_may_send(opened: httpx.Client) -> None:
    wanted = (
        "authorization,connect-protocol-version,connect-timeout-ms,content-type,idempotency-key"
    )
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }
    reply = opened.options(LOOKUP, headers=preflight)
    assert reply.status_code == 200
    assert reply.headers[ALLOWED] == ORIGIN
    allowed = {
        one.strip().lower() for one in reply.headers["access-control-allow-headers"].split(",")
    }
    assert set(wanted.split(",")) <= allowed
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert opened.options(LOOKUP, headers={**preflight, "Origin": OTHER}).status_code == 400
    unknown = {**preflight, "Access-Control-Request-Headers": "x-of-mine"}
    assert opened.options(LOOKUP, headers=unknown).status_code == 400


def test_every_origin_may_be_allowed(small: SmallEngine) -> None:
    with serving(small, "*") as client:
        replies = asked(client, {"Origin": OTHER})
    assert {reply.headers.get(ALLOWED) for reply in replies} == {"*"}
    assert [reply.status_code for reply in replies[:5]] == [200, 200, 200, 422, 200]


def test_without_the_setting_nothing_is_allowed(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        assert not any(ALLOWED in reply.headers for reply in asked(client, {"Origin": ORIGIN}))
        preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
        assert client.options(LOOKUP, headers=preflight).status_code == 405


@pytest.mark.parametrize(
    ("origins", "why"),
    [
        (["notebook.example"], "isn't an origin"),
        (["https://notebook.example/"], "isn't an origin"),
        (["https://Notebook.example"], "isn't an origin"),
        (["null"], "isn't an origin"),
        (["https://notebook.example:443"], "leave out port 443"),
        (["https://notebook.example:70000"], "65535"),
        (["*", "https://notebook.example"], "every origin"),
    ],
)
def test_what_no_browser_sends_is_no_origin(origins: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_web(origins, "")


def test_origins_are_compared_as_they_are() -> None:
    web: Any = check_web(["http://[::1]:8888", "http://localhost"], "")
    assert web.allows("http://[::1]:8888")
    assert web.allows("http://localhost")
    assert not web.allows("http://localhost:8888")
