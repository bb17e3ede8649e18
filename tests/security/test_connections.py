"""What a peer that means no good can hold open, or fill."""

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from gatherd_server.http.connection import (
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    guarded_protocol,
)
from gatherd_server.http.connection_limit import HANDSHAKE_SECONDS, ConnectionLimit
from gatherd_server.http.fast.connection import fast_protocol
from gatherd_server.http.fast.routes import FastRoutes
from gatherd_server.observe.metrics.names import REFUSED_CONNECTIONS as REFUSED
from gatherd_server.wire.compiled.serving import CompiledAnswers
from support.small_engine import SmallEngine, lookup_request, small_engine
from support.web_server import web_server

PATH = "/gatherd.v1.EmbeddingService/Lookup"
SECONDS = 1.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module", params=["fast", "asgi"])
def url(request: pytest.FixtureRequest, served: SmallEngine) -> Iterator[str]:
    """A server that is impatient."""
    if request.param == "fast":
        http = fast_protocol(
            FastRoutes(served.engine),
            CompiledAnswers(served.engine),
            served.admission,
            served.offload,
            SECONDS,
        )
    else:
        http = guarded_protocol(SECONDS, served.admission.telemetry)
    with web_server(served, http=http, limit_concurrency=20) as url:
        yield url


def refused(served: SmallEngine, reason: str) -> int:
    """How many connections were refused for `reason`."""
    recorder = served.admission.telemetry.threads
    recorder.publish()
    counts = {labels: cells[0] for metric, labels, cells in recorder.series() if metric is REFUSED}
    return counts.get((reason,), 0)


def connected(url: str, read_bytes: int | None = None) -> socket.socket:
    parts = urlsplit(url)
    sock = socket.socket()
    sock.settimeout(20)
    if read_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_bytes)
    sock.connect((str(parts.hostname), int(parts.port or 0)))
    return sock


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    try:
        while piece := sock.recv(1 << 16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n".encode()


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /healthz HTT",
        HEAD,
        HEAD + b"Content-Length: 100\r\n\r\n",
        HEAD + b"Content-Length: 100\r\n\r\nabc",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHo",
    ],
)
def test_what_doesnt_come_is_waited_for_so_long_and_no_longer(
    begin: bytes, url: str, served: SmallEngine
) -> None:
    before = refused(served, "slow")
    with connected(url) as sock:
        sock.sendall(begin)
        read_all(sock)  # until the server closes, or this fails by its time-out
    assert refused(served, "slow") == before + 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * (HEAD_BYTES_MAX + 1),
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * (HEAD_BYTES_MAX + 1),
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * (HEADERS_MAX + 1),
    ],
)
def test_a_head_that_is_too_long_is_refused(head: bytes, url: str, served: SmallEngine) -> None:
    before = refused(served, "malformed")
    if head.startswith(b"GET /a"):
        head += b" HTTP/1.1\r\nX: y"
    with connected(url) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 431 ")
    assert refused(served, "malformed") == before + 1


def test_handshakes_that_fail_are_counted_when_they_can_no_longer_succeed(
    served: SmallEngine,
) -> None:
    limit = ConnectionLimit(served.admission.telemetry)
    before = refused(served, "handshake")
    for _ in range(3):
        limit.accepted(100)
    limit.greeted(100)
    limit.accepted(130)
    limit.count_handshakes(int(100 + HANDSHAKE_SECONDS))
    assert refused(served, "handshake") == before
    assert limit.has_handshakes
    limit.count_handshakes(131)
    assert refused(served, "handshake") == before + 2
    limit.greeted(130)
    limit.count_handshakes(200)
    assert refused(served, "handshake") == before + 2
    assert not limit.has_handshakes


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz HTTP/1.1\r\nX: ",
        b"GET /",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",
    ],
)
def test_one_that_never_ends_fills_no_memory(begin: bytes, url: str) -> None:
    with connected(url) as sock:
        sock.sendall(begin)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b"a" * (200 << 20))


def test_who_doesnt_read_is_let_go(url: str) -> None:
    ids = np.arange(40_000) % 5000
    body = lookup_request("words", ids).SerializeToString()
    with connected(url, read_bytes=4096) as sock, httpx.Client() as other:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        ends_at = time.monotonic() + 5 * SECONDS  # long after it has to be closed
        while time.monotonic() < ends_at:
            assert other.get(f"{url}/healthz").status_code == 200
            time.sleep(0.2)
        assert 0 < len(read_all(sock)) < ids.size * 64 * 4


def test_ordinary_requests_arent_hurried(url: str) -> None:
    """Longer than the patience, in requests that each come at once."""
    ends_at = time.monotonic() + 3 * SECONDS
    with httpx.Client() as client:
        while time.monotonic() < ends_at:
            assert client.get(f"{url}/healthz").status_code == 200
            time.sleep(0.3)
