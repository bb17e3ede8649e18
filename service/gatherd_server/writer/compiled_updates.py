"""The kernels of updates, for numba; update_kernels.py is the door, optimizers.py has the formulas.

A push is done in two passes. `place` finds the position of each id's image, making one for a row
that has none, and links the ids of a row in the order of their appearance. Then each row is read,
changed and written once, whatever its duplicates, while it is in a core's cache.

Rows are bytes here, and elements are loaded and stored by position: one signature serves every
dtype and alignment, so that nothing is left to compile when a push is running. A row is widened to
float32 scratch, and rounded back once.

The long functions stay in one piece because numba counts references around every call that is
given arrays.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.intrinsics import (
    add_square,
    divide,
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
SGD, MOMENTUM, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL = range(6)
# What `place` leaves of a push, rows of its `links`: for each row the push changes, its position
# among the images, its first and its last id; for each id, the next one of the same row, or −1.
TOUCHED, FIRST, LAST, FOLLOWING = range(4)
LINKS = 4
# The `hyper` of an optimizer step; each optimizer has its own meaning of A to D.
LR, CLIP_VALUE, CLIP_ROW_NORM, MAX_NORM, A, B, C, D = range(8)
HYPERS = 8
# How many rows are named that aren't finite.
NAMED_MAX = 5

# How many rows ahead of their turn the first lines of a mapped row are asked for; the processor
# sees by itself how it goes on.
ROWS_AHEAD = 8
LINE_BYTES = 64

ONE = np.uint64(1)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
ZERO = np.float32(0)
NO_SIZE = np.uint32(0)
# Sizes, as larger_size has them, from which on a value is infinity or NaN when it is stored:
# infinity itself, and the halfway points between the largest finite half and the power above it.
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
    """Link the ids of each row; how many rows the push touches, and how many have images now.

    `table` maps a row's hash to its position plus one, 0 when empty. `marks` may hold anything: a
    position's mark counts only when the touched row it points to is that position.
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


