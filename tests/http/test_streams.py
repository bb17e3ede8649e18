"""How a connection's bytes split into requests, with and without the fast path, judged by h11.

What h11 reads as so many requests gets as many answers, each to its own body; what h11 refuses is
refused. Where the server refuses what h11 takes, the table says so: RFC 9112 lets a server do that,
or demands it.
"""

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatherd_server.http.app import create_app
from support.http_judge import End, Read, judged
from support.small_engine import SmallEngine, small_engine
from support.web_server import web_server

SECONDS = 20.0
# Drawn for each server; `make test-streams` draws 2,500.
STREAMS = int(os.environ.get("HTTP_STREAMS", "125"))
OCTETS = "application/octet-stream"
LOOKUP = b"/v1/tables/words:lookup"
REFUSALS = (400, 431, 501, 505)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSING_TRAILER = b"0\r\nConnection: close\r\n"
LAST = b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Recorder:
    """An application that echoes at /echo, answers without reading at /unread, and serves /v1."""

    def __init__(self, served: SmallEngine) -> None:
        self._inner = create_app(served.engine, served.admission, served.offload)
        self.seen: list[tuple[str, str, bytes]] = []
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, body = scope["path"], b""
        if path.startswith("/v1/"):
            await self._inner(scope, receive, send)
            return
        while path != "/unread":
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope["method"], path, body))
        self.headers = scope["headers"]
        answer = b"" if path == "/unread" else scope["method"].encode() + b" " + body
        length = (b"content-length", b"%d" % len(answer))
        status = 401 if path == "/unread" else 200
        await send({"type": "http.response.start", "status": status, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})


@dataclass(frozen=True)
class Server:
    url: str
    recorder: Recorder
    served: SmallEngine


