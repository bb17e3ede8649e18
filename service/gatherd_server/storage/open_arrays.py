"""The files of an open version, mapped to be changed: their arrays, blocks and sums.

The files are sparse. Blocks are reserved for rows and for places of the heap before any is stored
into, in steps ahead of use; so a full disk is an error before anything is logged.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, DiskFull
from gatherd.store.catalog import MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.checksums import read_document
from gatherd.store.dtypes import DType
from gatherd.store.format import file_bytes, npy_header, open_readonly
from gatherd.store.key_index import NPY_HEADER_BYTES, KeyKind
from gatherd.store.key_index import npy_header as array_header
from gatherd.store.mapping import MappedFile
from gatherd.store.open_files import (
    KEYS_HEAP,
    OPEN,
    UNIT_BYTES,
    ArrayFile,
    count_array,
    heap_bytes,
    key_array,
    stamp_array,
)
from gatherd.store.open_spec import OpenSpec
from gatherd.store.stripes import COUNTER, SEQ_NAME, seq_bytes
from gatherd_server.storage.block_sums import BlockSums, VersionSums
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import NO_COUNTERS
from gatherd_server.storage.open_index import OpenKeys
from gatherd_server.storage.sparse import data_ranges
from gatherd_server.storage.table_writer import NPY_DESCR
from gatherd_server.training.optimizer import Optimizer, SlotShape

# Blocks are reserved for an eighth of the used rows more, within these bounds.
STEP_BYTES_MIN: Final = 1 << 20
STEP_BYTES_MAX: Final = 64 << 20
SCANNED_ROWS: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class FileOfRows:
    """A file of rows: the whole of it, where its rows begin, and the length of one."""

    path: Path
    raw: NDArray[np.uint8]
    begin: int
    row_bytes: int

    def rows(self) -> NDArray[np.uint8]:
        """Its rows as bytes, (rows, row bytes)."""
        return self.raw[self.begin :].reshape(-1, self.row_bytes)


class OpenArrays:
    """The mapped arrays of one open version.

    `weights` are the rows as bytes, uint8 (rows_max, row_bytes). `slots`, by name, are float32
    (rows_max, dim) or (rows_max, 1), or int64 (1,). `counts` are uint32 (rows_max,).
    """

    def __init__(self, files: Files, folder: Path, sums: VersionSums | None) -> None:
        """Map the files in `folder`, and reserve the blocks of the used rows.

        `sums` are the version's sums in the last checkpoint. BadFile when a file is missing or
        differs from the manifest; DiskFull when there is no room for blocks that it needs.
        """
        manifest = read_document(folder / MANIFEST_NAME)
        path = folder / MANIFEST_NAME
        try:
            self.dtype = DType(manifest["dtype"])
            self.dim = int(manifest["dim"])
            self.spec = OpenSpec.from_json(manifest[OPEN])
            self.optimizer = Optimizer.from_json(manifest["optimizer"])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise BadFile(f"{path} can't be read: {error!r}") from None
        self.folder = folder
        self.row_count = self.spec.rows_max
        self.heap_units = heap_bytes(self.row_count) // UNIT_BYTES
        self.files = files
        self._mappings: dict[Path, MappedFile] = {}
        self._by_row: dict[str, FileOfRows] = {}
        self._sums: dict[str, BlockSums] = {}
        self._map_all(sums)
        self._reserved_rows = self._reserved_units = 0
        # A copy of the files may have lost its blocks.
        self.reserve(self.last_used_row() + 1, 0, ahead=False)

    def _map_all(self, sums: VersionSums | None) -> None:
        rows_max = self.row_count
        header = npy_header(NPY_DESCR[self.dtype], (rows_max, self.dim))
        row_bytes = self.dim * self.dtype.itemsize
        weights = self._map(WEIGHTS_NAME, header, rows_max * row_bytes, row_bytes, sums)
        self.weight_rows = weights
        self.weights = weights.rows()
        self.slots: dict[str, NDArray[Any]] = {}
        self.slot_rows: dict[str, FileOfRows] = {}
        for slot in self.optimizer.slots:
            dtype, shape = slot.array(rows_max, self.dim)
            byte_count = dtype.itemsize * int(np.prod(shape, dtype=object))
            head = npy_header(dtype.str, shape)
            is_whole = slot.shape is SlotShape.TABLE
            width = byte_count // shape[0]
            found = self._map(slot.file_name, head, byte_count, width, sums, by_row=not is_whole)
            self.slot_rows[slot.name] = found
            self.slots[slot.name] = found.raw[found.begin :].view(dtype).reshape(shape)
        words = self._map_array(key_array(self.spec.kind, rows_max), sums)
        stamps = self._map_array(stamp_array(rows_max), sums)
        self.count_rows = self._map_array(count_array(rows_max), sums)
        self.stamp_rows, self.word_rows = stamps, words
        self.counts: NDArray[np.uint32] = _elements(self.count_rows, "<u4")
        heap: NDArray[np.uint8] = np.empty(0, np.uint8)
        if self.spec.kind is KeyKind.BYTES:
            byte_count = heap_bytes(rows_max)
            units = self._map(KEYS_HEAP, b"", byte_count, UNIT_BYTES, sums, by_row=False)
            heap, self.heap_rows = units.raw, units
        self.keys = OpenKeys(
            self.spec.kind, _elements(words, "<u8"), heap, _elements(stamps, "<u8")
        )
        seq = self._map(SEQ_NAME, b"", seq_bytes(rows_max), COUNTER.itemsize, None, by_row=False)
        self._sums.pop(SEQ_NAME)
        self.counters = seq.raw.view(COUNTER)
        self.counters_path = seq.path

    def _map_array(self, array: ArrayFile, sums: VersionSums | None) -> FileOfRows:
        header = array_header(array.descr, array.length)
        width = np.dtype(array.descr).itemsize
        return self._map(array.name, header, array.byte_count - NPY_HEADER_BYTES, width, sums)

    def _map(
        self,
        name: str,
        header: bytes,
        byte_count: int,
        row_bytes: int,
        sums: VersionSums | None,
        *,
        by_row: bool = True,
    ) -> FileOfRows:
        """Map a file of `header` and so many bytes; blocks of rows are reserved if `by_row`."""
        path = self.folder / name
        fd = open_readonly(path)
        try:
            found, begin = file_bytes(fd), os.pread(fd, len(header), 0)
        finally:
            os.close(fd)
        if found != len(header) + byte_count:
            raise BadFile(f"{path} has {found} bytes; it must have {len(header) + byte_count}")
        if begin != header:
            raise BadFile(f"{path}: bytes 0 to {len(header)} aren't the header of its manifest")
        mapping = self.files.map_writable(path)
        self._mappings[path] = mapping
        rows = FileOfRows(path, mapping.array(), len(header), row_bytes)
        if by_row:
            self._by_row[name] = rows
        before = (sums or {}).get(name)
        is_open = by_row or name == KEYS_HEAP
        self._sums[name] = BlockSums(
            path, rows.raw, rows.begin, row_bytes, before, is_growing=is_open
        )
        return rows

    def last_used_row(self) -> int:
        """The last row that is in use, −1 when none is."""
        stamps = self.stamp_rows
        fd = open_readonly(stamps.path)
        try:
            ranges = list(data_ranges(fd, stamps.raw.size))
        finally:
            os.close(fd)
        for begin, end in reversed(ranges):
            first = max(0, (begin - stamps.begin) // stamps.row_bytes)
            last = min(self.row_count, -(-(end - stamps.begin) // stamps.row_bytes))
            while last > first:
                start = max(first, last - SCANNED_ROWS)
                used = np.flatnonzero(self.keys.stamps[start:last])
                if used.size:
                    return start + int(used[-1])
                last = start
        return -1

    def live_rows(self) -> NDArray[np.int64]:
        """The rows that are in use, ascending; takes a pass over the stamps."""
        return np.flatnonzero(self.keys.stamps[: self.last_used_row() + 1])

    def reserve(self, rows_end: int, units_end: int, *, ahead: bool = True) -> None:
        """Reserve the blocks of all rows and places below these ends. DiskFull changes nothing.

        With `ahead`, more than that, if there is room for it.
        """
        if rows_end > self._reserved_rows:
            width = self.weights.shape[1]
            target = min(self.row_count, rows_end + step_of(rows_end, width) * ahead)
            self._reserve_rows(target, rows_end)
        if units_end > self._reserved_units:
            limit = self.heap_units
            target = min(limit, units_end + step_of(units_end, UNIT_BYTES) * ahead)
            self._reserve_units(target, units_end)

    def _reserve_rows(self, target: int, least: int) -> None:
        try:
            for rows in self._by_row.values():
                begin = rows.begin + self._reserved_rows * rows.row_bytes
                end = rows.begin + target * rows.row_bytes
                self.files.reserve(rows.path, end, begin)
        except DiskFull:
            if target == least:
                raise
            self._reserve_rows(least, least)
            return
        self._reserved_rows = target

    def _reserve_units(self, target: int, least: int) -> None:
        try:
            begin, end = self._reserved_units * UNIT_BYTES, target * UNIT_BYTES
            self.files.reserve(self.heap_rows.path, end, begin)
        except DiskFull:
            if target == least:
                raise
            self._reserve_units(least, least)
            return
        self._reserved_units = target

    def store_plainly(
        self, to: FileOfRows, rows: NDArray[np.int64], images: NDArray[np.uint8]
    ) -> None:
        """Store rows that no reader looks at, or only word by word."""
        self.files.store_rows(to.rows(), NO_COUNTERS, rows, images, to.path)

    def cover_rows(self, rows: int, units: int) -> None:
        """Have sums of all blocks that rows and places below these ends have."""
        for name, one in self._sums.items():
            one.cover(units if name == KEYS_HEAP else rows)

    def note_rows(self, of: FileOfRows, rows: NDArray[np.int64]) -> None:
        """Note that `rows` of a file are about to be stored, or were."""
        self._sums[of.path.name].note(rows)

    def begin_sums(self) -> None:
        """Start a new round of notes, at a checkpoint's LSN; see BlockSums."""
        for one in self._sums.values():
            one.begin()

    def sum_up(self, byte_count: int) -> int:
        """Sum up blocks that have no sum, up to `byte_count` bytes; return how many bytes."""
        summed = 0
        for one in list(self._sums.values()):
            summed += one.sum_up(byte_count - summed)
        return summed

    @property
    def is_summed_up(self) -> bool:
        """Whether every block that is in use has a sum."""
        return all(one.is_whole for one in list(self._sums.values()))

    def sums(self) -> VersionSums:
        """The known sums of the files, as of the last `begin_sums`."""
        return {name: one.sums() for name, one in list(self._sums.items())}

    def check(self, sums: VersionSums, lsn: int) -> None:
        """BadFile when a block that wasn't noted differs from its sum at `lsn`."""
        for name, one in self._sums.items():
            if name in sums:
                one.check(sums[name], lsn)

    def make_even(self) -> int:
        """Release to readers the rows that a writer was storing when it died; how many stripes."""
        return self.files.make_even(self.counters, self.counters_path)

    def sync(self) -> None:
        """Make everything durable that was stored before this began. StorageError if it fails."""
        for path, mapping in self._mappings.items():
            self.files.msync(mapping, path)

    def close(self) -> None:
        """Drop the mappings; each ends with the last array that views it."""
        self.weights = self.weights[:0].copy()
        self.slots = {}
        none = np.empty(0, np.uint64)
        self.keys = OpenKeys(self.spec.kind, none, np.empty(0, np.uint8), none)
        self.counts = np.empty(0, np.uint32)
        self.counters = NO_COUNTERS
        self._sums.clear()
        self._by_row.clear()
        self.slot_rows.clear()
        self._mappings.clear()


def step_of(end: int, width: int) -> int:
    """How many rows are reserved ahead of row `end`, whose rows have `width` bytes."""
    byte_count = min(max(end * width // 8, STEP_BYTES_MIN), STEP_BYTES_MAX)
    return max(1, byte_count // width)


def _elements(rows: FileOfRows, descr: str) -> NDArray[Any]:
    return rows.raw[rows.begin :].view(descr)


def bytes_of(array: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """A contiguous array as bytes, (n, width), the same memory."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, width)
