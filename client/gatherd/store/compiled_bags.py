"""The kernel of pooled bags, for numba; kernels.py is the door to it, bags.py has the formulas.

Rows are bytes here and elements are loaded by position: one signature serves every dtype, alignment
and writability, so that nothing is left to compile when a request is running.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.intrinsics import (
    SPAN,
    add_bfloat16,
    add_float16,
    add_float32,
    add_float64,
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

# How many ids ahead the start of a bag's row is asked for. The processor sees by itself how a row
# goes on; asking for all of its lines was slower.
ROWS_AHEAD = 12
LINE_BYTES = 64
# How many rows wait to be added in one pass over the sums.
AT_ONCE = 8


@inlined
def _sum_bags(  # noqa: C901  # one function, see its docstring
    add: Any,
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
    """Sum each bag and divide as `mode` says; −1, or the position of an index without a row.

    Rows wait in `at` and `by` to be added several at once, so that the sums stay in registers. A
    torn-row check would copy the waiting rows to scratch.

    One function, because numba counts references, atomically, around every call that is given
    arrays: that was a quarter of the time.
    """
    at, by = np.empty(AT_ONCE, np.intp), np.empty(AT_ONCE, np.float32)
    row_count, row_bytes = rows.shape
    bags, dim = out.shape
    whole = dim - dim % SPAN
    for bag in range(bags):
        end = offsets[bag + 1] if bag + 1 < bags else index.size
        out[bag, :] = np.float32(0)
        total = np.float32(0)
        waiting = 0
        for i in range(offsets[bag], end):
            row = index[i]
            if row >= row_count or row < FILL:
                return i
            if i + ROWS_AHEAD < index.size:
                # Not checked yet; asking for a place that doesn't exist is harmless.
                prefetch(rows, index[i + ROWS_AHEAD] * row_bytes)
                prefetch(rows, index[i + ROWS_AHEAD] * row_bytes + LINE_BYTES)
            if row != SKIP:
                weight = weights[i] if weights.size else np.float32(1)
                total += weight * weight if mode == SQRTN else weight
                if row == FILL:
                    for d in range(dim):
                        out[bag, d] += weight * filler[d]
                else:
                    at[waiting], by[waiting] = row * row_bytes, weight
                    waiting += 1
            if waiting == AT_ONCE or i + 1 == end:
                for d in range(0, whole, SPAN):
                    add(rows, at, by, waiting, itemsize * d, out, bag * dim + d)
                for k in range(waiting):
                    for d in range(whole, dim):
                        out[bag, d] += by[k] * load(rows, at[k] + itemsize * d)
                waiting = 0
        if mode != SUM:
            divisor = np.sqrt(total) if mode == SQRTN else total
            for d in range(dim):
                out[bag, d] = out[bag, d] / divisor if divisor != np.float32(0) else np.float32(0)
    return -1


@inlined
def _max_bags(
    load: Any, itemsize: Any, rows: Any, index: Any, offsets: Any, filler: Any, out: Any
) -> Any:
    """Put each bag's largest elements into `out`; returns as _sum_bags does."""
    row_count, row_bytes = rows.shape
    bags, dim = out.shape
    for bag in range(bags):
        end = offsets[bag + 1] if bag + 1 < bags else index.size
        out[bag, :] = np.float32(0)
        first = True
        for i in range(offsets[bag], end):
            row = index[i]
            if row >= row_count or row < FILL:
                return i
            if row == SKIP:
                continue
            # The first row itself, not the larger of it and something: it may hold NaN.
            if row == FILL:
                for d in range(dim):
                    new = filler[d]
                    out[bag, d] = new if first or new > out[bag, d] else out[bag, d]
            else:
                for d in range(dim):
                    new = load(rows, row * row_bytes + itemsize * d)
                    out[bag, d] = new if first or new > out[bag, d] else out[bag, d]
            first = False
    return -1


@inlined
def _pool(
    add: Any,
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
    if mode == MAX:
        return _max_bags(load, itemsize, rows, index, offsets, filler, out)
    return _sum_bags(add, load, itemsize, rows, index, offsets, weights, mode, filler, out)


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
        return _pool(add_float32, load_float32, 4, rows, index, offsets, weights, mode, filler, out)
    if kind == FLOAT16:
        return _pool(add_float16, load_float16, 2, rows, index, offsets, weights, mode, filler, out)
    if kind == BFLOAT16:
        return _pool(
            add_bfloat16, load_bfloat16, 2, rows, index, offsets, weights, mode, filler, out
        )
    return _pool(add_float64, load_float64, 8, rows, index, offsets, weights, mode, filler, out)


def warm() -> None:
    """Run the kernel once: what is left to load of it is loaded."""
    one = np.zeros(1, np.int64)
    table, weights = np.zeros((1, 8), np.uint8), np.ones(1, np.float32)
    pool(table, FLOAT64, one, one, weights, SUM, weights, np.zeros((1, 1), np.float32))
