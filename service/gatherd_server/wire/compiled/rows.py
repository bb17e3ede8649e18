"""The compiled answer's third step: ids and keys to rows, and rows to where they go in the reply.

All of a request's rows are found before the first is copied, and the first of each table asked for
from memory meanwhile: of many tables' single rows the processor waits for all at once.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.bags import FILL as FILL_ROW
from gatherd.store.kernels.bags import FLOAT32 as FLOAT32_KIND
from gatherd.store.kernels.bags import MAX as MAX_MODE
from gatherd.store.kernels.bags import SKIP as SKIP_ROW
from gatherd.store.kernels.bags import max_bags, sum_any, sum_float32
from gatherd.store.kernels.gather import DONE, ROWS_AHEAD, SPINS_MAX, gather
from gatherd.store.kernels.intrinsics import address, inlined
from gatherd.store.kernels.keys import find_ints, find_strings
from gatherd.store.kernels.memory import (
    WORD,
    carray,
    clear,
    column,
    copy,
    part,
    pointer,
    prefetch,
    put,
    put_uint8,
    uint8_at,
    uint32_at,
    unit,
)
from gatherd.store.kernels.row_intrinsics import fence_loads, load_counter
from gatherd_server.wire.compiled import words
from gatherd_server.wire.compiled.conversions import convert
from gatherd_server.wire.compiled.layout import (
    DEFAULT,
    ERROR,
    INT64,
    SKIP,
    SUM,
    UINT8,
    UINT64,
    integer_at,
    itemsize,
)

# How many rows of a lookup are asked for while the others' are found.
EARLY_ROWS = 8
LINE_BYTES = 64
AHEAD_BYTES_MAX = 1 << 10
_ODD = np.uint32(1)


@inlined
def _int64s(begin: Any, count: Any) -> Any:
    return carray(pointer(begin), (count,), np.int64)


@inlined
def _uint64s(begin: Any, count: Any) -> Any:
    return carray(pointer(begin), (count,), np.uint64)


@inlined
def _rows_of(table: Any) -> Any:
    shape = (column(table, words.TABLE_ROW_COUNT), column(table, words.TABLE_ROW_BYTES))
    return carray(pointer(column(table, words.TABLE_ROWS_AT)), shape, np.uint8)


@inlined
def _counters_of(table: Any) -> Any:
    count = column(table, words.TABLE_COUNTER_COUNT)
    return carray(pointer(column(table, words.TABLE_COUNTERS_AT)), (count,), np.uint32)


@part
def widen(rows: Any, count: Any, index_at: Any) -> None:
    """The integers of a tensor as 64 bits each."""
    dtype, begin = column(rows, words.TENSOR_DTYPE), column(rows, words.TENSOR_DATA_AT)
    if dtype in (INT64, UINT64):
        copy(index_at, begin, WORD * count)
        return
    for i in range(count):
        put(index_at, i, integer_at(dtype, begin, i))


@part
def _find_integers(asked: Any, table: Any, index_at: Any) -> Any:
    """The row of each integer key, or −1; False for integers that the index's kind can't hold."""
    count = column(asked, words.ASKED_COUNT)
    is_signed = column(asked + WORD * words.ASKED_ROWS, words.TENSOR_DTYPE) < UINT8
    index = _int64s(index_at, count)
    if is_signed != (column(table, words.TABLE_KEY_KIND) == words.KEYS_INT64):
        for i in range(count):
            if index[i] < 0:
                return False
    slots = _uint64s(column(table, words.TABLE_SLOTS_AT), column(table, words.TABLE_SLOT_COUNT))
    stored = _uint64s(column(table, words.TABLE_KEYS_AT), column(table, words.TABLE_ROW_COUNT))
    # In place: each key is read before its row is written.
    keys = _uint64s(index_at, count)
    find_ints(slots, stored, keys, np.uint64(column(table, words.TABLE_SEED)), index)
    return True


@inlined
def put_offsets(asked: Any, to: Any) -> None:
    """Put where each of the strings begins, and the end of the last."""
    lengths, end = column(asked, words.ASKED_LENGTHS_AT), 0
    put(to, 0, end)
    for i in range(column(asked, words.ASKED_COUNT)):
        end += uint32_at(lengths + 4 * i)
        put(to, i + 1, end)


@part
def _find_strings(asked: Any, table: Any, index_at: Any) -> None:
    count = column(asked, words.ASKED_COUNT)
    rows = asked + WORD * words.ASKED_ROWS
    offsets = np.empty(count + 1, np.int64)
    put_offsets(asked, address(offsets, 0))
    data = carray(
        pointer(column(rows, words.TENSOR_DATA_AT)),
        (column(rows, words.TENSOR_DATA_BYTES),),
        np.uint8,
    )
    slots = _uint64s(column(table, words.TABLE_SLOTS_AT), column(table, words.TABLE_SLOT_COUNT))
    stored = _uint64s(column(table, words.TABLE_KEYS_AT), column(table, words.TABLE_ROW_COUNT) + 1)
    stored_data = carray(
        pointer(column(table, words.TABLE_KEY_DATA_AT)),
        (column(table, words.TABLE_KEY_DATA_BYTES),),
        np.uint8,
    )
    seed = np.uint64(column(table, words.TABLE_SEED))
    find_strings(slots, stored, stored_data, offsets, data, seed, _int64s(index_at, count))


@part
def _check_rows(asked: Any, table: Any, index_at: Any) -> Any:
    """Put row 0 and a status where there is none; False when every one has to be there."""
    count, row_count = column(asked, words.ASKED_COUNT), column(table, words.TABLE_ROW_COUNT)
    index = _int64s(index_at, count)
    if column(asked, words.ASKED_MISSING) == ERROR:
        for i in range(count):  # noqa: SIM110  # numba has no all()
            # A negative row is a huge one when seen as unsigned.
            if np.uint64(index[i]) >= np.uint64(row_count):
                return False
        return True
    status, missed = column(asked, words.ASKED_STATUS_AT), np.intp(0)
    for i in range(count):
        is_missing = np.intp(np.uint64(index[i]) >= np.uint64(row_count))
        put_uint8(status + i, is_missing)
        missed += is_missing
        if is_missing:
            index[i] = 0
    put(asked, words.ASKED_MISSED, missed)
    return True


@part
def _check_bags(asked: Any, table: Any, index_at: Any) -> Any:
    """As _check_rows, for bags.py's index: SKIP and FILL instead of rows."""
    count, row_count = column(asked, words.ASKED_COUNT), column(table, words.TABLE_ROW_COUNT)
    missing, status = column(asked, words.ASKED_MISSING), column(asked, words.ASKED_STATUS_AT)
    absent = SKIP_ROW if missing == SKIP else FILL_ROW
    by, padding = column(asked, words.ASKED_BY), column(asked, words.ASKED_PADDING)
    has_padding = column(asked, words.ASKED_HAS_PADDING)
    if by != words.BY_IDS and padding < 0:
        has_padding = 0  # −1 is a key that has no row here, which isn't padding
    # An id above 2**63 − 1 is negative here, and no padding.
    is_huge = (
        by == words.BY_IDS and column(asked + WORD * words.ASKED_ROWS, words.TENSOR_DTYPE) == UINT64
    )
    index, missed = _int64s(index_at, count), 0
    for i in range(count):
        row, is_missing = index[i], 0
        if has_padding and row == padding and not (is_huge and row < 0):
            index[i] = SKIP_ROW
        elif np.uint64(row) >= np.uint64(row_count):
            index[i] = absent
            is_missing = 1
        if missing != ERROR:
            put_uint8(status + i, is_missing)
        missed += is_missing
    put(asked, words.ASKED_MISSED, missed)
    return missed == 0 or missing != ERROR


