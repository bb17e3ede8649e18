"""How lookups are laid into requests that a server takes.

Whole lookups are packed together while they fit; a lookup that doesn't fit into a request of its
own is split into runs of ids. The order is kept, so a table's first piece is answered first and
its version can pin the others.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Bytes around the data of one lookup in a message: tags, lengths, dtype, version, policy.
REQUEST_FRAME_BYTES = 64
REPLY_FRAME_BYTES = 96
DIMENSION_BYTES = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold and ask for. A limit of 0 is none."""

    request_bytes_max: int
    reply_bytes_max: int
    ids_max: int
    tables_max: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one lookup needs: a fixed number of bytes each way, and some for every id."""

    ids: int
    request_bytes: int
    request_bytes_per_id: int
    reply_bytes: int
    reply_bytes_per_id: int

    @classmethod
    def of(
        cls, name_bytes: int, shape: tuple[int, ...], id_bytes: int, reply_row_bytes: int
    ) -> "Cost":
        """The cost of a lookup of `shape` ids; `reply_row_bytes` is a vector and its status."""
        count = 1
        for extent in shape:
            count *= extent
        frame = DIMENSION_BYTES * (len(shape) + 1)
        return cls(
            count,
            REQUEST_FRAME_BYTES + name_bytes + frame,
            id_bytes,
            REPLY_FRAME_BYTES + frame,
            reply_row_bytes,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """The ids from `start` to `stop`, in row-major order, of one of the lookups."""

    lookup: int
    start: int
    stop: int


@dataclass(slots=True)
class _Room:
    """What is left of one request."""

    request_bytes: int
    reply_bytes: int
    ids: int
    tables: int

    def ids_that_fit(self, cost: Cost) -> int:
        """How many of a lookup's ids fit; −1 when not even an empty one does."""
        request = self.request_bytes - cost.request_bytes
        reply = self.reply_bytes - cost.reply_bytes
        if self.tables < 1 or request < 0 or reply < 0:
            return -1
        return min(
            self.ids,
            request // max(1, cost.request_bytes_per_id),
            reply // max(1, cost.reply_bytes_per_id),
        )

    def take(self, cost: Cost, count: int) -> None:
        self.request_bytes -= cost.request_bytes + count * cost.request_bytes_per_id
        self.reply_bytes -= cost.reply_bytes + count * cost.reply_bytes_per_id
        self.ids -= count
        self.tables -= 1


def plan_requests(costs: Sequence[Cost], limits: Limits) -> list[tuple[Piece, ...]]:
    """The requests, each a tuple of pieces, that together cover every id of every lookup once.

    Each request is within `limits`, but for a single id that is too large alone: it is sent all
    the same, and the server's error says which limit it is over.
    """
    requests: list[tuple[Piece, ...]] = []
    current: list[Piece] = []
    room = _full(limits)
    for index, cost in enumerate(costs):
        start = 0
        if room.ids_that_fit(cost) < cost.ids:
            if current:
                requests.append(tuple(current))
                current = []
            room = _full(limits)
            most = max(1, room.ids_that_fit(cost))
            while cost.ids - start > most:
                requests.append((Piece(index, start, start + most),))
                start += most
        current.append(Piece(index, start, cost.ids))
        room.take(cost, cost.ids - start)
    if current:
        requests.append(tuple(current))
    return requests


def _full(limits: Limits) -> _Room:
    none = sys.maxsize
    return _Room(
        limits.request_bytes_max or none,
        limits.reply_bytes_max or none,
        limits.ids_max or none,
        limits.tables_max or none,
    )
