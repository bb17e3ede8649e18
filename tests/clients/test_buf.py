"""buf, which has no code of ours or of grpc's Python: it lints, reflects and reads errors."""

import base64
import json
import subprocess
from collections.abc import Sequence

import pytest

from clients.conftest import Served
from clients.tools import NODE, PROTO, needs_node, run

pytestmark = needs_node

ID_4 = {"dtype": "DTYPE_INT64", "shape": [1], "data": "BAAAAAAAAAA="}
NO_ID = {**ID_4, "data": "//////////8="}
# As docs/clients.md has it, and each version alone.
REFLECTED = [(), ("--reflect-protocol", "grpc-v1"), ("--reflect-protocol", "grpc-v1alpha")]


def test_the_proto_files_keep_to_the_rules() -> None:
    assert run("npx", "buf", "lint", PROTO, cwd=NODE) == ""


def looked_up(
    served: Served, ids: object, options: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """A lookup over gRPC by one who knows no more than reflection tells."""
    token = f"Authorization: Bearer {served.token}"
    method = "gatherd.v1.EmbeddingService/Lookup"
    return subprocess.run(
        [
            *("npx", "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", *options),
            *("--header", token, "--reflect-header", token),
            *("--data", json.dumps({"table": "words", "ids": ids})),
            served.server.grpc.replace("grpc", "http", 1) + "/" + method,
        ],
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("options", REFLECTED, ids=" ".join)
def test_reflection_tells_enough_for_a_lookup(served: Served, options: Sequence[str]) -> None:
    done = looked_up(served, ID_4, options)
    assert done.returncode == 0, done.stderr
    vectors = json.loads(done.stdout)["vectors"]
    assert vectors["shape"] == ["1", "4"]
    assert base64.b64decode(vectors["data"]) == served.rows([4]).tobytes()


def test_an_error_has_the_details_of_google_rpc(served: Served) -> None:
    done = looked_up(served, NO_ID, REFLECTED[0])
    assert done.returncode != 0
    told = json.loads(done.stderr)
    assert told["code"] == "invalid_argument"
    kinds = [detail["type"] for detail in told["details"]]
    assert kinds == [f"google.rpc.{name}" for name in ("ErrorInfo", "BadRequest", "RequestInfo")]
