"""The numba kernel of pooled bags of open tables; other modules call it through compiled.py.

store/bags.py has the formulas. Each row is copied to scratch memory under the second look of
open_rows.py, and added from there, in the order and with the loops of bags.py: a bag of an open
table has the bits that it would have in another table with the same rows.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.bags import AT_ONCE, FLOAT16, FLOAT32, MAX, MEAN, SQRTN
from gatherd.store.kernels.intrinsics import (
    SPAN,
    add_bfloat16,
    add_float16,
    add_float32,
    address,
    inlined,
    kernel,
    load_bfloat16,
    load_float16,
    load_float32,
)
from gatherd.store.kernels.memory import carray, column, pointer, put, unit
from gatherd.store.kernels.open_rows import (
    DIM,
    ERROR,
    INIT,
    KIND,
    OPEN_WORDS,
    ROW_BYTES,
    SKIP,
    TORN,
    ask_ahead,
    draw,
    take,
)

DONE = -1
# The words of a request for bags.
TABLE_AT, FIRST_AT, DATA_AT, COUNT, HINTS_AT, OFFSETS_AT, BAGS = range(7)
WEIGHTS_AT, MODE, MISSING, FILLER_AT, OUT_AT, BAGS_WORDS = range(7, 13)


@inlined
def _element(kind: Any, scratch: Any, row: Any, d: Any) -> Any:
    if kind == FLOAT32:
        return load_float32(scratch, row + 4 * d)
    if kind == FLOAT16:
        return load_float16(scratch, row + 2 * d)
    return load_bfloat16(scratch, row + 2 * d)


@inlined
def _add(kind: Any, scratch: Any, at: Any, by: Any, waiting: Any, out: Any, begin: Any) -> None:
    """Add the rows that wait to the sums from element `begin` on."""
    dim = out.shape[1]
    whole = dim - dim % SPAN
    for d in range(0, whole, SPAN):
        if kind == FLOAT32:
            add_float32(scratch, at, by, waiting, 4 * d, out, begin + d)
        elif kind == FLOAT16:
            add_float16(scratch, at, by, waiting, 2 * d, out, begin + d)
        else:
            add_bfloat16(scratch, at, by, waiting, 2 * d, out, begin + d)
    bag = begin // dim if dim else 0
    for k in range(waiting):
        for d in range(whole, dim):
            out[bag, d] += by[k] * _element(kind, scratch, at[k], d)


# Inlined, so that sums are fused as they are in bags.py, which a unit doesn't do by itself.
@inlined
def _pool(asked: Any, begin: Any) -> Any:  # noqa: C901  # as in bags.py
    table, first, data = column(asked, TABLE_AT), column(asked, FIRST_AT), column(asked, DATA_AT)
    count, hints, bags = column(asked, COUNT), column(asked, HINTS_AT), column(asked, BAGS)
    offsets = carray(pointer(column(asked, OFFSETS_AT)), (bags,), np.int64)
    mode, missing = column(asked, MODE), column(asked, MISSING)
    dim, kind, row_bytes = column(table, DIM), column(table, KIND), column(table, ROW_BYTES)
    out = carray(pointer(column(asked, OUT_AT)), (bags, dim), np.float32)
    filler = carray(pointer(column(asked, FILLER_AT)), (dim,), np.float32)
    has_weights = column(asked, WEIGHTS_AT) != 0
    weights = carray(pointer(column(asked, WEIGHTS_AT)), (count,), np.float32)
    at, by = np.empty(AT_ONCE, np.intp), np.empty(AT_ONCE, np.float32)
    for k in range(AT_ONCE):
        at[k] = k * row_bytes
    scratch = np.empty((AT_ONCE, row_bytes), np.uint8)
    scratch_at = address(scratch, 0)
    for bag in range(begin, bags):
        end = offsets[bag + 1] if bag + 1 < bags else count
        for d in range(dim):
            out[bag, d] = np.float32(0)
        total, waiting, is_first = np.float32(0), 0, True
        for i in range(offsets[bag], end):
            ask_ahead(table, hints, count, i)
            row = take(table, first, data, i, column(hints, i), scratch_at + waiting * row_bytes)
            if row == TORN:
                return -2 - i
            put(hints, i, row)
            if row < 0:
                if missing == ERROR:
                    return i
                if missing == INIT:
                    draw(table, first, data, i, scratch_at + waiting * row_bytes)
            if row >= 0 or missing != SKIP:
                is_row = row >= 0 or missing == INIT
                if mode == MAX:
                    for d in range(dim):
                        new = _element(kind, scratch, 0, d) if is_row else filler[d]
                        out[bag, d] = new if is_first or new > out[bag, d] else out[bag, d]
                    is_first = False
                else:
                    weight = weights[i] if has_weights else np.float32(1)
                    total += weight * weight if mode == SQRTN else weight
                    if is_row:
                        by[waiting] = weight
                        waiting += 1
                    else:
                        for d in range(dim):
                            out[bag, d] += weight * filler[d]
            if waiting == AT_ONCE or i + 1 == end:
                _add(kind, scratch, at, by, waiting, out, bag * dim)
                waiting = 0
        if mode in (MEAN, SQRTN):
            divisor = np.sqrt(total) if mode == SQRTN else total
            for d in range(dim):
                out[bag, d] = out[bag, d] / divisor if divisor != np.float32(0) else np.float32(0)
    # Named again, or it could be freed before.
    return DONE + np.intp(scratch.size) * 0


@unit(types.intp, types.intp, returns=types.intp)
def pool_open(asked: Any, begin: Any) -> Any:
    """Pool the bags from `begin` on of a request whose hints are known.

    Returns DONE; the position of a key without a row, if `missing` is ERROR; or −2 − the position
    of a row that stays torn: then call it again from its bag. Each hint becomes the row, or −1.
    """
    return _pool(asked, begin)


@kernel(types.intp, types.intp, returns=types.intp)
def pool_by_key(asked: Any, begin: Any) -> Any:
    """The same, for Python."""
    return pool_open(asked, begin)


def warm() -> None:
    """Run the kernel once, without a bag."""
    asked, table = np.zeros(BAGS_WORDS, np.int64), np.zeros(OPEN_WORDS, np.int64)
    asked[TABLE_AT] = table.ctypes.data
    pool_by_key(asked.ctypes.data, 0)
