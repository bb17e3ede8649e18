"""The means of tables without a default vector, each computed once, aside from the requests.

A lookup with missing="default" of such a table needs the mean of all its rows. For a small table a
thread computes it while the request waits. For a larger one a separate thread does, one table at a
time, while requests are refused with a time to retry after. A table above `default_mean_bytes_max`
isn't averaged.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence

from gatherd.errors import FailedPrecondition, GatherdError, Unavailable
from gatherd.store.query import Missing
from gatherd.store.table import Table
from gatherd_server.types import Lookup

logger = logging.getLogger("gatherd")

# Averaged in 30 ms when the rows are in memory, in a few times that when they aren't.
AT_ONCE_BYTES = 32 << 20
# A core's rate of averaging rows in memory; a disk may be slower.
_BYTES_PER_SECOND = 1 << 30
_RETRY_SECONDS = (0.2, 5.0)


class Means:
    """Has default vectors computed. Safe to use from many threads."""

    def __init__(self, bytes_max: int) -> None:
        """Tables of more than `bytes_max` bytes aren't averaged."""
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._waiting: deque[Table] = deque()
        self._thread: threading.Thread | None = None

    def check(self, lookups: Sequence[Lookup], tables: Sequence[Table]) -> None:
        """Unavailable while a needed mean is computed, FailedPrecondition if it never is."""
        for lookup, table in zip(lookups, tables, strict=True):
            if lookup.missing is Missing.DEFAULT and not table.default_vector_is_known:
                self._check(table)

    def _check(self, table: Table) -> None:
        if table.open_spec is not None:
            table.default_vector()  # it has none: this says so
        if table.nbytes > self._bytes_max:
            raise FailedPrecondition(
                f"table {table.name!r} has no default vector, and with {table.nbytes} bytes is too "
                f"large to average its rows (default_mean_bytes_max is {self._bytes_max}); give it "
                "one by --default-vector, or ask with missing='zero'",
                {"table": table.name},
            )
        if table.nbytes <= AT_ONCE_BYTES:
            return
        with self._lock:
            if table not in self._waiting:
                self._waiting.append(table)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="means", daemon=True)
                self._thread.start()
        low, high = _RETRY_SECONDS
        raise Unavailable(
            f"the default vector of table {table.name!r} is being computed, the mean of its "
            f"{table.row_count} rows; try again, or give the table one by --default-vector",
            {"table": table.name},
            retry_after_seconds=min(high, max(low, table.nbytes / _BYTES_PER_SECOND)),
        )

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                table = self._waiting[0]
            try:
                table.default_vector()
            except GatherdError as error:
                logger.warning("the mean of table %r: %s", table.name, error)
            finally:
                with self._lock:
                    self._waiting.popleft()
