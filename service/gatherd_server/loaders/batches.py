"""The result of every loader: a source's shape, and its rows in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyKind, Keys, StringKeys
from gatherd.store.keys import strings_at
from gatherd.store.limits import DIM_MAX
from gatherd_server.loaders.limits import BATCH_BYTES


class OnBadRow(Enum):
    """The policies for a row that isn't `dim` numbers."""

    ERROR = "error"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch:
    """Rows that follow one another in a source.

    `rows` is (n, dim) in the source dtype's storage, and valid only until the next batch is
    requested. `numbers`, int64 (n,), has their places: lines and records count from 1, rows of
    arrays from 0. `bad_count` rows between them were left out; `done` is how far the source is
    read, in the unit of its `total`.
    """

    rows: NDArray[Any]
    keys: Keys | None
    numbers: NDArray[np.int64]
    done: int
    bad_count: int = 0


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows that can be read once.

    `dtype` is that of the batches, `stored_dtype` the table's default: decimals are read as float64
    and kept as float32. `row_count` is None when it is unknown until the end.
    `place` is the unit of a row's number: "line", "record" or "row".
    """

    name: str
    format: str
    dtype: DType
    stored_dtype: DType
    dim: int
    row_count: int | None
    key_kind: KeyKind | None
    place: str
    total: int | None
    read: Callable[[], Iterator[RowBatch]]

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= DIM_MAX:
            raise BadFile(f"{self.name} has {self.dim} elements a row; a table has 1 to {DIM_MAX}")


def array_rows(
    name: str,
    format_name: str,
    dtype: DType,
    shape: tuple[int, int],
    read: Callable[[], Iterator[RowBatch]],
) -> RowSource:
    """An array of `shape`, (row_count, dim), whose rows have no keys and keep their dtype."""
    rows, dim = shape
    return RowSource(name, format_name, dtype, dtype, dim, rows, None, "row", rows, read)


def limited(source: RowSource, row_count: int) -> RowSource:
    """The first `row_count` rows of `source`; the rest isn't read."""

    def read() -> Iterator[RowBatch]:
        left = row_count
        for batch in source.read() if left else ():
            if len(batch.rows) >= left:
                keys = slice_keys(batch.keys, 0, left) if batch.keys is not None else None
                numbers = batch.numbers[:left]
                yield replace(batch, rows=batch.rows[:left], keys=keys, numbers=numbers)
                return
            yield batch
            left -= len(batch.rows)

    known = source.row_count
    return replace(source, row_count=None if known is None else min(known, row_count), read=read)


def rows_per_batch(dim: int, itemsize: int) -> int:
    """The number of rows of `dim` elements in a batch."""
    return max(1, BATCH_BYTES // (dim * itemsize))


def select_keys(keys: Keys, mask: NDArray[np.bool_]) -> Keys:
    """Those of `keys`, (n,), where `mask`, (n,), is true."""
    if not isinstance(keys, StringKeys):
        return keys[mask]
    return keys_of_spans(keys.data, keys.offsets[:-1][mask], keys.offsets[1:][mask])


def keys_of_spans(
    data: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> StringKeys:
    """The strings `data[begins[i]:ends[i]]` as keys; the spans follow one another."""
    offsets = np.zeros(begins.size + 1, np.int64)
    np.cumsum(ends - begins, out=offsets[1:])
    return strings_at(data, begins, offsets, (begins.size,))


def slice_keys(keys: Keys, begin: int, end: int) -> Keys:
    """Keys `begin` up to `end`."""
    if not isinstance(keys, StringKeys):
        return keys[begin:end]
    offsets = keys.offsets[begin : end + 1]
    return StringKeys(
        keys.data[offsets[0] : offsets[-1]], offsets - offsets[0], (offsets.size - 1,)
    )


def join_keys(parts: list[Keys]) -> Keys:
    """Join parts, all of one kind, into one batch."""
    if len(parts) == 1:
        return parts[0]
    strings = [part for part in parts if isinstance(part, StringKeys)]
    if not strings:
        return np.concatenate([part for part in parts if not isinstance(part, StringKeys)])
    lengths = np.concatenate([np.diff(part.offsets) for part in strings])
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return StringKeys(np.concatenate([part.data for part in strings]), offsets, (lengths.size,))


def show_key(keys: Keys, index: int) -> str:
    """Key `index` for an error message: text in quotes, or a number."""
    if not isinstance(keys, StringKeys):
        return str(keys[index])
    key = keys.data[keys.offsets[index] : keys.offsets[index + 1]].tobytes()
    try:
        return repr(key[:64].decode())
    except UnicodeDecodeError:
        return repr(key[:64])
