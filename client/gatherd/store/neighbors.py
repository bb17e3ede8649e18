"""Exact nearest neighbors: every row of a table is compared with every query.

Rows and queries are taken as float32, as a lookup gives them. A chunk of rows is multiplied with
all queries at once, in float32 by BLAS. Such a product is off by a known bound at most, so only
rows that may still be among the best are scored again, in float64; nearest.py has both steps. A
score is rounded to float32, and rows are ranked by it and then by id: the result doesn't depend on
chunks, threads or BLAS.

Each row is read whole, as by a lookup, and is compared as it was at one moment of the search. Left
out on purpose: an index. It would have to be built, kept and updated; what does that well is named
in docs/neighbors.md.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import FailedPrecondition, InvalidArgument
from gatherd.store.dtypes import DType, convert
from gatherd.store.given import position
from gatherd.store.nearest import Best, Queries
from gatherd.store.norms import norms_of
from gatherd.store.query import Missing, NeighborsQuery
from gatherd.store.table import Table

# Long enough that NumPy's calls are a small part of a chunk's time, and short enough to be stopped
# soon; with few queries a product takes less than 0.3 ms.
CHUNK_BYTES: Final = 4 << 20
MANY_QUERIES: Final = 8
MANY_QUERIES_CHUNK_BYTES: Final = 2 << 20
CHUNK_ROWS_MIN: Final = 128
# Norms of rows that never change are kept for the next search, 4 bytes a row.
NORMS_BYTES_MAX: Final = 64 << 20
# A search's threads let those go first that answer lookups.
NICENESS: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """The ids, int64, and scores, float32, of the neighbors, nearest first, of shape S + (k',).

    k' is k, or the number of rows that can be neighbors if there are fewer.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


class Norms:
    """The norms of rows that never change, of the tables searched last. Safe from many threads."""

    def __init__(self, nbytes_max: int = NORMS_BYTES_MAX) -> None:
        self._nbytes_max = nbytes_max
        self._kept: OrderedDict[int, tuple[ReferenceType[Table], NDArray[np.float32]]]
        self._kept = OrderedDict()
        self._lock = threading.Lock()

    def of(self, table: Table) -> NDArray[np.float32] | None:
        """Those of all rows of `table`, or None."""
        with self._lock:
            found = self._kept.get(id(table))
            if found is None or found[0]() is not table:
                return None
            self._kept.move_to_end(id(table))
            return found[1]

    def keep(self, table: Table, norms: NDArray[np.float32]) -> None:
        """Keep the norms of a table, if they never change and there is room."""
        if table.counters.size or norms.nbytes > self._nbytes_max:
            return
        with self._lock:
            self._kept[id(table)] = (ref(table), norms)
            for key in [key for key, (owner, _) in self._kept.items() if owner() is None]:
                del self._kept[key]
            while sum(kept.nbytes for _, kept in self._kept.values()) > self._nbytes_max:
                self._kept.popitem(last=False)


def search(
    table: Table,
    query: NeighborsQuery,
    norms: Norms,
    check: Callable[[], None],
    thread_count: int = 1,
) -> Nearest:
    """The nearest rows of `table`; `check` is called before each chunk, and may raise to end it.

    IdOutOfRange, KeyNotFound and NoKeys for queries without a row; InvalidArgument for vectors of
    another dim, and queries with NaN or infinity; FailedPrecondition for an open table. With one
    thread it is the caller's.
    """
    if table.open_spec is not None:
        raise FailedPrecondition(
            f"table {table.name!r} is open: neighbors are searched in tables whose rows stay; scan "
            "its rows (`gatherd rows`) and use an index over them",
            {"table": table.name},
        )
    queries = _queries(table, query)
    neighbor_count = min(query.k, table.row_count - queries.excludes)
    shape = (*query.shape, max(neighbor_count, 0))
    if neighbor_count <= 0 or not queries.count:
        return Nearest(np.empty(shape, np.int64), np.empty(shape, np.float32))
    scan = _Scan(table, queries, neighbor_count, norms.of(table), check)
    thread_count = min(thread_count, scan.chunk_count)
    if thread_count == 1:
        best = scan.run()
    else:
        with ThreadPoolExecutor(thread_count, "gatherd-neighbors", _step_back) as pool:
            best, *others = pool.map(lambda _: scan.run(), range(thread_count))
        for other in others:
            best.take(other)
    if scan.norms is not None:
        norms.keep(table, scan.norms)
    ids, scores = best.result()
    return Nearest(ids.reshape(shape), scores.reshape(shape))


class _Scan:
    """One pass over a table, by one thread or several."""

    def __init__(
        self,
        table: Table,
        queries: Queries,
        neighbor_count: int,
        norms: NDArray[np.float32] | None,
        check: Callable[[], None],
    ) -> None:
        self._table = table
        self._queries = queries
        self._neighbor_count = neighbor_count
        self._check = check
        many = queries.count >= MANY_QUERIES
        nbytes = MANY_QUERIES_CHUNK_BYTES if many else CHUNK_BYTES
        self._step = max(CHUNK_ROWS_MIN, nbytes // max(4, 4 * table.dim))
        self.chunk_count = -(-table.row_count // self._step)
        self._starts = iter(range(0, table.row_count, self._step))
        self._is_over = False
        self._has_norms = norms is not None
        self.norms = norms
        """Those of all rows once the scan has ended, None if rows may change."""
        if norms is None and not table.counters.size:
            self.norms = np.empty(table.row_count, np.float32)

    def run(self) -> Best:
        """Compare chunks, in ascending order, until none is left; the best of them."""
        best = Best(self._queries, self._neighbor_count)
        buffer = np.empty((0, 0), np.float32)
        # Taking the next one is atomic, and so each thread's chunks ascend.
        for start in self._starts:
            if self._is_over:
                break
            try:
                self._check()
                stop = min(start + self._step, self._table.row_count)
                stored = _stored(self._table, start, stop)
                rows, buffer = _as_float32(stored, self._table.dtype, buffer)
                best.compare(start, rows, self._norms_of(start, stop, rows))
            except BaseException:
                self._is_over = True
                raise
        return best

    def _norms_of(self, start: int, stop: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.norms is None:
            return norms_of(rows)
        part = self.norms[start:stop]
        if not self._has_norms:
            part[:] = norms_of(rows)
        return part


def _stored(table: Table, start: int, stop: int) -> NDArray[Any]:
    if table.counters.size:
        return table.stored_rows(start, stop)
    return table.rows[start:stop].view(table.dtype.storage)


def _as_float32(
    stored: NDArray[Any], dtype: DType, buffer: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rows as aligned float32, and a buffer for the next ones."""
    if dtype is DType.FLOAT32 and stored.flags.aligned:
        return stored, buffer
    if buffer.shape[0] < stored.shape[0] or buffer.shape[1] != stored.shape[1]:
        buffer = np.empty(stored.shape, np.float32)
    rows = buffer[: stored.shape[0]]
    convert(stored, dtype, rows, DType.FLOAT32)
    return rows, buffer


def _queries(table: Table, query: NeighborsQuery) -> Queries:
    if query.asked is None:
        vectors = query.vectors
        assert vectors is not None
        if vectors.ndim == 0 or vectors.shape[-1] != table.dim:
            raise InvalidArgument(
                f"table {table.name!r} has dim {table.dim}; query vectors of shape "
                f"{vectors.shape} don't end in it"
            )
        flat, own = vectors.reshape(query.count, table.dim), None
        _check_finite(flat, query.shape, "the query vectors", "vectors")
    else:
        rows, _ = table.rows_of(query.asked, Missing.ERROR)
        own = rows.astype(np.int64).reshape(-1)
        flat = table.lookup(own).vectors
        what = f"table {table.name!r}: the rows of the queries"
        _check_finite(flat, query.shape, what, "queries")
        if query.includes_self:
            own = None
    return Queries.of(flat, query.metric, own)


def _check_finite(vectors: NDArray[np.float32], shape: Sequence[int], what: str, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        first = position(name, int(bad[0]), tuple(shape))
        raise InvalidArgument(f"{what} have NaN or infinity, the first at {first}")


def _step_back() -> None:
    with suppress(OSError, AttributeError):  # only Linux has a niceness for a thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
