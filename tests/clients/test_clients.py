"""The programs of docs/clients.md, each in its language, against one server.

Each looks up rows 4 and 20, and the keys king and queen; prints the error about a key that there
isn't; and adds 0.5 to row 4, twice under one request id, of which the first answer is lost.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clients.conftest import Served
from clients.tools import FOLDER, GOOGLEAPIS, NODE, PROTO, SECONDS, needs, needs_node, run

# A compiler takes long on a busy machine.
pytestmark = pytest.mark.timeout(SECONDS)

GO_PACKAGES = tuple(
    Path(f"/usr/share/gocode/src/google.golang.org/{name}")
    for name in ("genproto", "grpc", "protobuf")
)
JARS = tuple(
    Path(f"/usr/share/java/{name}.jar")
    for name in ("grpc-netty", "netty-all", "perfmark-api", "protobuf")
)


def built(language: str, folder: Path) -> Path:
    """A copy of the language's folder, after its build.sh."""
    copy = folder / language
    shutil.copytree(FOLDER / language, copy)
    run("sh", "-eu", "build.sh", cwd=copy, PROTO=str(PROTO), GOOGLEAPIS=str(GOOGLEAPIS))
    return copy


Run = Callable[[str, str, str], str]


def judge(served: Served, wire: str, request_id: str, program: Run) -> str:
    """What the program printed, once the table is known to have been changed once."""
    before = served.rows([4, 20])
    with served.losing(wire, request_id) as proxy:
        url = proxy.address if wire == "grpc" else f"http://{proxy.address}"
        printed = program(url, served.token, request_id)
        assert proxy.has_lost
    before[0] += np.float32(0.5)
    np.testing.assert_array_equal(served.rows([4, 20]), before)
    return printed


def floats(line: str) -> list[float]:
    return [float(np.float32(value)) for value in line.split()]


def judge_lines(served: Served, wire: str, language: str, program: Run) -> None:
    rows = served.rows([4, 20]).ravel().tolist()
    keyed = served.client.lookup("words", keys=["king", "queen"]).ravel().tolist()
    printed = judge(served, wire, f"once-{language}", program)
    lines = dict(line.split(" ", 1) for line in printed.splitlines())
    assert list(lines) == ["ids", "keys", "error", "added", "again"]
    assert floats(lines["ids"]) == rows
    assert floats(lines["keys"]) == keyed
    assert lines["error"] == "KEY_NOT_FOUND words keys[0]"
    assert lines["added"] == lines["again"] == str(served.lsn())


@pytest.fixture(scope="module")
def generated() -> Path:
    run("npx", "buf", "generate", cwd=NODE)
    return NODE


@needs_node
def test_node_over_connect(served: Served, generated: Path) -> None:
    judge_lines(
        served, "http", "connect", lambda *given: run("node", "connect.mjs", *given, cwd=generated)
    )


@needs_node
def test_node_over_grpc(served: Served) -> None:
    judge_lines(served, "grpc", "grpc-js", lambda *given: run("node", "grpc.mjs", *given, cwd=NODE))


@needs("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc", files=GO_PACKAGES)
def test_go(served: Served, tmp_path: Path) -> None:
    folder = built("go", tmp_path)
    # Debian's grpc-go is so old that it retries only when told to.
    judge_lines(
        served, "grpc", "go", lambda *given: run("./client", *given, cwd=folder, GRPC_GO_RETRY="on")
    )


@needs("g++", "protoc", "grpc_cpp_plugin", "pkg-config", files=(Path("/usr/include/grpcpp"),))
def test_cpp(served: Served, tmp_path: Path) -> None:
    folder = built("cpp", tmp_path)
    judge_lines(served, "grpc", "cpp", lambda *given: run("./client", *given, cwd=folder))


@needs("javac", "protoc", "grpc_java_plugin", files=JARS)
def test_java(served: Served, tmp_path: Path) -> None:
    folder = built("java", tmp_path)
    java = ("java", "-cp", "classes:/usr/share/java/*", "Client")
    judge_lines(served, "grpc", "java", lambda *given: run(*java, *given, cwd=folder))


@needs("curl")
def test_curl(served: Served) -> None:
    rows = served.rows([4, 20]).ravel().tolist()
    keyed = served.client.lookup("words", keys=["king", "queen"])
    printed = judge(
        served, "http", "once-curl",
        lambda *given: run("sh", "client.sh", *given, cwd=FOLDER / "curl"),
    )  # fmt: skip
    *octets, by_key, problem, connect, added, again = printed.splitlines()
    assert floats(" ".join(octets)) == rows
    np.testing.assert_array_equal(np.float32(json.loads(by_key)["vectors"]), keyed)
    assert json.loads(problem)["reason"] == "KEY_NOT_FOUND"
    assert json.loads(problem)["metadata"]["keys[0]"] == "'kng'"
    (info, _) = json.loads(connect)["details"]
    assert info["debug"]["reason"] == "KEY_NOT_FOUND"
    assert json.loads(added) == json.loads(again) == {"lsn": served.lsn(), "version": 1}
