"""Raw bytes to two servers of the same tables, with and without the fast path: one answer.

Whatever the fast path does not take must be what ASGI makes of it, and what it takes must be
answered as ASGI would; bytes that both refuse are refused alike. h11 says how many requests there
are in the bytes: where there are more answers, somebody's body was read as a request.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fuzz.target import Target
from support.http_judge import End, judged
from support.small_engine import lookup_request, small_engine
from support.web_server import web_server

SECONDS = 10.0
ANSWER_BYTES_MAX = 4 << 20
CONNECT = b"/gatherd.v1.EmbeddingService/Lookup"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
# A server that says nothing for so long waits for more.
IDLE_SECONDS = 0.3
# RFC 9112, 3, lets a server take several blanks in a request line for one; h11 doesn't.
EXTRA_SPACE = re.compile(rb"(?m)^([A-Z]+)  +(\S+ HTTP/1)")
SERVER_ERROR = re.compile(rb"HTTP/1\.1 5(?!01|03|04|05)[0-9]{2} ")


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
        request(CONNECT, kinds[0], proto, b"Connection: upgrade", b"Upgrade: h2c") + one,
        one + b"\r\n" + one + b"\r\n" + one,
    ]


def exchange(url: str, data: bytes) -> tuple[bytes, bool]:
    """What the server answers to `data` and a last request, and whether that ended it.

    It doesn't where `data` ends in the middle of a request, which takes the last one in.
    """
    parts = urlsplit(url)
    answer = b""
    with socket.create_connection((parts.hostname, parts.port or 0), SECONDS) as connection:
        try:
            connection.sendall(data + LAST)
            connection.settimeout(IDLE_SECONDS)
            while part := connection.recv(1 << 16):
                answer += part
                assert len(answer) <= ANSWER_BYTES_MAX
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused while it was being sent
        except TimeoutError:
            return answer, False
    return answer, True


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """The one of this file."""
    served = small_engine(folder)
    with ExitStack() as stack:
        fast = stack.enter_context(web_server(served))
        asgi = stack.enter_context(web_server(served, is_fast=False))

        def check(data: bytes) -> None:
            (answer, is_ended), (twin, has_twin_ended) = (
                exchange(url, data) for url in (fast, asgi)
            )
            assert not SERVER_ERROR.search(answer), answer[:300]
            assert not SERVER_ERROR.search(twin), twin[:300]
            if is_ended and has_twin_ended:
                assert statuses(answer) == statuses(twin)
            reads, end = judged(EXTRA_SPACE.sub(rb"\1 \2", data + LAST))
            # One is refused, or answered before its body is there.
            allowed = len(reads) + (end in (End.REFUSED, End.MORE))
            assert len(statuses(answer)) <= allowed, (statuses(answer), reads)

        yield [Target("fast http", seeds(), check)]


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 ((?!100)[0-9]{3}) ", answer)
