"""At the limit of connections: who was here is served, and strangers make room for each other."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from gatherd_server.access.admission import Admission
from gatherd_server.access.token_file import TokenFile
from gatherd_server.http.connection import guarded_protocol
from gatherd_server.http.fast.connection import fast_protocol
from gatherd_server.http.fast.routes import FastRoutes
from gatherd_server.observe.metrics.names import CLOSED_CONNECTIONS, SHED_REQUESTS
from gatherd_server.types import SPARE_CONNECTIONS
from security.conftest import make_token
from support.server import wait_until
from support.small_engine import lookup_request, small_engine
from support.web_server import web_server

PATH = "/gatherd.v1.EmbeddingService/Lookup"
LIMIT = 20
ROOM = LIMIT + SPARE_CONNECTIONS
POST = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n".encode()


@dataclass(frozen=True)
class Served:
    url: str
    token: str
    admission: Admission

    def connected(self) -> socket.socket:
        parts = urlsplit(self.url)
        sock = socket.socket()
        sock.settimeout(20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((str(parts.hostname), int(parts.port or 0)))
        return sock

    def lookup(self, sock: socket.socket) -> int:
        """Ask for a row on `sock` with the token; the status."""
        body = lookup_request("words", np.array([1])).SerializeToString()
        head = POST + f"Authorization: Bearer {self.token}\r\n".encode()
        sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        reply = HTTPResponse(sock)
        reply.begin()
        reply.read()  # it comes in two segments, and the next answer mustn't begin with the second
        return reply.status

    def counted(self, name: str) -> int:
        recorder = self.admission.telemetry.threads
        return sum(sum(cells) for metric, _, cells in recorder.series() if metric.name == name)


@pytest.fixture(scope="module", params=["fast", "asgi"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("limit")
    token = make_token(folder / "tokens", "one", "--scope", "read", "--table", "*")
    small = small_engine(folder)
    tokens = TokenFile(folder / "tokens")
    admission = Admission(small.admission.limits, tokens, open_metrics=True)
    admission.is_ready = True
    small = replace(small, admission=admission)
    if request.param == "fast":
        http = fast_protocol(FastRoutes(small.engine), admission, small.offload)
    else:
        http = guarded_protocol(20.0, admission.telemetry)
    # Known connections are idle while strangers come, and mustn't be closed for that.
    with web_server(small, http=http, limit_concurrency=LIMIT, timeout_keep_alive=120) as url:
        yield Served(url, token, admission)


@pytest.fixture
def known(served: Served) -> Iterator[list[socket.socket]]:
    """Connections of who has a token, as many as there may be but one."""
    with ExitStack() as stack:
        socks = [stack.enter_context(served.connected()) for _ in range(LIMIT - 1)]
        for sock in socks:
            assert served.lookup(sock) == 200
        yield socks


def is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


STRANGERS = {
    "nothing": b"",
    "half a head": b"GET /healthz HTT",
    "half a body": POST + b"Content-Length: 100\r\n\r\nabc",
    "a wrong token": POST + b"Authorization: Bearer x\r\nContent-Length: 1\r\n\r\na",
    "health": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "never reads": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 200,
}


@pytest.mark.parametrize("sent", STRANGERS.values(), ids=STRANGERS)
def test_strangers_shut_out_nobody(
    sent: bytes, served: Served, known: list[socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    closed_before = served.counted(CLOSED_CONNECTIONS.name)
    began = time.monotonic()
    with ExitStack() as stack, caplog.at_level(logging.WARNING, "gatherd"):
        strangers = []
        for _ in range(2 * ROOM):
            strangers.append(stack.enter_context(served.connected()))
            with suppress(OSError):  # closed for another already
                strangers[-1].sendall(sent)
        # Who was here, somebody new with a token, and who asks for health or metrics.
        for sock in known:
            assert served.lookup(sock) == 200
        with served.connected() as late:
            assert served.lookup(late) == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert httpx.get(served.url + path).status_code == 200
        # Those that were quiet for longest have gone.
        wait_until(lambda: all(map(is_closed, strangers[:ROOM])), "the older half is closed")
        wait_until(lambda: "connections_max" in caplog.text, "the log tells")
    assert served.counted(CLOSED_CONNECTIONS.name) - closed_before >= ROOM
    told = [record for record in caplog.records if "connections_max" in record.getMessage()]
    assert len(told) <= 2 + time.monotonic() - began


def test_known_connections_are_held_to_the_limit(
    served: Served, known: list[socket.socket]
) -> None:
    refused_before = served.counted(SHED_REQUESTS.name)
    with served.connected() as last, served.connected() as beyond:
        assert served.lookup(last) == 200
        assert served.lookup(beyond) == 503
        for path in ("/healthz", "/readyz", "/metrics"):
            assert httpx.get(served.url + path).status_code == 200
        assert served.counted(SHED_REQUESTS.name) == refused_before + 1
        for sock in known:
            assert served.lookup(sock) == 200
        last.close()
        wait_until(lambda: served.lookup(beyond) == 200, "there is room again")


def test_below_the_limit_nobody_is_closed(served: Served) -> None:
    with ExitStack() as stack:
        strangers = [stack.enter_context(served.connected()) for _ in range(LIMIT)]
        assert httpx.get(f"{served.url}/healthz").status_code == 200
        assert not any(map(is_closed, strangers))
