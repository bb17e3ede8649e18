"""The compiled answer's third step for open tables, which are asked by key: see rows.py.

The rows that are found are hints, and the keys are kept beside them: each row is copied under the
second look of gatherd/store/kernels/open_rows.py. Only then is it known which keys have a row, so
statuses are put last.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels import open_bags
from gatherd.store.kernels.intrinsics import address, inlined
from gatherd.store.kernels.memory import WORD, clear, column, part, prefetch, put, put_uint8, unit
from gatherd.store.kernels.open_bags import BAGS_WORDS, pool_open
from gatherd.store.kernels.open_rows import DONE, find_hints, take_rows
from gatherd_server.wire.compiled import words
from gatherd_server.wire.compiled.conversions import convert
from gatherd_server.wire.compiled.layout import DEFAULT, ERROR, SUM, UINT8, ZERO, itemsize
from gatherd_server.wire.compiled.rows import (
    EARLY_ROWS,
    fill_missing,
    filler_of,
    put_offsets,
    put_pooled,
    weights_of,
    widen,
)

# How many rows are taken before they are converted.
AT_ONCE = 32


@inlined
def _index_of(asked: Any, index_at: Any) -> Any:
    """Where the rows are of those asked for; their keys are behind them."""
    return index_at + WORD * column(asked, words.ASKED_INDEX_AT)


@inlined
def _text_of(asked: Any) -> Any:
    return column(asked + WORD * words.ASKED_ROWS, words.TENSOR_DATA_AT)


@part
def _fits(asked: Any, table: Any, keys: Any) -> bool:
    """Whether all integers are such as the table's kind can hold."""
    is_signed = column(asked + WORD * words.ASKED_ROWS, words.TENSOR_DTYPE) < UINT8
    if is_signed != (column(table, words.TABLE_KEY_KIND) == words.KEYS_INT64):
        for i in range(column(asked, words.ASKED_COUNT)):
            if column(keys, i) < 0:
                return False
    return True


@unit(types.intp, types.intp, returns=types.intp)
def find_open(asked: Any, index_at: Any) -> Any:
    """As find_rows; the rows may be other keys' by now."""
    table, count = column(asked, words.ASKED_TABLE), column(asked, words.ASKED_COUNT)
    index_at = _index_of(asked, index_at)
    keys = index_at + WORD * count
    if column(asked, words.ASKED_BY) == words.BY_STRINGS:
        put_offsets(asked, keys)
    else:
        widen(asked + WORD * words.ASKED_ROWS, count, keys)
        if not _fits(asked, table, keys):
            return False
    find_hints(column(table, words.TABLE_OPEN_AT), keys, _text_of(asked), count, index_at)
    if column(asked, words.ASKED_MISSING) == ERROR:
        for i in range(count):
            if column(index_at, i) < 0:
                return False
    for i in range(min(count, EARLY_ROWS)):
        row = max(column(index_at, i), 0)
        prefetch(column(table, words.TABLE_ROWS_AT) + row * column(table, words.TABLE_ROW_BYTES))
    return True


@unit(types.intp, types.intp, types.intp, returns=types.intp)
def _take_converted(asked: Any, index_at: Any, to: Any) -> Any:
    """Copy rows in another dtype; False when one stays torn."""
    table, count = column(asked, words.ASKED_TABLE), column(asked, words.ASKED_COUNT)
    keys = index_at + WORD * count
    stored, reply = column(table, words.TABLE_KIND), column(asked, words.ASKED_KIND)
    dim, row_bytes = column(table, words.TABLE_DIM), column(table, words.TABLE_ROW_BYTES)
    missing = column(asked, words.ASKED_MISSING)
    scratch = np.zeros(AT_ONCE * row_bytes, np.uint8)
    begin = address(scratch, 0)
    for first in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - first)
        taken = take_rows(
            column(table, words.TABLE_OPEN_AT),
            keys + WORD * first,
            _text_of(asked),
            size,
            index_at + WORD * first,
            missing,
            begin,
        )
        if taken != DONE:
            return False
        for i in range(size):
            convert(stored, reply, begin + i * row_bytes, to, dim)
            to += dim * itemsize(reply)
    return scratch.size >= 0  # named again, or it could be freed before


