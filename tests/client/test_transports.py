"""The HTTP transports against servers that follow a script, the gRPC one and forks."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.fakes import FakeService, connect_server, grpc_server
from client.scripted import ScriptedServer, ok, read_request
from gatherd import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    GatherdError,
    InternalError,
    Unavailable,
    Unimplemented,
)
from gatherd_proto.v1 import embedding_pb2, table_pb2, tensor_pb2

TABLES = table_pb2.ListTablesResponse(tables=[table_pb2.Table(name="words", dim=2)])
REPLY = TABLES.SerializeToString()
Script = Callable[[socket.socket], None]


def blocking(url: str, **options: Any) -> list[str]:
    with Client(url, **options) as client:
        return [table.name for table in client.tables()]


def awaited(url: str, **options: Any) -> list[str]:
    async def main() -> list[str]:
        async with AsyncClient(url, **options) as client:
            return [table.name for table in await client.tables()]

    return asyncio.run(main())


@pytest.fixture(params=[blocking, awaited])
def tables(request: pytest.FixtureRequest) -> Any:
    return request.param


def answer(*parts: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        for part in parts:
            connection.sendall(part)

    return script


def test_a_reply_is_read_however_it_is_split(tables: Any) -> None:
    raw = ok(REPLY)
    chunked = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"1\r\n%c\r\n" % byte for byte in REPLY)
        + b"0\r\n\r\n"
    )
    for script in (
        answer(raw),
        answer(*(raw[n : n + 1] for n in range(len(raw)))),
        answer(b"HTTP/1.1 100 Continue\r\n\r\n", raw),
        answer(*(chunked[n : n + 1] for n in range(len(chunked)))),
        answer(raw.replace(b"1.1", b"1.0")),
        answer(b"HTTP/1.0 200 OK\r\nContent-Type: application/proto; x=y\r\n\r\n" + REPLY),
    ):
        with ScriptedServer(script) as url:
            assert tables(url) == ["words"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", InternalError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", Unavailable),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, InternalError),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
            InternalError,
        ),
        (ok(REPLY, "Content-Encoding: gzip\r\n"), InternalError),
        (ok(b"\xff\xff"), InternalError),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Unimplemented),
        (b"", Unavailable),
    ],
)
def test_what_is_no_reply_is_a_clear_error(
    tables: Any, reply: bytes, error: type[GatherdError]
) -> None:
    with ScriptedServer(answer(reply)) as url, pytest.raises(error):
        tables(url, retries=0)


def test_an_early_close_is_retried_on_a_new_connection(tables: Any) -> None:
    with ScriptedServer(answer(b"HTTP/1.1 200 OK\r\n"), answer(ok(REPLY))) as url:
        assert tables(url) == ["words"]


def test_a_silent_server_ends_in_deadline_exceeded(tables: Any) -> None:
    done = threading.Event()

    def silent(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        done.wait(10)

    with ScriptedServer(silent) as url:
        try:
            with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.1 seconds"):
                tables(url, timeout=0.1)
        finally:
            done.set()


def close_after_one(closed: threading.Event) -> Script:
    def script(connection: socket.socket) -> None:
        answer(ok(REPLY))(connection)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    return script


def test_a_connection_that_was_closed_while_idle_costs_no_retry() -> None:
    closed = threading.Event()
    with (
        ScriptedServer(close_after_one(closed), answer(ok(REPLY))) as url,
        Client(url, retries=0) as client,
    ):
        client.tables()
        assert closed.wait(10)
        assert client.tables()


def test_a_connection_that_was_closed_while_idle_costs_no_retry_awaited() -> None:
    closed = threading.Event()

    async def main(url: str) -> None:
        async with AsyncClient(url, retries=0) as client:
            await client.tables()
            assert await asyncio.to_thread(closed.wait, 10)
            assert await client.tables()

    with ScriptedServer(close_after_one(closed), answer(ok(REPLY))) as url:
        asyncio.run(main(url))


def test_a_connection_carries_many_requests_until_the_server_says_close(tables: Any) -> None:
    def two(connection: socket.socket) -> None:
        for extra in ("", "Connection: close\r\n"):
            read_request(connection)
            connection.sendall(ok(REPLY, extra))
        assert read_request(connection) == (b"", b"")

    server = ScriptedServer(two, answer(ok(REPLY)))
    with server as url, Client(url) as client:
        for _ in range(3):
            client.tables()
    assert server.connections == 2


def test_a_url_prefix_stands_before_the_method(tables: Any) -> None:
    seen: list[bytes] = []

    def script(connection: socket.socket) -> None:
        seen.append(read_request(connection)[0])
        connection.sendall(ok(REPLY))

    with ScriptedServer(script) as url:
        assert tables(f"{url}/behind/proxy/") == ["words"]
    head = seen[0].decode()
    assert head.startswith("POST /behind/proxy/gatherd.v1.TableService/ListTables HTTP/1.1\r\n")
    assert f"\r\nHost: {url.removeprefix('http://')}\r\n" in head
    assert "\r\nContent-Type: application/proto\r\n" in head


def lookup_reply(**changes: Any) -> bytes:
    tensor = {"dtype": 1, "shape": [1, 2], "data": bytes(8)} | changes.pop("vectors", {})
    message: dict[str, Any] = {"version": 1, "vectors": tensor_pb2.Tensor(**tensor)} | changes
    return bytes(embedding_pb2.LookupResponse(**message).SerializeToString())


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": {"shape": [2, 1]}},
        {"vectors": {"shape": [1]}},
        {"vectors": {"shape": [1, -2]}},
        {"vectors": {"shape": [1, 2, 1]}},
        {"vectors": {"data": bytes(7)}},
        {"vectors": {"data": b""}},
        {"vectors": {"dtype": 2}},
        {"vectors": {"dtype": 99}},
        {"status": b"\0\0"},
        {"status": b""},
    ],
)
def test_a_reply_that_does_not_answer_the_question_is_an_error(changes: dict[str, Any]) -> None:
    sound = {"status": b"\0"}
    with (
        ScriptedServer(answer(ok(lookup_reply(**(sound | changes))))) as url,
        Client(url, retries=0) as client,
        pytest.raises(InternalError, match="reply can't be used: table 'words'"),
    ):
        client.lookup("words", [0], missing="zero")


def test_a_truncated_reply_is_an_error_at_every_byte() -> None:
    raw = lookup_reply()
    scripts = [answer(ok(raw[:end])) for end in range(len(raw))]
    with ScriptedServer(*scripts) as url, Client(url, retries=0) as client:
        for _ in scripts:
            with pytest.raises(InternalError, match="reply can't be used"):
                client.lookup("words", [0])


def test_an_empty_lookup_with_an_impossible_dim_is_an_error() -> None:
    reply = lookup_reply(vectors={"shape": [0, 2**62], "data": b""})
    with (
        ScriptedServer(answer(ok(reply))) as url,
        Client(url, retries=0) as client,
        pytest.raises(InternalError, match="no array can have shape"),
    ):
        client.lookup("words", [])


def test_the_vectors_are_a_view_of_the_received_bytes() -> None:
    with ScriptedServer(answer(ok(lookup_reply()))) as url, Client(url) as client:
        found = client.lookup("words", [0])
    assert found.base is not None
    assert found.flags.writeable
    assert found.flags.aligned


FORK = """
import os, sys
import numpy as np
from gatherd import Client, ForkedClient
client = Client(sys.argv[1])
before = client.lookup("words", [1, 2])
pid = os.fork()
if pid == 0:
    try:
        for _ in range(3):
            assert (client.lookup("words", [1, 2]) == before).all()
        answer = 0
    except ForkedClient as error:
        print(error, flush=True)
        answer = 3
    except BaseException as error:
        print(repr(error), flush=True)
        answer = 1
    os._exit(answer)
