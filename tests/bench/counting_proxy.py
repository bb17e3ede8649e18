"""Bytes on the wire: a TCP relay that counts what passes, both ways."""

import socket
import threading
from types import TracebackType
from typing import Self


class CountingProxy:
    """Listens on `address` and relays to `upstream`; `sent` and `received` are the asker's bytes.

    Use it as a context manager. Headers of what is above TCP count, TCP's own don't.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: str = ":".join(map(str, self._listener.getsockname()))
        self.sent = self.received = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()

    def reset(self) -> None:
        """Count from zero."""
        self.sent = self.received = 0

    def _accept(self) -> None:
        while True:
            try:
                asker, _ = self._listener.accept()
            except OSError:
                return
            answerer = socket.create_connection(self._upstream)
            for pair in ((asker, answerer, True), (answerer, asker, False)):
                threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        try:
            while data := source.recv(1 << 18):
                # Counted before it is passed on: who has the reply also sees its bytes counted.
                if asks:
                    self.sent += len(data)
                else:
                    self.received += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()
