"""A column of vectors, and one of keys, from Parquet and Arrow IPC (Feather) files. Needs pyarrow.

The vectors are a fixed-size list of floats, or a list whose every row is equally long, which is how
other writers of Parquet store one. Keys are strings, bytes or integers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, GatherdError, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, Keys, StringKeys
from gatherd_server.loaders.batches import (
    OnBadRow,
    RowBatch,
    RowSource,
    pick,
    rows_per_batch,
    select_keys,
)
from gatherd_server.loaders.limits import (
    ARROW_BATCH_BYTES_MAX,
    BATCH_BYTES,
    RATIO_FREE_BYTES,
    UnpackLimits,
)
from gatherd_server.loaders.parquet_footer import Footer, read_footer

PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"
# By parquet.thrift's Type: float, double, and the fixed bytes that float16 is.
_PARQUET_BYTES = {4: 4, 5: 8, 7: 2}
_DTYPES = {"halffloat": DType.FLOAT16, "float": DType.FLOAT32, "double": DType.FLOAT64}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns: of lists (None to find the only one), of keys, or several of numbers."""

    vectors: str | None
    keys: str | None
    numbers: str | None = None


def columnar_source(
    name: str, path: Path, columns: Columns, on_bad_row: OnBadRow, limits: UnpackLimits
) -> RowSource:
    """The rows of the Parquet or Arrow file `path`, called `name` in errors."""
    pa = _pyarrow(name)
    with open(path, "rb") as file:
        is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    opener = _open_parquet if is_parquet else _open_arrow
    with _told(name):
        schema, row_count, batches = opener(pa, name, path, limits)
        reader = _Reader(pa, name, schema, columns, on_bad_row)
        dim = reader.fixed_dim() or _first_length(reader, batches)

    dtype = reader.dtype
    if row_count is not None and row_count * dim * dtype.itemsize > limits.bytes_max:
        raise BadFile(
            f"{name} claims {row_count} rows of {dim} {dtype.value}, over {limits.bytes_max} bytes "
            "(raise --unpacked-bytes-max if that is meant)"
        )

    def read() -> Iterator[RowBatch]:
        found = 0
        with _told(name):
            for batch in reader.batches(batches(reader.wanted, rows_per_batch(dim, 8)), dim):
                found += len(batch.rows) + batch.bad_count
                yield batch
        if row_count is not None and found != row_count:
            raise BadFile(f"{name} has {found} rows; its footer says {row_count}")

    return RowSource(
        reader.where,
        "Parquet" if is_parquet else "Arrow",
        dtype,
        dtype,
        dim,
        row_count,
        reader.key_kind,
        "row",
        row_count,
        read,
    )


_Batches = Callable[[list[str], int], Iterator[Any]]


def _open_parquet(_: Any, name: str, path: Path, limits: UnpackLimits) -> tuple[Any, int, _Batches]:
    import pyarrow.parquet as pq

    footer = read_footer(name, path)
    file = pq.ParquetFile(path, buffer_size=BATCH_BYTES, pre_buffer=False)
    if not file.metadata.num_rows == footer.row_count == footer.group_rows:
        raise BadFile(
            f"{name} has {footer.group_rows} rows in its groups; its footer says {footer.row_count}"
        )

    def batches(wanted: list[str], rows: int) -> Iterator[Any]:
        _check_size(name, path, footer, wanted, limits)
        return iter(file.iter_batches(batch_size=rows, columns=wanted, use_threads=False))

    return file.schema_arrow, footer.row_count, batches


def _check_size(
    name: str, path: Path, footer: Footer, wanted: list[str], limits: UnpackLimits
) -> None:
    """BadFile when the columns are far more than the file: a repeated value takes no room in it."""
    unpacked = 0
    for chunk in footer.chunks:
        if chunk.name in wanted:
            width = _PARQUET_BYTES.get(chunk.physical_type, 0)
            unpacked += max(chunk.unpacked_bytes, chunk.value_count * width)
    packed = path.stat().st_size
    if unpacked > max(RATIO_FREE_BYTES, packed * limits.ratio_max) or unpacked > limits.bytes_max:
        raise BadFile(
            f"{name} unpacks to {unpacked} bytes from {packed} "
            "(raise --unpacked-ratio-max or --unpacked-bytes-max if that is meant)"
        )


def _open_arrow(
    pa: Any, name: str, path: Path, limits: UnpackLimits
) -> tuple[Any, int | None, _Batches]:
    # An option of the reader, so that columns that nobody asked for aren't unpacked.
    def reader(wanted: list[str] | None) -> Any:
        source = pa.memory_map(str(path))
        options = pa.ipc.IpcReadOptions(use_threads=False)
        if wanted is not None:
            schema = pa.ipc.open_file(source).schema
            fields = [schema.get_field_index(column) for column in wanted]
            options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return pa.ipc.open_file(source, options=options)

    def batches(wanted: list[str], rows: int) -> Iterator[Any]:
        file = reader(wanted)
        unpacked = 0
        for index in range(file.num_record_batches):
            batch = file.get_batch(index)
            unpacked += batch.nbytes
            if batch.nbytes > ARROW_BATCH_BYTES_MAX or unpacked > limits.bytes_max:
                raise BadFile(
                    f"{name}: record batch {index} unpacks to {batch.nbytes} bytes; "
                    f"{ARROW_BATCH_BYTES_MAX} are read in one, and {limits.bytes_max} in all"
                )
            batch.validate(full=True)
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)

    return reader(None).schema, None, batches