@part
def _put_statuses(asked: Any, index_at: Any) -> Any:
    """Put a status for each row; False when one has to be there and isn't."""
    missing, status = column(asked, words.ASKED_MISSING), column(asked, words.ASKED_STATUS_AT)
    missed = np.intp(0)
    for i in range(column(asked, words.ASKED_COUNT)):
        is_missing = np.intp(column(index_at, i) < 0)
        missed += is_missing
        if missing != ERROR:
            put_uint8(status + i, is_missing)
    put(asked, words.ASKED_MISSED, missed)
    return missed == 0 or missing != ERROR


@unit(types.intp, types.intp, types.intp, returns=types.intp)
def copy_open(asked: Any, index_at: Any, to: Any) -> Any:
    """Put all vectors of a lookup where they go, and find their statuses.

    False when one stays torn, or a row went that has to be there.
    """
    table, count = column(asked, words.ASKED_TABLE), column(asked, words.ASKED_COUNT)
    index_at = _index_of(asked, index_at)
    missing = column(asked, words.ASKED_MISSING)
    if count == 0:
        return True
    if column(table, words.TABLE_KIND) == column(asked, words.ASKED_KIND):
        taken = take_rows(
            column(table, words.TABLE_OPEN_AT),
            index_at + WORD * count,
            _text_of(asked),
            count,
            index_at,
            missing,
            to,
        )
        if taken != DONE:
            return False
    elif not _take_converted(asked, index_at, to):
        return False
    if not _put_statuses(asked, index_at):
        return False
    if column(asked, words.ASKED_MISSED) and missing in (ZERO, DEFAULT):
        fill_missing(asked, column(asked, words.ASKED_STATUS_AT), count, to)
    return True


@unit(types.intp, types.intp, types.intp, returns=types.intp)
def pool_open_bags(asked: Any, index_at: Any, to: Any) -> Any:
    """As copy_open, of a lookup's bags."""
    table, count = column(asked, words.ASKED_TABLE), column(asked, words.ASKED_COUNT)
    bags, dim = column(asked, words.ASKED_VECTORS), column(table, words.TABLE_DIM)
    index_at = _index_of(asked, index_at)
    if bags == 0 or count == 0:
        clear(to, column(asked, words.ASKED_DATA_BYTES))
        return True
    offsets = np.empty(bags, np.int64)
    widen(asked + WORD * words.ASKED_OFFSETS, bags, address(offsets, 0))
    weights, filler = weights_of(asked, 0, count), filler_of(asked, table)
    pooled = np.empty((bags, dim), np.float32)
    block = np.zeros(BAGS_WORDS, np.int64)
    block[open_bags.TABLE_AT] = column(table, words.TABLE_OPEN_AT)
    block[open_bags.FIRST_AT] = index_at + WORD * count
    block[open_bags.DATA_AT] = _text_of(asked)
    block[open_bags.COUNT] = count
    block[open_bags.HINTS_AT] = index_at
    block[open_bags.OFFSETS_AT] = address(offsets, 0)
    block[open_bags.BAGS] = bags
    block[open_bags.WEIGHTS_AT] = address(weights, 0) if weights.size else 0
    block[open_bags.MODE] = max(column(asked, words.ASKED_POOLING), SUM) - SUM
    block[open_bags.MISSING] = column(asked, words.ASKED_MISSING)
    block[open_bags.FILLER_AT] = address(filler, 0)
    block[open_bags.OUT_AT] = address(pooled, 0)
    if pool_open(address(block, 0), 0) != DONE or not _put_statuses(asked, index_at):
        return False
    put_pooled(address(pooled, 0), column(asked, words.ASKED_KIND), to, bags * dim)
    # Named again, or they could be freed before.
    return pooled.size + block.size + offsets.size + weights.size + filler.size > 0
