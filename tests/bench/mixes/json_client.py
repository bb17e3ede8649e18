"""A client of REST's JSON that costs next to nothing: one socket, no HTTP library, orjson."""

import socket
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.mixes.asks import EVERYTHING

_RECEIVE = 1 << 20


class JsonClient:
    """Asks one after the other, and sleeps while it waits."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        assert where.hostname is not None
        assert where.port is not None
        self._socket = socket.create_connection((where.hostname, where.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = where.netloc.encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def rows(self, batch: Any) -> NDArray[np.float32]:
        """The rows of `batch.ids`, a `lookups.OneTable`'s."""
        body = orjson.dumps({"ids": batch.ids}, option=orjson.OPT_SERIALIZE_NUMPY)
        head = (
            b"POST /v1/tables/%b:lookup HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"Accept: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        self._socket.sendall(head % (EVERYTHING.encode(), self._host, len(body)) + body)
        return np.array(orjson.loads(self._reply())["vectors"], np.float32)

    def _reply(self) -> bytes:
        received = bytearray()
        while (begin := received.find(b"\r\n\r\n") + 4) < 4:
            received += self._more()
        head = bytes(received[:begin]).lower()
        if not head.startswith(b"http/1.1 200"):
            raise AssertionError(f"JSON was answered with {head!r}")
        size = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        while len(received) < begin + size:
            received += self._more()
        return bytes(received[begin:])

    def _more(self) -> bytes:
        data = self._socket.recv(_RECEIVE)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data
