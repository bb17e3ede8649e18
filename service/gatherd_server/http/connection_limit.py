"""Which connections a worker keeps when there are more than it takes.

A connection is known once a request on it came from a caller with any permission; until then it is
a stranger. Known connections are never closed for others, and there are at most connections_max. At
the limit the stranger that has been quiet for longest is closed, whatever state it is in: idle,
half a head, half a body, a reply that it doesn't read. Over the limit there is room for some
strangers, so that health and metrics can always be read.

Left out on purpose: a bound on the known connections of one caller; a token's `concurrency` bounds
their requests.
"""

import logging
from collections import OrderedDict
from typing import Final, Protocol

from gatherd.errors import Unavailable
from gatherd_server.observe.metrics.names import (
    CLOSED_CONNECTIONS,
    REFUSED_CONNECTIONS,
    SHED_REQUESTS,
)
from gatherd_server.observe.metrics.telemetry import Telemetry
from gatherd_server.types import SPARE_CONNECTIONS

RETRY_AFTER_SECONDS: Final = 1.0
# A TLS handshake may take so long.
HANDSHAKE_SECONDS: Final = 20.0
# Strangers that are being answered are passed over; at most so many are looked at.
STRANGERS_LOOKED_AT: Final = 64

logger = logging.getLogger("gatherd")


class LimitedConnection(Protocol):
    """The part of a connection that the limit uses."""

    @property
    def is_working(self) -> bool:
        """Whether we are answering a request at this moment."""

    def close_for_room(self) -> None:
        """Close it at once."""


class Standing:
    """Whether one connection is known. The scope of each request has it, and can change it."""

    __slots__ = ("_connection", "_limit", "is_known")

    def __init__(self, limit: "ConnectionLimit", connection: LimitedConnection) -> None:
        self._limit = limit
        self._connection = connection
        self.is_known = False
        """Whether a caller with any permission has sent a request."""

    def know(self) -> bool:
        """Note a request by a caller with any permission; False when there is no room."""
        if not self.is_known:
            self.is_known = self._limit.know(self._connection)
        return self.is_known

    def refusal(self) -> Unavailable:
        """The answer to a connection for which there is no room."""
        return self._limit.refusal()

    def heard(self) -> None:
        """A request was received whole."""
        if not self.is_known:
            self._limit.heard(self._connection)


class ConnectionLimit:
    """The connections of one worker, on its event loop."""

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self._telemetry = telemetry or Telemetry()
        # In order of their last request, the earliest first.
        self._strangers: OrderedDict[LimitedConnection, None] = OrderedDict()
        self._known: set[LimitedConnection] = set()
        self._connections_max: int | None = None
        self._untold = 0
        # Connections without a finished handshake, by the second in which they were accepted.
        self._accepted: dict[int, int] = {}

    def enter(
        self, connection: LimitedConnection, connections_max: int | None, *, is_local: bool
    ) -> Standing:
        """Add a new connection, and close a stranger for it if need be. None is no limit.

        One over a Unix socket is known at once, if there is room.
        """
        self._connections_max = connections_max
        standing = Standing(self, connection)
        self._strangers[connection] = None
        if not (is_local and standing.know()):
            self._make_room()
        return standing

    def leave(self, connection: LimitedConnection) -> None:
        """Forget a connection that was lost."""
        self._strangers.pop(connection, None)
        self._known.discard(connection)

    def know(self, connection: LimitedConnection) -> bool:
        """See Standing.know."""
        if self._connections_max is not None and len(self._known) >= self._connections_max:
            return False
        # It may have been closed meanwhile.
        if connection in self._strangers:
            del self._strangers[connection]
            self._known.add(connection)
        return True

    def heard(self, connection: LimitedConnection) -> None:
        """A stranger sent a request."""
        if connection in self._strangers:
            self._strangers.move_to_end(connection)

    def refusal(self) -> Unavailable:
        """See Standing.refusal."""
        self._telemetry.threads.add(SHED_REQUESTS, "connections_max")
        self.refused("connections_max")
        self._untold += 1
        return Unavailable(
            f"the server has {len(self._known)} connections open, as many as it takes; "
            "try again after a pause",
            {"limit": "connections_max"},
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    def refused(self, reason: str) -> None:
        """Count a connection that was refused, or ended before its peer was done."""
        self._telemetry.threads.add(REFUSED_CONNECTIONS, reason)

    def accepted(self, second: int) -> None:
        """A connection was accepted in this second; with TLS its handshake is to come."""
        self._accepted[second] = self._accepted.get(second, 0) + 1

    def greeted(self, second: int) -> None:
        """One that was accepted in that second is there, its handshake done."""
        if second in self._accepted:
            self._accepted[second] -= 1

    @property
    def has_handshakes(self) -> bool:
        """Whether handshakes of the last seconds are still to be counted."""
        return bool(self._accepted)

    def count_handshakes(self, second: int) -> None:
        """Count the connections whose handshake must have failed by this second."""
        for accepted in [one for one in self._accepted if second - one > HANDSHAKE_SECONDS + 1]:
            for _ in range(self._accepted.pop(accepted)):
                self.refused("handshake")

    def tell(self) -> None:
        """Log how many were closed and refused since the last call; called once a second."""
        if self._untold:
            logger.warning(
                "as many HTTP connections are open as connections_max says (%d known, %d "
                "strangers'): %d were closed or refused",
                len(self._known),
                len(self._strangers),
                self._untold,
            )
            self._untold = 0

    def _make_room(self) -> None:
        """Close the stranger that was quiet for longest, if there are too many."""
        count = len(self._strangers) + len(self._known)
        if (
            self._connections_max is None
            or count <= self._connections_max
            or len(self._strangers) <= SPARE_CONNECTIONS
        ):
            return
        quiet = (one for _, one in zip(range(STRANGERS_LOOKED_AT), self._strangers, strict=False))
        stranger = next((one for one in quiet if not one.is_working), next(iter(self._strangers)))
        del self._strangers[stranger]
        self._telemetry.threads.add(CLOSED_CONNECTIONS)
        self._untold += 1
        stranger.close_for_room()