@unit(types.intp, types.intp, returns=types.intp)
def find_rows(asked: Any, index_at: Any) -> Any:
    """Put a lookup's rows into its part of the index; False for what the general way answers."""
    table, count = column(asked, words.ASKED_TABLE), column(asked, words.ASKED_COUNT)
    by = column(asked, words.ASKED_BY)
    index_at += WORD * column(asked, words.ASKED_INDEX_AT)
    if count and by == words.BY_STRINGS:
        _find_strings(asked, table, index_at)
    else:
        widen(asked + WORD * words.ASKED_ROWS, count, index_at)
        if count and by == words.BY_INTEGERS and not _find_integers(asked, table, index_at):
            return False
    if column(asked, words.ASKED_IS_BAGS):
        return _check_bags(asked, table, index_at)
    if not _check_rows(asked, table, index_at):
        return False
    rows_at, row_bytes = column(table, words.TABLE_ROWS_AT), column(table, words.TABLE_ROW_BYTES)
    mask = column(table, words.TABLE_COUNTER_COUNT) - 1
    for i in range(min(count, EARLY_ROWS)):
        row = column(index_at, i)
        prefetch(rows_at + row * row_bytes)
        if mask >= 0:
            prefetch(column(table, words.TABLE_COUNTERS_AT) + 4 * (row & mask))
    return True


