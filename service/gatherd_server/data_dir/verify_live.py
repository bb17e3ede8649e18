"""Compares a live version's weights and slots with the sums of the last checkpoint.

A server may store into them meanwhile. It logs before it stores. So a difference is damage only if
the log, read afterwards, has no row of that block above the checkpoint, and the checkpoint is still
the same.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.catalog import WEIGHTS_NAME
from gatherd.store.checksums import crc_of
from gatherd.store.control import ControlPage
from gatherd.store.format import file_bytes, open_readonly
from gatherd.store.key_index import NPY_HEADER_BYTES, KeyKind
from gatherd.store.open_files import (
    KEYS_HEAP,
    UNIT_BYTES,
    count_array,
    heap_bytes,
    is_of_keys,
    key_array,
    stamp_array,
)
from gatherd.store.open_spec import OpenSpec
from gatherd.store.table import Table
from gatherd_server.data_dir.verify_open import heap_end, used_rows
from gatherd_server.storage.block_sums import (
    BLOCK_BYTES,
    VersionSums,
    block_count,
    blocks_of,
    moved_block,
)
from gatherd_server.storage.images_record import VersionImages, logged_images
from gatherd_server.storage.open_index import entry_bounds, unit_counts
from gatherd_server.storage.wal_format import WAL_NAME, FrameKind
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.writer.checkpoint import read_checkpoint

# How often a check starts again because a server changed the files under it.
TRIES_MAX = 10
_HEAP = KEYS_HEAP


@dataclass(slots=True)
class Coverage:
    """How much of a live version's weights and slots was compared with sums."""

    byte_count: int = 0
    held_bytes: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all of it was compared."""
        return self.held_bytes == self.byte_count


@dataclass(frozen=True, slots=True)
class MovingFile:
    """A file with rows of `row_bytes`, the first at `begin`."""

    path: Path
    begin: int
    row_bytes: int
    byte_count: int


def verify_live(
    data_dir: Path, folder: Path, of: tuple[str, int], files: Mapping[str, MovingFile]
) -> Iterator[int]:
    """Check the version `of`, uid and number, in `folder`, yielding how many bytes were compared.

    `files` are `moving_files`. Its structure was checked before. BadFile naming the first range of
    bytes that differs from what was written. Blocks that have no sum, or moved since, are left out.
    """
    for _ in range(TRIES_MAX):
        checkpoint = read_checkpoint(data_dir)
        sums = checkpoint.sums.get(of, {})
        try:
            moved = _moved(data_dir, of, checkpoint.lsn, files)
            bad, held_bytes = _compare(files, sums, moved, checkpoint.lsn)
            if bad:
                moved = _moved(data_dir, of, checkpoint.lsn, files)
        except BadFile:
            if read_checkpoint(data_dir).lsn == checkpoint.lsn:
                raise
            continue  # the log was cut while it was read
        real = [error for name, block, error in bad if not moved[name][block]]
        if read_checkpoint(data_dir).lsn != checkpoint.lsn and bad:
            continue
        if real:
            raise real[0]
        yield held_bytes
        return
    raise BadFile(f"{folder}: a checkpoint was taken {TRIES_MAX} times while it was checked")


def moving_bytes(folder: Path, files: Mapping[str, MovingFile], spec: OpenSpec | None) -> int:
    """Bytes of all files that updates change; of an open version, of those that have sums.

    Those are the blocks of its used rows.
    """
    if spec is None:
        return sum(one.byte_count for one in files.values())
    rows = used_rows(folder, spec.kind)
    total = 0
    for name, one in files.items():
        end = heap_end(folder, rows) if name == _HEAP else one.begin + rows * one.row_bytes
        total += min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, one.byte_count)
    return total


def moving_files(
    folder: Path, table: Table, optimizer: Optimizer, spec: OpenSpec | None = None
) -> dict[str, MovingFile]:
    """The files that updates change: "" for the weights, and the slots by their names in the log.

    Those of an open version, `spec`, that have keys, stamps and counts are under their own names.
    """
    path = folder / WEIGHTS_NAME
    size = path.stat().st_size
    row_count = table.row_count if spec is None else spec.rows_max
    row_bytes = table.row_bytes
    found = {"": MovingFile(path, size - row_count * row_bytes, row_bytes, size)}
    for slot in optimizer.slots:
        dtype, shape = slot.array(row_count, table.dim)
        size = slot.file_bytes(row_count, table.dim)
        row_bytes = dtype.itemsize * (shape[1] if len(shape) > 1 else 1)
        begin = size - row_bytes * shape[0]
        found[slot.name] = MovingFile(folder / slot.file_name, begin, row_bytes, size)
    if spec is not None:
        for array in (
            key_array(spec.kind, row_count), stamp_array(row_count), count_array(row_count)
        ):  # fmt: skip
            width = np.dtype(array.descr).itemsize
            path, size = folder / array.name, array.byte_count
            found[array.name] = MovingFile(path, NPY_HEADER_BYTES, width, size)
        if spec.kind is KeyKind.BYTES:
            size = heap_bytes(row_count)
            found[_HEAP] = MovingFile(folder / KEYS_HEAP, 0, UNIT_BYTES, size)
    return found


def _moved(
    data_dir: Path, of: tuple[str, int], lsn: int, files: Mapping[str, MovingFile]
) -> dict[str, NDArray[np.bool_]]:
    """The blocks of each file in which the log has rows above `lsn`."""
    moved = {name: np.zeros(block_count(one.byte_count), np.bool_) for name, one in files.items()}
    control = ControlPage(data_dir)
    try:
        # Read first: every row stored before now is in the log up to this LSN.
        committed_lsn, last_lsn = control.committed_lsn, lsn
        try:
            for frame in LogReader(data_dir / WAL_NAME, lsn):
                last_lsn = frame.last_lsn
                if frame.kind is FrameKind.PUSHES:
                    for images in logged_images(frame.record):
                        if (images.uid, images.version) == of:
                            _mark(images, files, moved)
        except BadFile:
            if last_lsn < committed_lsn:
                raise  # above that LSN it is a frame that is being appended
    finally:
        control.close()
    return moved


def _mark(
    images: VersionImages, files: Mapping[str, MovingFile], moved: dict[str, NDArray[np.bool_]]
) -> None:
    first = np.zeros(1, np.int64)
    named = [("", images.rows), *((name, images.rows) for name in images.slots)]
    named += [(name, first) for name in images.scalars]
    opened = images.opened
    if opened is not None:
        changed = np.concatenate([images.rows, opened.removed])
        named += [(name, changed) for name in files if is_of_keys(name) and name != _HEAP]
        if opened.kind is KeyKind.BYTES:
            begins, lengths = entry_bounds(opened.words)
            named += [(_HEAP, begins), (_HEAP, begins + unit_counts(lengths) - 1)]
    for name, rows in named:
        if name in files:
            for blocks in blocks_of(rows, files[name].begin, files[name].row_bytes):
                moved[name][blocks[blocks < moved[name].size]] = True


def _compare(
    files: Mapping[str, MovingFile],
    sums: VersionSums,
    moved: dict[str, NDArray[np.bool_]],
    lsn: int,
) -> tuple[list[tuple[str, int, BadFile]], int]:
    """The blocks that differ from their sums, and how many bytes were compared."""
    bad: list[tuple[str, int, BadFile]] = []
    held_bytes = 0
    for name, one in files.items():
        known = sums.get(one.path.name)
        # An open version's file has sums of its first blocks only.
        if known is None or known.byte_count > one.byte_count:
            continue
        blocks = np.flatnonzero(known.known & ~moved[name][: known.known.size])
        for block, found in zip(blocks, _crcs(one.path, blocks), strict=True):
            wanted = int(known.crcs[block])
            held_bytes += min(BLOCK_BYTES, one.byte_count - int(block) * BLOCK_BYTES)
            if found != wanted:
                error = moved_block(one.path, int(block), one.byte_count, lsn, (found, wanted))
                bad.append((name, int(block), error))
    return bad, held_bytes


def _crcs(path: Path, blocks: NDArray[np.intp]) -> Iterator[int]:
    fd = open_readonly(path)
    try:
        size = file_bytes(fd)
        for block in blocks:
            begin = int(block) * BLOCK_BYTES
            yield crc_of(fd, begin, min(begin + BLOCK_BYTES, size))
    except OSError as error:
        raise BadFile(f"{path} can't be read: {error.strerror}") from None
    finally:
        os.close(fd)
