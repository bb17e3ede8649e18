"""What a caller uploads, cut into chunks: arrays as they lie, or batches put together.

Nothing is copied whole. An array's rows go out as they lie in memory if they are in the table's
dtype, and are converted a chunk at a time if not; of batches there is one chunk in memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.tables import check_stored_dtype
from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType, convert
from gatherd.store.given import as_given_array, bfloat16_bits, has_array
from gatherd.store.keys import Keys, StringKeys, as_keys

CHUNK_BYTES: Final = 8 << 20
"""How many bytes of rows and keys a chunk has, if the server takes so many."""
# A string key is sent with its length.
_LENGTH_BYTES: Final = 4
_INTEGER_KEY_BYTES: Final = 8
_BFLOAT16_BITS: Final = np.dtype("V2")
_DTYPES: Final = {2: DType.FLOAT16, 4: DType.FLOAT32, 8: DType.FLOAT64}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows, (n, dim) in a dtype's storage, C-contiguous, and a key for each if there are keys."""

    rows: NDArray[Any]
    keys: Keys | None


class Rows:
    """Rows to upload: `dim`, `dtype` to store them in, `key_kind`, and their number if known."""

    def __init__(self, first: "Given", dtype: DType, row_count: int | None) -> None:
        self.dim = first.rows.shape[1]
        self.dtype = dtype
        self.row_count = row_count
        self.key_kind = first.key_kind()
        self.can_repeat = row_count is not None
        """Whether `chunks` can be called again."""

    def chunks(self, skip: int, chunk_bytes: int) -> Iterator[Batch]:
        """The rows after the first `skip` ones, in chunks of at most about `chunk_bytes`."""
        raise NotImplementedError


class Given:
    """An array of rows as the caller gave it, with its keys."""

    def __init__(self, vectors: object, keys: object, what: str) -> None:
        """InvalidArgument, calling the rows `what`, for what can't be rows of a table."""
        bits = bfloat16_bits(vectors, what)
        array = as_given_array(vectors, what) if bits is None else bits
        if array.dtype == _BFLOAT16_BITS:  # as a .npy file has it
            array, bits = array.view(np.uint16), array.view(np.uint16)
        if array.ndim != 2 or not array.shape[1]:
            raise InvalidArgument(f"{what} have shape {array.shape}; they take (rows, dim)")
        if bits is None and array.dtype.kind not in "fiu":
            raise InvalidArgument(f"{what} are numbers, not {array.dtype}")
        if array.dtype.kind == "f" and array.dtype.itemsize not in _DTYPES:
            array = array.astype(np.float64)
        self.rows: NDArray[Any] = array
        self.dtype = DType.BFLOAT16 if bits is not None else _dtype_of(array, vectors)
        self._keys: Any = keys
        if keys is not None:
            # A list is converted a chunk at a time: as an array of strings it may be much larger.
            if not isinstance(keys, list | tuple | StringKeys | np.ndarray):
                self._keys = as_given_array(keys, "keys")
            count = keys.size if isinstance(keys, StringKeys) else len(self._keys)
            if count != len(array):
                raise InvalidArgument(f"there are {count} keys for {len(array)} {what}")

    def stored(self, begin: int, end: int, dtype: DType) -> NDArray[Any]:
        """Rows `begin` to `end`, in the storage of `dtype`; a view where nothing changes."""
        rows = self.rows[begin:end]
        if self.dtype is dtype:
            return np.ascontiguousarray(rows, dtype.storage)
        rows, source = rows.astype(rows.dtype.newbyteorder("="), copy=False), self.dtype
        if rows.dtype.kind in "iu" and source is not DType.BFLOAT16:
            rows, source = rows.astype(np.float64), DType.FLOAT64
        converted = np.empty(rows.shape, dtype.storage)
        convert(rows, source, converted, dtype)
        return converted

    def keys(self, begin: int, end: int) -> Keys | None:
        """The keys of rows `begin` to `end`."""
        keys = self._keys
        if keys is None:
            return None
        if isinstance(keys, StringKeys):
            offsets = keys.offsets[begin : end + 1]
            data = keys.data[int(offsets[0]) : int(offsets[-1])]
            return StringKeys(data, offsets - offsets[0], (end - begin,))
        found = as_keys(keys[begin:end])
        if len(found.shape) != 1:
            raise InvalidArgument(f"keys have shape {found.shape}; they take one a row")
        return found

    def key_kind(self) -> str:
        """The kind of keys that the first of them is; "" without keys."""
        keys = self.keys(0, min(1, len(self.rows)))
        if keys is None:
            return ""
        if isinstance(keys, StringKeys):
            return "bytes"
        # A list of ints is int64 unless its first one can't be.
        return "uint64" if keys.dtype == np.uint64 else "int64"


