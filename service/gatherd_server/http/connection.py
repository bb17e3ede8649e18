"""A connection that a malicious peer can neither hold open nor fill.

uvicorn bounds neither the size of a request's head nor the time it takes to arrive, and counts
connections only when they send a request. Here a head is bounded in bytes and headers; a head, a
body and the reading of a reply must each make progress; connection_limit.py decides which
connections are kept. Waits have no timers of their own, which would cost every request: a sweep
looks at all connections once a second, so each limit is kept to about a second.

Left out on purpose: a bound on the connections of one address; a proxy has one address for all its
clients.
"""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any, Final

from gatherd.errors import LimitExceeded
from gatherd_server.http.access import IS_LOCAL, STANDING
from gatherd_server.http.connection_limit import ConnectionLimit, Standing
from gatherd_server.http.stream import Refused, StreamProtocol
from gatherd_server.observe.metrics.telemetry import Telemetry

SWEEP_SECONDS: Final = 1.0
# A request's url and headers: their bytes, and the count of headers.
HEAD_BYTES_MAX: Final = 32 << 10
HEADERS_MAX: Final = 100
# A body gets one second per so many bytes, on top of `receive_seconds`.
BODY_BYTES_PER_SECOND: Final = 16 << 10


class Sweeper:
    """Looks after the connections of one worker, on its event loop."""

    def __init__(self, receive_seconds: float, limit: ConnectionLimit) -> None:
        self.receive_seconds = receive_seconds
        self._limit = limit
        self._watched: set[GuardedProtocol] = set()
        self._timer: asyncio.TimerHandle | None = None

    def accept(self, loop: asyncio.AbstractEventLoop) -> int:
        """A connection was accepted; returns the second, for `watch`."""
        second = int(loop.time())
        self._limit.accepted(second)
        if self._timer is None:
            self._timer = loop.call_later(SWEEP_SECONDS, self._sweep, loop)
        return second

    def watch(self, connection: "GuardedProtocol", accepted: int) -> None:
        """Look after a connection from here on; its handshake, if there is one, is done."""
        self._limit.greeted(accepted)
        self._watched.add(connection)

    def forget(self, connection: "GuardedProtocol") -> None:
        """The connection is closed."""
        self._watched.discard(connection)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._limit.tell()
        now = loop.time()
        self._limit.count_handshakes(int(now))
        for connection in list(self._watched):
            if connection.is_stuck(now, self.receive_seconds):
                self._limit.refused("slow")
                connection.transport.abort()
        is_needed = self._watched or self._limit.has_handshakes
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep, loop) if is_needed else None


@dataclass(slots=True)
class _Progress:
    """A connection's present wait: since when, and how many bytes came or went meanwhile."""

    since: float
    body_bytes: int = 0


class GuardedProtocol(StreamProtocol):
    """uvicorn's connection, bounded."""

    sweeper: Sweeper
    limit: ConnectionLimit
    standing: Standing

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # We apply the limit: uvicorn would refuse requests on connections that were here before.
        self._connections_max, self.limit_concurrency = self.limit_concurrency, None
        self._body_bytes = 0
        self._uncounted_bytes = self._fed_bytes = 0
        # uvicorn copies it into each request's scope; our copy has the kind of socket.
        self.app_state = dict(self.app_state)
        self.is_local = False
        self._receiving: _Progress | None = None
        self._unread_bytes = self._unread_since = 0.0
        self._accepted = self.sweeper.accept(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        self.is_local = sock is not None and sock.family == socket.AF_UNIX
        self.app_state[IS_LOCAL] = self.is_local
        self.standing = self.limit.enter(self, self._connections_max, is_local=self.is_local)
        self.app_state[STANDING] = self.standing
        self._receiving = _Progress(self.loop.time())
        self.sweeper.watch(self, self._accepted)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.sweeper.forget(self)
        self.limit.leave(self)
        super().connection_lost(exc)

    @property
    def is_working(self) -> bool:
        """See connection_limit.LimitedConnection."""
        cycle = self.cycle
        return (
            self._begun == self._ended
            and cycle is not None
            and not cycle.response_complete
            and not self.transport.get_write_buffer_size()
        )

    def close_for_room(self) -> None:
        """See connection_limit.LimitedConnection."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the data, unless its head, or the framing around its body, is too long."""
        begun, ended = self._begun, self._ended
        was_in_head, body_bytes = self._is_in_head, self._body_bytes
        self._fed_bytes = len(data)
        super().data_received(data)
        if self._begun == self._ended:
            if self._ended != ended:
                self._receiving = None
                self.standing.heard()
            return
        if self._receiving is None or self._begun != begun:
            self._receiving = _Progress(self.loop.time())
            self._uncounted_bytes = 0
            return
        if was_in_head is not self._is_in_head or self._body_bytes != body_bytes:
            # The head ended here, or a part of the body came.
            self._receiving.body_bytes += self._body_bytes - body_bytes
            self._uncounted_bytes = 0
            return
        # Bytes of one head, or between parts of a body: the parser keeps them, or drops them.
        self._uncounted_bytes += len(data)
        if self._uncounted_bytes > HEAD_BYTES_MAX:
            self.refuse(_too_large())

    def refuse(self, refused: Refused) -> None:
        """Answer with an error, and end the connection."""
        if not (self._is_refused or self.transport.is_closing()):
            self.limit.refused("malformed")
        super().refuse(refused)

    def _check_head(self) -> None:
        """Raise Refused for a head that is too long, too."""
        headers = self.headers
        count = 0
        # A head that came in one short piece needn't be added up.
        if self._receiving is not None or self._fed_bytes > HEAD_BYTES_MAX:
            count = len(self.url) + sum(len(name) + len(value) for name, value in headers)
        if count > HEAD_BYTES_MAX or len(headers) > HEADERS_MAX:
            raise _too_large()
        super()._check_head()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body_bytes += len(body)
        super().on_body(body)

    def is_stuck(self, now: float, receive_seconds: float) -> bool:
        """Whether the peer has kept us waiting for too long. Called by the sweep."""
        return self._is_mute(now, receive_seconds) or self._is_deaf(now, receive_seconds)

    def _is_mute(self, now: float, seconds: float) -> bool:
        """Whether it sends nothing, stops in the middle, or sends too slowly."""
        receiving = self._receiving
        if receiving is None:
            return False
        if self.flow.read_paused:
            receiving.since = now  # it is we who don't read
            return False
        return now - receiving.since > seconds + receiving.body_bytes / BODY_BYTES_PER_SECOND

    def _is_deaf(self, now: float, seconds: float) -> bool:
        """Whether it doesn't read its replies."""
        unread = self.transport.get_write_buffer_size()
        if not unread or unread != self._unread_bytes:
            self._unread_bytes, self._unread_since = unread, now
            return False
        return now - self._unread_since > seconds


def _too_large() -> Refused:
    why = f"a request's head has at most {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} headers"
    return Refused(431, LimitExceeded(why))


def guarded_protocol(
    receive_seconds: float, telemetry: Telemetry | None = None
) -> type[GuardedProtocol]:
    """A protocol class for `uvicorn.Config(http=…)` without the fast path."""
    limit = ConnectionLimit(telemetry)
    shared = {"sweeper": Sweeper(receive_seconds, limit), "limit": limit}
    return type("BoundedProtocol", (GuardedProtocol,), shared)