@pytest.fixture(scope="module", params=["fast", "asgi"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    served = small_engine(tmp_path_factory.mktemp("tables"))
    recorder = Recorder(served)
    with web_server(served, app=recorder, is_fast=request.param == "fast") as url:
        yield Server(url, recorder, served)


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    sock = socket.create_connection((str(parts.hostname), parts.port or 0), timeout=SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def answers_in(data: bytes, methods: Iterable[bytes]) -> tuple[list[Answer], bytes]:
    """The answers to requests of such methods, and the bytes that are no whole one."""
    answers: list[Answer] = []
    of = iter(methods)
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        assert line.startswith(b"HTTP/1.1 "), data[:200]
        status = int(line[9:12])
        if status == 100:
            data = rest
            continue
        pairs = [header.split(b": ", 1) for header in lines]
        headers = {name.lower(): value for name, value in pairs}
        length = int(headers[b"content-length"])
        if next(of, b"") == b"HEAD" and status not in REFUSALS:
            length = 0
        if len(rest) < length:
            break
        answers.append(Answer(status, headers, rest[:length]))
        data = rest[length:]
    return answers, data


def exchanged(
    url: str, pieces: list[bytes], reads: list[Read], end: End, *, may_reset: bool
) -> tuple[list[Answer], bool]:
    """All answers to a stream that comes in `pieces`, until the server closes; whether it reset."""
    methods = [read.method for read in reads]
    with connected(url) as sock:
        answer = b""
        try:
            for piece in pieces:
                sock.sendall(piece)
                if len(pieces) > 1:
                    time.sleep(0.002)  # to be read apart; together they are as right
            while end in (End.MORE, End.IDLE):
                answers, _ = answers_in(answer, methods)
                if len(answers) >= len(reads):
                    # What isn't complete never will be.
                    sock.shutdown(socket.SHUT_WR)
                    break
                piece = sock.recv(1 << 20)
                assert piece, f"closed after {answer!r}"
                answer += piece
                if b"connection: close\r\n" in piece:
                    break
            while piece := sock.recv(1 << 20):
                answer += piece
        except (BrokenPipeError, ConnectionResetError):
            assert may_reset, answer
            return answers_in(answer, methods)[0], True
    answers, left = answers_in(answer, methods)
    assert not left
    return answers, False


def assert_is_answer(answer: Answer, read: Read, rows: Any) -> None:
    path = read.target.partition(b"?")[0]
    if path == b"/unread":
        assert answer.status == 401
    elif path == b"/echo":
        assert answer.status == 200
        if read.method != b"HEAD":
            assert answer.body == read.method + b" " + read.body
    else:
        assert path == LOOKUP
        if read.method != b"POST":
            assert answer.status == 405
            return
        ids = np.frombuffer(read.body[: len(read.body) // 8 * 8], "<i8")
        if len(read.body) % 8 or (ids < 0).any() or (ids >= len(rows)).any():
            assert answer.status == 422
        else:
            assert answer.status == 200
            assert answer.body == rows[ids].tobytes()


def assert_refuses(answer: Answer) -> None:
    assert answer.status in REFUSALS, answer
    assert answer.headers[b"connection"] == b"close"
    assert answer.headers[b"content-type"] == b"application/problem+json"
    assert answer.headers[b"x-request-id"]
    assert b'"detail"' in answer.body


def assert_reads_as_h11(
    server: Server, data: bytes, pieces: list[bytes] | None = None, *, may_refuse: bool = False
) -> None:
    reads, end = judged(data)
    server.recorder.seen.clear()
    # Whoever says that a request is the last one and sends on may find the connection closed.
    may_reset = bool(re.search(rb"Connection: close|HTTP/1.0", data[: -len(LAST)]))
    answers, is_reset = exchanged(
        server.url, pieces or [data], reads, end, may_reset=may_reset and len(pieces or []) > 1
    )
    rows = server.served.rows["words"]
    refused = bool(answers) and answers[-1].status in REFUSALS
    # Answered before its body came, which then is none: there is no second answer.
    is_early = len(answers) == len(reads) + 1 and answers[-1].status == 401
    if refused:
        assert_refuses(answers.pop())
        assert may_refuse or end in (End.REFUSED, End.MORE)
    elif is_early:
        assert end in (End.REFUSED, End.MORE)
        answers.pop()
    else:
        is_over = is_reset or CLOSING_TRAILER in data or (may_refuse and answers[-1].status == 401)
        assert end is not End.REFUSED or is_over, answers
    assert len(answers) == len(reads) or ((may_refuse or is_reset) and len(answers) < len(reads))
    for answer, read in zip(answers, reads, strict=False):
        assert_is_answer(answer, read, rows)
    known = [(read.method.decode(), read.target.decode(), read.body) for read in reads]
    for method, path, body in server.recorder.seen:
        assert path == "/unread" or (method, path, body) in known


# The framings of one body: its header lines, and how it stands on the wire. `True` where the server
# refuses what h11 takes, or closes behind it. By RFC 9112: two lengths, even equal ones, a length
# and a coding (6.3), folded headers (5.2), lines that end in LF (2.2), codings in HTTP/1.0 (6.1),
# blanks behind a chunk's size, trailers that would frame or close.
Framing = tuple[bytes, bytes, bool]


def chunk(body: bytes, *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    half = len(body) // 2
    chunks = [part for part in (body[:half], body[half:]) if part]
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in chunks)
    return coded + b"0%b\r\n%b\r\n" % (extension, trailers)


def framings(body: bytes) -> dict[str, Framing]:
    size, te = len(body), b"Transfer-Encoding: chunked\r\n"
    length = b"Content-Length: %d\r\n" % size
    coded = chunk(body)
    return {
        "length": (length, body, False),
        "length in zeros": (b"Content-Length: 000%d\r\n" % size, body, False),
        "length, in other cases": (b"cONTENT-lENGTH:%d\r\n" % size, body, False),
        "length and tab": (b"Content-Length:\t%d\t \r\n" % size, body, False),
        "length twice": (length * 2, body, True),
        "two lengths": (length + b"Content-Length: 1\r\n", body, True),
        "list of lengths": (b"Content-Length: %d, %d\r\n" % (size, size), body, True),
        "length with plus": (b"Content-Length: +%d\r\n" % size, body, False),
        "length with minus": (b"Content-Length: -%d\r\n" % size, body, False),
        "length in hex": (b"Content-Length: 0x%x\r\n" % size, body, False),
        "length in two words": (b"Content-Length: 1 %d\r\n" % size, body, False),
        "length with underscore": (b"Content-Length: 1_0\r\n", body, False),
        "no length in it": (b"Content-Length:\r\n", body, False),
        "a length that overflows": (b"Content-Length: %d\r\n" % (2**64 + size), body, True),
        "folded length": (b"Content-Length:\r\n %d\r\n" % size, body, True),
        "blank before the colon": (b"Content-Length : %d\r\n" % size, body, False),
        "NUL in the name": (b"Content-Length\0: %d\r\n" % size, body, False),
        "length behind a bare CR": (b"X: y\rContent-Length: %d\r\n" % size, body, False),
        "length behind a bare LF": (b"X: y\nContent-Length: %d\r\n" % size, body, True),
        "length begins with a blank": (b"X: y\r\n Content-Length: %d\r\n" % size, b"", True),
        "chunks": (te, coded, False),
        "chunks, in other cases": (b"transfer-encoding:  CHUNKED \r\n", coded, False),
        "chunks with extensions": (te, chunk(body, extension=b";a=b;c"), False),
        "chunks with quoted ones": (te, chunk(body, extension=b';a="b;c"'), False),
        "trailers": (te, chunk(body, trailers=b"X-Sum: 1\r\nHost: b\r\n"), False),
        "trailer that closes": (te, chunk(body)[:-5] + CLOSING_TRAILER + b"\r\n", True),
        "trailer with a length": (te, chunk(body, trailers=b"Content-Length: 5\r\n"), True),
        "trailer with a coding": (te, chunk(body, trailers=b"Transfer-Encoding: x\r\n"), True),
        "trailer that upgrades": (
            te, chunk(body, trailers=b"Connection: upgrade\r\nUpgrade: x\r\n"), False,
        ),
        "chunks and a length": (te + length, coded, True),
        "a length and chunks": (length + te, coded, True),
        "chunks twice": (te * 2, coded, False),
        "chunked, chunked": (b"Transfer-Encoding: chunked, chunked\r\n", coded, False),
        "gzip, chunked": (b"Transfer-Encoding: gzip, chunked\r\n", coded, False),
        "chunked, gzip": (b"Transfer-Encoding: chunked, gzip\r\n", coded, False),
        "gzip": (b"Transfer-Encoding: gzip\r\n", coded, False),
        "identity": (b"Transfer-Encoding: identity\r\n", coded, False),
        "xchunked": (b"Transfer-Encoding: xchunked\r\n", coded, False),
        "chunked in quotes": (b'Transfer-Encoding: "chunked"\r\n', coded, False),
        "vertical tab": (b"Transfer-Encoding: \x0bchunked\r\n", coded, False),
        "no coding in it": (b"Transfer-Encoding:\r\n", coded, False),
        "folded coding": (b"Transfer-Encoding:\r\n chunked\r\n", coded, True),
        "size with blanks": (te, b"%x  \r\n%b\r\n0\r\n\r\n" % (size or 1, body or b"a"), True),
        "blanks before the size": (te, b" %x\r\n%b\r\n0\r\n\r\n" % (size, body), False),
        "size with plus": (te, b"+%x\r\n%b\r\n0\r\n\r\n" % (size, body), False),
        "size in 0x": (te, b"0x%x\r\n%b\r\n0\r\n\r\n" % (size, body), False),
        "size that overflows": (te, b"1%016x\r\n%b\r\n0\r\n\r\n" % (size, body), True),
        "no size": (te, b"\r\n%b\r\n0\r\n\r\n" % body, False),
        "chunk that is too long": (te, b"1\r\n%b\r\n0\r\n\r\n" % (body + b"ab"), False),
        "chunk without its end": (te, b"%x\r\n%b0\r\n\r\n" % (size or 1, body or b"a"), False),
        "chunk lines end in LF": (te, b"%x\n%b\n0\n\n" % (size or 1, body or b"a"), True),
        "extension ends in LF": (te, b"1;a\nb\r\n0\r\n\r\n", False),
        "no framing": (b"", b"", False),
    }  # fmt: skip


UPGRADES = {
    "no upgrade": b"",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
    "anything": b"Upgrade: a/1, b\r\nConnection: keep-alive\r\nConnection: upgrade\r\n",
    "expectation": b"Expect: 100-continue\r\n",
    "last": b"Connection: close\r\n",
    "last upgrade": b"Connection: close, upgrade\r\nUpgrade: x\r\n",
}
LINES = {
    "POST /echo": b"POST /echo HTTP/1.1\r\n",
    "GET /echo": b"GET /echo HTTP/1.1\r\n",
    "HEAD /echo": b"HEAD /echo HTTP/1.1\r\n",
    "DELETE /unread": b"DELETE /unread HTTP/1.1\r\n",
    "POST /unread": b"POST /unread HTTP/1.1\r\n",
    "lookup": b"POST %b HTTP/1.1\r\nContent-Type: %b\r\nAccept: %b\r\n"
    % (LOOKUP, OCTETS.encode(), OCTETS.encode()),
    "old": b"POST /echo HTTP/1.0\r\n",
    "old, kept": b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\n",
}
NAMES = list(framings(b""))
# For a lookup the smuggled request is ids without rows, and the other one has some.
BODIES = (SMUGGLED + b"ab", np.array([3, 4_999]).astype("<i8").tobytes(), b"")


def made(line: str, name: str, upgrade: str, body: bytes) -> tuple[bytes, bool]:
    """A request, and whether the server may refuse it though h11 takes it."""
    headers, coded, may_refuse = framings(body)[name]
    # A coding in HTTP/1.0.
    may_refuse |= line.startswith("old") and b"ransfer-" in headers.lower()
    return LINES[line] + b"Host: a \r\n" + UPGRADES[upgrade] + headers + b"\r\n" + coded, may_refuse


@pytest.mark.parametrize("name", NAMES)
def test_every_framing_is_read_as_h11_reads_it(server: Server, name: str) -> None:
    for line in LINES:
        for upgrade in UPGRADES:
            for body in BODIES:
                data, may_refuse = made(line, name, upgrade, body)
                assert_reads_as_h11(server, data + LAST, may_refuse=may_refuse)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bool]:
    """Requests behind one another, in pieces cut anywhere or between them."""
    parts: list[bytes] = []
    may_refuse = False
    for _ in range(draw(st.integers(1, 4))):
        data, may = made(
            draw(st.sampled_from(list(LINES))),
            draw(st.sampled_from(NAMES)),
            draw(st.sampled_from(list(UPGRADES))),
            draw(st.sampled_from(BODIES)),
        )
        blank = draw(st.sampled_from((b"", b"", b"\r\n", b"\r\n\r\n")))
        parts += [data + blank] * draw(st.sampled_from((1, 1, 1, 3)))
        may_refuse |= may
    parts.append(LAST)
    if draw(st.booleans()):
        return parts, may_refuse
    data = b"".join(parts)
    cuts = sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)], may_refuse


@settings(
    max_examples=STREAMS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stream=streams())
def test_every_stream_is_read_as_h11_reads_it(
    server: Server, stream: tuple[list[bytes], bool]
) -> None:
    pieces, may_refuse = stream
    assert_reads_as_h11(server, b"".join(pieces), pieces, may_refuse=may_refuse)


def test_trailers_are_no_headers(server: Server) -> None:
    trailers = b"Authorization: Bearer x\r\nContent-Type: text/plain\r\nX-Sum: 1\r\n"
    data = LINES["POST /echo"] + b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert_reads_as_h11(server, data + chunk(b"abc", trailers=trailers))
    assert server.recorder.headers == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]
