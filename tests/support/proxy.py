"""A TCP proxy like a bad network: it doubles HTTP/1.1 requests, delays them, loses replies.

It understands just enough of HTTP to know where a message ends: requests and replies with a
Content-Length. It forwards each request whole, on a connection of its own.
"""

import random
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

CONNECT_SECONDS = 10.0
LATE_SECONDS_MAX = 0.4
# How many copies may be under way at once.
COPIES_MAX = 32


class MischievousProxy:
    """Listens on `address`, forwards to `upstream`. Use it as a context manager.

    To each request one thing happens, drawn by `seed`:

        pass    it is forwarded, and answered
        lose    it is dropped, and the connection closed
        mute    it is forwarded, its reply dropped, and the connection closed
        double  it is forwarded twice at once; the client gets one of the replies
        haunt   it is forwarded and answered, and once or twice more later, after requests that
                came after it
    """

    def __init__(self, upstream: tuple[str, int], seed: int) -> None:
        self._upstream = upstream
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: str = ":".join(map(str, self._listener.getsockname()[:2]))
        self.happened: Counter[str] = Counter()
        self.replies: defaultdict[bytes, list[bytes]] = defaultdict(list)
        """By a request's body, the bodies of all replies that its copies got."""
        self._lock = threading.Lock()
        self._late = ThreadPoolExecutor(COPIES_MAX)

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
        self.settle()

    def settle(self) -> None:
        """Wait until every late copy has been answered."""
        self._late.shutdown(wait=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while (request := read_message(client)) is not None:
                reply = self._handle(request)
                if reply is None:
                    return
                try:
                    client.sendall(reply)
                except OSError:
                    return

    def _handle(self, request: bytes) -> bytes | None:
        """The client's answer; None to close its connection."""
        with self._lock:
            weights = {"pass": 3, "lose": 1, "mute": 2, "double": 2, "haunt": 3}
            (what,) = self._random.choices(list(weights), list(weights.values()))
            pauses = [
                self._random.uniform(0, LATE_SECONDS_MAX)
                for _ in range(self._random.randint(1, 2) if what == "haunt" else 0)
            ]
            self.happened[what] += 1
        if what == "lose":
            return None
        if what == "double":
            pauses = [0.0]
        self._copy_later(request, pauses)
        reply = self._forward(request)
        return None if what == "mute" else reply

    def _copy_later(self, request: bytes, pauses: Iterable[float]) -> None:
        for pause in pauses:

            def copy(pause: float = pause) -> None:
                time.sleep(pause)
                self._forward(request)

            self._late.submit(copy)

    def _forward(self, request: bytes) -> bytes | None:
        with socket.create_connection(self._upstream, CONNECT_SECONDS) as server:
            server.sendall(request)
            reply = read_message(server)
        if reply is not None:
            with self._lock:
                self.replies[_body(request)].append(_body(reply))
        return reply


def read_message(sock: socket.socket) -> bytes | None:
    """The next whole message; None if the other end closes first."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            received = sock.recv(65_536)
            if not received:
                return None
            data += received
        head, _, rest = data.partition(b"\r\n\r\n")
        lengths = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        assert lengths, head
        missing = lengths[0] - len(rest)
        assert missing >= 0, "pipelined requests aren't understood"
        pieces = [data]
        while missing:
            received = sock.recv(missing)
            if not received:
                return None
            pieces.append(received)
            missing -= len(received)
    except OSError:
        return None
    return b"".join(pieces)


def _body(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[2]
