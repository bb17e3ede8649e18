"""One version of a table: its rows mapped read-only, gathered by id.

The server's engine and the SDK's `local:` transport both read tables through this class. Rows of a
table that is written meanwhile are atomic; stripes.py explains how.
"""

import logging
import mmap
import random
import threading
from collections.abc import Callable
from copy import copy as shallow_copy
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument, NoKeys
from gatherd.store import bags, memory
from gatherd.store.dtypes import DType, convert
from gatherd.store.format import RowLayout, file_bytes
from gatherd.store.ids import all_in_range, flat_ids, in_range, out_of_range_error
from gatherd.store.kernels import compiled
from gatherd.store.key_index import KeyIndex
from gatherd.store.keys import Keys
from gatherd.store.mapping import MappedFile, naming
from gatherd.store.open_index import OpenIndex
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import STATUS_MISSING, Asked, BagsQuery, ByKey, Missing
from gatherd.store.stripes import RowReader

# Rows are converted in blocks, which stay in a core's cache between the copy and the conversion.
CONVERT_BLOCK_BYTES = 256 << 10
MEAN_BLOCK_BYTES = 8 << 20
# Up to so many ids are checked for pages that aren't in memory; more go to a thread anyway.
COLD_IDS_MAX = 8
# If all of these rows are in memory, then with 98% probability so are 99% of the table's.
SAMPLED_ROWS = 400
logger = logging.getLogger("gatherd")

_NO_COUNTERS: NDArray[np.uint32] = np.empty(0, np.uint32)

Copy: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.intp], NDArray[Any]], None]
"""Fills an array, (n, …), with the rows of an index, (n,), of stored rows, (rows, row_bytes)."""


class Preload(Enum):
    """The policies for a table's pages when it is opened."""

    AUTO = "auto"  # populate when the table fits into half of the available memory
    NONE = "none"
    POPULATE = "populate"
    LOCK = "lock"


def _is_aligned(rows: NDArray[np.uint8], layout: RowLayout) -> bool:
    return rows.ctypes.data % layout.dtype.itemsize == 0


@dataclass(frozen=True, slots=True)
class Gathered:
    """The answer to one lookup.

    `vectors` has shape S + (dim,) in the reply dtype's storage (uint16 bits for bfloat16).
    `status` has shape S, uint8, 0 found and 1 missing; None when every id had to be there.
    """

    vectors: NDArray[Any]
    dtype: DType
    status: NDArray[np.uint8] | None
    version: int
    is_normalized: bool = False
    lsn: int | None = None
    """The last update that is surely in the vectors, if that was asked."""


