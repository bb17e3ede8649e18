"""The index of an open version as its writer has it, and the next one while it is built.

The index is full at FULL_LOAD of its slots, and is built anew, larger, from LOAD_MAX on: beside the
old one, in `keys.index.new`, while pushes and lookups go on (writer/growing.py). A build reads keys
that may change under it. What it enters for such a row leads nowhere, because a row's own key
decides; and the row is among those that `catch_up` gets, which enters it as it is now.

The arrays of keys are given to each call, by `OpenKeys`: an index holds none.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import StorageError
from gatherd.store.initial import hashes_of
from gatherd.store.key_index import KeyKind, key_bits
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.mapping import MappedFile
from gatherd.store.open_files import (
    INDEX_HEADER_BYTES,
    KEYS_INDEX,
    LENGTH_BITS,
    LIVE_ROWS_AT,
    UNIT_BYTES,
    USED_ROWS_AT,
    IndexHeader,
)
from gatherd_server.storage import compiled_open
from gatherd_server.storage.files import Files
from gatherd_server.storage.open_table_writer import LOAD_MAX, slots_for

# Above so many slots, the longest run at 0.9 passes PROBES_MAX now and then.
FULL_LOAD: Final = 0.8
# Rows that a build enters in one call, and then looks whether it is to go on.
BUILD_ROWS: Final = 1 << 18
SEEDS_MAX: Final = 10
LENGTH_MASK: Final = np.uint64((1 << LENGTH_BITS) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class OpenKeys:
    """The keys of an open version, mapped to be changed.

    `words` are the keys as 64 bits, or their entries in `heap`, uint64 (rows_max,). `stamps`,
    uint64 (rows_max,), are 0 where a row isn't in use.
    """

    kind: KeyKind
    words: NDArray[np.uint64]
    heap: NDArray[np.uint8]
    stamps: NDArray[np.uint64]

    @property
    def are_strings(self) -> bool:
        """Whether the words are entries."""
        return self.kind is KeyKind.BYTES

    def of(self, rows: NDArray[np.int64]) -> Keys:
        """A copy of the keys of `rows`, (n,), all of them in use."""
        return self.of_words(self.words[rows])

    def of_words(self, words: NDArray[np.uint64]) -> Keys:
        """A copy of the keys whose words these are, (n,)."""
        if not self.are_strings:
            return words.view("<i8") if self.kind is KeyKind.INT64 else words
        offsets = np.zeros(words.size + 1, np.int64)
        np.cumsum((words & LENGTH_MASK).view(np.int64), out=offsets[1:])
        data = np.empty(int(offsets[-1]), np.uint8)
        compiled_open.take_strings(words, self.heap, offsets, data)
        return StringKeys(data, offsets, (words.size,))


def entry_bounds(entries: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First unit in the heap, and length in bytes, of each entry."""
    return (entries >> np.uint64(LENGTH_BITS)).view(np.int64), (entries & LENGTH_MASK).view(
        np.int64
    )


