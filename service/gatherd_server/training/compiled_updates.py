"""The numba kernels of updates; kernels.py is the door, images.py has the formulas.

A push takes two passes. `place` finds the position of each id's image, makes one for a row that has
none, and links the ids of a row in their order. Then each row is read, changed and written once,
whatever its duplicates, while it is in a core's cache.

Rows are bytes here, and elements are loaded and stored by position: one signature serves every
dtype and alignment, so that nothing is left to compile when a push is running. A row is computed in
float32, and rounded back once. The steps of optimizers are in compiled_optimizers.py.

The long functions stay in one piece because numba counts references around every call that gets
arrays.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import (
    inlined,
    kernel,
    larger_size,
    load_bfloat16,
    load_float16,
    load_float32,
    prefetch,
    read,
    store_bfloat16,
    store_float16,
    store_float32,
    write,
)

FLOAT32, FLOAT16, BFLOAT16 = range(3)
# The rows of `links`, which `place` fills. For each row that the push changes: its position among
# the images, its first and its last id. For each id: the next one of the same row, or −1.
TOUCHED, FIRST, LAST, FOLLOWING = range(4)
LINKS = 4
# At most this many non-finite rows are named.
NAMED_MAX = 5

# The lines of a mapped row are prefetched this many rows ahead, up to so many bytes: the processor
# foresees the rest of a longer row by itself.
ROWS_AHEAD = 8
AHEAD_BYTES_MAX = 1 << 10
LINE_BYTES = 64

ONE = np.uint64(1)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
NO_SIZE = np.uint32(0)
# Sizes (see larger_size) from which on a stored value becomes infinity or NaN: infinity itself, and
# the halfway points between the largest finite half and the power above it.
INFINITE_32 = np.uint32(0x7F800000)
INFINITE_16 = np.uint32(0x477FF000)
INFINITE_BF = np.uint32(0x7F7F8000)

COUNTS = types.containers.UniTuple(types.intp, 2)  # type: ignore[no-untyped-call]  # numba's gap


@inlined
def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


@kernel(
    read(types.int64),
    types.int64,
    types.uint64,
    write(types.int32),
    write(types.int64),
    types.intp,
    write(types.int32),
    write(types.int32, 2),
    returns=COUNTS,
)
def place(
    ids: Any,
    padding_id: Any,
    seed: Any,
    table: Any,
    rows: Any,
    row_count: Any,
    marks: Any,
    links: Any,
) -> Any:
    """Link the ids of each row; return how many rows the push touches, and how many have images.

    `table` maps a row's hash to its position plus one, 0 when empty. `marks` may hold anything: a
    position's mark counts only when the touched row it points to has that position.
    """
    mask = np.uint64(table.size - 1)
    touched = 0
    for i in range(ids.size):
        row = ids[i]
        links[FOLLOWING, i] = -1
        if row == padding_id:
            continue
        h = _mix(np.uint64(row) ^ seed)
        position = np.intp(table[np.intp(h & mask)]) - 1
        while position >= 0 and rows[position] != row:
            h += ONE
            position = np.intp(table[np.intp(h & mask)]) - 1
        if position < 0:
            position = np.intp(row_count)
            rows[position] = row
            row_count += 1
            table[np.intp(h & mask)] = row_count
        at: Any = np.intp(marks[position])
        if 0 <= at < touched and links[TOUCHED, at] == position:
            links[FOLLOWING, links[LAST, at]] = i
        else:
            at = touched
            marks[position] = at
            links[TOUCHED, at] = position
            links[FIRST, at] = i
            touched += 1
        links[LAST, at] = i
    return touched, row_count


@kernel(
    types.intp,
    read(types.uint8, 2),
    write(types.uint8, 2),
    read(types.int64),
    types.intp,
    read(types.int32, 2),
    types.intp,
    read(types.float32, 2),
    write(types.int64),
    returns=types.intp,
)
def scatter_add(  # noqa: C901  # one function, see the module's docstring
    kind: Any,
    base: Any,
    images: Any,
    rows: Any,
    known: Any,
    links: Any,
    touched: Any,
    deltas: Any,
    nonfinite: Any,
) -> Any:
    """Add each delta to its row's image; return how many rows became non-finite."""
    row_bytes, dim = base.shape[1], deltas.shape[1]
    ahead_bytes = min(row_bytes, AHEAD_BYTES_MAX)
    infinite = INFINITE_16 if kind == FLOAT16 else INFINITE_BF if kind == BFLOAT16 else INFINITE_32
    sums = np.empty(dim, np.float32)
    wrong = 0
    for t in range(touched):
        if t + ROWS_AHEAD < touched:
            ahead = np.intp(links[TOUCHED, t + ROWS_AHEAD])
            if ahead >= known:
                for line in range(0, ahead_bytes, LINE_BYTES):
                    prefetch(base, rows[ahead] * row_bytes + line)
        position = np.intp(links[TOUCHED, t])
        is_new = position >= known
        i = np.intp(links[FIRST, t])
        following = np.intp(links[FOLLOWING, i])
        begin, to = rows[position] * row_bytes, position * row_bytes
        worst = NO_SIZE
        if following < 0:
            # Most rows have one id and need no scratch.
            if kind == FLOAT32:
                if is_new:
                    for d in range(dim):
                        new = load_float32(base, begin + 4 * d) + deltas[i, d]
                        worst = larger_size(worst, new)
                        store_float32(images, to + 4 * d, new)
                else:
                    for d in range(dim):
                        new = load_float32(images, to + 4 * d) + deltas[i, d]
                        worst = larger_size(worst, new)
                        store_float32(images, to + 4 * d, new)
            elif kind == FLOAT16:
                if is_new:
                    for d in range(dim):
                        new = load_float16(base, begin + 2 * d) + deltas[i, d]
                        worst = larger_size(worst, new)
                        store_float16(images, to + 2 * d, new)
                else:
                    for d in range(dim):
                        new = load_float16(images, to + 2 * d) + deltas[i, d]
                        worst = larger_size(worst, new)
                        store_float16(images, to + 2 * d, new)
            elif is_new:
                for d in range(dim):
                    new = load_bfloat16(base, begin + 2 * d) + deltas[i, d]
                    worst = larger_size(worst, new)
                    store_bfloat16(images, to + 2 * d, new)
            else:
                for d in range(dim):
                    new = load_bfloat16(images, to + 2 * d) + deltas[i, d]
                    worst = larger_size(worst, new)
                    store_bfloat16(images, to + 2 * d, new)
        else:
            if kind == FLOAT32:
                if is_new:
                    for d in range(dim):
                        sums[d] = load_float32(base, begin + 4 * d)
                else:
                    for d in range(dim):
                        sums[d] = load_float32(images, to + 4 * d)
            elif kind == FLOAT16:
                if is_new:
                    for d in range(dim):
                        sums[d] = load_float16(base, begin + 2 * d)
                else:
                    for d in range(dim):
                        sums[d] = load_float16(images, to + 2 * d)
            elif is_new:
                for d in range(dim):
                    sums[d] = load_bfloat16(base, begin + 2 * d)
            else:
                for d in range(dim):
                    sums[d] = load_bfloat16(images, to + 2 * d)
            while i >= 0:
                for d in range(dim):
                    sums[d] += deltas[i, d]
                i = np.intp(links[FOLLOWING, i])
            for d in range(dim):
                worst = larger_size(worst, sums[d])
            if kind == FLOAT32:
                for d in range(dim):
                    store_float32(images, to + 4 * d, sums[d])
            elif kind == FLOAT16:
                for d in range(dim):
                    store_float16(images, to + 2 * d, sums[d])
            else:
                for d in range(dim):
                    store_bfloat16(images, to + 2 * d, sums[d])
        if worst >= infinite:
            if wrong < NAMED_MAX:
                nonfinite[wrong] = rows[position]
            wrong += 1
    return wrong


