"""Writes a table version's files in staging; the store's catalog.py has the layout.

The rows come in blocks, and their number may be known only at the end. So weights.npy begins with a
header whose length fits every row count, and its blocks are reserved in steps ahead of the writing.
At the end the header is corrected and the file cut to its size.
"""

import io
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.store.catalog import DATA_DIR_FORMAT, DEFAULT_NAME, MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.checksums import (
    BLOCK_BYTES,
    CHECKSUMS,
    BlockChecksums,
    FileChecksums,
    checksums_of,
    crc_of,
    encode_document,
)
from gatherd.store.dtypes import DType
from gatherd.store.format import npy_header
from gatherd.store.key_index import KeyKind, Keys
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder
from gatherd_server.storage.mapped_rows import write_counters
from gatherd_server.storage.slots import write_slots
from gatherd_server.training.optimizer import Optimizer

# A file of unknown length is reserved in steps of this size, or of an eighth of its size so far.
RESERVE_BYTES = 16 << 20

# ml_dtypes saves bfloat16 as V2; the other names are NumPy's.
NPY_DESCR = {
    DType.FLOAT32: "<f4",
    DType.FLOAT16: "<f2",
    DType.FLOAT64: "<f8",
    DType.BFLOAT16: "|V2",
}


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows that follow one another: (n, dim) in the table dtype's storage, and their n keys.

    `at_duplicates` is called with a mask, (n,), of the rows whose keys the table has already. It
    raises, or returns whether they replace the earlier rows; if not, they are left out.
    """

    rows: NDArray[Any]
    keys: Keys | None = None
    at_duplicates: Callable[[NDArray[np.bool_]], bool] | None = None


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The contents of a new table version.

    `blocks` yields its rows in order. `row_count` is their maximal number, None when it is known
    only at the end. `origin`, where the rows came from, is kept in the manifest.
    """

    name: str
    dtype: DType
    row_count: int | None
    dim: int
    blocks: Iterable[Block]
    origin: dict[str, Any]
    default_vector: NDArray[np.float32] | None = None
    key_kind: KeyKind | None = None
    optimizer: Optimizer | None = None


@dataclass(frozen=True, slots=True)
class StagedTable:
    """A table version on disk that is not visible yet."""

    folder: Path
    uid: str
    row_count: int


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """Rows that are in a weights.npy already, whole and durable, with their keys if they have any.

    `at_duplicates` is called if a key is there twice: with its batch of `keys`, its index there,
    its row, and the earlier row that has it; it raises.
    """

    weights: Path
    row_count: int
    checksums: FileChecksums
    keys: Iterable[Keys] = ()
    at_duplicates: Callable[[Keys, int, int, int], None] | None = None


def stage_table(
    files: Files, staging: Path, table: TableFiles, uid: str | None = None
) -> StagedTable:
    """Write `table` to a new folder in `staging`, named after `uid`, which is drawn if it is None.

    The contents of its files are durable on return. Their names and the manifest become durable
    when the folder is made a version (`finish_manifest`); nothing needs them before. StorageError
    when the disk is full or fails, InvalidArgument when `table` can't be trained as it asks; the
    folder is removed then.
    """

    def write(folder: Path) -> tuple[int, dict[str, FileChecksums]]:
        return _write_rows(files, folder, table)

    return _staged(files, staging, table, uid, write)


def stage_written(
    files: Files, staging: Path, table: TableFiles, written: WrittenRows, uid: str
) -> StagedTable:
    """As `stage_table`, of rows that are written already; `table.blocks` isn't read.

    The folder's weights.npy is `written.weights` under a second name.
    """

    def write(folder: Path) -> tuple[int, dict[str, FileChecksums]]:
        files.link(written.weights, folder / WEIGHTS_NAME)
        if table.key_kind is not None:
            with KeyIndexBuilder(files, folder, table.key_kind) as index:
                for keys in written.keys:
                    _add_unique(index, keys, written)
                index.finish()
        return written.row_count, {WEIGHTS_NAME: written.checksums}

    return _staged(files, staging, table, uid, write)


def _add_unique(index: KeyIndexBuilder, keys: Keys, written: WrittenRows) -> None:
    begin = index.count
    is_new = index.add(keys)
    if is_new.all():
        return
    assert written.at_duplicates is not None
    index_in_batch = int(np.argmin(is_new))
    # The builder gave rows to the new ones alone, but up to the first duplicate all are new.
    earlier = int(index.rows_of(keys)[index_in_batch])
    written.at_duplicates(keys, index_in_batch, begin + index_in_batch, earlier)


def _staged(
    files: Files,
    staging: Path,
    table: TableFiles,
    uid: str | None,
    write: Callable[[Path], tuple[int, dict[str, FileChecksums]]],
) -> StagedTable:
    """Make a folder in `staging`, have `write` put rows and keys there, and complete it."""
    if table.optimizer is not None:
        table.optimizer.check_table(table.dtype, table.row_count)
    uid = uid or uuid.uuid4().hex
    folder = staging / uid
    files.make_dirs(folder, durable=False)
    try:
        row_count, checksums = write(folder)
        _complete(files, folder, table, uid, row_count, checksums)
    except BaseException:
        files.remove_tree(folder)
        raise
    return StagedTable(folder, uid, row_count)


def write_default(
    files: Files, folder: Path, vector: NDArray[np.float32]
) -> dict[str, FileChecksums]:
    """Write a version's default vector, durable but for the file's name; its checksums."""
    buffer = io.BytesIO()
    np.save(buffer, vector, allow_pickle=False)
    files.write_new(folder / DEFAULT_NAME, buffer.getvalue())
    return {DEFAULT_NAME: checksums_of(buffer.getvalue())}


