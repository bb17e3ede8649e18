"""How what isn't a request, or none that this server takes, is refused, and what comes first."""

import json
import re
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from gatherd_server.http.fast.connection import fast_protocol
from gatherd_server.http.fast.routes import FastRoutes
from gatherd_server.http.stream import LINGER_BYTES_MAX
from support.small_engine import SmallEngine, small_engine
from support.training_engine import Training, training
from support.web_server import web_server

SECONDS = 20.0
HOST = b"Host: a\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
UPGRADE = b"Connection: upgrade\r\nUpgrade: x\r\n"
REST = b"/v1/tables/items:lookup"
CONNECT = b"/gatherd.v1.EmbeddingService/Lookup"
UPDATE = b"POST /v1/tables/items:assign HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
ASSIGN = json.dumps({"ids": [1], "values": [[1.0, 2.0, 3.0, 4.0]]}).encode()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "asgi"])
def url(request: pytest.FixtureRequest, small: SmallEngine) -> Iterator[str]:
    with web_server(small, is_fast=request.param, timeout_keep_alive=1) as url:
        yield url


@pytest.fixture(params=[True, False], ids=["fast", "asgi"])
def pushed(request: pytest.FixtureRequest) -> Iterator[tuple[str, Training]]:
    """A server that takes updates."""
    trained = training()
    with web_server(trained, is_fast=request.param) as url:
        yield url, trained


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), parts.port or 0), timeout=SECONDS)


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def answered(url: str, data: bytes) -> bytes:
    """All that comes back until the server closes."""
    with connected(url) as sock:
        sock.sendall(data)
        return read_all(sock)


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer)]


def get(path: bytes = b"/healthz", version: bytes = b"1.1", headers: bytes = HOST) -> bytes:
    return b"GET %b HTTP/%b\r\n%b\r\n" % (path, version, headers)


REFUSED = {
    "no Host": (b"POST %b HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"POST %b HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "a host that is none": (b"POST %b HTTP/1.1\r\nHost: a/b@c\r\n\r\n", 400),
    "two hosts in HTTP/1.0": (b"POST %b HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "HTTP/2.0": (b"POST %b HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/0.9": (b"POST %b HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "no version": (b"POST %b\r\n\r\n", 505),
    "two lengths": (
        b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400,
    ),
    "a coding in HTTP/1.0": (b"POST %b HTTP/1.0\r\n" + TE + b"\r\n0\r\n\r\n", 400),
    "another coding": (
        b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501,
    ),
    "another coding and an upgrade": (
        b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n" + UPGRADE + b"\r\n", 501,
    ),
    "a tunnel": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n", 501),
    "a method of RTSP": (b"SETUP %b RTSP/1.0\r\n\r\n", 501),
    "no path": (b"POST http://a?%b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "chunks that are none": (b"POST %b HTTP/1.1\r\nHost: a\r\n" + TE + b"\r\nmany\r\n", 400),
    "too many headers": (b"POST %b HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
    "too long a header": (b"POST %b HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "an endless header": (b"POST %b HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 800_000, 431),
    "HTTP/2's begin": (b"PRI * HTTP/2.0\r\n\r\nSM%b\r\n\r\n", 400),
    "nonsense": (b"nonsense %b\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize("path", [REST, CONNECT])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why_as_its_wire_does(url: str, name: str, path: bytes) -> None:
    form, status = REFUSED[name]
    request = form % path
    answer = answered(url, get(version=b"1.1") + request + get())
    assert statuses(answer) == [200, status]
    head, _, body = answer[answer.index(b"HTTP/1.1 ", 1) :].partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\nx-request-id: " in head
    said = json.loads(body)
    if request.split(b" ")[0] in (b"POST", b"SETUP") and b" " + CONNECT in request[:50]:
        assert b"\r\ncontent-type: application/json" in head
        assert said["code"] in ("invalid_argument", "unimplemented", "resource_exhausted")
        assert said["message"]
    else:
        assert b"\r\ncontent-type: application/problem+json" in head
        assert said["status"] == status
        assert said["detail"]


def test_http_1_0_needs_no_host_and_gets_no_continue(url: str) -> None:
    request = b"POST /v1/tables HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"
    answer = answered(url, request)
    assert len(statuses(answer)) == 1
    assert statuses(answer)[0] != 100
    assert statuses(answered(url, b"GET /healthz HTTP/1.0\r\n\r\n")) == [200]


def test_a_refusal_can_be_read_by_who_goes_on_sending(url: str) -> None:
    head = b"POST /v1/lookup HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"
    with connected(url) as sock:
        sock.sendall(head)
        for _ in range(4):
            sock.sendall(bytes(LINGER_BYTES_MAX // 8))
            time.sleep(0.02)
        assert statuses(read_all(sock)) == [501]


@pytest.mark.parametrize("begin", [b"", get(), get() + get(b"/v1/tables")])
def test_blank_lines_hold_no_connection_open(small: SmallEngine, begin: bytes) -> None:
    http = fast_protocol(
        FastRoutes(small.engine), small.admission, small.offload, receive_seconds=1
    )
    with web_server(small, http=http, timeout_keep_alive=1) as url, connected(url) as sock:
        sock.sendall(begin)
        ends_at = time.monotonic() + SECONDS
        try:
            while time.monotonic() < ends_at:
                sock.sendall(b"\r\n")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            return
        raise AssertionError("still open")


@pytest.mark.parametrize(
    "garbage",
    [b"garbage\r\n\r\n", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_an_update_with_garbage_behind_it_is_answered(
    pushed: tuple[str, Training], garbage: bytes, count: int
) -> None:
    url, trained = pushed
    update = UPDATE + b"Content-Length: %d\r\n\r\n%b" % (len(ASSIGN), ASSIGN)
    answer = answered(url, update * count + garbage)
    assert statuses(answer) == [200] * count + [400]
    assert len(trained.engine.asked.pushes) == count


@pytest.mark.parametrize(
    "end", [b"5\r\nabc", b"many\r\n", b"-1\r\n\r\n", b"0\r\nno header\r\n\r\n"]
)
def test_an_update_whose_body_is_none_is_not_done(pushed: tuple[str, Training], end: bytes) -> None:
    url, trained = pushed
    update = UPDATE + TE + b"\r\n%x\r\n%b\r\n%b" % (len(ASSIGN), ASSIGN, end)
    with connected(url) as sock:
        sock.sendall(update)
        sock.sendall(b"\r\nabcdefg" * 10)
        assert statuses(read_all(sock)) == [400]
    assert not trained.engine.asked.pushes