class Table:
    """A mapped (row_count, dim) array and its lookups. Safe to use from many threads.

    The mapping outlives the file's name: a replaced or deleted file is still served. A file that is
    truncated in place ends the process with SIGBUS, as with any mapping.
    """

    def __init__(
        self,
        name: str,
        version: int,
        layout: RowLayout,
        mapping: MappedFile | None,
        rows: NDArray[np.uint8],
        default_vector: NDArray[np.float32] | None,
        keys: KeyIndex | OpenIndex | None,
        counters: NDArray[np.uint32] | None = None,
    ) -> None:
        """`rows` is (row_count, row_bytes); `mapping` is None for a table of 0 bytes.

        `counters` are those of its stripes, None when its rows never change.
        """
        self.name = name
        self.version = version
        self.row_count = layout.row_count
        self.dim = layout.dim
        self.dtype = layout.dtype
        self._begin = 0 if mapping is None else len(mapping) - layout.nbytes
        self.row_bytes = layout.row_bytes
        self._mapping = mapping
        self.rows = rows
        """Every row's bytes, (row_count, row_bytes), as stored and mapped."""
        self._reader = None if counters is None else RowReader(name, counters)
        self.counters = _NO_COUNTERS if counters is None else counters
        """Those of the stripes, see stripes.py; empty when rows never change."""
        # NumPy gathers rows of elements in one call, unless they are misaligned.
        elements = rows.view(layout.dtype.storage) if _is_aligned(rows, layout) else None
        self._elements = elements if counters is None else None
        self.keys = keys
        self.is_trainable = False
        """Whether it takes updates."""
        self.optimizer: dict[str, Any] | None = None
        """Its name and options; None for a table that takes no gradients."""
        self.uid = ""
        """What no other version of any table has; empty for a file that is served in place."""
        self._default_vector = default_vector
        self._default_lock = threading.Lock()
        self.is_populated = False
        """Whether its pages are known to be in memory, so that no gather waits for a disk.

        True once they were brought in; `look_at_residency` updates it.
        """

    @classmethod
    def map(
        cls,
        name: str,
        version: int,
        fd: int,
        layout: RowLayout,
        default_vector: NDArray[np.float32] | None = None,
        keys: KeyIndex | OpenIndex | None = None,
        counters: NDArray[np.uint32] | None = None,
    ) -> Self:
        """Map the rows that `layout` finds in the open file `fd`, which can be closed afterwards.

        `counters`, from `stripes.map_counters`, are needed when the rows may change. BadFile when
        the file is shorter than the layout.
        """
        if file_bytes(fd) < layout.offset + layout.nbytes:
            raise BadFile(
                f"table {name!r}: the file has {file_bytes(fd)} bytes, "
                f"its rows end at {layout.offset + layout.nbytes}; it was truncated"
            )
        if keys is not None and keys.row_count != layout.row_count:
            raise BadFile(f"table {name!r} has {layout.row_count} rows and {keys.row_count} keys")
        if default_vector is not None and default_vector.shape != (layout.dim,):
            raise InvalidArgument(
                f"table {name!r} has dim {layout.dim}; its default vector has "
                f"shape {default_vector.shape}"
            )
        if layout.nbytes == 0:
            rows = np.empty((layout.row_count, layout.row_bytes), np.uint8)
            return cls(name, version, layout, None, rows, default_vector, keys, counters)
        start = layout.offset - layout.offset % mmap.ALLOCATIONGRANULARITY
        skip = layout.offset - start
        with naming(f"the file of table {name!r}"):
            mapping = MappedFile(fd, skip + layout.nbytes, offset=start)
        # Bytes, not floats: np.take first copies the whole array if its elements are misaligned, as
        # they are behind a safetensors header of odd length.
        rows = mapping.array()[skip:]
        rows = rows.reshape(layout.row_count, layout.row_bytes)
        return cls(name, version, layout, mapping, rows, default_vector, keys, counters)

    def renamed(self, name: str) -> Self:
        """The same mapped rows as a table called `name`."""
        table = shallow_copy(self)
        table.name = name
        table._reader = self._reader and RowReader(name, self.counters)  # noqa: SLF001 - its own
        table._default_lock = threading.Lock()  # noqa: SLF001 - its own
        return table

    @property
    def used_rows(self) -> int:
        """How many rows the file holds, from row 0 on."""
        return self.row_count

    @property
    def live_rows(self) -> int:
        """How many rows it has."""
        return self.row_count

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that the file holds."""
        return self.used_rows * self.row_bytes

    def renewed(self) -> Self:
        """This table, or its like if its files say that readers are to map another index."""
        return self

    def preload(
        self, policy: Preload, taken_bytes: int = 0, available_bytes: int | None = None
    ) -> None:
        """Bring the pages in as `policy` says. BadFile when they can't be read or locked.

        Other tables take `taken_bytes` of the available memory, which is asked for if None is
        given. A table that doesn't fit into the rest isn't populated, and the kernel doesn't read
        ahead in it.
        """
        if self._mapping is None:
            return
        if policy is not Preload.LOCK:
            if available_bytes is None:
                available_bytes = memory.available_bytes()
            room = max(0, available_bytes - taken_bytes)
            if self.nbytes > room // 2:
                memory.advise_random(self._mapping)
            if policy is Preload.NONE or self.nbytes > room // (1 + (policy is Preload.AUTO)):
                if policy is Preload.POPULATE:
                    logger.warning(
                        "table %r isn't populated: it has %d bytes, and %d are left of the memory",
                        self.name,
                        self.nbytes,
                        room,
                    )
                return
        try:
            memory.populate(self._mapping, self._begin + self.nbytes)
            self.is_populated = True
            if policy is Preload.LOCK:
                memory.lock(self._mapping, self._begin + self.nbytes)
            if self.keys is not None:
                self.keys.populate()
                if policy is Preload.LOCK:
                    self.keys.lock()
        except OSError as error:
            raise BadFile(
                f"table {self.name!r}: its {self.nbytes} bytes can't be preloaded "
                f"({policy.value}): {error.strerror}"
            ) from None

    def take(self, ids: NDArray[np.integer[Any]], out: NDArray[Any] | None) -> NDArray[Any]:
        """The rows of `ids`, of any shape S, as they are stored: S + (dim,); else as `lookup`.

        There is as little code as possible around NumPy's own copy: half a megabyte of rows evicts
        Python's code from the cache, so each line costs a read from memory.
        """
        elements = self._elements
        if elements is None or compiled.compiled_gather() is not None:
            return self.lookup(ids, self.dtype, out=out).vectors
        if not all_in_range(ids, self.row_count):
            raise out_of_range_error(self.name, ids, self.row_count)
        if out is None:
            out = np.empty((*ids.shape, self.dim), self.dtype.storage)
        if ids.size:
            # mode="clip" skips NumPy's own bounds check, which buffers the output; ours is done.
            elements.take(ids, 0, out, "clip")
        return out

    def lookup(
        self,
        asked: Asked,
        dtype: DType = DType.FLOAT32,
        missing: Missing = Missing.ERROR,
        out: NDArray[Any] | None = None,
    ) -> Gathered:
        """Gather the rows of `asked`, ids or keys of any shape S.

        `out`, of shape S + (dim,) and the reply dtype's storage, C-contiguous, is filled and
        returned instead of a new array. IdOutOfRange or KeyNotFound, with `out` untouched, when
        `missing` is ERROR and one has no row; NoKeys for keys when the table has none;
        Unavailable, with `out` filled in part, when a writer died while it wrote a row.
        """
        if dtype is self.dtype and missing is Missing.ERROR and not isinstance(asked, ByKey):
            vectors = np.empty((*asked.shape, self.dim), dtype.storage) if out is None else out
            if not self.read_rows(flat_ids(asked), vectors.reshape(-1).view(np.uint8), 0):
                raise out_of_range_error(self.name, asked, self.row_count)
            return Gathered(vectors, dtype, None, self.version)
        vectors = np.empty((*asked.shape, self.dim), dtype.storage) if out is None else out
        copy = None if dtype is self.dtype else partial(self._copy_converted, dtype)
        found = self.fill(asked, missing, vectors.reshape(asked.size, self.dim), copy)
        if found is not None and missing is not Missing.INIT:
            vectors[~found] = self._filler(missing, dtype)
        return Gathered(vectors, dtype, status_of(asked.shape, found, missing), self.version)

    def fill(
        self, asked: Asked, missing: Missing, out: NDArray[Any], copy: Copy | None = None
    ) -> NDArray[np.bool_] | None:
        """Fill `out`, (n, …), with the rows of `asked`, as stored or as `copy` makes them.

        Which of them have a row, of shape S; None if all do. What is put in the place of others
        means nothing, except with INIT, when it is the key's initial vector. Raises what `lookup`
        does; `copy` may be called for parts, and again.
        """
        rows, found = self.rows_of(asked, missing)
        if self.row_count:
            self.read(flat_ids(rows), out, copy or self._copy)
        return found

    def lookup_bags(
        self,
        asked: Asked,
        query: BagsQuery,
        dtype: DType = DType.FLOAT32,
        missing: Missing = Missing.ERROR,
        out: NDArray[Any] | None = None,
    ) -> Gathered:
        """Pool the rows of `asked`, shape (n,), into one vector per bag: vectors (bags, dim).

        Accumulated in float32 and then converted. Raises what `lookup` does. There is one status
        per id. Unimplemented where numba isn't installed.
        """
        shape = (query.offsets.size, self.dim)
        is_direct = dtype is DType.FLOAT32 and out is not None
        pooled = out if is_direct and out is not None else np.empty(shape, np.float32)
        found = self._pool(asked, query, missing, pooled)
        vectors = pooled
        if dtype is not DType.FLOAT32:
            vectors = np.empty(shape, dtype.storage) if out is None else out
            convert(pooled, DType.FLOAT32, vectors, dtype)
        return Gathered(vectors, dtype, status_of(asked.shape, found, missing), self.version)

    def _pool(
        self, asked: Asked, query: BagsQuery, missing: Missing, out: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Fill `out`, (bags, dim); which of `asked` have a row or are padding."""
        index, found = self._bag_index(asked, query.padding_id, missing)
        filler = np.zeros(self.dim, np.float32)
        if missing is Missing.DEFAULT and not found.all():
            filler = self.default_vector()
        rows_2d = self.rows.view(self.dtype.storage)
        bags.pool(
            rows_2d, index, query.offsets, query.weights, query.pooling, filler, out, self._reader
        )
        return found

    def keys_of(
        self,
        ids: NDArray[np.integer[Any]],
        check_bytes: Callable[[int], None] = lambda _nbytes: None,
    ) -> Keys:
        """The keys of `ids`, of the same shape. IdOutOfRange, or NoKeys when the table has none.

        `check_bytes` is called with their size before they are copied, and may raise.
        """
        index = self.key_index()
        if not all_in_range(ids, self.row_count):
            raise out_of_range_error(self.name, ids, self.row_count)
        return index.keys_of(ids, check_bytes)

    def read_rows(self, ids: NDArray[np.int64], out: NDArray[np.uint8], begin: int) -> bool:
        """Copy the rows of `ids`, (n,), as they are stored, to `out` from byte `begin` on.

        False, with nothing copied, when an id has no row. Unavailable as in `lookup`.
        """
        gather = compiled.compiled_gather()
        if gather is None:
            if not all_in_range(ids, self.row_count):
                return False
        else:
            found = gather(self.rows, self.counters, ids, out, begin)
            if found == compiled.DONE:
                return True
            if found >= 0:
                return False
            # From the torn row on, with a longer wait.
            done = compiled.torn_row(found)
            ids, begin = ids[done:], begin + done * self.row_bytes
        if self.row_count:
            stored = out[begin : begin + ids.size * self.row_bytes]
            self.gather(ids, stored.reshape(ids.size, self.row_bytes), self.dtype)
        return True

    def rows_of(
        self, asked: Asked, missing: Missing
    ) -> tuple[NDArray[np.integer[Any]], NDArray[np.bool_] | None]:
        """Row indices that are all valid, and which of them were found (None: all of them).

        Raises what `lookup` does for missing ids and keys.
        """
        if missing is Missing.INIT:
            raise self.has_no_init()
        if isinstance(asked, ByKey):
            rows: NDArray[np.integer[Any]] = self.key_index().rows_of(asked.keys)
            found = rows >= 0
            if found.all():
                return rows, None
            if missing is Missing.ERROR:
                raise self.key_index().not_found(self.name, asked.keys, rows)
        else:
            rows = asked
            if all_in_range(rows, self.row_count):
                return rows, None
            if missing is Missing.ERROR:
                raise out_of_range_error(self.name, rows, self.row_count)
            found = in_range(rows, self.row_count)
        return np.where(found, rows, 0), found

    def _bag_index(
        self, asked: Asked, padding_id: int | None, missing: Missing
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The index that `bags.pool` takes for `asked`, and which have a row or are padding.

        A padding id needs no row; it is often −1.
        """
        if missing is Missing.INIT:
            raise self.has_no_init()
        absent = bags.SKIP if missing is Missing.SKIP else bags.FILL
        if isinstance(asked, ByKey):
            rows: NDArray[np.integer[Any]] = self.key_index().rows_of(asked.keys)
            if padding_id is not None and padding_id < 0:
                padding_id = None  # here −1 is a key without a row, not padding
        else:
            rows = asked
        index, found = bags.bag_index(rows, self.row_count, absent, padding_id)
        if missing is Missing.ERROR and not found.all():
            if isinstance(asked, ByKey):
                raise self.key_index().not_found(self.name, asked.keys, rows)
            raise out_of_range_error(self.name, asked, self.row_count, found)
        return index, found

    @property
    def open_spec(self) -> OpenSpec | None:
        """How its rows come and go; None for a closed table."""
        return None

    def has_no_init(self) -> InvalidArgument:
        """The error for a request of initial vectors, which only open tables have."""
        return InvalidArgument(
            f'table {self.name!r} is closed, so missing="init" has no vectors to answer with: its '
            'rows are those that it was made with. missing="default" and "zero" are for any table; '
            "`gatherd create NAME --keys …` makes an open one",
            {"table": self.name},
        )

    def key_index(self) -> KeyIndex:
        """The index of its keys and their rows; NoKeys when it has none."""
        if not isinstance(self.keys, KeyIndex):
            raise NoKeys(
                f"table {self.name!r} has no keys; its rows have the ids 0 to {self.row_count - 1}",
                {"table": self.name},
            )
        return self.keys

    def gather(self, index: NDArray[np.intp], out: NDArray[Any], dtype: DType) -> None:
        """Fill `out`, (n, …), with the rows of `index`, (n,), all valid, in `dtype`'s storage.

        Unavailable as in `lookup`.
        """
        copy = self._copy if dtype is self.dtype else partial(self._copy_converted, dtype)
        self.read(index, out, copy)

    def read(self, index: NDArray[np.intp], out: NDArray[Any], copy: Copy) -> None:
        """Fill `out`, (n, …), with what `copy` makes of the rows of `index`, (n,), all valid.

        See RowReader.read. Unavailable as in `lookup`.
        """
        if self._reader is None:
            copy(self.rows, index, out)
        else:
            self._reader.read(index, out, partial(copy, self.rows))

    def _copy(self, rows: NDArray[np.uint8], index: NDArray[np.intp], out: NDArray[Any]) -> None:
        # mode="clip" skips NumPy's own bounds check, which buffers the output; ours is done.
        flat = out.view(np.uint8).reshape(index.size, self.row_bytes)
        rows.take(index, 0, flat, "clip")

    def _copy_converted(
        self,
        dtype: DType,
        rows: NDArray[np.uint8],
        index: NDArray[np.intp],
        out: NDArray[Any],
    ) -> None:
        block = max(1, CONVERT_BLOCK_BYTES // self.row_bytes)
        buffer = np.empty((min(block, index.size), self.row_bytes), np.uint8)
        for start in range(0, index.size, block):
            part = index[start : start + block]
            raw = buffer[: part.size]
            np.take(rows, part, axis=0, out=raw, mode="clip")
            convert(raw.view(self.dtype.storage), self.dtype, out[start : start + block], dtype)

    def _filler(self, missing: Missing, dtype: DType) -> NDArray[Any]:
        filler = np.zeros(self.dim, dtype.storage)
        if missing is Missing.DEFAULT:
            convert(self.default_vector(), DType.FLOAT32, filler, dtype)
        return filler

    def resident_bytes(self) -> int:
        """Bytes of the rows that are in memory now; costs a system call and a byte per page."""
        return 0 if self._mapping is None else min(memory.resident(self._mapping), self.nbytes)

    def may_wait(self, asked: Asked) -> bool:
        """Whether a lookup of `asked` is likely to wait for a disk; touches no row.

        Costs nothing for a populated table, and up to 20 µs for another.
        """
        if self.is_populated or self._mapping is None:
            return False
        if isinstance(asked, ByKey) or asked.size > COLD_IDS_MAX:
            # A thread costs less than the check, and the index of keys may be cold as well.
            return True
        rows = [int(row) for row in flat_ids(asked)]
        return not all(self._is_resident(row) for row in rows if 0 <= row < self.row_count)

    def look_at_residency(self) -> None:
        """Find out anew whether the rows are in memory, by a sample of their pages.

        Takes about a millisecond, so don't call it in an event loop's thread.
        """
        if self._mapping is None:
            return
        sample = random.sample(range(self.used_rows), min(self.used_rows, SAMPLED_ROWS))
        self.is_populated = all(map(self._is_resident, sample))

    def _is_resident(self, row: int) -> bool:
        assert self._mapping is not None
        begin = self._begin + row * self.row_bytes
        return memory.is_resident(self._mapping, begin, self.row_bytes)

    @property
    def default_vector_is_known(self) -> bool:
        """Whether `default_vector` answers at once, without averaging the table."""
        return self._default_vector is not None

    def default_vector(self) -> NDArray[np.float32]:
        """The vector for missing ids, shape (dim,): the stored one, else the mean of all rows.

        The mean is summed once, in float64, in row order: a table that never changes gives the same
        vector in every process. Zeros for a table without rows.
        """
        with self._default_lock:
            if self._default_vector is None:
                self._default_vector = self._mean()
            return self._default_vector

    def stored_rows(self, start: int, stop: int) -> NDArray[Any]:
        """A copy of the rows from `start` up to `stop`, (n, dim) in the table dtype's storage."""
        if self._reader is None:
            return self.rows[start:stop].copy().view(self.dtype.storage)
        index = np.arange(start, min(stop, self.row_count), dtype=np.intp)
        rows = np.empty((index.size, self.dim), self.dtype.storage)
        self._reader.read(index, rows, partial(self._copy, self.rows))
        return rows

    def _mean(self) -> NDArray[np.float32]:
        total = np.zeros(self.dim, np.float64)
        block = max(1, MEAN_BLOCK_BYTES // self.row_bytes)
        for start in range(0, self.row_count, block):
            stored = self.stored_rows(start, start + block)
            wide = np.empty(stored.shape, np.float32)
            convert(stored, self.dtype, wide, DType.FLOAT32)
            total += wide.sum(axis=0, dtype=np.float64)
        return (total / max(1, self.row_count)).astype(np.float32)


def status_of(
    shape: tuple[int, ...], found: NDArray[np.bool_] | None, missing: Missing
) -> NDArray[np.uint8] | None:
    """The statuses of ids of `shape`, of which those that aren't `found` (None: all) are missing.

    None when every id has to have a row.
    """
    if missing is Missing.ERROR:
        return None
    status = np.zeros(shape, np.uint8)
    if found is not None:
        status[~found] = STATUS_MISSING
    return status