for _ in range(3):
    assert (client.lookup("words", [1, 2]) == before).all()
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert (client.lookup("words", [1, 2]) == before).all()
client.close()
sys.exit(status)
"""


@pytest.mark.parametrize(("wire", "status"), [("http", 0), ("unix", 0), ("grpc", 0)])
def test_a_fork(wire: str, status: int, tmp_path: Path) -> None:
    service = FakeService({"words": np.eye(4, dtype=np.float32)})
    servers = {
        "http": lambda: connect_server(service),
        "unix": lambda: connect_server(service, tmp_path / "s"),
        "grpc": lambda: grpc_server(service),
    }
    with servers[wire]() as url:
        done = subprocess.run(
            [sys.executable, "-c", FORK, url], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == status, done.stdout + done.stderr
    if status:
        assert "make a new client in the child" in done.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_https_verifies_the_server(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", "/CN=gatherd test", "-keyout", key,
            "-out", certificate, "-addext", "subjectAltName=IP:127.0.0.1",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    service = FakeService({"words": np.eye(4, dtype=np.float32)})
    with connect_server(service, tls=tls) as url:
        assert url.startswith("https://")
        with pytest.raises(FailedPrecondition, match=r"self.signed certificate"):
            tables(url, retries=0)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert tables(url) == ["words"]
        other = url.replace("127.0.0.1", "localhost")
        with pytest.raises(FailedPrecondition, match="localhost"):
            tables(other, retries=0)
