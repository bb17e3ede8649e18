"""Searches for nearest neighbors, within the server's bounds, that can be ended early."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gatherd.errors import DeadlineExceeded, FailedPrecondition, LimitExceeded, Overloaded
from gatherd.store.keys import Keys
from gatherd.store.neighbors import Nearest, Norms, search
from gatherd.store.query import NeighborsQuery
from gatherd.store.table import Table
from gatherd_server.types import NeighborsLimits

ADVICE: Final = "for more use an index over the exported table, see docs/neighbors.md"
RETRY_AFTER_SECONDS: Final = 1.0


class Stopping:
    """Ends a search early. Safe to use from many threads."""

    def __init__(self) -> None:
        self._is_stopped = False
        self.deadline: float | None = None
        """On `time.monotonic`."""

    def stop(self) -> None:
        """End it before its next chunk: nobody waits for it any more."""
        self._is_stopped = True

    def check(self) -> None:
        """DeadlineExceeded when it is to end."""
        if self._is_stopped or (self.deadline is not None and time.monotonic() >= self.deadline):
            raise DeadlineExceeded("the search was ended: its time is up, or its client is gone")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The answer to a search; `keys` have the shape of its ids, None for a table without keys."""

    nearest: Nearest
    keys: Keys | None
    version: int


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A search whose table is found and which is within the limits. It always takes long."""

    run: Callable[[], Found]
    stopping: Stopping


class Searches:
    """The searches of one worker. Safe to use from many threads."""

    def __init__(self, limits: NeighborsLimits) -> None:
        self._limits = limits
        self._norms = Norms()
        self._lock = threading.Lock()
        self._in_flight = 0

    def check_query(self, query: NeighborsQuery) -> None:
        """LimitExceeded for a query that is too large for any table.

        FailedPrecondition on a server that takes no searches.
        """
        limits = self._limits
        if not limits.in_flight_max:
            raise FailedPrecondition(
                "this server searches no neighbors (neighbors_in_flight_max is 0); export the "
                "table and use an index, see docs/neighbors.md"
            )
        _check("neighbors_k_max", "k is", query.k, limits.k_max)
        _check("neighbors_queries_max", "the queries are", query.count, limits.queries_max)

    def prepare(
        self, table: Table, query: NeighborsQuery, check_bytes: Callable[[int], None]
    ) -> PreparedSearch:
        """LimitExceeded when the search would take too long; `check_bytes` bounds the reply."""
        work = table.used_rows * table.dim * query.count
        what = f"{query.count} queries of {table.used_rows} rows x {table.dim} are"
        _check("neighbors_work_max", what, work, self._limits.work_max, "multiplications")
        stopping = Stopping()
        return PreparedSearch(lambda: self._run(table, query, stopping, check_bytes), stopping)

    def _run(
        self,
        table: Table,
        query: NeighborsQuery,
        stopping: Stopping,
        check_bytes: Callable[[int], None],
    ) -> Found:
        """Overloaded when as many searches run as may."""
        self._enter()
        try:
            nearest = search(table, query, self._norms, stopping.check, self._limits.threads)
        finally:
            with self._lock:
                self._in_flight -= 1
        keys = table.keys_of(nearest.ids, check_bytes) if table.keys is not None else None
        return Found(nearest, keys, table.version)

    def _enter(self) -> None:
        with self._lock:
            if self._in_flight < self._limits.in_flight_max:
                self._in_flight += 1
                return
        raise Overloaded(
            f"{self._limits.in_flight_max} searches are under way, as many as the server takes "
            f"(neighbors_in_flight_max); try again after a pause, {ADVICE}",
            {"limit": "neighbors_in_flight_max", "max": str(self._limits.in_flight_max)},
            RETRY_AFTER_SECONDS,
        )


def _check(limit: str, what: str, value: int, maximum: int, unit: str = "") -> None:
    if value > maximum:
        raise LimitExceeded(
            f"{what} {value}{' ' * bool(unit)}{unit}; this server takes at most {maximum} "
            f"({limit}); {ADVICE}",
            {"limit": limit, "value": str(value), "max": str(maximum)},
        )