def unit_counts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many units of the heap keys of these lengths in bytes take."""
    return (lengths + (UNIT_BYTES - 1)) // UNIT_BYTES


class OpenIndex:
    """One mapped keys.index that is written. Used by one thread at a time."""

    def __init__(self, files: Files, path: Path, header: IndexHeader) -> None:
        """Make the file `path`, without rows, its blocks reserved, and map it.

        DiskFull leaves nothing behind.
        """
        self.header = header
        self.filled = 0
        """Slots in use, and tombstones."""
        files.write_new(path, header.encode(), durable=False)
        try:
            files.reserve(path, header.byte_count)
            self._mapping: MappedFile = files.map_writable(path)
        except BaseException:
            files.unlink(path)
            raise
        page = self._mapping.array()
        self._counts: NDArray[Any] = page[LIVE_ROWS_AT : USED_ROWS_AT + 8].view("<u8")
        self.slots: NDArray[np.uint64] = page[INDEX_HEADER_BYTES:].view("<u8")

    @property
    def byte_count(self) -> int:
        """The size of its file."""
        return self.header.byte_count

    def room(self) -> int:
        """How many more rows it takes before a larger one is needed."""
        return int(FULL_LOAD * self.header.slot_count) - self.filled

    @property
    def wants_growth(self) -> bool:
        """Whether the next index is to be built."""
        return self.filled > LOAD_MAX * self.header.slot_count

    def publish_counts(self, live_rows: int, used_rows: int) -> None:
        """Tell readers how many rows there are, and where the used ones end."""
        self._counts[0], self._counts[1] = live_rows, used_rows

    def rows_of(self, keys: Keys, store: OpenKeys) -> NDArray[np.int64]:
        """The row of each key, (n,); −1 for a missing one. The keys are of the index's kind.

        An integer that the kind can't hold is missing.
        """
        rows = np.empty(keys.size, np.int64)
        hashes = hashes_of(keys, self.header.seed)
        if isinstance(keys, StringKeys):
            compiled_open.find_strings(
                self.slots, store.words, store.heap, keys.offsets, keys.data, hashes, rows
            )
            return rows
        bits, fits = key_bits(keys.reshape(-1), store.kind)
        compiled_open.find_ints(self.slots, store.words, bits, hashes, rows)
        if fits is not None:
            rows[~fits] = -1
        return rows

    def insert(self, keys: Keys, rows: NDArray[np.int64]) -> bool:
        """Lead each key to its row, whose contents are whole; False if one finds no slot."""
        hashes = hashes_of(keys, self.header.seed)
        done, filled = compiled_open.insert(self.slots, hashes, rows)
        self.filled += filled
        return bool(done == rows.size)

    def remove(self, keys: Keys, rows: NDArray[np.int64]) -> None:
        """Let each key lead nowhere, before its row changes."""
        hashes = hashes_of(keys, self.header.seed)
        self.filled -= compiled_open.remove(self.slots, hashes, rows)

    def build(self, store: OpenKeys, begin: int, end: int) -> bool:
        """Enter the rows from `begin` up to `end`, which it doesn't have; False if one can't."""
        seed = np.uint64(self.header.seed)
        if store.are_strings:
            reached, count = compiled_open.build_strings(
                self.slots, store.words, store.heap, store.stamps, begin, end, seed
            )
        else:
            reached, count = compiled_open.build_ints(
                self.slots, store.words, store.stamps, begin, end, seed
            )
        self.filled += count
        return bool(reached == end)

    def catch_up(self, store: OpenKeys, rows: NDArray[np.int64]) -> bool:
        """Take in `rows`, which changed since the build began, as they are now; False if it can't.

        A row whose key was removed leads nowhere afterwards, also if its integer key is still
        there.
        """
        rows = np.unique(rows)
        is_used = store.stamps[rows] != 0
        if not store.are_strings:
            gone = rows[~is_used]
            self.remove(store.of(gone), gone)
        used = rows[is_used]
        return self.insert(store.of(used), used)


def new_header(kind: KeyKind, row_count: int, rows_max: int) -> IndexHeader:
    """The header of an index for so many rows, with a seed of its own."""
    return IndexHeader(kind, secrets.randbits(64), slots_for(row_count, rows_max))


def begin_index(files: Files, folder: Path, header: IndexHeader) -> OpenIndex:
    """An empty index beside the present one; `put_index` puts it in its place."""
    path = folder / f"{KEYS_INDEX}.new"
    if path.exists():
        files.unlink(path)
    return OpenIndex(files, path, header)


def put_index(files: Files, folder: Path) -> None:
    """Put the index that `begin_index` began in the present one's place; not durably."""
    files.put(folder / KEYS_INDEX, durable=False)


def discard_index(files: Files, folder: Path) -> None:
    """Delete an index that was begun and isn't wanted any more, if there is one."""
    files.discard(folder / KEYS_INDEX)


def build_index(
    files: Files, folder: Path, store: OpenKeys, used_rows: int, live_rows: int
) -> OpenIndex:
    """Build the index of all rows anew, and put it in place. Nothing may change meanwhile.

    DiskFull when there is no room for it; the one before is still in its place.
    """
    rows_max = store.words.size
    for _ in range(SEEDS_MAX):
        index = begin_index(files, folder, new_header(store.kind, live_rows, rows_max))
        if index.build(store, 0, used_rows):
            index.publish_counts(live_rows, used_rows)
            put_index(files, folder)
            return index
    raise StorageError(f"{folder}: {live_rows} keys find no place in {index.slots.size} slots")
