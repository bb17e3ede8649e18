"""The keys of an open table as a reader has them: which row has a key, while rows come and go.

open_files.py has the layout, and kernels/open_rows.py how a row is read by its key. The files have
room for rows_max rows from the start, and are holes where no row was ever in use: nothing here
touches what is behind the used rows, or the page cache would fill with zeros.
"""

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import KeyNotFound
from gatherd.store import memory
from gatherd.store.kernels import compiled
from gatherd.store.key_index import (
    NPY_HEADER_BYTES,
    KeyKind,
    check_kind,
    key_bits,
    map_array,
    not_found,
)
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.mapping import MappedFile
from gatherd.store.open_files import (
    KEYS_HEAP,
    LENGTH_BITS,
    UNIT_BYTES,
    ArrayFile,
    MappedIndex,
    heap_bytes,
    index_identity,
    key_array,
    map_index,
    map_whole,
    stamp_array,
)
from gatherd.store.open_spec import OpenSpec

_NO_DATA: NDArray[np.uint8] = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class GivenKeys:
    """Keys that are asked for, as the kernels take them, flat.

    `first` are their 64 bits, int64 (n,), or offsets, (n + 1,), of strings in `data`. `fits` says
    which of them the table's kind can hold, None if all can.
    """

    count: int
    first: NDArray[np.int64]
    data: NDArray[np.uint8]
    fits: NDArray[np.bool_] | None = None

    def part(self, begin: int, end: int) -> "GivenKeys":
        """Those from `begin` up to `end`."""
        last = end + self.first.size - self.count  # offsets are one more
        return GivenKeys(end - begin, self.first[begin:last], self.data)


class OpenIndex:
    """The mapped keys of one version of an open table, and their index. Safe from many threads."""

    def __init__(self, folder: Path, spec: OpenSpec) -> None:
        """Map the files; BadFile when sizes or headers are damaged."""
        self._folder = folder
        self.spec = spec
        self.kind = spec.kind
        self._mappings: list[tuple[MappedFile, int]] = []
        self.stored: NDArray[np.uint64] = self._map(key_array(spec.kind, spec.rows_max))
        """Each row's key as 64 bits, or its entry in the heap, (rows_max,)."""
        self.stamps: NDArray[np.uint64] = self._map(stamp_array(spec.rows_max))
        """When each row was last pushed, (rows_max,); 0 for a row without a key."""
        self.heap = _NO_DATA
        """The bytes of string keys."""
        if spec.kind is KeyKind.BYTES:
            _, self.heap = map_whole(folder, KEYS_HEAP, heap_bytes(spec.rows_max))
        self._use(map_index(folder, spec.kind))

    def _map(self, file: ArrayFile) -> NDArray[np.uint64]:
        mapping, array = map_array(self._folder / file.name, file.descr, file.length)
        self._mappings.append((mapping, array.itemsize))
        return array.view(np.uint64)

    def _use(self, index: MappedIndex) -> None:
        self._index = index
        self.words = compiled.key_words(
            index.slots,
            index.header.seed,
            self.stored,
            self.heap,
            are_strings=self.kind is KeyKind.BYTES,
        )
        """What the kernels need to know of the keys; the addresses of arrays that are held here."""

    def renewed(self) -> Self:
        """This, or its like with the file that keys.index is now. BadFile if it is damaged."""
        if index_identity(self._folder) == self._index.identity:
            return self
        renewed = copy(self)
        renewed._use(map_index(self._folder, self.kind))  # noqa: SLF001  # its own
        return renewed

    @property
    def row_count(self) -> int:
        """How many rows the version has room for."""
        return self.spec.rows_max

    @property
    def live_rows(self) -> int:
        """How many rows have a key, after the last commit."""
        return min(self._index.live_rows, self.spec.rows_max)

    @property
    def used_rows(self) -> int:
        """The first row that never had a key, after the last commit."""
        return min(self._index.used_rows, self.spec.rows_max)

    @property
    def nbytes(self) -> int:
        """Bytes of the index, and of the keys of used rows; a string's own bytes aren't counted."""
        return len(self._index.mapping) + self.used_rows * self.stored.itemsize

    def populate(self) -> None:
        """Map the pages of the index and of used rows. OSError when a file is short."""
        memory.populate(self._index.mapping)
        for mapping, itemsize in self._mappings:
            memory.populate(mapping, NPY_HEADER_BYTES + self.used_rows * itemsize)

    def lock(self) -> None:
        """Keep the index in RAM. OSError when RLIMIT_MEMLOCK doesn't allow it."""
        memory.lock(self._index.mapping)

    def given(self, keys: Keys) -> GivenKeys:
        """`keys` for the kernels. InvalidArgument for strings in place of integers, or reversed."""
        check_kind(keys, self.kind)
        if isinstance(keys, StringKeys):
            return GivenKeys(keys.size, keys.offsets, keys.data)
        bits, fits = key_bits(keys.reshape(-1), self.kind)
        fits = None if fits is None or fits.all() else fits
        return GivenKeys(keys.size, bits.view(np.int64), _NO_DATA, fits)

    def rows_of(self, keys: Keys) -> NDArray[np.int64]:
        """The row that had each key a moment ago, shape S; −1 for a missing one.

        It may have another key by now: rows are read by OpenTable alone. InvalidArgument as in
        `given`. An integer that the kind can't hold is missing.
        """
        rows = np.empty(keys.size, np.int64)
        given = self.given(keys)
        compiled.find_open(self.words, given.first, given.data, rows)
        if given.fits is not None:
            rows[~given.fits] = -1
        return rows.reshape(keys.shape)

    def copy_words(self, rows: NDArray[np.intp], out: NDArray[np.uint64]) -> None:
        """Fill `out`, (n, 2), with what is stored of each row's key, and its stamp."""
        out[:, 0] = self.stored[rows]
        out[:, 1] = self.stamps[rows]

    def strings_at(self, entries: NDArray[np.uint64]) -> list[bytes]:
        """The bytes that are in the places of `entries`, (n,), now."""
        begins = (entries >> np.uint64(LENGTH_BITS)).astype(np.int64) * UNIT_BYTES
        lengths = (entries & np.uint64((1 << LENGTH_BITS) - 1)).astype(np.int64)
        ends = (begins + lengths).tolist()
        return [
            self.heap[begin:end].tobytes() for begin, end in zip(begins.tolist(), ends, strict=True)
        ]

    def not_found(self, table: str, keys: Keys, rows: NDArray[np.integer[Any]]) -> KeyNotFound:
        """The error for keys without a row, of which `rows` has −1; see the function."""
        return not_found(table, keys, rows, self.rows_of)
