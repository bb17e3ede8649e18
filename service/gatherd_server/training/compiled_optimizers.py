"""The numba kernel of optimizer steps, like those of compiled_updates.py.

The formulas are in images.py.

Each row is read, changed and written once, in one loop. The loop reads the row, its slots and its
gradient in place and writes the results in place. Values that must first be converted to float32,
clipped or summed are copied to scratch, and the loop reads them there. So is a row that is read
from its own image: the loop never reads what it writes.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import (
    add_square,
    address,
    divide,
    kernel,
    larger_size,
    load_bfloat16,
    load_float16,
    load_float32,
    peek,
    poke,
    prefetch,
    read,
    store_bfloat16,
    store_float16,
    write,
)
from gatherd_server.training.compiled_updates import (
    AHEAD_BYTES_MAX,
    BFLOAT16,
    FIRST,
    FLOAT16,
    FLOAT32,
    FOLLOWING,
    INFINITE_16,
    INFINITE_32,
    INFINITE_BF,
    LINE_BYTES,
    NAMED_MAX,
    NO_SIZE,
    ROWS_AHEAD,
    TOUCHED,
)

SGD, MOMENTUM, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL = range(6)
# The `hyper` of a step; A to D have their own meaning for each optimizer.
LR, CLIP_VALUE, CLIP_ROW_NORM, MAX_NORM, A, B, C, D = range(8)
L1, L2, DECAY, NON_NEG, NORM_LOW, NORM_HIGH, NORM_RATE = range(8, 15)
HYPERS = 15
ZERO, ONE = np.float32(0), np.float32(1)


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
def apply_gradients(  # noqa: C901  # one function, see compiled_updates.py
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
    """Do one step of each row's image and its slots; return how many rows became non-finite.

    `base_1` and `base_2` are the mapped slots, `slot_1` and `slot_2` their images. Their width is
    dim, 1, or 0 for no slot.
    """
    row_bytes, dim = base.shape[1], grads.shape[1]
    width_1, width_2 = base_1.shape[1], base_2.shape[1]
    ahead_bytes = min(row_bytes, AHEAD_BYTES_MAX)
    ahead_1, ahead_2 = min(4 * width_1, AHEAD_BYTES_MAX), min(4 * width_2, AHEAD_BYTES_MAX)
    lr, clip_value, clip_row_norm = hyper[LR], hyper[CLIP_VALUE], hyper[CLIP_ROW_NORM]
    max_norm, a, b, c, power = hyper[MAX_NORM], hyper[A], hyper[B], hyper[C], hyper[D]
    # One branch a row before the step and one after it, where a table has none of all this.
    regularized = hyper[L1] > ZERO or hyper[L2] > ZERO
    prepared = regularized or hyper[DECAY] > ZERO or clip_value > ZERO or clip_row_norm > ZERO
    constrained = hyper[NON_NEG] > ZERO or max_norm > ZERO or hyper[NORM_RATE] > ZERO
    sums, wide, rounded = (
        np.empty(dim, np.float32),
        np.empty(dim, np.float32),
        np.empty(dim, np.float32),
    )
    old_1, old_2 = np.empty(dim, np.float32), np.empty(dim, np.float32)
    wrong = 0
    for t in range(touched):
        if t + ROWS_AHEAD < touched:
            ahead = np.intp(links[TOUCHED, t + ROWS_AHEAD])
            if ahead >= known:
                row = rows[ahead]
                for line in range(0, ahead_bytes, LINE_BYTES):
                    prefetch(base, row * row_bytes + line)
                for line in range(0, ahead_1, LINE_BYTES):
                    prefetch(base_1, 4 * row * width_1 + line)
                for line in range(0, ahead_2, LINE_BYTES):
                    prefetch(base_2, 4 * row * width_2 + line)
        position = np.intp(links[TOUCHED, t])
        row = rows[position]
        # The gradient: the sum over the row's ids, clipped.
        i = np.intp(links[FIRST, t])
        g = address(grads, 4 * i * dim)
        following = np.intp(links[FOLLOWING, i])
        if following >= 0:
            for d in range(dim):
                sums[d] = grads[i, d]
            while following >= 0:
                for d in range(dim):
                    sums[d] += grads[following, d]
                following = np.intp(links[FOLLOWING, following])
            g = address(sums, 0)
        # The row and its slots before the step, and where the results go.
        to = position * row_bytes
        w = address(wide, 0)
        if position >= known:
            begin = row * row_bytes
            from_1, from_2 = address(base_1, 4 * row * width_1), address(base_2, 4 * row * width_2)
            if kind == FLOAT32:
                w = address(base, begin)
            elif kind == FLOAT16:
                for d in range(dim):
                    wide[d] = load_float16(base, begin + 2 * d)
            else:
                for d in range(dim):
                    wide[d] = load_bfloat16(base, begin + 2 * d)
        else:
            for d in range(width_1):
                old_1[d] = slot_1[position, d]
            for d in range(width_2):
                old_2[d] = slot_2[position, d]
            from_1, from_2 = address(old_1, 0), address(old_2, 0)
            if kind == FLOAT32:
                for d in range(dim):
                    wide[d] = load_float32(images, to + 4 * d)
            elif kind == FLOAT16:
                for d in range(dim):
                    wide[d] = load_float16(images, to + 2 * d)
            else:
                for d in range(dim):
                    wide[d] = load_bfloat16(images, to + 2 * d)
        to_1, to_2 = (
            address(slot_1, 4 * position * width_1),
            address(slot_2, 4 * position * width_2),
        )
        out = address(images, to) if kind == FLOAT32 else address(rounded, 0)
        # Of gradient and slots; clipping could hide what isn't finite in a gradient.
        worst = NO_SIZE
        if prepared:
            if regularized:
                for d in range(dim):
                    old = peek(w, 4 * d)
                    sign = ONE if old > ZERO else -ONE if old < ZERO else ZERO
                    sums[d] = peek(g, 4 * d) + (hyper[L1] * sign + hyper[L2] * old)
                g = address(sums, 0)
            if clip_value > ZERO:
                for d in range(dim):
                    value = peek(g, 4 * d)
                    worst = larger_size(worst, value)
                    sums[d] = min(max(value, -clip_value), clip_value)
                g = address(sums, 0)
            if clip_row_norm > ZERO:
                square = 0.0
                for d in range(dim):
                    worst = larger_size(worst, peek(g, 4 * d))
                    square = add_square(square, peek(g, 4 * d))
                if square > np.float64(clip_row_norm) ** 2:
                    scale = np.float32(divide(np.float64(clip_row_norm), np.sqrt(square)))
                    for d in range(dim):
                        sums[d] = peek(g, 4 * d) * scale
                    g = address(sums, 0)
            if hyper[DECAY] > ZERO:
                keep = np.float32(1 - np.float64(hyper[DECAY]))
                for d in range(dim):
                    wide[d] = peek(w, 4 * d) * keep
                w = address(wide, 0)
        # The step.
        if rule == SGD:
            for d in range(dim):
                old = peek(w, 4 * d)
                new = old - lr * (peek(g, 4 * d) + a * old)
                worst = larger_size(worst, new)
                poke(out, 4 * d, new)
        elif rule == MOMENTUM:
            for d in range(dim):
                old = peek(w, 4 * d)
                momentum = b * peek(from_1, 4 * d) + (peek(g, 4 * d) + a * old)
                new = old - lr * momentum
                worst = larger_size(larger_size(worst, momentum), new)
                poke(to_1, 4 * d, momentum)
                poke(out, 4 * d, new)
        elif rule == ADAGRAD:
            for d in range(dim):
                grad = peek(g, 4 * d)
                total = peek(from_1, 4 * d) + grad * grad
                new = peek(w, 4 * d) - lr * divide(grad, np.sqrt(total) + a)
                worst = larger_size(larger_size(worst, total), new)
                poke(to_1, 4 * d, total)
                poke(out, 4 * d, new)
        elif rule == ROWWISE_ADAGRAD:
            square = 0.0
            for d in range(dim):
                square = add_square(square, peek(g, 4 * d))
            total = np.float32(peek(from_1, 0) + divide(square, np.float64(dim)))
            poke(to_1, 0, total)
            worst = larger_size(worst, total)
            scale = divide(lr, np.sqrt(total) + a)
            for d in range(dim):
                new = peek(w, 4 * d) - scale * peek(g, 4 * d)
                worst = larger_size(worst, new)
                poke(out, 4 * d, new)
        elif rule == ADAM:
            for d in range(dim):
                grad, first, second = peek(g, 4 * d), peek(from_1, 4 * d), peek(from_2, 4 * d)
                first += a * (grad - first)
                second += b * (grad * grad - second)
                new = peek(w, 4 * d) - lr * divide(first, np.sqrt(second) + c)
                worst = larger_size(larger_size(larger_size(worst, first), second), new)
                poke(to_1, 4 * d, first)
                poke(to_2, 4 * d, second)
                poke(out, 4 * d, new)
        elif power == np.float32(0.5):
            for d in range(dim):
                grad, old, before = peek(g, 4 * d), peek(w, 4 * d), peek(from_1, 4 * d)
                total = before + grad * grad
                root = np.sqrt(total)
                linear = peek(from_2, 4 * d) + (
                    (grad + c * old) - divide(root - np.sqrt(before), lr) * old
                )
                new = divide(min(max(linear, -a), a) - linear, divide(root, lr) + b)
                worst = larger_size(larger_size(larger_size(worst, total), linear), new)
                poke(to_1, 4 * d, total)
                poke(to_2, 4 * d, linear)
                poke(out, 4 * d, new)
        else:
            for d in range(dim):
                grad, old, before = peek(g, 4 * d), peek(w, 4 * d), peek(from_1, 4 * d)
                total = before + grad * grad
                root = total**power
                linear = peek(from_2, 4 * d) + (
                    (grad + c * old) - divide(root - before**power, lr) * old
                )
                new = divide(min(max(linear, -a), a) - linear, divide(root, lr) + b)
                worst = larger_size(larger_size(larger_size(worst, total), linear), new)
                poke(to_1, 4 * d, total)
                poke(to_2, 4 * d, linear)
                poke(out, 4 * d, new)
        is_wrong = worst >= INFINITE_32
        if constrained:
            if hyper[NON_NEG] > ZERO:
                for d in range(dim):
                    poke(out, 4 * d, max(peek(out, 4 * d), ZERO))
            if max_norm > ZERO:
                square = 0.0
                for d in range(dim):
                    square = add_square(square, peek(out, 4 * d))
                if square > np.float64(max_norm) ** 2:
                    scale = np.float32(divide(np.float64(max_norm), np.sqrt(square) + 1e-7))
                    for d in range(dim):
                        poke(out, 4 * d, peek(out, 4 * d) * scale)
            if hyper[NORM_RATE] > ZERO:
                square = 0.0
                for d in range(dim):
                    square = add_square(square, peek(out, 4 * d))
                norm = np.sqrt(square)
                nearest = min(max(norm, np.float64(hyper[NORM_LOW])), np.float64(hyper[NORM_HIGH]))
                if nearest != norm:
                    rate = np.float64(hyper[NORM_RATE])
                    scale = np.float32(divide(rate * nearest + (1 - rate) * norm, norm + 1e-7))
                    # Unlike the others, this may make a row longer.
                    longest = NO_SIZE
                    for d in range(dim):
                        new = peek(out, 4 * d) * scale
                        longest = larger_size(longest, new)
                        poke(out, 4 * d, new)
                    is_wrong = is_wrong or longest >= INFINITE_32
        # The one rounding.
        worst = NO_SIZE
        infinite = INFINITE_16
        if kind == FLOAT16:
            for d in range(dim):
                worst = larger_size(worst, rounded[d])
                store_float16(images, to + 2 * d, rounded[d])
        elif kind == BFLOAT16:
            infinite = INFINITE_BF
            for d in range(dim):
                worst = larger_size(worst, rounded[d])
                store_bfloat16(images, to + 2 * d, rounded[d])
        if is_wrong or worst >= infinite:
            if wrong < NAMED_MAX:
                nonfinite[wrong] = row
            wrong += 1
    return wrong


def warm() -> None:
    """Run the kernel once, so that nothing of it is left to load."""
    rows, nonfinite, links = (
        np.zeros(1, np.int64),
        np.zeros(5, np.int64),
        np.zeros((4, 1), np.int32),
    )
    base, grads = np.zeros((1, 4), np.uint8), np.zeros((1, 1), np.float32)
    links[FOLLOWING] = -1
    images, none, hyper = base.copy(), np.zeros((1, 0), np.float32), np.zeros(HYPERS, np.float32)
    apply_gradients(
        SGD, FLOAT32, base, images, none, none, none, none,
        rows, 0, links, 1, grads, hyper, nonfinite,
    )  # fmt: skip  # grouped by meaning