@kernel(
    types.intp,
    write(types.uint8, 2),
    read(types.int64),
    read(types.int32, 2),
    types.intp,
    read(types.float32, 2),
    write(types.int64),
    returns=types.intp,
)
def assign(
    kind: Any, images: Any, rows: Any, links: Any, touched: Any, values: Any, nonfinite: Any
) -> Any:
    """Round the last values of each row to its image; return how many rows became non-finite."""
    dim = values.shape[1]
    row_bytes = images.shape[1]
    wrong = 0
    for t in range(touched):
        position = np.intp(links[TOUCHED, t])
        i, target = np.intp(links[LAST, t]), position * row_bytes
        worst = NO_SIZE
        infinite = INFINITE_32
        if kind == FLOAT32:
            for d in range(dim):
                worst = larger_size(worst, values[i, d])
                store_float32(images, target + 4 * d, values[i, d])
        elif kind == FLOAT16:
            infinite = INFINITE_16
            for d in range(dim):
                worst = larger_size(worst, values[i, d])
                store_float16(images, target + 2 * d, values[i, d])
        else:
            infinite = INFINITE_BF
            for d in range(dim):
                worst = larger_size(worst, values[i, d])
                store_bfloat16(images, target + 2 * d, values[i, d])
        if worst >= infinite:
            if wrong < NAMED_MAX:
                nonfinite[wrong] = rows[position]
            wrong += 1
    return wrong


def warm() -> None:
    """Run each kernel once, so that nothing of it is left to load."""
    ids, rows, nonfinite = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(5, np.int64)
    table, marks, links = np.zeros(2, np.int32), np.zeros(1, np.int32), np.zeros((4, 1), np.int32)
    place(ids, -1, np.uint64(0), table, rows, 0, marks, links)
    base, values = np.zeros((1, 4), np.uint8), np.zeros((1, 1), np.float32)
    images = base.copy()
    shared = (rows, 0, links, 1)
    scatter_add(FLOAT32, base, images, *shared, values, nonfinite)
    assign(FLOAT32, images, rows, links, 1, values, nonfinite)
