"""Writes the files of a new open version in staging; the store's open_files.py has the layout.

Every file has its full length at once and no blocks but those of its header: the writer of the
version reserves blocks before it uses rows (open_version.py).
"""

import os
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.store.catalog import DATA_DIR_FORMAT, MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.checksums import CHECKSUMS, FileChecksums, encode_document
from gatherd.store.dtypes import DType
from gatherd.store.format import npy_header
from gatherd.store.key_index import KeyKind
from gatherd.store.key_index import npy_header as array_header
from gatherd.store.open_files import (
    KEYS_HEAP,
    KEYS_INDEX,
    OPEN,
    ArrayFile,
    IndexHeader,
    count_array,
    heap_bytes,
    key_array,
    stamp_array,
)
from gatherd.store.open_spec import OpenSpec
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import write_counters
from gatherd_server.storage.slots import write_slots
from gatherd_server.storage.table_writer import NPY_DESCR, StagedTable, write_default
from gatherd_server.training.optimizer import Optimizer, SlotShape, SlotSpec

# So many slots an index begins with, unless fewer rows are possible: 512 KiB.
FIRST_SLOTS: Final = 1 << 16
SLOTS_MIN: Final = 8
# At this part of its slots an index is built anew.
LOAD_MAX: Final = 0.7


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A new open table. `origin`, where it comes from, is kept in the manifest."""

    name: str
    dtype: DType
    dim: int
    spec: OpenSpec
    optimizer: Optimizer
    origin: dict[str, Any]
    default_vector: NDArray[np.float32] | None = None


def stage_open_table(files: Files, staging: Path, table: OpenTable) -> StagedTable:
    """Write the files of `table`, without rows, to a new folder in `staging`.

    As durable as `stage_table` leaves them. StorageError when the disk is full or fails,
    InvalidArgument when `table` can't be trained as it asks; the folder is removed then.
    """
    table.optimizer.check_open_table(table.dtype)
    uid = uuid.uuid4().hex
    folder = staging / uid
    files.make_dirs(folder, durable=False)
    try:
        write_rows(files, folder, table)
        checksums: dict[str, FileChecksums] = {}
        if table.default_vector is not None:
            checksums = write_default(files, folder, table.default_vector)
        manifest = {
            "format": DATA_DIR_FORMAT,
            "uid": uid,
            "name": table.name,
            "version": 1,
            "dtype": table.dtype.value,
            "rows": table.spec.rows_max,
            "dim": table.dim,
            "keys": table.spec.kind.value,
            "optimizer": table.optimizer.to_json(),
            OPEN: table.spec.to_json(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "origin": table.origin,
            CHECKSUMS: {name: found.to_json() for name, found in checksums.items()},
        }
        files.write_new(folder / MANIFEST_NAME, encode_document(manifest), durable=False)
    except BaseException:
        files.remove_tree(folder)
        raise
    return StagedTable(folder, uid, 0)


def write_rows(files: Files, folder: Path, table: OpenTable) -> None:
    """Write everything but manifest and default vector, durable but for the files' names."""
    kind, rows_max = table.spec.kind, table.spec.rows_max
    header = npy_header(NPY_DESCR[table.dtype], (rows_max, table.dim))
    byte_count = len(header) + rows_max * table.dim * table.dtype.itemsize
    _write_sparse(files, folder / WEIGHTS_NAME, header, byte_count)
    write_open_slots(files, folder, table.optimizer.slots, rows_max, table.dim)
    write_counters(files, folder, rows_max)
    for array in (key_array(kind, rows_max), stamp_array(rows_max), count_array(rows_max)):
        _write_array(files, folder, array)
    if kind is KeyKind.BYTES:
        _write_sparse(files, folder / KEYS_HEAP, b"", heap_bytes(rows_max))
    index = IndexHeader(kind, secrets.randbits(64), slots_for(0, rows_max))
    _write_sparse(files, folder / KEYS_INDEX, index.encode(), index.byte_count, durable=False)


def write_open_slots(
    files: Files, folder: Path, slots: Iterable[SlotSpec], row_count: int, dim: int
) -> dict[str, FileChecksums]:
    """Write the slots of an open version; none of them has checksums.

    A row's first values are stored when it is created.
    """
    listed = list(slots)
    for slot in listed:
        if slot.shape is SlotShape.TABLE:
            continue
        dtype, shape = slot.array(row_count, dim)
        header = npy_header(dtype.str, shape)
        path = folder / slot.file_name
        _write_sparse(files, path, header, slot.file_bytes(row_count, dim))
    whole = [slot for slot in listed if slot.shape is SlotShape.TABLE]
    write_slots(files, folder, whole, row_count, dim)
    return {}


def slots_for(row_count: int, rows_max: int) -> int:
    """How many slots an index of so many rows is given: a power of two, filled to a half at most.

    Not more than `rows_max` rows need.
    """
    least = min(FIRST_SLOTS, _power_above(rows_max / LOAD_MAX))
    return max(SLOTS_MIN, least, _power_above(2 * row_count))


def _power_above(count: float) -> int:
    return 1 << int(count).bit_length()


def _write_array(files: Files, folder: Path, array: ArrayFile) -> None:
    header = array_header(array.descr, array.length)
    _write_sparse(files, folder / array.name, header, array.byte_count)


def _write_sparse(
    files: Files, path: Path, header: bytes, byte_count: int, *, durable: bool = True
) -> None:
    """Make the file `path` of `header` and a hole; if `durable`, then but for its name."""
    files.write_new(path, header, durable=False)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        files.truncate(fd, byte_count, path)
        if durable:
            files.sync(fd, path)
    finally:
        os.close(fd)