@unit(types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def _convert_rows(asked: Any, index_at: Any, count: Any, to: Any) -> Any:
    """Copy rows in another dtype; as copy_rows."""
    table = column(asked, words.ASKED_TABLE)
    stored, reply = column(table, words.TABLE_KIND), column(asked, words.ASKED_KIND)
    dim, row_bytes = column(table, words.TABLE_DIM), column(table, words.TABLE_ROW_BYTES)
    rows_at = column(table, words.TABLE_ROWS_AT)
    counters = _counters_of(table)
    mask = counters.size - 1
    # A conversion leaves the processor less room to look ahead than a copy: ask for all lines.
    ahead_bytes = min(row_bytes, AHEAD_BYTES_MAX)
    for i in range(count):
        if i + ROWS_AHEAD < count:
            ahead = rows_at + column(index_at, i + ROWS_AHEAD) * row_bytes
            for line in range(0, ahead_bytes, LINE_BYTES):
                prefetch(ahead + line)
        row = column(index_at, i)
        spins = 0
        while True:
            before = np.uint32(0)
            if mask >= 0:
                before = load_counter(counters, row & mask)
                fence_loads()
            convert(stored, reply, rows_at + row * row_bytes, to, dim)
            if mask < 0:
                break
            fence_loads()
            if before & _ODD == 0 and before == load_counter(counters, row & mask):
                break
            spins += 1
            if spins > SPINS_MAX:
                return i
        to += dim * itemsize(reply)
    return count


@unit(types.intp, types.intp, types.intp, returns=types.intp)
def _put_filler(table: Any, reply: Any, to: Any) -> Any:
    convert(
        FLOAT32_KIND,
        reply,
        column(table, words.TABLE_DEFAULT_AT),
        to,
        column(table, words.TABLE_DIM),
    )
    return 0


@part
def fill_missing(asked: Any, status: Any, count: Any, to: Any) -> None:
    """Put the filler in place of the vectors of missing rows."""
    table, reply = column(asked, words.ASKED_TABLE), column(asked, words.ASKED_KIND)
    vector_bytes = column(table, words.TABLE_DIM) * itemsize(reply)
    for i in range(count):
        if uint8_at(status + i):
            if column(asked, words.ASKED_MISSING) == DEFAULT:
                _put_filler(table, reply, to + i * vector_bytes)
            else:
                clear(to + i * vector_bytes, vector_bytes)


@unit(types.intp, types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def copy_rows(asked: Any, index_at: Any, first: Any, count: Any, to: Any) -> Any:
    """Put `count` vectors of a lookup without bags, from `first` on, where they go.

    Returns how many: fewer when a row stays torn.
    """
    table = column(asked, words.ASKED_TABLE)
    index_at += WORD * (column(asked, words.ASKED_INDEX_AT) + first)
    done = count
    if column(table, words.TABLE_KIND) == column(asked, words.ASKED_KIND):
        out = carray(pointer(to), (count * column(table, words.TABLE_ROW_BYTES),), np.uint8)
        found = gather(_rows_of(table), _counters_of(table), _int64s(index_at, count), out, 0)
        if found != DONE:
            done = max(0, DONE - 1 - found)
    else:
        done = _convert_rows(asked, index_at, count, to)
    if column(asked, words.ASKED_MISSED):
        fill_missing(asked, column(asked, words.ASKED_STATUS_AT) + first, done, to)
    return done


@part
def put_pooled(begin: Any, reply: Any, to: Any, elements: Any) -> None:
    """Put the vectors of bags, float32 from `begin` on, where they go."""
    convert(FLOAT32_KIND, reply, begin, to, elements)


@part
def offset_of(asked: Any, bag: Any) -> Any:
    """Where a bag begins among a lookup's ids; where the last one ends, of the bag behind it."""
    given = asked + WORD * words.ASKED_OFFSETS
    if bag == column(asked, words.ASKED_VECTORS):
        return column(asked, words.ASKED_COUNT)
    return integer_at(column(given, words.TENSOR_DTYPE), column(given, words.TENSOR_DATA_AT), bag)


@inlined
def weights_of(asked: Any, begin: Any, count: Any) -> Any:
    """The weights of `count` ids in bags, from `begin` on; empty for none."""
    weights = np.empty(0, np.float32)
    given = asked + WORD * words.ASKED_WEIGHTS
    if column(given, words.TENSOR_IS_THERE):
        weights = np.empty(count, np.float32)
        copy(address(weights, 0), column(given, words.TENSOR_DATA_AT) + 4 * begin, 4 * count)
    return weights


@inlined
def filler_of(asked: Any, table: Any) -> Any:
    """What is pooled in place of a missing row."""
    dim = column(table, words.TABLE_DIM)
    filler = np.zeros(dim, np.float32)
    if column(asked, words.ASKED_MISSING) == DEFAULT:
        copy(address(filler, 0), column(table, words.TABLE_DEFAULT_AT), 4 * dim)
    return filler


@unit(types.intp, types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def pool_bags(asked: Any, index_at: Any, first: Any, count: Any, to: Any) -> Any:
    """Put the vectors of `count` bags, from `first` on, where they go; as copy_rows."""
    table, reply = column(asked, words.ASKED_TABLE), column(asked, words.ASKED_KIND)
    dim = column(table, words.TABLE_DIM)
    begin = offset_of(asked, first)
    ids = offset_of(asked, first + count) - begin
    if ids == 0:
        clear(to, count * dim * itemsize(reply))
        return count
    # The request's own numbers are where they are, aligned or not, and so is the reply.
    offsets = np.empty(count, np.int64)
    for i in range(count):
        offsets[i] = offset_of(asked, first + i) - begin
    weights, filler = weights_of(asked, begin, ids), filler_of(asked, table)
    pooled = np.empty((count, dim), np.float32)
    index = _int64s(index_at + WORD * (column(asked, words.ASKED_INDEX_AT) + begin), ids)
    rows, counters = _rows_of(table), _counters_of(table)
    kind = column(table, words.TABLE_KIND)
    mode = max(column(asked, words.ASKED_POOLING), SUM) - SUM
    if mode == MAX_MODE:
        found = max_bags(rows, kind, counters, index, offsets, filler, pooled, 0)
    elif kind == FLOAT32_KIND and counters.size == 0:
        found = sum_float32(rows, kind, counters, index, offsets, weights, mode, filler, pooled, 0)
    else:
        found = sum_any(rows, kind, counters, index, offsets, weights, mode, filler, pooled, 0)
    done = found[0]
    put_pooled(address(pooled, 0), reply, to, done * dim)
    return done + 0 * pooled.size  # named again, or it could be freed before