class ArrayRows(Rows):
    """Rows in one array."""

    def __init__(self, vectors: object, keys: object, dtype: object) -> None:
        self._given = Given(vectors, keys, "vectors")
        chosen = self._given.dtype if dtype is None else check_stored_dtype(dtype)  # type: ignore[arg-type]
        super().__init__(self._given, chosen, len(self._given.rows))

    def chunks(self, skip: int, chunk_bytes: int) -> Iterator[Batch]:
        """See Rows."""
        given, position = self._given, skip
        step = max(1, chunk_bytes // (self.dim * self.dtype.itemsize))
        while position < len(given.rows):
            end = min(position + step, len(given.rows))
            keys = given.keys(position, end)
            count = _fitting(end - position, self.dim * self.dtype.itemsize, keys, chunk_bytes)
            if count < end - position:
                end = position + count
                keys = given.keys(position, end)
            yield Batch(given.stored(position, end, self.dtype), keys)
            position = end


class BatchRows(Rows):
    """Rows in batches: arrays, or pairs of keys and an array."""

    def __init__(self, batches: Iterable[object], dtype: object, row_count: int | None) -> None:
        self._batches = iter(batches)
        self._number = 0
        first = self._next()
        if first is None:
            raise InvalidArgument("there are no batches, so the table's dim isn't known")
        self._first: Given | None = first
        chosen = first.dtype if dtype is None else check_stored_dtype(dtype)  # type: ignore[arg-type]
        super().__init__(first, chosen, row_count)
        self.can_repeat = False

    def _next(self) -> Given | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        what = f"batch {self._number}"
        self._number += 1
        keys, rows = batch if isinstance(batch, tuple) and len(batch) == 2 else (None, batch)
        return Given(rows, keys, what)

    def chunks(self, skip: int, chunk_bytes: int) -> Iterator[Batch]:
        """See Rows."""
        row_bytes = self.dim * self.dtype.itemsize
        waiting: list[Batch] = []
        waiting_bytes = 0
        for given in self._givens():
            position = min(skip, len(given.rows))
            skip -= position
            while position < len(given.rows):
                step = max(1, (chunk_bytes - waiting_bytes) // row_bytes)
                end = min(position + step, len(given.rows))
                keys = given.keys(position, end)
                room = chunk_bytes - waiting_bytes
                count = _fitting(end - position, row_bytes, keys, room)
                if count < end - position:
                    end = position + count
                    keys = given.keys(position, end)
                batch = Batch(given.stored(position, end, self.dtype), keys)
                nbytes = _nbytes(count, row_bytes, keys)
                if waiting and waiting_bytes + nbytes > chunk_bytes:
                    yield _joined(waiting)
                    waiting, waiting_bytes = [], 0
                waiting.append(batch)
                waiting_bytes += nbytes
                position = end
                if waiting_bytes + row_bytes > chunk_bytes:
                    yield _joined(waiting)
                    waiting, waiting_bytes = [], 0
        if waiting:
            yield _joined(waiting)

    def _givens(self) -> Iterator[Given]:
        given, self._first = self._first, None
        while given is not None:
            if given.rows.shape[1] != self.dim:
                raise InvalidArgument(
                    f"batch {self._number - 1} has rows of {given.rows.shape[1]} elements; those "
                    f"before have {self.dim}"
                )
            if (given.keys(0, 0) is None) is not (self.key_kind == ""):
                raise InvalidArgument(
                    f"batch {self._number - 1} has {'no ' if self.key_kind else ''}keys, unlike "
                    "those before"
                )
            yield given
            given = self._next()


def rows_of(vectors: object, keys: object, dtype: object) -> Rows:
    """The rows of an array, or of an iterable of batches. InvalidArgument for anything else."""
    is_array = isinstance(vectors, np.ndarray | list | tuple) or has_array(vectors)
    if is_array or not isinstance(vectors, Iterable):
        return ArrayRows(vectors, keys, dtype)
    if keys is not None:
        raise InvalidArgument("batches bring their keys: each is a pair of keys and rows")
    return BatchRows(vectors, dtype, None)


def _dtype_of(array: NDArray[Any], given: object) -> DType:
    """The dtype that rows are stored in if the caller names none."""
    if array.dtype.kind != "f" or isinstance(given, list | tuple):
        # Python's floats are 64 bits wide whatever they mean.
        return DType.FLOAT32 if array.dtype.kind != "f" else _listed(array)
    return _DTYPES[array.dtype.itemsize]


def _listed(array: NDArray[Any]) -> DType:
    return DType.FLOAT32 if array.dtype == np.float64 else _DTYPES[array.dtype.itemsize]


def _nbytes(count: int, row_bytes: int, keys: Keys | None) -> int:
    if keys is None:
        return count * row_bytes
    if isinstance(keys, StringKeys):
        return count * (row_bytes + _LENGTH_BYTES) + int(keys.offsets[-1] - keys.offsets[0])
    return count * (row_bytes + _INTEGER_KEY_BYTES)


def _fitting(count: int, row_bytes: int, keys: Keys | None, nbytes: int) -> int:
    """How many of `count` rows, at least one, have at most `nbytes` with their keys."""
    if isinstance(keys, StringKeys):
        ends = keys.offsets[1:] - keys.offsets[0]
        ends = ends + np.arange(1, count + 1) * (row_bytes + _LENGTH_BYTES)
        return max(1, int(np.searchsorted(ends, nbytes, "right")))
    if keys is not None:
        row_bytes += _INTEGER_KEY_BYTES
    return max(1, min(count, nbytes // row_bytes))


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    rows = np.concatenate([batch.rows for batch in batches])
    each = [batch.keys for batch in batches if batch.keys is not None]
    if not each:
        return Batch(rows, None)
    if isinstance(each[0], StringKeys):
        texts = [keys for keys in each if isinstance(keys, StringKeys)]
        lengths = np.concatenate([np.diff(keys.offsets) for keys in texts])
        offsets = np.zeros(lengths.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        parts = [keys.data[int(keys.offsets[0]) : int(keys.offsets[-1])] for keys in texts]
        joined: Keys = StringKeys(np.concatenate(parts), offsets, (lengths.size,))
        if len(texts) != len(each):
            raise InvalidArgument("some batches have keys that are strings, others integers")
        return Batch(rows, joined)
    integers = [keys for keys in each if not isinstance(keys, StringKeys)]
    if len(integers) != len(each) or len({keys.dtype.kind for keys in integers}) > 1:
        raise InvalidArgument("some batches have keys of another kind than others")
    return Batch(rows, np.concatenate(integers))
