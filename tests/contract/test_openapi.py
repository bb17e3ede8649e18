"""The server answers as its OpenAPI document says: schemathesis compares the two."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from gatherd_server.types import CreateTable
from support.cli import invoke
from support.forms import in_order
from support.server import RunningServer, clean_environment
from support.tables import drawn_table, make_data_dir

# As the document's examples have them.
ROWS, DIM = 30, 2
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)
# Paths with a table in them name one of these, which exist whatever comes before.
CONFIG = """
[parameters]
"path.table" = "user"

[[operations]]
include-name = "POST /v1/tables/{table}:keysOf"
parameters = { "path.table" = "words" }

[[operations]]
include-name = "POST /v1/tables/{table}:idsOf"
parameters = { "path.table" = "words" }

[[operations]]
include-name = "GET /v1/tables/{table}/keys"
parameters = { "path.table" = "words" }

[[operations]]
include-name = "DELETE /v1/tables/{table}/versions/{version}"
parameters = { "path.table" = "published", "path.version" = "1" }

[[operations]]
include-name = "POST /v1/tables/{table}:rename"
parameters = { "path.table" = "renamed" }

[[operations]]
include-name = "PUT /v1/aliases/{alias}"
parameters = { "path.alias" = "alias" }

[[operations]]
include-name = "DELETE /v1/aliases/{alias}"
parameters = { "path.alias" = "alias" }

[[operations]]
include-name = "DELETE /v1/tables/{table}"
parameters = { "path.table" = "gone" }

[[operations]]
include-name = "GET /v1/uploads/{upload}"
parameters = { "path.upload" = "00000000000000000000000000000001" }

[[operations]]
include-name = "PUT /v1/uploads/{upload}/rows"
parameters = { "path.upload" = "00000000000000000000000000000001" }

[[operations]]
include-name = "POST /v1/uploads/{upload}:commit"
parameters = { "path.upload" = "00000000000000000000000000000002" }

[[operations]]
include-name = "DELETE /v1/uploads/{upload}"
parameters = { "path.upload" = "00000000000000000000000000000003" }
"""
# With options in the query, as schemathesis always gives them, the body has to be as many raw ids
# and values as they say. test_every_operation_succeeds_as_its_form_is_filled_in sends them right.
HARD_TO_DRAW = {
    f"POST /v1/tables/{{table}}:{verb}"
    for verb in ("lookup", "scatterAdd", "applyGradients", "assign", "deleteRows")
} | {"PUT /v1/uploads/{upload}/rows"}
# Those whose examples are about tables that other forms make.
OF_COPIES = {
    "POST /v1/tables/{table}:replace",
    "PUT /v1/aliases/{alias}",
    "DELETE /v1/aliases/{alias}",
}
EXAMPLES = 5
SECONDS_MAX = 150


def _table(name: str) -> CreateTable:
    return drawn_table(name, ROWS, DIM)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("described")
    make_data_dir(folder / "data", *map(_table, ("user", "item", "gone", "renamed", "published")))
    invoke("publish", "published", "--data-dir", folder / "data")
    lines = (f"{word} 0.5 1.5\n" for word in ("king", "queen", *map(str, range(ROWS))))
    (folder / "words.txt").write_text("".join(lines))
    invoke("import", "words", folder / "words.txt", "--data-dir", folder / "data")
    invoke("create", "seen", "--keys", "string", "--dim", str(DIM), "--data-dir", folder / "data")
    with RunningServer(
        *("--data-dir", folder / "data", "--snapshot-dir", folder / "snapshots"),
        log_path=folder / "log",
    ) as server:
        for number in (1, 2, 3):
            upload = {"upload": f"{number:032}", "name": f"upload-{number}", "dim": DIM}
            assert httpx.post(f"{server.http}/v1/uploads", json=upload).status_code == 200
        yield server


def test_no_answer_is_another_than_the_document_says(server: RunningServer, tmp_path: Path) -> None:
    config, har = tmp_path / "schemathesis.toml", tmp_path / "asked.har"
    config.write_text(CONFIG)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", config),
            *("run", f"{server.http}/openapi.json", "--checks", ",".join(CHECKS)),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
            *("--generation-deterministic", "--continue-on-failure", "--no-color"),
            *("--report", "har", "--report-har-path", har),
        ],
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=tmp_path,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The requests weren't only mistakes: each operation did its work, too.
    statuses = _statuses(server, json.loads(har.read_text())["log"]["entries"])
    assert len(statuses) > len(HARD_TO_DRAW)
    without = {name for name, seen in statuses.items() if not any(s < 300 for s in seen)}
    assert without <= HARD_TO_DRAW | OF_COPIES


def _statuses(
    server: RunningServer, entries: list[dict[str, dict[str, str]]]
) -> dict[str, set[int]]:
    """The statuses that each operation was answered with."""
    document = httpx.get(f"{server.http}/openapi.json").json()
    operations = [
        (
            f"{method.upper()} {path}",
            method.upper(),
            re.sub(r"\\{\w+\\}", "[^/:]+", re.escape(path)),
        )
        for path, methods in document["paths"].items()
        for method in methods
    ]
    found: dict[str, set[int]] = defaultdict(set, {name: set() for name, _, _ in operations})
    for entry in entries:
        path = urlsplit(entry["request"]["url"]).path
        for name, method, pattern in operations:
            if entry["request"]["method"] == method and re.fullmatch(pattern, path):
                found[name].add(int(entry["response"]["status"]))
    return found


def test_every_operation_succeeds_as_its_form_is_filled_in(server: RunningServer) -> None:
    """A form sends the examples of path and body, and no option, because none has a default."""
    with httpx.Client(base_url=server.http) as client:
        rows = {name: values(client, name) for name in ("user", "item")}
        for table in client.get("/v1/tables").json()["tables"]:
            if table["name"].startswith("docs-example"):  # the other test's requests made it
                assert client.delete(f"/v1/tables/{table['name']}?force=true").status_code == 200
        document = client.get("/openapi.json").json()
        operations = {
            operation["operationId"]: (method, path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }
        for name in in_order(operations):
            method, path, operation = operations[name]
            for parameter in operation.get("parameters", ()):
                assert "default" not in parameter["schema"], (name, parameter)
                if parameter["in"] == "path":
                    path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
            content = operation.get("requestBody", {}).get("content", {})
            body = {"json": content["application/json"]["example"]} if content else {}
            reply = client.request(method, path, **body)
            assert reply.status_code == 200, (name, reply.text)
            assert reply.content
        assert {name: values(client, name) for name in rows} == rows, "an example changed values"


def values(client: httpx.Client, table: str) -> object:
    reply = client.post(f"/v1/tables/{table}:lookup", json={"ids": list(range(ROWS))})
    return reply.json()["vectors"]
