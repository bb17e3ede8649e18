"""The access log has a line for each request of every wire, and is off unless asked for."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import TableNotFound
from gatherd_server.access.token_file import add_token, make_grant
from gatherd_server.observe.logs import LogFormat, stderr_in
from support.cli import invoke
from support.server import RunningServer, run_cli, wait_until


class Logged:
    """A server with an access log in JSON, and what it logged."""

    def __init__(self, server: RunningServer, log: Path, token: str) -> None:
        self.server, self.log, self.token = server, log, token

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def of(self, request_id: str) -> dict[str, Any]:
        """The one line of a request."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [
                one
                for one in self.lines()
                if one["logger"] == "gatherd.access" and one["request_id"] == request_id
            ]
            return bool(found)

        wait_until(is_there, f"the line of {request_id}")
        (line,) = found
        return line


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("access")
    np.save(folder / "w.npy", np.ones((3, 2), np.float32))
    size = ("--rows", "3", "--dim", "2", "--optimizer", "sgd")
    invoke("create", "items", *size, "--data-dir", folder / "data")
    token = add_token(
        folder / "tokens", make_grant("ranker", ["read", "update"], ["*"], None, None)
    )
    options = ("--log-format", "json", "--access-log", "--log-level", "warning", "--reflection")
    place = (f"w={folder}/w.npy", "--data-dir", folder / "data", "--tokens", folder / "tokens")
    with RunningServer(*place, *options, log_path=folder / "log") as server:
        yield Logged(server, folder / "log", token)


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_lookup_and_a_push_of_the_sdk_are_lines(logged: Logged, wire: str) -> None:
    url = getattr(logged.server, wire)
    headers = {"x-request-id": f"{wire}-1"}
    with Client(url, token=logged.token, headers=headers) as client:
        client.lookup("w", [1, 2])
    line = logged.of(f"{wire}-1")
    assert line["path"] == "/gatherd.v1.EmbeddingService/Lookup"
    assert (line["method"], line["status"]) == (
        ("POST", "200") if wire == "http" else ("gRPC", "ok")
    )
    assert (line["tables"], line["caller"]) == (["w"], "ranker")
    assert line["ms"] > 0
    assert line["request_bytes"] > 16
    assert line["reply_bytes"] > 16
    with Client(url, token=logged.token, headers={"x-request-id": f"{wire}-2"}) as client:
        client.scatter_add("items", [1], [[1, 1]])
    line = logged.of(f"{wire}-2")
    assert (line["tables"], line["path"].rpartition("/")[2]) == (["items"], "ScatterAdd")
    with (
        Client(url, token=logged.token, headers={"x-request-id": f"{wire}-3"}) as client,
        pytest.raises(TableNotFound),
    ):
        client.lookup("nope", [1])
    line = logged.of(f"{wire}-3")
    assert line["status"] in ("404", "not_found")
    assert line["tables"] == ["nope"]


def test_a_refused_caller_is_a_line_on_both_wires(logged: Logged) -> None:
    named = {"x-request-id": "refused-1", "authorization": "Bearer wrong"}
    assert httpx.get(f"{logged.server.http}/v1/tables/w", headers=named).status_code == 401
    line = logged.of("refused-1")
    assert (line["status"], line["caller"], line["tables"]) == ("401", "-", [])
    target = logged.server.grpc.removeprefix("grpc://")
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary("/gatherd.v1.EmbeddingService/Lookup")
        with pytest.raises(grpc.RpcError):
            call(b"", metadata=(("x-request-id", "refused-2"),))
    line = logged.of("refused-2")
    assert (line["status"], line["caller"]) == ("unauthenticated", "-")


def test_a_client_cannot_write_lines_of_its_own(logged: Logged) -> None:
    named = {"x-request-id": "forged-1", "authorization": f"Bearer {logged.token}"}
    path = "/v1/tables/a%0A%7B%22time%22:lookup"
    httpx.post(f"{logged.server.http}{path}", json={"ids": [1]}, headers=named)
    line = logged.of("forged-1")
    assert line["path"] == path
    assert all("\n" not in name for name in line["tables"])


def test_everything_on_standard_error_is_json(logged: Logged) -> None:
    for one in logged.lines():
        assert {"time", "level", "logger", "pid", "message"} <= set(one)


def test_a_start_that_fails_says_so_in_json(tmp_path: Path) -> None:
    for arguments, code in ((("w=none.npy",), 6), (("w=none.npy", "--workers", "0"), 2)):
        done = run_cli("serve", *arguments, "--log-format", "json", check=False)
        (line,) = done.stderr.splitlines()
        assert json.loads(line)["level"] == "critical"
        assert (done.returncode, done.stdout) == (code, "")


def test_lines_of_others_become_json(capfd: pytest.CaptureFixture[str]) -> None:
    with stderr_in(LogFormat.JSON):
        os.write(2, b"E0000 a line of grpc's core\n\nhalf ")
        os.write(2, b'a line\n{"time": "now", "message": "ours"}\n{"name": "span"}\nthe \xff rest')
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [one.get("message") for one in told] == [
        "E0000 a line of grpc's core",
        "half a line",
        "ours",
        None,
        "the \ufffd rest",
    ]
    assert told[0]["logger"] == "stderr"
    print("after", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "after\n"


def test_text_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with stderr_in(LogFormat.TEXT):
        os.write(2, b"as it is\n")
    assert capfd.readouterr().err == "as it is\n"
