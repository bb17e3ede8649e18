"""One open version as its writer has it: the files of rows and keys, mapped to be changed.

It is to a version whose rows come and go what `MappedVersion` is to others. The order of its stores
keeps readers from another key's vector (the store's open_files.py):

- a removed row: its slot of the index, then stamp and entry under the row's counter;
- a created row: its key's bytes in the heap, then key, stamp and weights under the row's counter,
  then its slot of the index. A row and a place are used again only after they were removed.

The files are sparse. Blocks are reserved for rows and for places of the heap before any is stored
into, in steps ahead of use; so a full disk is an error before anything is logged.

While the log is replayed there is no index: `settle` builds it when the rows are as they were.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, DiskFull
from gatherd.store.catalog import MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.checksums import read_document
from gatherd.store.dtypes import DType
from gatherd.store.format import file_bytes, npy_header, open_readonly
from gatherd.store.ids import all_in_range
from gatherd.store.key_index import NPY_HEADER_BYTES, KeyKind
from gatherd.store.key_index import npy_header as array_header
from gatherd.store.keys import Keys, StringKeys
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
from gatherd_server.storage import compiled_open
from gatherd_server.storage.block_sums import BlockSums, VersionSums
from gatherd_server.storage.files import Files
from gatherd_server.storage.images_record import OpenImages, VersionImages
from gatherd_server.storage.mapped_rows import NO_COUNTERS
from gatherd_server.storage.open_index import (
    OpenIndex,
    OpenKeys,
    build_index,
    entry_bounds,
    unit_counts,
)
from gatherd_server.storage.open_space import Gaps, Space
from gatherd_server.storage.sparse import data_ranges
from gatherd_server.storage.table_writer import NPY_DESCR
from gatherd_server.training.optimizer import Optimizer, SlotShape

# Blocks are reserved for an eighth of the used rows more, within these bounds.
STEP_BYTES_MIN: Final = 1 << 20
STEP_BYTES_MAX: Final = 64 << 20
SCANNED_ROWS: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A file of rows: the whole of it, where its rows begin, and the length of one."""

    path: Path
    raw: NDArray[np.uint8]
    begin: int
    row_bytes: int

    def rows(self) -> NDArray[np.uint8]:
        """Its rows as bytes, (rows, row bytes)."""
        return self.raw[self.begin :].reshape(-1, self.row_bytes)


