"""The numba kernels of pooled bags; other modules call them through compiled.py.

store/bags.py has the formulas.

Rows are bytes here and elements are loaded by position: one signature serves every dtype, alignment
and writability, so that nothing is left to compile when a request is running. Only the innermost
loops depend on the dtype: a second copy of them is cheap to compile, and one of all the code around
them isn't.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import (
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
from gatherd.store.kernels.row_intrinsics import copy_whole, fence_loads, load_counter

FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = range(4)
SUM, MEAN, MAX, SQRTN = range(4)
SKIP, FILL = -1, -2

# How many ids ahead the start of a row is prefetched. The processor foresees the rest of the row by
# itself; prefetching all of its lines was slower.
ROWS_AHEAD = 12
LINE_BYTES = 64
# How many rows wait to be added in one pass over the sums.
AT_ONCE = 8
# How often a torn row is copied before the caller has to sleep instead: tens of microseconds.
SPINS_MAX = 1000
DONE = -1
ODD = np.uint32(1)
# The bag reached, and: DONE, the position of a bad index, or −2 − the row that stays torn.
RESULT = types.containers.UniTuple(types.intp, 2)  # type: ignore[no-untyped-call]  # numba's gap


SUM_ARGUMENTS = (
    read(types.uint8, 2),
    types.intp,
    read(types.uint32),
    read(types.int64),
    read(types.int64),
    read(types.float32),
    types.intp,
    read(types.float32),
    write(types.float32, 2),
    types.intp,
)


@inlined
def _sum_bags(  # noqa: C901  # one function, see its docstring
    rows: Any,
    kind: Any,
    changes: Any,
    counters: Any,
    index: Any,
    offsets: Any,
    weights: Any,
    mode: Any,
    filler: Any,
    out: Any,
    begin: Any,
) -> Any:
    """Sum each bag from `begin` on and divide as `mode` says; returns a RESULT.

    `kind` and `changes`, whether there are counters, are constants in one of the callers.

    Rows wait in `at` and `by` to be added several at once, so that the sums stay in registers.
    Counters, if there are any, are read before and after. If a row was torn, the sums are undone,
    and each row is copied to scratch until it is whole, and added from there.

    One function, because numba counts references, atomically, around every call that takes arrays:
    that was a quarter of the time.
    """
    at, by = np.empty(AT_ONCE, np.intp), np.empty(AT_ONCE, np.float32)
    stripes, before = np.empty(AT_ONCE, np.intp), np.empty(AT_ONCE, np.uint32)
    row_count, row_bytes = rows.shape
    bags, dim = out.shape
    whole = dim - dim % SPAN
    scratch, saved = np.empty((1, row_bytes), np.uint8), np.empty(dim, np.float32)
    for bag in range(begin, bags):
        end = offsets[bag + 1] if bag + 1 < bags else index.size
        out[bag, :] = np.float32(0)
        total = np.float32(0)
        waiting = 0
        for i in range(offsets[bag], end):
            row = index[i]
            if row >= row_count or row < FILL:
                return bag, i
            if i + ROWS_AHEAD < index.size:
                # Not checked yet; a prefetch of a place that doesn't exist is harmless.
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
                    if changes:
                        stripes[waiting] = row & (counters.size - 1)
                    waiting += 1
            if waiting == AT_ONCE or i + 1 == end:
                odd = np.uint32(0)
                if changes:
                    for d in range(dim):
                        saved[d] = out[bag, d]
                    for k in range(waiting):
                        before[k] = load_counter(counters, stripes[k])
                        odd |= before[k] & ODD
                    fence_loads()
                if kind == FLOAT32:
                    for d in range(0, whole, SPAN):
                        add_float32(rows, at, by, waiting, 4 * d, out, bag * dim + d)
                    for k in range(waiting):
                        for d in range(whole, dim):
                            out[bag, d] += by[k] * load_float32(rows, at[k] + 4 * d)
                elif kind == FLOAT16:
                    for d in range(0, whole, SPAN):
                        add_float16(rows, at, by, waiting, 2 * d, out, bag * dim + d)
                    for k in range(waiting):
                        for d in range(whole, dim):
                            out[bag, d] += by[k] * load_float16(rows, at[k] + 2 * d)
                elif kind == BFLOAT16:
                    for d in range(0, whole, SPAN):
                        add_bfloat16(rows, at, by, waiting, 2 * d, out, bag * dim + d)
                    for k in range(waiting):
                        for d in range(whole, dim):
                            out[bag, d] += by[k] * load_bfloat16(rows, at[k] + 2 * d)
                else:
                    for d in range(0, whole, SPAN):
                        add_float64(rows, at, by, waiting, 8 * d, out, bag * dim + d)
                    for k in range(waiting):
                        for d in range(whole, dim):
                            out[bag, d] += by[k] * load_float64(rows, at[k] + 8 * d)
                if changes:
                    fence_loads()
                    for k in range(waiting):
                        odd |= before[k] ^ load_counter(counters, stripes[k])
                    if odd:
                        for d in range(dim):
                            out[bag, d] = saved[d]
                        for k in range(waiting):
                            spins = 0
                            while not copy_whole(
                                rows, at[k], row_bytes, counters, stripes[k], scratch, 0
                            ):
                                spins += 1
                                if spins == SPINS_MAX:
                                    return bag, -2 - at[k] // row_bytes
                            # A float64 table never changes.
                            if kind == FLOAT32:
                                for d in range(dim):
                                    out[bag, d] += by[k] * load_float32(scratch, 4 * d)
                            elif kind == FLOAT16:
                                for d in range(dim):
                                    out[bag, d] += by[k] * load_float16(scratch, 2 * d)
                            else:
                                for d in range(dim):
                                    out[bag, d] += by[k] * load_bfloat16(scratch, 2 * d)
                waiting = 0
        if mode != SUM:
            divisor = np.sqrt(total) if mode == SQRTN else total
            for d in range(dim):
                out[bag, d] = out[bag, d] / divisor if divisor != np.float32(0) else np.float32(0)
    return bags, DONE


@kernel(*SUM_ARGUMENTS, returns=RESULT)
def sum_float32(
    rows: Any,
    _: Any,
    counters: Any,
    index: Any,
    offsets: Any,
    weights: Any,
    mode: Any,
    filler: Any,
    out: Any,
    begin: Any,
) -> Any:
    """Sum bags of float32 rows that never change: the commonest case, 10% faster on its own."""
    return _sum_bags(
        rows, FLOAT32, False, counters, index, offsets, weights, mode, filler, out, begin
    )


@kernel(*SUM_ARGUMENTS, returns=RESULT)
def sum_any(
    rows: Any,
    kind: Any,
    counters: Any,
    index: Any,
    offsets: Any,
    weights: Any,
    mode: Any,
    filler: Any,
    out: Any,
    begin: Any,
) -> Any:
    """Sum bags of any rows."""
    return _sum_bags(
        rows, kind, counters.size > 0, counters, index, offsets, weights, mode, filler, out, begin
    )


@kernel(
    read(types.uint8, 2),
    types.intp,
    read(types.uint32),
    read(types.int64),
    read(types.int64),
    read(types.float32),
    write(types.float32, 2),
    types.intp,
    returns=RESULT,
)
def max_bags(  # noqa: C901  # as above
    rows: Any,
    kind: Any,
    counters: Any,
    index: Any,
    offsets: Any,
    filler: Any,
    out: Any,
    begin: Any,
) -> Any:
    """Put each bag's largest elements into `out`; takes and returns the same as _sum_bags.

    Rows that may be torn go into `fresh` first.
    """
    row_count, row_bytes = rows.shape
    bags, dim = out.shape
    fresh = np.empty(dim, np.float32)
    for bag in range(begin, bags):
        end = offsets[bag + 1] if bag + 1 < bags else index.size
        out[bag, :] = np.float32(0)
        first = True
        for i in range(offsets[bag], end):
            row = index[i]
            if row >= row_count or row < FILL:
                return bag, i
            if row == SKIP:
                continue
            # The first row itself, not a maximum with another value: it may hold NaN.
            start = row * row_bytes
            if row == FILL:
                for d in range(dim):
                    new = filler[d]
                    out[bag, d] = new if first or new > out[bag, d] else out[bag, d]
            elif counters.size == 0:
                if kind == FLOAT32:
                    for d in range(dim):
                        new = load_float32(rows, start + 4 * d)
                        out[bag, d] = new if first or new > out[bag, d] else out[bag, d]
                elif kind == FLOAT16:
                    for d in range(dim):
                        new = load_float16(rows, start + 2 * d)
                        out[bag, d] = new if first or new > out[bag, d] else out[bag, d]
                elif kind == BFLOAT16:
                    for d in range(dim):
                        new = load_bfloat16(rows, start + 2 * d)
                        out[bag, d] = new if first or new > out[bag, d] else out[bag, d]
                else:
                    for d in range(dim):
                        new = load_float64(rows, start + 8 * d)
                        out[bag, d] = new if first or new > out[bag, d] else out[bag, d]
            else:
                spins, odd = 0, ODD
                while odd:
                    before = load_counter(counters, row & (counters.size - 1))
                    fence_loads()
                    if kind == FLOAT32:
                        for d in range(dim):
                            new = load_float32(rows, start + 4 * d)
                            fresh[d] = new if first or new > out[bag, d] else out[bag, d]
                    elif kind == FLOAT16:
                        for d in range(dim):
                            new = load_float16(rows, start + 2 * d)
                            fresh[d] = new if first or new > out[bag, d] else out[bag, d]
                    else:
                        for d in range(dim):
                            new = load_bfloat16(rows, start + 2 * d)
                            fresh[d] = new if first or new > out[bag, d] else out[bag, d]
                    fence_loads()
                    after = load_counter(counters, row & (counters.size - 1))
                    odd = (before & ODD) | (before ^ after)
                    spins += 1
                    if odd and spins == SPINS_MAX:
                        return bag, -2 - row
                for d in range(dim):
                    out[bag, d] = fresh[d]
            first = False
    return bags, DONE


def pool(
    rows: Any,
    kind: int,
    counters: Any,
    index: Any,
    offsets: Any,
    weights: Any,
    mode: int,
    filler: Any,
    out: Any,
    begin: int,
) -> Any:
    """Pool each bag from `begin` on into its row of `out`; compiled.py explains the rest."""
    if mode == MAX:
        return max_bags(rows, kind, counters, index, offsets, filler, out, begin)
    sum_bags = sum_float32 if kind == FLOAT32 and not counters.size else sum_any
    return sum_bags(rows, kind, counters, index, offsets, weights, mode, filler, out, begin)


def warm() -> None:
    """Run each kernel once, so that it is loaded completely."""
    one = np.zeros(1, np.int64)
    table, weights = np.zeros((1, 8), np.uint8), np.ones(1, np.float32)
    counters, out = np.empty(0, np.uint32), np.zeros((1, 1), np.float32)
    for kind, mode in ((FLOAT32, SUM), (FLOAT64, SUM), (FLOAT64, MAX)):
        pool(table, kind, counters, one, one, weights, mode, weights, out, 0)
