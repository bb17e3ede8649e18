"""The arguments of a scan, and its batches; store/scans.py says what a page is."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gatherd._requests.keys import check_prefix
from gatherd._requests.lookups import ReplyType, check_table, check_version, parse_reply_type
from gatherd._requests.tables import check_count, check_flag
from gatherd._shown import Shown
from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import bfloat16_to_float32
from gatherd.store.scans import ScanQuery

BATCH_DEFAULT = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch(Shown):
    """Rows of a table in the order of their ids; unpacks as ids, keys and vectors.

    `ids`, int64 (n,), are ascending; `keys`, (n,), are as `keys_of` returns them, None for a table
    without; `vectors` are (n, dim). `slots`, the optimizer's state if it was asked for, are by name
    float32 (n, dim) or (n, 1), or int64 (1,) for one value of the whole table.
    """

    ids: NDArray[np.int64]
    keys: NDArray[Any] | None
    vectors: NDArray[Any]
    slots: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return self.ids.size

    def __iter__(self) -> Iterator[Any]:
        return iter((self.ids, self.keys, self.vectors))


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """Which page of which table is asked for, and how its vectors are returned."""

    table: str
    query: ScanQuery
    reply: ReplyType


@dataclass(frozen=True, slots=True, eq=False)
class PageOfRows:
    """A page in arrays of the caller's, and the next page's cursor, empty after the last one."""

    rows: RowBatch
    cursor: bytes


def prepare_scan(
    table: object,
    batch: object,
    slots: object,
    prefix: object,
    dtype: DTypeLike,
    version: object,
) -> ScanSpec:
    """Check the arguments of Client.rows."""
    name, _ = check_table(table)
    count = check_count("batch", batch)
    if not count:
        raise InvalidArgument("batch=0 asks for no rows; a batch has at least one")
    reply = parse_reply_type(dtype)
    begins, with_slots = check_prefix(prefix), check_flag("slots", slots)
    number = check_version("version", version)
    return ScanSpec(name, ScanQuery(b"", count, begins, reply.wire, with_slots, number), reply)


class Rebatched:
    """Pages of a scan, made into batches of one size."""

    def __init__(self, spec: ScanSpec) -> None:
        self._spec = spec
        self._batch = spec.query.limit
        self._held: deque[RowBatch] = deque()
        self._count = 0
        self._is_last = False

    def wanted(self) -> ScanSpec | None:
        """The page to ask for next; None when no more is needed, or there."""
        if self._is_last or self._count >= self._batch:
            return None
        return self._spec

    def add(self, page: PageOfRows) -> None:
        """Take the page that was asked for."""
        if page.rows.ids.size:
            self._held.append(page.rows)
            self._count += page.rows.ids.size
        self._is_last = not page.cursor
        query = replace(self._spec.query, cursor=page.cursor)
        self._spec = replace(self._spec, query=query)

    def take(self) -> RowBatch | None:
        """The next batch; None when a page is missing for it, or nothing is left."""
        if not self._held or (self._count < self._batch and not self._is_last):
            return None
        parts: list[RowBatch] = []
        room = self._batch
        while room and self._held:
            rows = self._held.popleft()
            if rows.ids.size > room:
                self._held.appendleft(_cut(rows, room, rows.ids.size))
                rows = _cut(rows, 0, room)
            parts.append(rows)
            room -= rows.ids.size
        self._count -= self._batch - room
        return parts[0] if len(parts) == 1 else _joined(parts)


def _cut(rows: RowBatch, begin: int, end: int) -> RowBatch:
    count = rows.ids.size
    return RowBatch(
        rows.ids[begin:end],
        None if rows.keys is None else rows.keys[begin:end],
        rows.vectors[begin:end],
        {
            name: one[begin:end] if _is_of_rows(one, count) else one
            for name, one in rows.slots.items()
        },
    )


def _joined(parts: list[RowBatch]) -> RowBatch:
    first, last = parts[0], parts[-1]
    keys = [part.keys for part in parts if part.keys is not None]
    return RowBatch(
        np.concatenate([part.ids for part in parts]),
        np.concatenate(keys) if keys else None,
        np.concatenate([part.vectors for part in parts]),
        {
            name: np.concatenate([part.slots[name] for part in parts])
            if _is_of_rows(one, first.ids.size)
            else last.slots[name]
            for name, one in first.slots.items()
        },
    )


def _is_of_rows(values: NDArray[Any], count: int) -> bool:
    """Whether a slot has values for each of `count` rows, and not one for the table."""
    return values.ndim == 2 and len(values) == count


def as_asked(vectors: NDArray[Any], spec: ScanSpec) -> NDArray[Any]:
    """Vectors in the storage of the reply's dtype, as the caller gets them."""
    if not spec.reply.widened:
        return vectors.view(spec.reply.array)
    wide = np.empty(vectors.shape, np.float32)
    bfloat16_to_float32(vectors, wide)
    return wide