class _Reader:
    """Turns record batches into rows and keys."""

    def __init__(
        self, pa: Any, name: str, schema: Any, columns: Columns, on_bad_row: OnBadRow
    ) -> None:
        self._pa = pa
        self._on_bad_row = on_bad_row
        shapes = {
            field.name: str(field.type)
            for field in schema
            if _is_list(pa, field.type) and str(field.type.value_type) in _DTYPES
        }
        self._vectors = pick(name, columns.vectors, shapes, "column")
        self._keys = columns.keys
        self.where = f"{name}#{self._vectors}"
        self._type = schema.field(self._vectors).type
        self.dtype = _DTYPES[str(self._type.value_type)]
        self.key_kind: KeyKind | None = None
        self.wanted = [self._vectors]
        if columns.keys is not None:
            usable = {field.name: str(field.type) for field in schema if _key_kind(pa, field.type)}
            self.key_kind = _key_kind(
                pa, schema.field(pick(name, columns.keys, usable, "key column")).type
            )
            self.wanted.append(columns.keys)

    def fixed_dim(self) -> int | None:
        """The dim that the column's type has, or None for a list of any length."""
        return self._type.list_size if self._pa.types.is_fixed_size_list(self._type) else None

    def vectors_of(self, batch: Any) -> Any:
        """The column of vectors in a batch."""
        return batch.column(batch.schema.get_field_index(self._vectors))

    def batches(self, batches: Iterator[Any], dim: int) -> Iterator[RowBatch]:
        """The batches as rows; rows that aren't `dim` floats are errors, or left out."""
        start = 0
        for batch in batches:
            column = self.vectors_of(batch)
            rows, is_good = _rows_of(self._pa, column, dim, self.dtype)
            keys: Keys | None = None
            if self._keys is not None and self.key_kind is not None:
                column = batch.column(batch.schema.get_field_index(self._keys))
                keys, has_key = _keys_of(self._pa, column, self.key_kind)
                is_good &= has_key
            bad = np.flatnonzero(~is_good)
            if bad.size and self._on_bad_row is OnBadRow.ERROR:
                key = f" and a key (of 1 to {KEY_BYTES_MAX} bytes)" if keys is not None else ""
                raise BadFile(
                    f"{self.where}: row {start + bad[0]}: expected {dim} numbers{key}, none of "
                    "them null (--on-bad-row skip leaves such rows out)"
                )
            numbers = np.arange(start, start + len(batch))
            start += len(batch)
            if bad.size:
                rows, numbers = rows[is_good], numbers[is_good]
                keys = select_keys(keys, is_good) if keys is not None else None
            yield RowBatch(rows, keys, numbers, start, int(bad.size))


def _rows_of(
    pa: Any, column: Any, dim: int, dtype: DType
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A list column as (n, dim), and which rows of it are whole; the others hold anything."""
    count = len(column)
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(count, dim)
    else:
        lengths = np.asarray(column.value_lengths().fill_null(-1))
    is_good = np.asarray(column.is_valid()) & (lengths == dim)
    # Null rows of fixed size keep their room in `values`; flatten() drops them, and adjusts to
    # a slice.
    flat = column.flatten()
    whole = np.asarray(column.is_valid()) & (lengths >= 0)
    ends = np.cumsum(np.where(whole, lengths, 0))
    values = flat.fill_null(np.nan) if flat.null_count else flat
    data = np.asarray(values.to_numpy(zero_copy_only=False), dtype.storage)
    rows = np.zeros((count, dim), dtype.storage)
    if is_good.all():
        rows = data.reshape(count, dim)
    else:
        for row in np.flatnonzero(is_good).tolist():
            rows[row] = data[ends[row] - dim : ends[row]]
    if flat.null_count:
        missing = np.asarray(flat.is_null())
        for row in np.flatnonzero(is_good).tolist():
            is_good[row] = not missing[ends[row] - dim : ends[row]].any()
    return rows, is_good


def _keys_of(pa: Any, column: Any, kind: KeyKind) -> tuple[Keys, NDArray[np.bool_]]:
    """A key column as keys, and which rows have one."""
    has_key = np.asarray(column.is_valid())
    if kind is not KeyKind.BYTES:
        numbers = column.fill_null(0) if column.null_count else column
        wanted = np.int64 if kind is KeyKind.INT64 else np.uint64
        return np.asarray(numbers.to_numpy(zero_copy_only=False), wanted), has_key
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        column = column.fill_null("" if not _is_bytes(pa, column.type) else b"")
    column = column.cast(pa.large_binary())
    _, raw_offsets, raw_data = column.buffers()
    offsets = np.frombuffer(raw_offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(raw_data or b"", np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    has_key &= (lengths >= 1) & (lengths <= KEY_BYTES_MAX)
    return StringKeys(data, offsets - offsets[0], (len(column),)), has_key


def _first_length(reader: _Reader, batches: _Batches) -> int:
    """The length of the first row that isn't null."""
    for batch in batches(reader.wanted[:1], 1024):
        lengths = reader.vectors_of(batch).value_lengths().drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    raise BadFile(f"{reader.where} has no rows to know its dim by; write a fixed-size list")


def _is_list(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def _is_bytes(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _key_kind(pa: Any, kind: Any) -> KeyKind | None:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or _is_bytes(pa, kind):
        return KeyKind.BYTES
    if types.is_signed_integer(kind):
        return KeyKind.INT64
    return KeyKind.UINT64 if types.is_unsigned_integer(kind) else None


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ImportError:
        raise InvalidArgument(
            f"{name} is a Parquet or Arrow file; reading it needs pyarrow: "
            "pip install 'gatherd[formats]'"
        ) from None
    return pa


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except GatherdError:
        raise
    except Exception as error:  # noqa: BLE001  # damage shows as any of Arrow's errors
        raise BadFile(f"{name} can't be read: {type(error).__name__}: {error}") from None
