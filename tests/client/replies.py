"""A server whose replies differ in form and version as a test says, and what it may say."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from client.clients import ITEMS, WORDS, word
from client.fakes import FakeService, error_document
from client.scripted import read_request
from gatherd import GatherdError

USUAL = "HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: {n}\r\ncontent-type: application/proto\r\n"


@dataclass(frozen=True)
class Reply:
    """The answer to the next request."""

    head: str = USUAL
    cuts: tuple[float, ...] = ()
    version: int = 7
    surplus: bytes = b""
    chunked: bool = False
    truncated: float | None = None
    stall: bool = False  # until the client goes


HEADS = (
    USUAL,
    USUAL,
    USUAL.replace("server: x", "date: now"),
    USUAL.replace("content-length", "Content-LENGTH").replace(": {n}", ":\t{n} "),
    "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + USUAL,
    USUAL + "connection: close\r\n",
)
whole_replies = st.builds(
    Reply,
    head=st.sampled_from(HEADS),
    cuts=st.lists(st.floats(0, 1), max_size=4).map(lambda cuts: tuple(sorted(cuts))),
    version=st.sampled_from([7, 7, 7, 8, 300]),
    surplus=st.sampled_from([b"", b"", b"", b"x", b"HTTP/1.1 200 OK\r\n\r\n"]),
    chunked=st.sampled_from([False, False, False, True]),
    truncated=st.none() | st.none() | st.floats(0, 0.999),
)


KEYS: dict[str, list[Any]] = {
    "words": [word(row).encode() for row in range(500)],
    "items": [*range(7, 327, 8)],
}


class Server:
    """Answers each request as the test says, on as many connections as it takes."""

    def __init__(self) -> None:
        self.service = FakeService({"words": WORDS, "items": ITEMS}, KEYS)
        self.replies: list[Reply] = []
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while self._answer(connection):
                    pass
            except OSError:
                pass  # the client closed it, as it must after some of these

    def _answer(self, connection: socket.socket) -> bool:
        head, request = read_request(connection)
        if not head:
            return False
        reply = self.replies.pop(0) if self.replies else Reply()
        self.service.version = reply.version
        self.requests.append(request)
        try:
            body = self.service.handle(head.split()[1].decode(), request)
        except GatherdError as error:
            connection.sendall(_error(error))
            return True
        if reply.chunked:
            start = reply.head.replace("content-length: {n}", "transfer-encoding: chunked")
            start = start.replace("Content-LENGTH:\t{n} ", "transfer-encoding: chunked")
            sent = f"{start}\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        else:
            sent = f"{reply.head.format(n=len(body))}\r\n".encode() + body
        if reply.truncated is not None:
            connection.sendall(sent[: int(reply.truncated * len(sent))])
            return reply.stall and bool(connection.recv(1))
        sent += reply.surplus
        places = [0, *(int(cut * len(sent)) for cut in reply.cuts), len(sent)]
        for begin, end in pairwise(places):
            connection.sendall(sent[begin:end])
        return "close" not in reply.head


def _error(error: GatherdError) -> bytes:
    status, document = error_document(error)
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(document)}\r\n\r\n".encode() + document


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


# In one piece: bytes that come later would be taken for the next response, and no client could know
# better.
replies = whole_replies.map(lambda one: replace(one, cuts=()) if one.surplus else one)