def _complete(
    files: Files,
    folder: Path,
    table: TableFiles,
    uid: str,
    row_count: int,
    checksums: dict[str, FileChecksums],
) -> None:
    """Write what a version has beside rows and keys: slots, counters, default vector, manifest."""
    if table.optimizer is not None:
        table.optimizer.check_table(table.dtype, row_count)
        checksums |= write_slots(files, folder, table.optimizer.slots, row_count, table.dim)
        write_counters(files, folder, row_count)
    if table.default_vector is not None:
        checksums |= write_default(files, folder, table.default_vector)
    manifest = {
        "format": DATA_DIR_FORMAT,
        "uid": uid,
        "name": table.name,
        "version": 1,
        "dtype": table.dtype.value,
        "rows": row_count,
        "dim": table.dim,
        "keys": table.key_kind.value if table.key_kind else None,
        "optimizer": table.optimizer.to_json() if table.optimizer else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "origin": table.origin,
        CHECKSUMS: {name: found.to_json() for name, found in checksums.items()},
    }
    files.write_new(folder / MANIFEST_NAME, encode_document(manifest), durable=False)


def _write_rows(
    files: Files, folder: Path, table: TableFiles
) -> tuple[int, dict[str, FileChecksums]]:
    """Write the weights, and the key index if there are keys; return row count and checksums."""
    with ExitStack() as stack:
        weights = stack.enter_context(_WeightsFile(files, folder / WEIGHTS_NAME, table))
        index = None
        if table.key_kind is not None:
            index = stack.enter_context(KeyIndexBuilder(files, folder, table.key_kind))
        for block in table.blocks:
            if index is None:
                weights.append(block.rows)
            else:
                _append_keyed(weights, index, block)
        if index is not None:
            index.finish()
        return weights.row_count, {WEIGHTS_NAME: weights.finish()}


def _append_keyed(weights: "_WeightsFile", index: KeyIndexBuilder, block: Block) -> None:
    """Write the rows of `block` whose keys are new, and treat the others as it asks."""
    assert block.keys is not None
    is_new = index.add(block.keys)
    if is_new.all():
        weights.append(block.rows)
        return
    assert block.at_duplicates is not None
    replaces = block.at_duplicates(~is_new)
    weights.append(block.rows[is_new])
    if replaces:
        weights.replace(index.rows_of(block.keys)[~is_new], block.rows[~is_new])


class _WeightsFile:
    """weights.npy while it grows. A context manager; the file is whole after `finish`."""

    def __init__(self, files: Files, path: Path, table: TableFiles) -> None:
        self.row_count = 0
        self._files = files
        self._path = path
        self._dtype = table.dtype
        self._dim = table.dim
        self._row_bytes = table.dim * table.dtype.itemsize
        self._position = weights_header_bytes(table.dtype, table.dim)
        self._checksums = BlockChecksums()
        # Blocks to checksum again: the first has zeros instead of the header.
        self._changed = {0}
        self._checksums.update(memoryview(bytes(self._position)))
        self._reserved = 0
        self._row_count_max = table.row_count or 0

    def __enter__(self) -> Self:
        header = weights_header(self._dtype, 0, self._dim)
        self._files.write_new(self._path, header, durable=False)
        self._file = open(self._path, "r+b", buffering=0)  # closed in __exit__
        try:
            self._reserve(self._row_count_max * self._row_bytes)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: NDArray[Any]) -> None:
        """Write `rows`, (n, dim) in the dtype's storage, after those before."""
        if rows.dtype != self._dtype.storage or rows.shape[1:] != (self._dim,):
            raise AssertionError(f"{self._path}: rows are {rows.dtype} {rows.shape}")
        if not rows.size:
            return
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        end = self._position + data.nbytes
        if end > self._reserved:
            self._reserve(end + max(RESERVE_BYTES, end // 8) - self._position)
        self._checksums.update(data)
        self._position = self._files.write_at(self._file.fileno(), data, self._position, self._path)
        self.row_count += len(rows)

    def replace(self, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Write `values`, (n, dim), over earlier `rows`, (n,); the last one counts for a repeat."""
        start = weights_header_bytes(self._dtype, self._dim)
        for row, value in zip(rows.tolist(), np.ascontiguousarray(values), strict=True):
            begin = start + row * self._row_bytes
            data = value.view(np.uint8).data
            end = self._files.write_at(self._file.fileno(), data, begin, self._path)
            self._changed.update(range(begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1))

    def finish(self) -> FileChecksums:
        """Correct the header and the size; durable but for the file's name."""
        fd = self._file.fileno()
        header = weights_header(self._dtype, self.row_count, self._dim)
        self._files.write_at(fd, memoryview(header), 0, self._path)
        self._files.truncate(fd, self._position, self._path)
        self._files.sync(fd, self._path)
        found = self._checksums.finish()
        crcs = list(found.crcs)
        for block in self._changed:
            begin = block * BLOCK_BYTES
            crcs[block] = crc_of(fd, begin, min(begin + BLOCK_BYTES, self._position))
        return FileChecksums(found.byte_count, found.block_bytes, tuple(crcs))

    def _reserve(self, byte_count: int) -> None:
        """Reserve room for `byte_count` bytes after the written ones."""
        self._reserved = self._position + byte_count
        self._files.allocate(self._file.fileno(), self._reserved, self._path)


def weights_header_bytes(dtype: DType, dim: int) -> int:
    """Bytes before the first row of a weights.npy."""
    return len(weights_header(dtype, 0, dim))


def weights_header(dtype: DType, row_count: int, dim: int) -> bytes:
    """The header of a weights.npy.

    Its length depends on `dim` alone: NumPy leaves room for a growing axis.
    """
    return npy_header(NPY_DESCR[dtype], (row_count, dim))
