"""A server that answers each connection by a script, and helpers for the scripts."""

import socket
import threading
from collections.abc import Callable

# The first byte of a record of TLS that begins a connection.
_TLS_HANDSHAKE = b"\x16"


class ScriptedServer:
    """Answers the n-th connection with the n-th script, then closes it.

    A script is a function of the connected socket; `read_request` helps it. A connection that asks
    for TLS is closed and not counted: a client makes one after its first was closed unanswered.
    """

    def __init__(self, *scripts: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._scripts = scripts
        self._thread = threading.Thread(target=self._serve)
        self.failure: BaseException | None = None
        self.connections = 0

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        # Wakes an accept() that got no connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        if self.failure is not None:
            raise self.failure

    def _accept(self) -> socket.socket:
        while True:
            connection, _ = self._listener.accept()
            try:
                if connection.recv(1, socket.MSG_PEEK) != _TLS_HANDSHAKE:
                    return connection
            except ConnectionError:
                return connection
            connection.close()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection = self._accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                try:
                    script(connection)
                except ConnectionError:
                    pass
                except BaseException as error:  # noqa: BLE001 - given to the test's thread
                    self.failure = error
                    return


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """One request's head and body; (b"", b"") if the client closed instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b"", b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def ok(body: bytes, extra: str = "") -> bytes:
    """A 200 of protobuf."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: {len(body)}\r\n"
    return (head + extra + "\r\n").encode() + body
