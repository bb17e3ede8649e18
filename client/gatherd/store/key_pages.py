"""The ids of keys; and the keys of a table with their ids, a page at a time, in the ids' order.

There is no index of prefixes: a page reads the keys from where it begins until it is full, or until
SCANNED_KEYS_MAX are read. So the time of one page is bounded, whatever the prefix. Keys are read in
chunks, and NumPy releases the GIL while it reads one.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.key_index import KEYS_DATA, KeyIndex, KeyKind
from gatherd.store.keys import KEY_BYTES_MAX, Keys, StringKeys
from gatherd.store.open_table import OpenTable
from gatherd.store.query import FoundKeys, KeyQuery
from gatherd.store.table import Table

# With ids and lengths a page stays below 4 MiB, which gRPC's libraries take unless told otherwise.
PAGE_BYTES_MAX: Final = 2 << 20
_CHUNK_KEYS: Final = 65_536
# Of an open table keys are copied before they are compared: 8 MB of the longest.
_OPEN_CHUNK_KEYS: Final = 8192


def find_ids(table: Table, keys: Keys, *, allow_missing: bool) -> NDArray[np.int64]:
    """The id of each key, of the keys' shape.

    A key without a row has −1 with `allow_missing`, and is KeyNotFound without. NoKeys when the
    table has none, InvalidArgument for keys of another kind.
    """
    index = table.key_index()
    ids = index.rows_of(keys)
    if not allow_missing and (ids < 0).any():
        raise index.not_found(table.name, keys, ids)
    return ids


def find_keys(table: Table, query: KeyQuery) -> FoundKeys:
    """A page of the keys of `table`.

    NoKeys when the table has none. InvalidArgument for a prefix of integer keys, one that is longer
    than any key, and a start beyond the last row. BadFile when the stored offsets are damaged.
    """
    if isinstance(table, OpenTable):
        return _find_open(table, query)
    index = table.key_index()
    _check(table, index.kind, query)
    stop = min(table.row_count, query.start + query.scanned_max)
    found: list[NDArray[np.int64]] = []
    count, position = 0, query.start
    while position < stop and count < query.count_max:
        end = min(position + _CHUNK_KEYS, stop)
        found.append(_matching(index, position, end, query.prefix))
        count += found[-1].size
        position = end
    ids = np.concatenate(found) if found else np.empty(0, np.int64)
    room = _room(index, ids[: query.count_max])
    if room < ids.size:
        ids = ids[:room]
        position = int(ids[-1]) + 1
    following = position if position < table.row_count else None
    return FoundKeys(index.keys_of(ids), ids, following, table.version)


def _find_open(table: OpenTable, query: KeyQuery) -> FoundKeys:
    """The same of an open table: the keys that have a row, in the order of rows."""
    _check(table, table.open_spec.kind, query)
    stop = min(table.used_rows, query.start + query.scanned_max)
    found: list[NDArray[np.int64]] = []
    listed: list[Keys] = []
    count, position = 0, query.start
    while position < stop and count < query.count_max:
        end = min(position + _OPEN_CHUNK_KEYS, stop)
        rows, keys = table.live_keys(position, end)
        if isinstance(keys, StringKeys) and query.prefix:
            left = _beginning_with(keys, query.prefix)
            rows, keys = rows[left], keys.take(left)
        found.append(rows)
        listed.append(keys)
        count += rows.size
        position = end
    ids = np.concatenate(found) if found else np.empty(0, np.int64)
    every = _joined(table.open_spec.kind, listed)
    room = query.count_max
    if isinstance(every, StringKeys):
        room = min(room, max(1, int(np.searchsorted(every.offsets[1:], PAGE_BYTES_MAX, "right"))))
    if room < ids.size:
        ids, position = ids[:room], int(ids[room - 1]) + 1
        every = every.take(np.arange(room)) if isinstance(every, StringKeys) else every[:room]
    return FoundKeys(every, ids, position if position < table.used_rows else None, table.version)


def _beginning_with(keys: StringKeys, prefix: bytes) -> NDArray[np.intp]:
    """Where the keys are that begin with `prefix`."""
    left = np.flatnonzero(np.diff(keys.offsets) >= len(prefix))
    for i, byte in enumerate(prefix):
        left = left[keys.data[keys.offsets[left] + i] == byte]
    return left


def _joined(kind: KeyKind, parts: list[Keys]) -> Keys:
    """All keys of the parts, one after the other, (n,)."""
    if kind is not KeyKind.BYTES:
        empty = np.empty(0, np.int64 if kind is KeyKind.INT64 else np.uint64)
        return np.concatenate([empty, *(part for part in parts if isinstance(part, np.ndarray))])
    strings = [part for part in parts if isinstance(part, StringKeys)]
    data = [np.empty(0, np.uint8), *(part.data for part in strings)]
    lengths = [np.empty(0, np.int64), *(np.diff(part.offsets) for part in strings)]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    return StringKeys(np.concatenate(data), offsets, (offsets.size - 1,))


def _check(table: Table, kind: KeyKind, query: KeyQuery) -> None:
    if query.prefix and kind is not KeyKind.BYTES:
        raise InvalidArgument(
            f"the keys of table {table.name!r} are {kind.value}; a prefix is for strings"
        )
    if len(query.prefix) > KEY_BYTES_MAX:
        raise InvalidArgument(
            f"the prefix has {len(query.prefix)} bytes; a key has at most {KEY_BYTES_MAX}"
        )
    if query.start > table.row_count:
        raise InvalidArgument(
            f"start={query.start} is beyond the {table.row_count} rows of table {table.name!r}; "
            "it is 0, or what the page before has as its next"
        )


def _matching(index: KeyIndex, begin: int, end: int, prefix: bytes) -> NDArray[np.int64]:
    """The ids from `begin` up to `end` whose keys begin with `prefix`."""
    if not prefix:
        return np.arange(begin, end)
    begins, lengths = index.bounds_between(begin, end)
    data: NDArray[Any] = index.arrays[KEYS_DATA]
    left = np.flatnonzero(lengths >= len(prefix))
    for i, byte in enumerate(prefix):
        if not left.size:
            break
        left = left[data[begins[left] + i] == byte]
    return left + begin


def _room(index: KeyIndex, ids: NDArray[np.int64]) -> int:
    """How many of the keys of `ids` a page has room for; at least one of them."""
    if index.kind is not KeyKind.BYTES or not ids.size:
        return int(ids.size)
    _, lengths = index.bounds(ids)
    return max(1, int(np.searchsorted(np.cumsum(lengths), PAGE_BYTES_MAX, "right")))