@inlined
def _scatter_add(  # noqa: C901  # one function, see the module's docstring
    load: Any,
    store: Any,
    itemsize: Any,
    infinite: Any,
    base: Any,
    images: Any,
    rows: Any,
    known: Any,
    links: Any,
    touched: Any,
    deltas: Any,
    nonfinite: Any,
) -> Any:
    row_bytes = base.shape[1]
    dim = deltas.shape[1]
    sums = np.empty(dim, np.float32)
    wrong = 0
    for t in range(touched):
        if t + ROWS_AHEAD < touched:
            ahead = np.intp(links[TOUCHED, t + ROWS_AHEAD])
            if ahead >= known:
                prefetch(base, rows[ahead] * row_bytes)
                prefetch(base, rows[ahead] * row_bytes + LINE_BYTES)
        position = np.intp(links[TOUCHED, t])
        i = np.intp(links[FIRST, t])
        following = np.intp(links[FOLLOWING, i])
        source, target = rows[position] * row_bytes, position * row_bytes
        worst = NO_SIZE
        if following < 0:
            # Most rows have one id: no scratch.
            if position >= known:
                for d in range(dim):
                    new = load(base, source + itemsize * d) + deltas[i, d]
                    worst = larger_size(worst, new)
                    store(images, target + itemsize * d, new)
            else:
                for d in range(dim):
                    new = load(images, target + itemsize * d) + deltas[i, d]
                    worst = larger_size(worst, new)
                    store(images, target + itemsize * d, new)
        else:
            if position >= known:
                for d in range(dim):
                    sums[d] = load(base, source + itemsize * d) + deltas[i, d]
            else:
                for d in range(dim):
                    sums[d] = load(images, target + itemsize * d) + deltas[i, d]
            while following >= 0:
                for d in range(dim):
                    sums[d] += deltas[following, d]
                following = np.intp(links[FOLLOWING, following])
            for d in range(dim):
                worst = larger_size(worst, sums[d])
                store(images, target + itemsize * d, sums[d])
        if worst >= infinite:
            if wrong < NAMED_MAX:
                nonfinite[wrong] = rows[position]
            wrong += 1
    return wrong


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
def scatter_add(
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
    """Add each delta to its row's image; how many rows aren't finite then."""
    if kind == FLOAT32:
        return _scatter_add(
            load_float32,
            store_float32,
            4,
            INFINITE_32,
            base,
            images,
            rows,
            known,
            links,
            touched,
            deltas,
            nonfinite,
        )
    if kind == FLOAT16:
        return _scatter_add(
            load_float16,
            store_float16,
            2,
            INFINITE_16,
            base,
            images,
            rows,
            known,
            links,
            touched,
            deltas,
            nonfinite,
        )
    return _scatter_add(
        load_bfloat16,
        store_bfloat16,
        2,
        INFINITE_BF,
        base,
        images,
        rows,
        known,
        links,
        touched,
        deltas,
        nonfinite,
    )


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
    """Round the last values of each row to its image; how many rows aren't finite then."""
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


@kernel(
    types.intp,
    types.intp,
    read(types.uint8, 2),
    write(types.uint8, 2),
    read(types.float32, 2),
    write(types.float32, 2),
    read(types.float32, 2),
    write(types.float32, 2),
    read(types.int64),
    types.intp,
    read(types.int32, 2),
    types.intp,
    read(types.float32, 2),
    read(types.float32),
    write(types.int64),
    returns=types.intp,
)
def apply_gradients(  # noqa: C901  # one function, see the module's docstring
    rule: Any,
    kind: Any,
    base: Any,
    images: Any,
    base_1: Any,
    slot_1: Any,
    base_2: Any,
    slot_2: Any,
    rows: Any,
    known: Any,
    links: Any,
    touched: Any,
    grads: Any,
    hyper: Any,
    nonfinite: Any,
) -> Any:
    """Do one step of each row's image and its slots; how many rows aren't finite then.

    `base_1` and `base_2` are the mapped slots, `slot_1` and `slot_2` their images, of width dim,
    1 or, for none, 0.
    """
    row_bytes, dim = base.shape[1], grads.shape[1]
    width_1, width_2 = base_1.shape[1], base_2.shape[1]
    lr, clip_value, clip_row_norm = hyper[LR], hyper[CLIP_VALUE], hyper[CLIP_ROW_NORM]
    max_norm, a, b, c, power = hyper[MAX_NORM], hyper[A], hyper[B], hyper[C], hyper[D]
    g, w = np.empty(dim, np.float32), np.empty(dim, np.float32)
    wrong = 0
    for t in range(touched):
        if t + ROWS_AHEAD < touched:
            ahead = np.intp(links[TOUCHED, t + ROWS_AHEAD])
            if ahead >= known:
                row = rows[ahead]
                prefetch(base, row * row_bytes)
                prefetch(base, row * row_bytes + LINE_BYTES)
                if width_1 > 0:
                    prefetch(base_1, 4 * row * width_1)
                    prefetch(base_1, 4 * row * width_1 + LINE_BYTES)
                if width_2 > 0:
                    prefetch(base_2, 4 * row * width_2)
                    prefetch(base_2, 4 * row * width_2 + LINE_BYTES)
        position = np.intp(links[TOUCHED, t])
        row = rows[position]
        # The gradient: the sum of its duplicates, clipped.
        i = np.intp(links[FIRST, t])
        for d in range(dim):
            g[d] = grads[i, d]
        i = np.intp(links[FOLLOWING, i])
        while i >= 0:
            for d in range(dim):
                g[d] += grads[i, d]
            i = np.intp(links[FOLLOWING, i])
        # Of the gradient and the slots; what isn't finite in a gradient could be clipped away.
        worst = NO_SIZE
        if clip_value > ZERO:
            for d in range(dim):
                worst = larger_size(worst, g[d])
                g[d] = min(max(g[d], -clip_value), clip_value)
        if clip_row_norm > ZERO:
            square = 0.0
            for d in range(dim):
                worst = larger_size(worst, g[d])
                square = add_square(square, g[d])
            if square > np.float64(clip_row_norm) ** 2:
                scale = np.float32(divide(np.float64(clip_row_norm), np.sqrt(square)))
                for d in range(dim):
                    g[d] *= scale
        # The row and its slots as they were.
        if position >= known:
            begin = row * row_bytes
            if kind == FLOAT32:
                for d in range(dim):
                    w[d] = load_float32(base, begin + 4 * d)
            elif kind == FLOAT16:
                for d in range(dim):
                    w[d] = load_float16(base, begin + 2 * d)
            else:
                for d in range(dim):
                    w[d] = load_bfloat16(base, begin + 2 * d)
            for d in range(width_1):
                slot_1[position, d] = base_1[row, d]
            for d in range(width_2):
                slot_2[position, d] = base_2[row, d]
        else:
            begin = position * row_bytes
            if kind == FLOAT32:
                for d in range(dim):
                    w[d] = load_float32(images, begin + 4 * d)
            elif kind == FLOAT16:
                for d in range(dim):
                    w[d] = load_float16(images, begin + 2 * d)
            else:
                for d in range(dim):
                    w[d] = load_bfloat16(images, begin + 2 * d)
        # The step.
        if rule == SGD:
            for d in range(dim):
                w[d] -= lr * (g[d] + a * w[d])
        elif rule == MOMENTUM:
            for d in range(dim):
                new = b * slot_1[position, d] + (g[d] + a * w[d])
                slot_1[position, d] = new
                worst = larger_size(worst, new)
                w[d] -= lr * new
        elif rule == ADAGRAD:
            for d in range(dim):
                total = slot_1[position, d] + g[d] * g[d]
                slot_1[position, d] = total
                worst = larger_size(worst, total)
                w[d] -= lr * divide(g[d], np.sqrt(total) + a)
        elif rule == ROWWISE_ADAGRAD:
            square = 0.0
            for d in range(dim):
                square = add_square(square, g[d])
            total = np.float32(slot_1[position, 0] + divide(square, np.float64(dim)))
            slot_1[position, 0] = total
            worst = larger_size(worst, total)
            scale = divide(lr, np.sqrt(total) + a)
            for d in range(dim):
                w[d] -= scale * g[d]
        elif rule == ADAM:
            for d in range(dim):
                first = slot_1[position, d]
                first += a * (g[d] - first)
                second = slot_2[position, d]
                second += b * (g[d] * g[d] - second)
                slot_1[position, d], slot_2[position, d] = first, second
                worst = larger_size(larger_size(worst, first), second)
                w[d] -= lr * divide(first, np.sqrt(second) + c)
        elif power == np.float32(0.5):
            for d in range(dim):
                old = slot_1[position, d]
                total = old + g[d] * g[d]
                root = np.sqrt(total)
                linear = slot_2[position, d] + (
                    (g[d] + c * w[d]) - divide(root - np.sqrt(old), lr) * w[d]
                )
                slot_1[position, d], slot_2[position, d] = total, linear
                worst = larger_size(larger_size(worst, total), linear)
                w[d] = divide(min(max(linear, -a), a) - linear, divide(root, lr) + b)
        else:
            for d in range(dim):
                old = slot_1[position, d]
                total = old + g[d] * g[d]
                root = total**power
                linear = slot_2[position, d] + (
                    (g[d] + c * w[d]) - divide(root - old**power, lr) * w[d]
                )
                slot_1[position, d], slot_2[position, d] = total, linear
                worst = larger_size(larger_size(worst, total), linear)
                w[d] = divide(min(max(linear, -a), a) - linear, divide(root, lr) + b)
        is_wrong = worst >= INFINITE_32
        if max_norm > ZERO:
            square = 0.0
            for d in range(dim):
                square = add_square(square, w[d])
            if square > np.float64(max_norm) ** 2:
                scale = np.float32(divide(np.float64(max_norm), np.sqrt(square) + 1e-7))
                for d in range(dim):
                    w[d] *= scale
        # The one rounding.
        begin = position * row_bytes
        worst = NO_SIZE
        infinite = INFINITE_32
        if kind == FLOAT32:
            for d in range(dim):
                worst = larger_size(worst, w[d])
                store_float32(images, begin + 4 * d, w[d])
        elif kind == FLOAT16:
            infinite = INFINITE_16
            for d in range(dim):
                worst = larger_size(worst, w[d])
                store_float16(images, begin + 2 * d, w[d])
        else:
            infinite = INFINITE_BF
            for d in range(dim):
                worst = larger_size(worst, w[d])
                store_bfloat16(images, begin + 2 * d, w[d])
        if is_wrong or worst >= infinite:
            if wrong < NAMED_MAX:
                nonfinite[wrong] = row
            wrong += 1
    return wrong


def warm() -> None:
    """Run each kernel once: what is left to load of them is loaded."""
    ids, rows, nonfinite = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(5, np.int64)
    table, marks, links = np.zeros(2, np.int32), np.zeros(1, np.int32), np.zeros((4, 1), np.int32)
    place(ids, -1, np.uint64(0), table, rows, 0, marks, links)
    base, values = np.zeros((1, 4), np.uint8), np.zeros((1, 1), np.float32)
    images, none = base.copy(), np.zeros((1, 0), np.float32)
    hyper = np.zeros(HYPERS, np.float32)
    shared = (rows, 0, links, 1)
    scatter_add(FLOAT32, base, images, *shared, values, nonfinite)
    assign(FLOAT32, images, rows, links, 1, values, nonfinite)
    apply_gradients(
        SGD, FLOAT32, base, images, none, none, none, none, *shared, values, hyper, nonfinite
    )
