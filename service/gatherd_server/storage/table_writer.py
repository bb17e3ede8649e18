"""Writes a table version's files where no reader looks yet; catalog.py has the layout."""

import io
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.catalog import DATA_DIR_FORMAT, DEFAULT_NAME, MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.dtypes import DType
from gatherd_server.storage.files import Files

# ml_dtypes saves bfloat16 as V2; the other types are what NumPy calls them.
_NPY_DESCR = {
    DType.FLOAT32: "<f4",
    DType.FLOAT16: "<f2",
    DType.FLOAT64: "<f8",
    DType.BFLOAT16: "|V2",
}


@dataclass(frozen=True, slots=True)
class TableFiles:
    """What a new table version is to hold.

    `blocks` yields its rows in order, each block (n, dim) in the dtype's storage.
    `origin` is kept in the manifest: where the rows came from.
    """

    name: str
    dtype: DType
    row_count: int
    dim: int
    blocks: Iterable[NDArray[Any]]
    origin: dict[str, Any]
    default_vector: NDArray[np.float32] | None = None


def stage_table(files: Files, staging: Path, table: TableFiles) -> tuple[Path, str]:
    """Write `table` durably to a new folder in `staging`; returns the folder and the table's uid.

    StorageError when the disk is full or fails; the folder is gone then.
    """
    uid = uuid.uuid4().hex
    folder = staging / uid
    files.make_dirs(folder)
    try:
        _write_weights(files, folder / WEIGHTS_NAME, table)
        if table.default_vector is not None:
            buffer = io.BytesIO()
            np.save(buffer, table.default_vector, allow_pickle=False)
            files.write_new(folder / DEFAULT_NAME, buffer.getvalue())
        manifest = {
            "format": DATA_DIR_FORMAT,
            "uid": uid,
            "name": table.name,
            "version": 1,
            "dtype": table.dtype.value,
            "rows": table.row_count,
            "dim": table.dim,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "origin": table.origin,
        }
        files.write_new(folder / MANIFEST_NAME, json.dumps(manifest, indent=2).encode())
        files.sync_dir(folder)
    except BaseException:
        files.remove_tree(folder)
        raise
    return folder, uid


def _write_weights(files: Files, path: Path, table: TableFiles) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": _NPY_DESCR[table.dtype],
            "fortran_order": False,
            "shape": (table.row_count, table.dim),
        },
    )
    row_bytes = table.dim * table.dtype.itemsize
    files.write_new(path, header.getvalue())
    with open(path, "r+b", buffering=0) as file:
        fd = file.fileno()
        end = len(header.getvalue()) + table.row_count * row_bytes
        files.allocate(fd, end, path)
        position = len(header.getvalue())
        for block in table.blocks:
            position = files.write_at(fd, block.reshape(-1).view(np.uint8).data, position, path)
        if position != end:
            raise AssertionError(f"{path}: the blocks end at byte {position}, not {end}")
        files.sync(fd, path)
