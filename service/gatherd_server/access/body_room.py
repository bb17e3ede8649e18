"""Bounds the bytes of requests' bodies that a worker holds, while they arrive and are read.

Received bytes count, announced ones don't: a client that announces much and sends nothing takes no
room from the others. Bodies up to SMALL_BYTES always have room, because there are no more of them
than requests in flight; so a full room slows down large lookups only. One token has at most a part
of the room. A request that is alone in the room, or alone in its token's part, is held to
`request_bytes_max` only.
"""

import threading
from collections.abc import Callable
from typing import Final

from gatherd.errors import Overloaded

SMALL_BYTES: Final = 64 << 10
# The part of the room that the requests of one token may hold together.
TOKEN_PART: Final = 0.5
RETRY_AFTER_SECONDS: Final = 1.0


class BodyRoom:
    """The room of one worker. Thread-safe."""

    def __init__(self, bytes_max: int, on_full: Callable[[], None]) -> None:
        """`on_full` is called for each request that finds no room."""
        self._bytes_max = bytes_max
        self._on_full = on_full
        self._lock = threading.Lock()
        self._held = 0
        self._by_token: dict[str, int] = {}

    @property
    def held_bytes(self) -> int:
        """The bytes that all requests hold together."""
        return self._held

    def take(self, token: str, before: int, more: int) -> None:
        """Give `more` bytes to a request of `token` ("" for none) that holds `before` bytes.

        Overloaded, with nothing taken, when there is no room.
        """
        with self._lock:
            own = self._by_token.get(token, 0)
            after = before + more
            part = int(self._bytes_max * TOKEN_PART) if token else self._bytes_max
            if own + more > max(after, part):
                full = f"the requests of token {token!r} hold" if token else "the server holds"
                held, whose = own, "token" if token else "server"
            elif self._held + more > max(after, self._bytes_max):
                full, held, whose = "the server holds", self._held, "server"
            else:
                self._held += more
                self._by_token[token] = own + more
                return
        self._on_full()
        raise Overloaded(
            f"{full} {held} bytes of requests' bodies, and {more} more are too many "
            "(bodies_bytes_max); try again after a pause",
            {"limit": "bodies_bytes_max", "of": whose},
            RETRY_AFTER_SECONDS,
        )

    def give(self, token: str, nbytes: int) -> None:
        """Take back the bytes that a request held."""
        with self._lock:
            self._held -= nbytes
            left = self._by_token[token] - nbytes
            if left:
                self._by_token[token] = left
            else:
                del self._by_token[token]


class Held:
    """The bytes of a room that one request holds. Not thread-safe: a body arrives in order."""

    __slots__ = ("_counted", "_nbytes", "_room", "_token")

    def __init__(self, room: BodyRoom, token: str) -> None:
        self._room = room
        self._token = token
        self._nbytes = 0
        self._counted = 0

    def grow(self, nbytes: int) -> None:
        """Count `nbytes` more that arrived. Overloaded when the room is full."""
        self._nbytes += nbytes
        if self._nbytes > SMALL_BYTES:
            self._room.take(self._token, self._counted, self._nbytes - self._counted)
            self._counted = self._nbytes

    def release(self) -> None:
        """Give all back: the request is answered, or its client is gone."""
        if self._counted:
            self._room.give(self._token, self._counted)
        self._nbytes = self._counted = 0
