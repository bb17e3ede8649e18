"""A TCP proxy that loses one answer, whatever the protocol."""

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

PIECE_BYTES = 1 << 16


class LosingProxy:
    """Listens on `address`, forwards to `upstream`. Use it as a context manager.

    The first time that a client sends `marker` (in one piece), the server gets it; when `landed`
    returns, the connection is closed, and whatever the server said meanwhile is dropped.
    """

    def __init__(
        self, upstream: tuple[str, int], marker: bytes, landed: Callable[[], None]
    ) -> None:
        self._upstream = upstream
        self._marker = marker
        self._landed = landed
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: str = ":".join(map(str, self._listener.getsockname()[:2]))
        self.has_lost = False
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in (self._listener, *self._sockets):
            _end(one)
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                self._sockets += [client, server]
                is_mute = threading.Event()
                self._begin(partial(self._ask, client, server, is_mute))
                self._begin(partial(_answer, server, client, is_mute))

    def _ask(self, client: socket.socket, server: socket.socket, is_mute: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(PIECE_BYTES):
                with self._lock:
                    loses = self._marker in data and not self.has_lost
                    self.has_lost = self.has_lost or loses
                if loses:
                    is_mute.set()
                    self._begin(partial(self._lose, client, server))
                # The end of the message may be still to come.
                server.sendall(data)
        _end(server)

    def _lose(self, client: socket.socket, server: socket.socket) -> None:
        try:
            self._landed()
        finally:
            _end(client)
            _end(server)


def _answer(server: socket.socket, client: socket.socket, is_mute: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(PIECE_BYTES):
            if not is_mute.is_set():
                client.sendall(data)
    _end(client)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
