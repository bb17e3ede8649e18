"""Writes a table's slots in their first state; training/optimizer.py has the layout."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gatherd.store.checksums import FileChecksums, file_checksums
from gatherd.store.format import npy_header
from gatherd_server.storage.files import Files
from gatherd_server.training.optimizer import SlotSpec

FILL_BYTES = 4 << 20


def write_slots(
    files: Files, folder: Path, slots: Iterable[SlotSpec], row_count: int, dim: int
) -> dict[str, FileChecksums]:
    """Write the slots' first state, durable but for the files' names; return the checksums.

    StorageError when the disk is full or fails.
    """
    found = {}
    for slot in slots:
        path = folder / slot.file_name
        _write_slot(files, path, slot, row_count, dim)
        found[slot.file_name] = file_checksums(path)
    return found


def _write_slot(files: Files, path: Path, slot: SlotSpec, row_count: int, dim: int) -> None:
    dtype, shape = slot.array(row_count, dim)
    header = npy_header(dtype.str, shape)
    files.write_new(path, header, durable=False)
    with open(path, "r+b", buffering=0) as file:
        end = slot.file_bytes(row_count, dim)
        # Allocated bytes that were never written read as zeros.
        files.allocate(file.fileno(), end, path)
        if slot.initial:
            block = np.full(FILL_BYTES // dtype.itemsize, slot.initial, dtype).view(np.uint8).data
            for position in range(len(header), end, FILL_BYTES):
                part = block[: min(FILL_BYTES, end - position)]
                files.write_at(file.fileno(), part, position, path)
        files.sync(file.fileno(), path)
