"""Checks the structure of an open version's files, also while a server changes them.

Headers and sizes first; then, for each row that is in use, that its key is one, and that the index
leads from it to the row. A row that a server is changing looks wrong for a moment: what seems wrong
is looked at again, and is damage if it stays so while the row's stamp stays the same.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.initial import hashes_of
from gatherd.store.key_index import KeyKind, map_array
from gatherd.store.keys import KEY_BYTES_MAX
from gatherd.store.open_files import (
    KEYS_ENTRIES,
    KEYS_HEAP,
    KEYS_INDEX,
    UNIT_BYTES,
    ArrayFile,
    MappedIndex,
    count_array,
    heap_bytes,
    key_array,
    map_index,
    map_whole,
    stamp_array,
)
from gatherd.store.open_spec import OpenSpec
from gatherd_server.storage import compiled_open
from gatherd_server.storage.open_index import OpenKeys, entry_bounds

CHECKED_ROWS: Final = 1 << 16
LOOKS: Final = 20
PAUSE_SECONDS: Final = 0.05


class OpenFolder:
    """The key files of the open version in a folder, mapped read-only."""

    def __init__(self, folder: Path, spec: OpenSpec) -> None:
        """BadFile when a header or a size is damaged."""
        self._folder = folder
        self._kind = spec.kind
        rows_max = spec.rows_max
        self._mappings: list[Any] = []
        words = self._map(key_array(spec.kind, rows_max)).view("<u8")
        stamps = self._map(stamp_array(rows_max))
        self._map(count_array(rows_max))
        heap: NDArray[np.uint8] = np.empty(0, np.uint8)
        if spec.kind is KeyKind.BYTES:
            mapping, heap = map_whole(folder, KEYS_HEAP, heap_bytes(rows_max))
            self._mappings.append(mapping)
        self._keys = OpenKeys(spec.kind, words, heap, stamps)
        self.index = self.map_index()

    def _map(self, array: ArrayFile) -> NDArray[Any]:
        mapping, found = map_array(self._folder / array.name, array.descr, array.length)
        self._mappings.append(mapping)
        return found

    def map_index(self) -> MappedIndex:
        """The index as it is now; another file if it has grown."""
        return map_index(self._folder, self._kind)

    def check_rows(self) -> Iterator[int]:
        """Check every row in use, yielding how many were checked. BadFile names a damaged one."""
        done = 0
        for begin in range(0, self.index.used_rows, CHECKED_ROWS):
            end = min(begin + CHECKED_ROWS, self.index.used_rows)
            rows = np.flatnonzero(self._keys.stamps[begin:end]) + begin
            self._check(rows)
            done += rows.size
            yield done

    def _check(self, rows: NDArray[np.int64]) -> None:
        stamps = self._keys.stamps[rows]
        for look in range(LOOKS):
            wrong = self._wrong(rows)
            if not wrong.any():
                return
            now = self._keys.stamps[rows]
            is_same = wrong & (now == stamps) & (now != 0)
            if look == LOOKS - 1 and is_same.any():
                row = int(rows[np.flatnonzero(is_same)[0]])
                raise BadFile(
                    f"{self._folder}: row {row} can't be found by its key: the key is damaged, or "
                    f"{KEYS_INDEX}, which the next start of the server builds anew"
                )
            rows, stamps = rows[wrong & (now != 0)], now[wrong & (now != 0)]
            time.sleep(PAUSE_SECONDS)
            self.index = self.map_index()

    def _wrong(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `rows` have no key, or one that the index doesn't lead to them."""
        keys, slots = self._keys, self.index.slots
        found = np.full(rows.size, -1, np.int64)
        seed = self.index.header.seed
        if self._kind is not KeyKind.BYTES:
            bits = keys.words[rows]
            compiled_open.find_ints(slots, keys.words, bits, hashes_of(bits, seed), found)
            return np.not_equal(found, rows)
        words = keys.words[rows]
        firsts, lengths = entry_bounds(words)
        is_key = (lengths > 0) & (lengths <= KEY_BYTES_MAX)
        is_key &= firsts * UNIT_BYTES + lengths <= keys.heap.size
        sound = rows[is_key]
        strings: Any = keys.of_words(words[is_key])
        hashes = hashes_of(strings, seed)
        at = np.empty(sound.size, np.int64)
        compiled_open.find_strings(
            slots, keys.words, keys.heap, strings.offsets, strings.data, hashes, at
        )
        found[is_key] = at
        return np.not_equal(found, rows)


def verify_open(folder: Path, spec: OpenSpec) -> Iterator[int]:
    """Check the keys of the open version in `folder`, yielding how many rows were checked."""
    yield from OpenFolder(folder, spec).check_rows()


def used_rows(folder: Path, kind: KeyKind) -> int:
    """The first row of an open version that was never in use. BadFile when its index is damaged."""
    return map_index(folder, kind).used_rows


def heap_end(folder: Path, rows: int) -> int:
    """Where the keys of an open version's first `rows` rows end in the heap."""
    entries = np.load(folder / KEYS_ENTRIES, mmap_mode="r")[:rows]
    firsts, lengths = entry_bounds(entries)
    return int((firsts * UNIT_BYTES + lengths).max(initial=0))
