"""The directory: what the compiled answer knows of the tables, as columns of plain numbers.

It is made anew when a catalog changes, never changed but in what `look` says. It holds its tables,
and so all that its addresses are of: who answers from one keeps it until the answer is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEYS_DATA, KEYS_INTS, KEYS_OFFSETS, KeyKind
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.live import View
from gatherd.store.open_table import OpenTable
from gatherd.store.table import Table as MappedTable
from gatherd_server.wire.compiled import kernels, words

_KINDS = {DType.FLOAT32: 0, DType.FLOAT16: 1, DType.BFLOAT16: 2, DType.FLOAT64: 3}
_KEY_KINDS = {
    KeyKind.BYTES: words.KEYS_STRINGS,
    KeyKind.INT64: words.KEYS_INT64,
    KeyKind.UINT64: words.KEYS_UINT64,
}


def _at(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


class Directory:
    """The tables that are mapped, of one view. Safe to use from many threads."""

    def __init__(self, view: View, before: "Directory | None" = None) -> None:
        """Of what `view` has mapped. What `before` has of the same tables is taken over."""
        self._view = view
        mapped = view.mapped.copy()
        self._seen = len(mapped)
        self._tables = [
            table
            for (_, version), table in mapped.items()
            # A table without a byte has no address.
            if version != LIVE_VERSION and table.rows.size
        ]
        self.names = tuple(table.name for table in self._tables)
        """The name of each table's column, for what is kept in their order."""
        known = {} if before is None else before.numbers()
        self.columns: NDArray[np.int64] = np.zeros((len(self._tables), words.TABLE_WORDS), np.int64)
        taken = [known.get(table, -1) for table in self._tables]
        if before is not None:
            is_taken = np.array(taken, np.int64) >= 0
            self.columns[is_taken] = before.columns[[number for number in taken if number >= 0]]
        self._default_vectors: dict[int, NDArray[np.float32]] = {}
        for number, table in enumerate(self._tables):
            if taken[number] < 0:
                self.columns[number] = _columns_of(table)
            self.columns[number, words.TABLE_IS_LIVE] = (
                mapped.get((table.name, LIVE_VERSION)) is table
            )
        self._enter_names()
        self.look()

    def numbers(self) -> dict[MappedTable, int]:
        """Where each table's columns are."""
        return {table: number for number, table in enumerate(self._tables)}

    def is_of(self, view: View) -> bool:
        """Whether this is all that `view` has mapped."""
        return view is self._view and len(view.mapped) == self._seen

    def look(self) -> None:
        """Take from the tables whether they are in memory, and default vectors known since."""
        for number, table in enumerate(self._tables):
            self.columns[number, words.TABLE_IS_NEAR] = table.is_populated
            if table.default_vector_is_known and number not in self._default_vectors:
                vector = np.ascontiguousarray(table.default_vector())
                self._default_vectors[number] = vector
                self.columns[number, words.TABLE_DEFAULT_AT] = _at(vector)

    @property
    def slots(self) -> NDArray[np.int64]:
        """The hash table of the names."""
        return self._slots

    def _enter_names(self) -> None:
        encoded = [name.encode() for name in self.names]
        lengths = np.array([len(name) for name in encoded], np.int64)
        self._names = np.frombuffer(b"".join(encoded), np.uint8)
        begins = np.cumsum(lengths) - lengths
        self.columns[:, words.TABLE_NAME_AT] = begins + (
            _at(self._names) if self._names.size else 0
        )
        self.columns[:, words.TABLE_NAME_BYTES] = lengths
        # At most two entries a table, and never full: a search ends at an empty slot.
        count = 1 << (4 * len(encoded) + 1).bit_length()
        self._slots: NDArray[np.int64] = np.zeros(count, np.int64)
        kernels.enter_names(self.columns, self._slots)


def _columns_of(table: MappedTable) -> NDArray[np.int64]:
    columns = np.zeros(words.TABLE_WORDS, np.int64)
    columns[words.TABLE_VERSION] = table.version
    columns[words.TABLE_ROWS_AT] = _at(table.rows)
    columns[words.TABLE_ROW_COUNT] = table.row_count
    columns[words.TABLE_ROW_BYTES] = table.row_bytes
    columns[words.TABLE_DIM] = table.dim
    columns[words.TABLE_KIND] = _KINDS[table.dtype]
    columns[words.TABLE_COUNTERS_AT] = _at(table.counters)
    columns[words.TABLE_COUNTER_COUNT] = table.counters.size
    if isinstance(table, OpenTable):
        columns[words.TABLE_KEY_KIND] = _KEY_KINDS[table.open_spec.kind]
        columns[words.TABLE_OPEN_AT] = _at(table.words)
    elif table.keys is not None:
        index = table.key_index()
        columns[words.TABLE_KEY_KIND] = _KEY_KINDS[index.kind]
        columns[words.TABLE_SLOTS_AT] = _at(index.slots)
        columns[words.TABLE_SLOT_COUNT] = index.slots.size
        columns[words.TABLE_SEED] = np.uint64(index.info.seed).astype(np.int64)
        if index.kind is KeyKind.BYTES:
            columns[words.TABLE_KEYS_AT] = _at(index.arrays[KEYS_OFFSETS])
            columns[words.TABLE_KEY_DATA_AT] = _at(index.arrays[KEYS_DATA])
            columns[words.TABLE_KEY_DATA_BYTES] = index.arrays[KEYS_DATA].size
        else:
            columns[words.TABLE_KEYS_AT] = _at(index.arrays[KEYS_INTS])
    return columns


@dataclass(frozen=True, slots=True)
class Counted:
    """What was answered of one version of a table; the numbers are in the order of COUNTED_…."""

    name: str
    version: int
    is_live: bool
    lookups: int
    rows: int
    byte_count: int
    missing_ids: int
    missing_keys: int


class Counts:
    """What one thread answered of a directory's tables, for another thread to tell."""

    def __init__(self, directory: Directory) -> None:
        self._names = directory.names
        self._versions = directory.columns[:, words.TABLE_VERSION].tolist()
        self._are_live = directory.columns[:, words.TABLE_IS_LIVE].astype(bool).tolist()
        shape = (len(directory.names), words.COUNTED_WORDS)
        self.cells: NDArray[np.int64] = np.zeros(shape, np.int64)
        self._told = self.cells.copy()

    def since(self) -> Iterator[Counted]:
        """Each version that was looked up since the last call."""
        now = self.cells.copy()
        for number in np.flatnonzero((now != self._told).any(axis=1)):
            of = self._names[number], self._versions[number], self._are_live[number]
            yield Counted(*of, *map(int, now[number] - self._told[number]))
        self._told = now