class OpenVersion:
    """The files of one open version. One thread stores; any may sync meanwhile.

    `weights` are the rows as bytes, uint8 (rows_max, row_bytes). `slots`, by name, are float32
    (rows_max, dim) or (rows_max, 1), or int64 (1,). `counts` are uint32 (rows_max,). Change none of
    them: `store` does.
    """

    def __init__(self, files: Files, folder: Path, sums: VersionSums | None) -> None:
        """Map the files; see `open`."""
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
        self.index: OpenIndex | None = None
        """None until `settle`, while the log is replayed."""
        self.changed: list[NDArray[np.int64]] | None = None
        """The rows created or removed since the next index was begun; None while there is none."""
        self.last_stamp = 0
        self.needs_index = False
        """Whether a key found no slot: the index must be built anew before anything else."""
        self._files = files
        self._mappings: dict[Path, MappedFile] = {}
        self._by_row: dict[str, _Rows] = {}
        self._sums: dict[Path, BlockSums] = {}
        self._map_all(sums)
        rows_max = self.row_count
        self.space = Space(rows_max, heap_bytes(rows_max) // UNIT_BYTES, self._find_gaps)
        self._reserved_rows = self._reserved_units = 0
        # A copy of the files may have lost its blocks.
        self.reserve(self._last_used_row() + 1, 0, ahead=False)

    @classmethod
    def open(cls, files: Files, folder: Path, sums: VersionSums | None = None) -> Self:
        """Map the files of the version in `folder`, to replay the log into it.

        `sums` are the version's sums in the last checkpoint. BadFile when a file is missing or
        differs from the manifest; DiskFull when there is no room for blocks that it needs.
        """
        return cls(files, folder, sums)

    # --------------------------------------------------------------------------- mapping

    def _map_all(self, sums: VersionSums | None) -> None:
        rows_max = self.row_count
        header = npy_header(NPY_DESCR[self.dtype], (rows_max, self.dim))
        row_bytes = self.dim * self.dtype.itemsize
        weights = self._map(WEIGHTS_NAME, header, rows_max * row_bytes, row_bytes, sums)
        self.weights = weights.rows()
        self.slots: dict[str, NDArray[Any]] = {}
        self._slot_rows: dict[str, _Rows] = {}
        for slot in self.optimizer.slots:
            dtype, shape = slot.array(rows_max, self.dim)
            byte_count = dtype.itemsize * int(np.prod(shape, dtype=object))
            head = npy_header(dtype.str, shape)
            is_whole = slot.shape is SlotShape.TABLE
            width = byte_count // shape[0]
            found = self._map(slot.file_name, head, byte_count, width, sums, by_row=not is_whole)
            self._slot_rows[slot.name] = found
            self.slots[slot.name] = found.raw[found.begin :].view(dtype).reshape(shape)
        words = self._map_array(key_array(self.spec.kind, rows_max), sums)
        stamps = self._map_array(stamp_array(rows_max), sums)
        self._counts_rows = self._map_array(count_array(rows_max), sums)
        self._stamps_rows, self._words_rows = stamps, words
        self.counts: NDArray[np.uint32] = _elements(self._counts_rows, "<u4")
        heap: NDArray[np.uint8] = np.empty(0, np.uint8)
        if self.spec.kind is KeyKind.BYTES:
            byte_count = heap_bytes(rows_max)
            units = self._map(KEYS_HEAP, b"", byte_count, UNIT_BYTES, sums, by_row=False)
            heap, self._heap_rows = units.raw, units
        self.keys = OpenKeys(
            self.spec.kind, _elements(words, "<u8"), heap, _elements(stamps, "<u8")
        )
        seq = self._map(SEQ_NAME, b"", seq_bytes(rows_max), COUNTER.itemsize, None, by_row=False)
        self._sums.pop(seq.path)
        self._counters = seq.raw.view(COUNTER)
        self._counters_path = seq.path

    def _map_array(self, array: ArrayFile, sums: VersionSums | None) -> _Rows:
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
    ) -> _Rows:
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
        mapping = self._files.map_writable(path)
        self._mappings[path] = mapping
        rows = _Rows(path, mapping.array(), len(header), row_bytes)
        if by_row:
            self._by_row[name] = rows
        before = (sums or {}).get(name)
        is_open = by_row or name == KEYS_HEAP
        self._sums[path] = BlockSums(
            path, rows.raw, rows.begin, row_bytes, before, is_growing=is_open
        )
        return rows

    # ------------------------------------------------------------------ rows and blocks

    def _last_used_row(self) -> int:
        """The last row that is in use, −1 when none is."""
        stamps = self._stamps_rows
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

    def reserve(self, rows_end: int, units_end: int, *, ahead: bool = True) -> None:
        """Reserve the blocks of all rows and places below these ends. DiskFull changes nothing.

        With `ahead`, more than that, if there is room for it.
        """
        if rows_end > self._reserved_rows:
            width = self.weights.shape[1]
            target = min(self.row_count, rows_end + _step(rows_end, width) * ahead)
            self._reserve_rows(target, rows_end)
        if units_end > self._reserved_units:
            limit = self.space.heap_units
            target = min(limit, units_end + _step(units_end, UNIT_BYTES) * ahead)
            self._reserve_units(target, units_end)

    def _reserve_rows(self, target: int, least: int) -> None:
        try:
            for rows in self._by_row.values():
                begin = rows.begin + self._reserved_rows * rows.row_bytes
                end = rows.begin + target * rows.row_bytes
                self._files.reserve(rows.path, end, begin)
        except DiskFull:
            if target == least:
                raise
            self._reserve_rows(least, least)
            return
        self._reserved_rows = target

    def _reserve_units(self, target: int, least: int) -> None:
        try:
            begin, end = self._reserved_units * UNIT_BYTES, target * UNIT_BYTES
            self._files.reserve(self._heap_rows.path, end, begin)
        except DiskFull:
            if target == least:
                raise
            self._reserve_units(least, least)
            return
        self._reserved_units = target

    def _find_gaps(self) -> Gaps:
        marks = np.zeros(self.space.used_units, np.bool_)
        used = self.space.used_rows
        bad = compiled_open.mark_units(self.keys.words[:used], self.keys.stamps[:used], marks)
        if bad >= 0:
            raise BadFile(f"{self._words_rows.path} is damaged at row {bad}")
        none = np.empty(0, np.int64)
        count = compiled_open.find_gaps(marks, none, none)
        begins, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
        compiled_open.find_gaps(marks, begins, lengths)
        return begins, lengths

    def settle(self) -> None:
        """Find out which rows and places are free, and build the index. The log was replayed.

        BadFile when an entry is damaged, DiskFull when there is no room for the index.
        """
        space, store = self.space, self.keys
        space.used_rows = used = self._last_used_row() + 1
        self.reserve(used, 0, ahead=False)
        free = []
        live_units = 0
        for begin in range(0, used, SCANNED_ROWS):
            end = min(used, begin + SCANNED_ROWS)
            stamps = store.stamps[begin:end]
            self.last_stamp = max(self.last_stamp, int(stamps.max()))
            free.append(np.flatnonzero(stamps == 0) + begin)
            if store.are_strings:
                firsts, lengths = entry_bounds(store.words[begin:end][stamps != 0])
                units = unit_counts(lengths)
                live_units += int(units.sum())
                space.used_units = max(space.used_units, int((firsts + units).max(initial=0)))
        if space.used_units > space.heap_units:
            raise BadFile(f"{self._words_rows.path} has a key behind the end of {KEYS_HEAP}")
        self.reserve(0, space.used_units, ahead=False)
        if free:
            space.free_rows.push(np.concatenate(free)[::-1])
        space.live_rows = used - space.free_rows.size
        if live_units < space.used_units:
            space.give_gaps(self._find_gaps())
        self.index = build_index(self._files, self.folder, store, used, space.live_rows)

    def keys_of(self, rows: NDArray[np.int64]) -> Keys:
        """A copy of the keys of `rows`, (n,), all of them in use."""
        return self.keys.of(rows)

    # -------------------------------------------------------------------------- storing

    def store(self, images: VersionImages, *, with_slots: bool = True) -> None:
        """Make images the contents of their rows, and create and remove rows.

        Without `with_slots`, slots keep their contents. No reader gets a row half old and half new,
        or by another key than its own. Nothing is durable before `sync`. BadFile when the images
        don't fit the version; DiskFull when there is no room for rows of a log that is replayed.
        """
        opened = images.opened
        self._check(images)
        assert opened is not None
        self.note(images)
        created = images.rows[opened.created]
        self._make_room(images, opened)
        store = self.keys
        if self.index is not None:
            self.index.remove(opened.removed_keys, opened.removed)
        if opened.removed.size:
            self._files.remove_rows(
                self._counters, (store.words, store.stamps), opened.removed, self._words_rows.path,
                are_entries=store.are_strings,
            )  # fmt: skip
            zeros = np.zeros((opened.removed.size, 4), np.uint8)
            self._store(self._counts_rows, opened.removed, zeros)
        if isinstance(opened.created_keys, StringKeys) and created.size:
            keys = opened.created_keys
            self._files.put_strings(
                store.heap, opened.words, keys.offsets, keys.data, self._heap_rows.path
            )
        if with_slots:
            self._store_slots(images)
        self._store(self._counts_rows, images.rows, _bytes(opened.counts, 4))
        self._store_rows(images, opened, created)
        if self.changed is not None:
            self.changed += [opened.removed, created]
        if self.index is not None:
            if not self.index.insert(opened.created_keys, created):
                self.needs_index = True
            self.last_stamp = max(self.last_stamp, int(opened.stamps.max(initial=0)))

    def _check(self, images: VersionImages) -> None:
        opened, rows = images.opened, images.rows
        shape = (rows.size, self.weights.shape[1])
        if opened is None or opened.kind is not self.spec.kind or images.weights.shape != shape:
            raise BadFile(f"{self.folder}: images {images.weights.shape} don't fit an open table")
        if not (all_in_range(rows, self.row_count) and all_in_range(opened.removed, self.row_count)):
            raise BadFile(f"{self.folder}: images of rows that there aren't")
        if opened.kind is KeyKind.BYTES and opened.words.size:
            assert isinstance(opened.created_keys, StringKeys)
            firsts, lengths = entry_bounds(opened.words)
            if (lengths != np.diff(opened.created_keys.offsets)).any() or int(
                (firsts + unit_counts(lengths)).max()
            ) > self.space.heap_units:
                raise BadFile(f"{self.folder}: images with entries that aren't those of their keys")
        for name, slot in images.slots.items():
            row_bytes = self._slot_rows[name].row_bytes if name in self._slot_rows else -1
            if slot.nbytes != row_bytes * rows.size:
                raise BadFile(f"{self.folder}: the version has no such slot {name!r}")

    def _make_room(self, images: VersionImages, opened: OpenImages) -> None:
        """Reserve what a replayed log needs; the commit has reserved it before."""
        units_end = 0
        if opened.kind is KeyKind.BYTES and opened.words.size:
            firsts, lengths = entry_bounds(opened.words)
            units_end = int((firsts + unit_counts(lengths)).max())
        self.reserve(int(images.rows.max(initial=-1)) + 1, units_end)

    def _store_slots(self, images: VersionImages) -> None:
        first = np.zeros(1, np.int64)
        for name, scalar in images.scalars.items():
            self._store(self._slot_rows[name], first, _bytes(scalar, 8))
        for name, slot in images.slots.items():
            rows = self._slot_rows[name]
            self._store(rows, images.rows, _bytes(slot, rows.row_bytes))

    def _store_rows(
        self, images: VersionImages, opened: OpenImages, created: NDArray[np.int64]
    ) -> None:
        """Store weights, keys and stamps under the rows' counters."""
        path = self.folder / WEIGHTS_NAME
        rows, weights, stamps = images.rows, images.weights, opened.stamps
        if created.size:
            some = opened.created
            self._files.create_rows(
                self.weights, self._counters, (self.keys.words, self.keys.stamps), created,
                (weights[some], opened.words, stamps[some]), path,
            )  # fmt: skip
            is_kept = np.ones(rows.size, np.bool_)
            is_kept[some] = False
            rows, weights, stamps = rows[is_kept], weights[is_kept], stamps[is_kept]
        if rows.size:
            self._store(self._stamps_rows, rows, _bytes(stamps, 8))
            self._files.store_rows(self.weights, self._counters, rows, weights, path)

    def _store(self, to: _Rows, rows: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        self._files.store_rows(to.rows(), NO_COUNTERS, rows, images, to.path)

    # ---------------------------------------------------------------- sums and durability

    def note(self, images: VersionImages) -> None:
        """Note what `store` is about to change, or has changed."""
        opened = images.opened
        if unknown := {*images.slots, *images.scalars} - self._slot_rows.keys():
            raise BadFile(f"{self.folder}: the version has no slot {min(unknown)!r}")
        assert opened is not None
        self._sums[self.folder / WEIGHTS_NAME].note(images.rows)
        for name in images.slots:
            self._sums[self._slot_rows[name].path].note(images.rows)
        for name in images.scalars:
            self._sums[self._slot_rows[name].path].note(np.zeros(1, np.int64))
        for rows in (self._words_rows, self._stamps_rows, self._counts_rows):
            self._sums[rows.path].note(images.rows)
            self._sums[rows.path].note(opened.removed)
        if opened.kind is KeyKind.BYTES and opened.words.size:
            firsts, lengths = entry_bounds(opened.words)
            sums = self._sums[self._heap_rows.path]
            sums.note(firsts)
            sums.note(firsts + unit_counts(lengths) - 1)

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
        return {path.name: one.sums() for path, one in list(self._sums.items())}

    def check(self, sums: VersionSums, lsn: int) -> None:
        """BadFile when a block that wasn't noted differs from its sum at `lsn`."""
        for path, one in self._sums.items():
            if path.name in sums:
                one.check(sums[path.name], lsn)

    def make_even(self) -> int:
        """Release to readers the rows that a writer was storing when it died; how many stripes."""
        return self._files.make_even(self._counters, self._counters_path)

    def sync(self) -> None:
        """Make everything durable that was stored before this began. StorageError if it fails."""
        for path, mapping in self._mappings.items():
            self._files.msync(mapping, path)

    def close(self) -> None:
        """Drop the mappings; each ends with the last array that views it."""
        self.weights = self.weights[:0].copy()
        self.slots = {}
        none = np.empty(0, np.uint64)
        self.keys = OpenKeys(self.spec.kind, none, np.empty(0, np.uint8), none)
        self.counts = np.empty(0, np.uint32)
        self.index = None
        self._counters = NO_COUNTERS
        self._sums.clear()
        self._by_row.clear()
        self._slot_rows.clear()
        self._mappings.clear()


def _step(end: int, width: int) -> int:
    """How many rows are reserved ahead of row `end`, whose rows have `width` bytes."""
    byte_count = min(max(end * width // 8, STEP_BYTES_MIN), STEP_BYTES_MAX)
    return max(1, byte_count // width)


def _elements(rows: _Rows, descr: str) -> NDArray[Any]:
    return rows.raw[rows.begin :].view(descr)


def _bytes(array: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """A contiguous array as bytes, (n, width), the same memory."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, width)


