"""Raw bytes to two servers of the same tables, with and without the fast path: one answer.

The twin is the judge: whatever the fast path does not take must be what ASGI makes of it, and what
it takes must be answered as ASGI would. Bytes that both refuse are refused alike.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fuzz.target import Target
from support.small_engine import lookup_request, small_engine
from support.web_server import web_server

SECONDS = 10.0
ANSWER_BYTES_MAX = 4 << 20
CONNECT = b"/gatherd.v1.EmbeddingService/Lookup"
_VARYING = re.compile(rb"date: [^\r]*\r\n|x-request-id: [0-9a-f]{32}\r\n", re.IGNORECASE)
_SERVER_ERROR = re.compile(rb"HTTP/1\.1 5(?!01|03|05)[0-9]{2} ")


def request(path: bytes, kind: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Type: " + kind, *headers]
    lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def seeds() -> list[bytes]:
    proto = lookup_request("words", np.arange(3, dtype=np.int64), version=0).SerializeToString()
    octets = np.array([1, 4_999], np.int64).tobytes()
    kinds = (b"application/proto", b"application/octet-stream", b"application/json")
    one = request(CONNECT, kinds[0], proto, b"Connect-Timeout-Ms: 5000")
    return [
        one,
        one * 3,
        request(b"/v1/tables/half:lookup?dtype=float16&shape=2,1", kinds[1], octets[:16]),
        request(b"/v1/tables/words:lookup", kinds[2], b'{"ids": [1, 2]}', b"Connection: close"),
        request(b"/v1/tables/words:lookup", kinds[1], octets, b"Expect: 100-continue"),
        b"POST " + CONNECT + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(proto), proto),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + one,
    ]


def exchange(url: str, data: bytes) -> bytes:
    """Everything that the server answers to `data` and then the end of the stream."""
    parts = urlsplit(url)
    answer = b""
    with socket.create_connection((parts.hostname, parts.port or 0), SECONDS) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                answer += part
                assert len(answer) <= ANSWER_BYTES_MAX
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused while it was being sent
    return _VARYING.sub(b"", answer)


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """The one of this file."""
    served = small_engine(folder)
    with ExitStack() as stack:
        fast = stack.enter_context(web_server(served))
        asgi = stack.enter_context(web_server(served, is_fast=False))

        def check(data: bytes) -> None:
            answers = [exchange(url, data) for url in (fast, asgi)]
            for answer in answers:
                assert not _SERVER_ERROR.search(answer), answer[:300]
            assert statuses(answers[0]) == statuses(answers[1])

        yield [Target("fast http", seeds(), check)]


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer)
