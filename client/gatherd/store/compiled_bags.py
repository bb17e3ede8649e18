"""The kernel of pooled bags, for numba; kernels.py is the door to it, bags.py has the formulas.

Rows are bytes here and elements are loaded by position: one signature serves every dtype, alignment
and writability, so that nothing is left to compile when a request is running.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.intrinsics import (
    inlined,
    kernel,
    load_bfloat16,
    load_float16,
    load_float32,
    load_float64,
    prefetch,
    read,
    write,
)

FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = range(4)
SUM, MEAN, MAX, SQRTN = range(4)
SKIP, FILL = -1, -2

# How many ids ahead a bag's row is asked for.
ROWS_AHEAD = 12
LINE_BYTES = 64
# How many rows are added in one pass over the sums.
AT_ONCE = 4


@inlined
def _add_rows(load: Any, itemsize: Any, rows: Any, at: Any, by: Any, out: Any) -> None:
    """Do out += by[0] × the row at byte at[0], and so on for all four, in this order.

    Four at once: the sums are loaded and stored a quarter as often, and more rows are under way.
    """
    a, b, c, e = at[0], at[1], at[2], at[3]
    v, w, x, y = by[0], by[1], by[2], by[3]
    for d in range(out.size):
        i = itemsize * d
        total = out[d] + v * load(rows, a + i) + w * load(rows, b + i)
        out[d] = total + x * load(rows, c + i) + y * load(rows, e + i)


@inlined
def _add_row(load: Any, itemsize: Any, rows: Any, at: Any, by: Any, out: Any) -> None:
    """Do out += by × the row at byte `at`."""
    for d in range(out.size):
        out[d] += by * load(rows, at + itemsize * d)


@inlined
def _max_row(load: Any, itemsize: Any, rows: Any, at: Any, out: Any) -> None:
    """Do out = max(out, the row at byte `at`)."""
    for d in range(out.size):
        out[d] = _greater(load(rows, at + itemsize * d), out[d])


@inlined
def _greater(new: Any, old: Any) -> Any:
    return new if new > old else old  # noqa: FURB136  # max() would treat a NaN otherwise


@inlined
def _ask_for_row(rows: Any, row: Any) -> None:
    if row >= 0:
        begin = row * rows.shape[1]
        for line in range(0, rows.shape[1], LINE_BYTES):
            prefetch(rows, begin + line)


@inlined
def _add_bag(
    load: Any,
    itemsize: Any,
    rows: Any,
    index: Any,
    begin: Any,
    end: Any,
    weights: Any,
    filler: Any,
    at: Any,
    by: Any,
    out: Any,
) -> Any:
    """Sum index[begin:end] into `out`, (dim,); the position of an index without a row, or −1.

    `at` and `by`, (4,), are scratch: rows that wait to be added.
    """
    out[:] = np.float32(0)
    waiting = 0
    for i in range(begin, end):
        if i + ROWS_AHEAD < index.size:
            _ask_for_row(rows, index[i + ROWS_AHEAD])
        row = index[i]
        if row == SKIP:
            continue
        if row >= rows.shape[0] or row < FILL:
            return i
        by[waiting] = weights[i] if weights.size else np.float32(1)
        if row >= 0:
            at[waiting] = row * rows.shape[1]
            waiting += 1
            if waiting == AT_ONCE:
                _add_rows(load, itemsize, rows, at, by, out)
                waiting = 0
            continue
        for d in range(out.size):
            out[d] += by[waiting] * filler[d]
    for i in range(waiting):
        _add_row(load, itemsize, rows, at[i], by[i], out)
    return -1


@inlined
def _max_bag(
    load: Any, itemsize: Any, rows: Any, index: Any, begin: Any, end: Any, filler: Any, out: Any
) -> Any:
    """Put the largest elements of index[begin:end] into `out`; returns as _add_bag does."""
    out[:] = np.float32(0)
    first = True
    for i in range(begin, end):
        if i + ROWS_AHEAD < index.size:
            _ask_for_row(rows, index[i + ROWS_AHEAD])
        row = index[i]
        if row == SKIP:
            continue
        if row >= rows.shape[0] or row < FILL:
            return i
        if row == FILL:
            for d in range(out.size):
                out[d] = filler[d] if first else _greater(filler[d], out[d])
        elif first:
            # The row itself, not the larger of it and something: it may hold NaN.
            for d in range(out.size):
                out[d] = load(rows, row * rows.shape[1] + itemsize * d)
        else:
            _max_row(load, itemsize, rows, row * rows.shape[1], out)
        first = False
    return -1


@inlined
def _divide(mode: Any, index: Any, begin: Any, end: Any, weights: Any, out: Any) -> None:
    """Divide the sum of a bag by what mean or sqrtn divide by; zeros when that is 0."""
    total = np.float32(0)
    for i in range(begin, end):
        if index[i] != SKIP:
            weight = weights[i] if weights.size else np.float32(1)
            total += weight * weight if mode == SQRTN else weight
    divisor = np.sqrt(total) if mode == SQRTN else total
    for d in range(out.size):
        out[d] = out[d] / divisor if divisor != np.float32(0) else np.float32(0)


@inlined
def _pool(
    load: Any,
    itemsize: Any,
    rows: Any,
    index: Any,
    offsets: Any,
    weights: Any,
    mode: Any,
    filler: Any,
    out: Any,
) -> Any:
    at, by = np.empty(AT_ONCE, np.intp), np.empty(AT_ONCE, np.float32)
    bags = offsets.size
    for bag in range(bags):
        begin = offsets[bag]
        end = offsets[bag + 1] if bag + 1 < bags else index.size
        if mode == MAX:
            bad = _max_bag(load, itemsize, rows, index, begin, end, filler, out[bag])
        else:
            bad = _add_bag(
                load, itemsize, rows, index, begin, end, weights, filler, at, by, out[bag]
            )
        if bad >= 0:
            return bad
        if mode in (MEAN, SQRTN):
            _divide(mode, index, begin, end, weights, out[bag])
    return -1


@kernel(
    read(types.uint8, 2),
    types.intp,
    read(types.int64),
    read(types.int64),
    read(types.float32),
    types.intp,
    read(types.float32),
    write(types.float32, 2),
    returns=types.intp,
)
def pool(
    rows: Any, kind: Any, index: Any, offsets: Any, weights: Any, mode: Any, filler: Any, out: Any
) -> Any:
    """Pool each bag into its row of `out`; −1, or the position of an index without a row."""
    if kind == FLOAT32:
        return _pool(load_float32, 4, rows, index, offsets, weights, mode, filler, out)
    if kind == FLOAT16:
        return _pool(load_float16, 2, rows, index, offsets, weights, mode, filler, out)
    if kind == BFLOAT16:
        return _pool(load_bfloat16, 2, rows, index, offsets, weights, mode, filler, out)
    return _pool(load_float64, 8, rows, index, offsets, weights, mode, filler, out)


def warm() -> None:
    """Run the kernel once: what is left to load of it is loaded."""
    one = np.zeros(1, np.int64)
    table, weights = np.zeros((1, 8), np.uint8), np.ones(1, np.float32)
    pool(table, FLOAT64, one, one, weights, SUM, weights, np.zeros((1, 1), np.float32))
