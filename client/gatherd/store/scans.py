"""A table's rows page by page, in the order of their ids, all of one version.

A cursor says where the next page begins. Callers treat it as opaque, and nothing else is kept of a
scan anywhere. All integers are little-endian:

    offset  bytes  field
    0       1      format (1)
    1       8      the version
    9       8      the id to begin at
    17      4      crc32 of the bytes before, of the prefix, and of the version's uid

So a cursor doesn't go on in a table that was made anew under the same name. Whatever its bytes are,
a page holds rows of the table that the request names, and no more than a page may.

Rows are as atomic as in a lookup, and each has every update from before the page. With slots, a
page's rows and slots belong together (slot_files.py). Of an open table the ids are only places in
this order: a row that goes while its page is read is left out, and none has another key's vector.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument, LimitExceeded, VersionNotFound
from gatherd.store.dtypes import DType
from gatherd.store.key_pages import find_keys
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX, ByKey, KeyQuery, Missing
from gatherd.store.slot_files import SlotFiles
from gatherd.store.table import Table

# With its head a page stays below 4 MiB, which gRPC's libraries take unless told otherwise.
PAGE_BYTES_MAX: Final = 3 << 20
CURSOR_BYTES: Final = 21
_ID_BYTES: Final = 8
_FORMAT: Final = 1
_HEAD: Final = struct.Struct("<BQQ")
_SUM: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ScanQuery:
    """Which page of a table is asked for: from `cursor` on, from the first row when it is empty.

    `limit` is the most rows that are given, 0 for PAGE_KEYS_DEFAULT. `prefix` leaves out rows whose
    string keys don't begin with it. `version` is the one to begin with; a cursor has its own.
    """

    cursor: bytes = b""
    limit: int = 0
    prefix: bytes = b""
    dtype: DType = DType.FLOAT32
    with_slots: bool = False
    version: int = LIVE_VERSION

    @property
    def row_count_max(self) -> int:
        """The most rows that a page may have."""
        return min(self.limit or PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX)

    @property
    def answering(self) -> int:
        """The version that has to answer. InvalidArgument for a cursor that none has."""
        version = LIVE_VERSION
        if self.cursor:
            if len(self.cursor) != CURSOR_BYTES or self.cursor[0] != _FORMAT:
                raise InvalidArgument(
                    "the cursor isn't one that a page of rows came with; begin the scan anew, "
                    "without one"
                )
            version = int(_HEAD.unpack_from(self.cursor)[1])
        if self.version not in (LIVE_VERSION, version) and version != LIVE_VERSION:
            raise InvalidArgument(
                f"the cursor is of version {version}, and version {self.version} is asked for"
            )
        return version or self.version


@dataclass(frozen=True, slots=True, eq=False)
class ScanPage:
    """Rows of one page: `ids`, int64 (n,), ascending; `keys` (n,), None for a table without.

    `vectors` are (n, dim), in the storage of `dtype`. `slots`, by name, are (n, dim), (n, 1), or
    (1,) for one value of the whole table. `cursor` is that of the next page, empty after the last
    one. A page may have few rows, or none, and not be the last.
    """

    ids: NDArray[np.int64]
    keys: Keys | None
    vectors: NDArray[Any]
    dtype: DType
    version: int
    cursor: bytes
    slots: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        table: Table,
        query: ScanQuery,
        slots: SlotFiles | None = None,
        bytes_max: int = PAGE_BYTES_MAX,
    ) -> Self:
        """The page of `table`, which is of version `query.answering`, in up to `bytes_max` bytes.

        InvalidArgument for a cursor of another table, and for a prefix of keys that aren't strings;
        NoKeys for a prefix without keys. LimitExceeded when one row is larger than a page.
        Unavailable when updates go on without a pause, see SlotFiles and RowReader.
        """
        start = _start(table, query)
        row_bytes = _ID_BYTES + table.dim * query.dtype.itemsize
        row_bytes += slots.row_bytes if slots is not None else 0
        if row_bytes > bytes_max:
            raise LimitExceeded(
                f"one row of table {table.name!r} would be {row_bytes} bytes; a page has at most "
                f"{bytes_max}",
                {"limit": "reply_bytes_max", "max": str(bytes_max)},
            )
        count = min(query.row_count_max, bytes_max // row_bytes)
        ids, keys, following = _found(table, query, start, count, row_bytes, bytes_max)
        state: dict[str, NDArray[Any]] = {}
        vectors: NDArray[Any]
        if table.open_spec is not None:
            ids, keys, vectors = _of_open(table, query, ids, keys)
        elif slots is None:
            vectors = table.lookup(ids, query.dtype).vectors
        else:
            vectors, state = slots.rows(table, ids, query.dtype)
        cursor = b"" if following is None else _cursor(table, query, following)
        return cls(ids, keys, vectors, query.dtype, table.version, cursor, state)


def version_is_gone(error: VersionNotFound) -> VersionNotFound:
    """The error for a scan whose version was dropped between two pages."""
    return VersionNotFound(
        f"{error.message}. The scan's version was dropped; begin it anew", error.metadata
    )


def _found(
    table: Table, query: ScanQuery, start: int, count: int, row_bytes: int, bytes_max: int
) -> tuple[NDArray[np.int64], Keys | None, int | None]:
    """The ids and the keys of a page, and where the next one begins."""
    if table.keys is None and not query.prefix:
        end = min(start + count, table.row_count)
        return np.arange(start, end), None, end if end < table.row_count else None
    found = find_keys(table, KeyQuery(query.prefix, count, start))
    ids, keys, following = found.ids, found.keys, found.next
    if isinstance(keys, StringKeys) and ids.size:
        taken = np.cumsum(np.diff(keys.offsets) + (row_bytes + 4))
        room = max(1, int(np.searchsorted(taken, bytes_max, "right")))
        if room < ids.size:
            ids = ids[:room]
            keys, following = keys.take(np.arange(room)), int(ids[-1]) + 1
    return ids, keys, following


def _of_open(
    table: Table, query: ScanQuery, ids: NDArray[np.int64], keys: Keys | None
) -> tuple[NDArray[np.int64], Keys, NDArray[Any]]:
    """Those of the keys that still have a row, and their vectors. InvalidArgument with slots."""
    if query.with_slots:
        raise InvalidArgument(
            f"table {table.name!r} is open; its rows can be scanned without their slots"
        )
    assert keys is not None
    found = table.lookup(ByKey(keys), query.dtype, Missing.ZERO)
    assert found.status is not None
    left = np.flatnonzero(found.status == 0)
    kept = keys.take(left) if isinstance(keys, StringKeys) else keys[left]
    return ids[left], kept, found.vectors[left]


def _start(table: Table, query: ScanQuery) -> int:
    if not query.cursor:
        return 0
    head, tail = query.cursor[: _HEAD.size], query.cursor[_HEAD.size :]
    start = int(_HEAD.unpack(head)[2])
    if tail != _sum(table, query.prefix, head) or start > table.row_count:
        raise InvalidArgument(
            f"the cursor isn't one of table {table.name!r}, as it is now, with this prefix; begin "
            "the scan anew, without one"
        )
    return start


def _cursor(table: Table, query: ScanQuery, start: int) -> bytes:
    head = _HEAD.pack(_FORMAT, table.version, start)
    return head + _sum(table, query.prefix, head)


def _sum(table: Table, prefix: bytes, head: bytes) -> bytes:
    owner = (table.uid or table.name).encode()
    return _SUM.pack(zlib.crc32(prefix, zlib.crc32(owner, zlib.crc32(head))))
