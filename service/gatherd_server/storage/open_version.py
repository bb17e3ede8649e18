"""One open version as its writer has it: the files of rows and keys, mapped to be changed.

It is to a version whose rows come and go what `MappedVersion` is to others. The order of its stores
keeps readers from another key's vector (the store's open_files.py):

- a removed row: its slot of the index, then stamp and entry under the row's counter;
- a created row: its key's bytes in the heap, then key, stamp and weights under the row's counter,
  then its slot of the index. A row and a place are used again only after they were removed.

While the log is replayed there is no index: `settle` builds it when the rows are as they were.
"""

from collections import deque
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.ids import all_in_range
from gatherd.store.initial import Initial
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.open_files import KEYS_HEAP
from gatherd_server.storage import compiled_open
from gatherd_server.storage.block_sums import VersionSums
from gatherd_server.storage.files import Files
from gatherd_server.storage.images_record import OpenImages, VersionImages
from gatherd_server.storage.open_arrays import SCANNED_ROWS, OpenArrays, bytes_of
from gatherd_server.storage.open_index import (
    OpenIndex,
    build_index,
    entry_bounds,
    unit_counts,
)
from gatherd_server.storage.open_space import Gaps, Space
from gatherd_server.training.optimizer import SlotShape


class OpenVersion(OpenArrays):
    """The files of one open version. One thread stores; any may sync meanwhile.

    `weights` are the rows as bytes, uint8 (rows_max, row_bytes). `slots`, by name, are float32
    (rows_max, dim) or (rows_max, 1), or int64 (1,). `counts` are uint32 (rows_max,). Change none of
    them: `apply` does.
    """

    def __init__(self, files: Files, folder: Path, sums: VersionSums | None) -> None:
        """Map the files; see `open`."""
        super().__init__(files, folder, sums)
        law = self.spec.init.distribution(self.row_count, self.dim)
        self.initial = Initial(self.spec.seed, self.dim, law)
        """The vectors that rows begin with."""
        self.index: OpenIndex | None = None
        """None until `settle`, while the log is replayed."""
        self.changed: deque[NDArray[np.int64]] | None = None
        """The rows created or removed since the next index was begun; None while there is none."""
        self.last_stamp = 0
        self.needs_index = False
        """Whether a key found no slot: the index must be built anew before anything else."""
        self.space = Space(self.row_count, self.heap_units, self._find_gaps)

    @classmethod
    def open(cls, files: Files, folder: Path, sums: VersionSums | None = None) -> Self:
        """Map the files of the version in `folder`, to replay the log into it.

        `sums` are the version's sums in the last checkpoint. BadFile when a file is missing or
        differs from the manifest; DiskFull when there is no room for blocks that it needs.
        """
        return cls(files, folder, sums)

    def _find_gaps(self) -> Gaps:
        marks = np.zeros(self.space.used_units, np.bool_)
        used = self.space.used_rows
        bad = compiled_open.mark_units(self.keys.words[:used], self.keys.stamps[:used], marks)
        if bad >= 0:
            raise BadFile(f"{self.word_rows.path} is damaged at row {bad}")
        none = np.empty(0, np.int64)
        count = compiled_open.find_gaps(marks, none, none)
        begins, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
        compiled_open.find_gaps(marks, begins, lengths)
        return begins, lengths

    def settle(self) -> None:
        """Find out which rows and places are free, and build the index. The log was replayed.

        BadFile when an entry is damaged, DiskFull when there is no room for the index.
        """
        self.find_space()
        space = self.space
        self.index = build_index(
            self.files, self.folder, self.keys, space.used_rows, space.live_rows
        )
        self.needs_index = False

    def find_space(self) -> None:
        """Find out which rows and places are free, by stamps and entries alone.

        BadFile when an entry is damaged.
        """
        store = self.keys
        self.space = space = Space(self.row_count, self.heap_units, self._find_gaps)
        space.used_rows = used = self.last_used_row() + 1
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
            raise BadFile(f"{self.word_rows.path} has a key behind the end of {KEYS_HEAP}")
        self.reserve(0, space.used_units, ahead=False)
        self.cover_rows(used, space.used_units)
        if free:
            space.free_rows.push(np.concatenate(free)[::-1])
        space.live_rows = used - space.free_rows.size
        if live_units < space.used_units:
            space.give_gaps(self._find_gaps())

    def keys_of(self, rows: NDArray[np.int64]) -> Keys:
        """A copy of the keys of `rows`, (n,), all of them in use."""
        return self.keys.of(rows)

    # -------------------------------------------------------------------------- storing

    def apply(self, images: VersionImages, *, with_slots: bool = True) -> None:
        """Make images the contents of their rows, and create and remove rows.

        Without `with_slots`, slots keep their contents. No reader gets a row half old and half new,
        or by another key than its own. Nothing is durable before `sync`. BadFile when the images
        don't fit the version; DiskFull when there is no room for rows of a log that is replayed.
        """
        opened = images.opened
        self._check(images)
        assert opened is not None
        self.note_images(images)
        created = images.rows[opened.created]
        self._make_room(images, opened)
        store = self.keys
        if self.index is not None:
            self.index.remove(opened.removed_keys, opened.removed)
        if opened.removed.size:
            self.files.remove_rows(
                self.counters, (store.words, store.stamps), opened.removed, self.word_rows.path,
                are_entries=store.are_strings,
            )  # fmt: skip
            zeros = np.zeros((opened.removed.size, 4), np.uint8)
            self.store_plainly(self.count_rows, opened.removed, zeros)
        if isinstance(opened.created_keys, StringKeys) and created.size:
            keys = opened.created_keys
            self.files.put_strings(
                store.heap, opened.words, keys.offsets, keys.data, self.heap_rows.path
            )
        if with_slots:
            self._store_slots(images)
        else:
            self.store_first_slots(created)
        self.store_plainly(self.count_rows, images.rows, bytes_of(opened.counts, 4))
        self._store_rows(images, opened, created)
        if (changed := self.changed) is not None:
            changed.extend((opened.removed, created))
        if self.index is not None:
            if not self.index.insert(opened.created_keys, created):
                self.needs_index = True
            self.last_stamp = max(self.last_stamp, int(opened.stamps.max(initial=0)))

    def _check(self, images: VersionImages) -> None:
        opened, rows = images.opened, images.rows
        shape = (rows.size, self.weights.shape[1])
        if opened is None or opened.kind is not self.spec.kind or images.weights.shape != shape:
            raise BadFile(f"{self.folder}: images {images.weights.shape} don't fit an open table")
        if not (
            all_in_range(rows, self.row_count) and all_in_range(opened.removed, self.row_count)
        ):
            raise BadFile(f"{self.folder}: images of rows that there aren't")
        if opened.kind is KeyKind.BYTES and opened.words.size:
            assert isinstance(opened.created_keys, StringKeys)
            firsts, lengths = entry_bounds(opened.words)
            if (lengths != np.diff(opened.created_keys.offsets)).any() or int(
                (firsts + unit_counts(lengths)).max()
            ) > self.space.heap_units:
                raise BadFile(f"{self.folder}: images with entries that aren't those of their keys")
        for name, slot in images.slots.items():
            row_bytes = self.slot_rows[name].row_bytes if name in self.slot_rows else -1
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
            self.store_plainly(self.slot_rows[name], first, bytes_of(scalar, 8))
        for name, slot in images.slots.items():
            rows = self.slot_rows[name]
            self.store_plainly(rows, images.rows, bytes_of(slot, rows.row_bytes))

    def store_first_slots(self, rows: NDArray[np.int64]) -> None:
        """Store the first state of the slots of `rows`, (n,)."""
        for slot in self.optimizer.slots:
            if slot.shape is not SlotShape.TABLE and rows.size:
                to = self.slot_rows[slot.name]
                first = np.full((rows.size, to.row_bytes // 4), slot.initial, np.float32)
                self.note_rows(to, rows)
                self.store_plainly(to, rows, bytes_of(first, to.row_bytes))

    def _store_rows(
        self, images: VersionImages, opened: OpenImages, created: NDArray[np.int64]
    ) -> None:
        """Store weights, keys and stamps under the rows' counters."""
        path = self.weight_rows.path
        rows, weights, stamps = images.rows, images.weights, opened.stamps
        if created.size:
            some = opened.created
            self.files.create_rows(
                self.weights, self.counters, (self.keys.words, self.keys.stamps), created,
                (weights[some], opened.words, stamps[some]), path,
            )  # fmt: skip
            is_kept = np.ones(rows.size, np.bool_)
            is_kept[some] = False
            rows, weights, stamps = rows[is_kept], weights[is_kept], stamps[is_kept]
        if rows.size:
            self.store_plainly(self.stamp_rows, rows, bytes_of(stamps, 8))
            self.files.store_rows(self.weights, self.counters, rows, weights, path)

    def note_images(self, images: VersionImages) -> None:
        """Note what `apply` is about to change, or has changed."""
        opened = images.opened
        if unknown := {*images.slots, *images.scalars} - self.slot_rows.keys():
            raise BadFile(f"{self.folder}: the version has no slot {min(unknown)!r}")
        assert opened is not None
        self.note_rows(self.weight_rows, images.rows)
        for name in images.slots:
            self.note_rows(self.slot_rows[name], images.rows)
        for name in images.scalars:
            self.note_rows(self.slot_rows[name], np.zeros(1, np.int64))
        for rows in (self.word_rows, self.stamp_rows, self.count_rows):
            self.note_rows(rows, images.rows)
            self.note_rows(rows, opened.removed)
        if opened.kind is KeyKind.BYTES and opened.words.size:
            firsts, lengths = entry_bounds(opened.words)
            self.note_rows(self.heap_rows, firsts)
            self.note_rows(self.heap_rows, firsts + unit_counts(lengths) - 1)
