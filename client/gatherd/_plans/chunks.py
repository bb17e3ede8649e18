"""Packs lookups into requests that a server takes.

Whole lookups are packed together while they fit; a lookup that doesn't fit into a request of its
own is split into runs: of ids or keys, or of whole bags. The order is kept, so a table's first
piece is answered first and its version can pin the others.
"""

import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import Limits

# Bytes around the data of one lookup in a message: tags, lengths, dtype, version, policy.
REQUEST_FRAME_BYTES = 64
REPLY_FRAME_BYTES = 96
# … and around offsets and weights: their tags, lengths, dtypes and shapes, pooling and padding id.
BAGS_FRAME_BYTES = 96
DIMENSION_BYTES = 10


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """The room that one lookup needs: bytes each way, some fixed, some per vector, some per id.

    `vectors` is the number of vectors, one per id or per bag. Vector i has the ids from `starts[i]`
    up to `starts[i + 1]`, or just id i when `starts` is None.
    """

    vectors: int
    request_bytes: int
    request_bytes_per_vector: int
    request_bytes_per_id: int
    reply_bytes: int
    reply_bytes_per_vector: int
    reply_bytes_per_id: int
    starts: NDArray[np.int64] | None = None

    def ids(self, start: int, stop: int) -> int:
        """How many ids the vectors from `start` up to `stop` have."""
        if self.starts is None:
            return stop - start
        return int(self.starts[stop] - self.starts[start])


@dataclass(frozen=True, slots=True)
class Piece:
    """The vectors from `start` to `stop`, in row-major order, of one of the lookups."""

    lookup: int
    start: int
    stop: int


@dataclass(slots=True)
class _Room:
    """The room left in one request."""

    request_bytes: int
    reply_bytes: int
    ids: int
    tables: int

    def take(self, cost: Cost, start: int, stop: int) -> None:
        """Use room for these vectors of a lookup; a limit that they exceed is below 0 then."""
        vectors, ids = stop - start, cost.ids(start, stop)
        self.request_bytes -= (
            cost.request_bytes
            + vectors * cost.request_bytes_per_vector
            + ids * cost.request_bytes_per_id
        )
        self.reply_bytes -= (
            cost.reply_bytes + vectors * cost.reply_bytes_per_vector + ids * cost.reply_bytes_per_id
        )
        # An empty bag has no ids, but counts as one.
        self.ids -= max(ids, vectors)
        self.tables -= 1

    def lacks(self, cost: Cost, start: int, stop: int) -> bool:
        """Whether these vectors of a lookup don't fit."""
        after = _Room(self.request_bytes, self.reply_bytes, self.ids, self.tables)
        after.take(cost, start, stop)
        return min(after.request_bytes, after.reply_bytes, after.ids, after.tables) < 0


def plan_requests(costs: Sequence[Cost], limits: Limits) -> list[tuple[Piece, ...]]:
    """The requests, each a tuple of pieces, that together cover every vector of every lookup once.

    Each request is within `limits`, except for a single id or bag that is too large alone: it is
    sent nevertheless, and the server's error says which limit it is over.
    """
    requests: list[tuple[Piece, ...]] = []
    current: list[Piece] = []
    room = _full(limits)
    for index, cost in enumerate(costs):
        start = 0
        if room.lacks(cost, 0, cost.vectors):
            if current:
                requests.append(tuple(current))
                current = []
            room = _full(limits)
            while cost.vectors - start > 1 and room.lacks(cost, start, cost.vectors):
                stop = _furthest(room, cost, start)
                requests.append((Piece(index, start, stop),))
                start = stop
        current.append(Piece(index, start, cost.vectors))
        room.take(cost, start, cost.vectors)
    if current:
        requests.append(tuple(current))
    return requests


def _furthest(room: _Room, cost: Cost, start: int) -> int:
    """The end of the longest run from `start` that fits; after one vector if none fits.

    A longer run needs more room, so bisection finds the first that lacks it.
    """
    stops = range(start + 1, cost.vectors + 1)
    first_over = bisect_left(stops, True, key=lambda stop: room.lacks(cost, start, stop))
    return start + max(1, first_over)


def _full(limits: Limits) -> _Room:
    none = sys.maxsize
    return _Room(
        limits.request_bytes_max or none,
        limits.reply_bytes_max or none,
        limits.ids_max or none,
        limits.tables_max or none,
    )
