"""Vectors and keys from Parquet and Arrow IPC (Feather) files. Needs pyarrow.

This module reads files, within bounds; arrow_columns.py chooses and converts the columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gatherd.errors import BadFile, GatherdError, InvalidArgument
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, Keys
from gatherd_server.loaders.arrow_columns import find_keys, find_vectors, keys_of
from gatherd_server.loaders.batches import (
    OnBadRow,
    RowBatch,
    RowSource,
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
# By parquet.thrift's Type: float, double, and the fixed-length bytes that hold float16.
_PARQUET_BYTES = {4: 4, 5: 8, 7: 2}
# For each column that is read.
BUFFER_BYTES_MIN = 64 << 10


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read: of lists (None to find the only one), of keys, or several of numbers."""

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
        dim = reader.dim(batches)

    dtype = reader.vectors.dtype
    if row_count is not None and row_count * dim * dtype.itemsize > limits.bytes_max:
        raise BadFile(
            f"{name} claims {row_count} rows of {dim} {dtype.value}, over {limits.bytes_max} bytes "
            "(raise --unpacked-bytes-max if that is meant)"
        )

    def read() -> Iterator[RowBatch]:
        found = 0
        unpacked_max = max(RATIO_FREE_BYTES, path.stat().st_size * limits.ratio_max)
        with _told(name):
            for batch in reader.batches(batches(reader.wanted, rows_per_batch(dim, 8)), dim):
                found += len(batch.rows) + batch.bad_count
                if found * dim * dtype.itemsize > min(unpacked_max, limits.bytes_max):
                    # Many views of one list.
                    raise BadFile(
                        f"{name} unpacks to more than {min(unpacked_max, limits.bytes_max)} bytes "
                        "(raise --unpacked-ratio-max or --unpacked-bytes-max if that is meant)"
                    )
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
    with pq.ParquetFile(path, pre_buffer=False) as file:
        row_count, schema = file.metadata.num_rows, file.schema_arrow
    if not row_count == footer.row_count == footer.group_rows:
        raise BadFile(
            f"{name} has {footer.group_rows} rows in its groups; its footer says {footer.row_count}"
        )

    def batches(wanted: list[str], rows: int) -> Iterator[Any]:
        _check_size(name, path, footer, wanted, limits)
        # Opened only now: a table may have more parts than a process may have open files.
        buffer_size = max(BUFFER_BYTES_MIN, BATCH_BYTES // len(wanted))
        with pq.ParquetFile(path, buffer_size=buffer_size, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=rows, columns=wanted, use_threads=False)

    return schema, footer.row_count, batches


def _check_size(
    name: str, path: Path, footer: Footer, wanted: list[str], limits: UnpackLimits
) -> None:
    """BadFile when the columns are much larger than the file, as repeated values make them."""
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
    # The reader takes the columns as an option, so that it doesn't unpack the others.
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
        self.vectors = find_vectors(pa, name, schema, columns.vectors, columns.numbers)
        self.where = f"{name}#{self.vectors.title}"
        self._keys = columns.keys
        self.key_kind: KeyKind | None = None
        self.wanted = list(self.vectors.names)
        if columns.keys is not None:
            self.key_kind = find_keys(pa, name, schema, columns.keys)
            if columns.keys not in self.wanted:
                self.wanted.append(columns.keys)

    def dim(self, batches: _Batches) -> int:
        """The columns' dim, or else the length of the first row that isn't null."""
        vectors = self.vectors
        if vectors.dim is not None:
            return vectors.dim
        for batch in batches(vectors.names, 1024):
            length = vectors.first_length(batch)
            if length is not None:
                return length
        raise BadFile(f"{self.where} has no rows to know its dim by; write a fixed-size list")

    def batches(self, batches: Iterator[Any], dim: int) -> Iterator[RowBatch]:
        """The batches as rows; a row that isn't `dim` floats is an error, or left out."""
        start = 0
        for batch in batches:
            rows, is_good = self.vectors.rows(batch, dim)
            keys: Keys | None = None
            if self._keys is not None and self.key_kind is not None:
                keys, has_key = keys_of(self._pa, batch, self._keys, self.key_kind)
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
    except Exception as error:  # noqa: BLE001  # damage can raise any of Arrow's errors
        raise BadFile(f"{name} can't be read: {type(error).__name__}: {error}") from None
