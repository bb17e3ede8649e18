"""The numba kernels that change mapped rows; mapped_rows.py is the door to them.

They are the writer's half of the sequence lock whose layout is in the store's stripes.py, after
Boehm (2012). The counter is stored odd; a release fence follows, then the row's bytes, then the
even counter, as a release. So a reader that saw a byte of the new row in between finds the counter
odd or changed when it looks again. On x86 the fence is no instruction, because stores aren't
reordered. Non-temporal stores are reordered, and memcpy uses them for long rows; so rows are copied
in pieces that are too short for that.

Every line of a row is prefetched some rows ahead, so that it is in the cache when it is
overwritten. That is as fast as stores past the caches. Those need two fences for each group of rows
and leave the rows out of the cache of the next lookup.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import address, kernel, prefetch, read, write
from gatherd.store.kernels.row_intrinsics import (
    begin_row,
    copy_bytes,
    end_row,
    load_counter,
    touch,
)

# The lines of a mapped row are prefetched this many rows ahead, up to so many bytes: the processor
# foresees the rest of a longer row by itself.
ROWS_AHEAD = 8
AHEAD_BYTES_MAX = 1 << 10
LINE_BYTES = 64
PAGE_BYTES = 4096
# However it is tuned, glibc uses no non-temporal stores for fewer bytes than this.
CACHED_COPY_BYTES = 16 << 10
ODD = np.uint32(1)


@kernel(write(types.uint8, 2), write(types.uint32), read(types.int64), read(types.uint8, 2))
def store_rows(target: Any, counters: Any, rows: Any, images: Any) -> None:
    """Copy each of `images` to its row of `target`, without the lock if there are no counters."""
    row_bytes = target.shape[1]
    ahead_bytes = min(row_bytes, AHEAD_BYTES_MAX)
    stripe, counter = 0, np.uint32(0)
    for i in range(rows.size):
        if i + ROWS_AHEAD < rows.size:
            for line in range(0, ahead_bytes, LINE_BYTES):
                prefetch(target, rows[i + ROWS_AHEAD] * row_bytes + line)
        begin = rows[i] * row_bytes
        if counters.size and row_bytes:
            # Page faults happen before the counter is odd: on a slow disk they take long.
            for position in range(begin, begin + row_bytes, PAGE_BYTES):
                touch(target, position)
            if (address(target, begin) & (PAGE_BYTES - 1)) + row_bytes > PAGE_BYTES:
                touch(target, begin + row_bytes - 1)
            stripe = rows[i] & (counters.size - 1)
            # A counter that a crash left odd stays odd, and becomes even below.
            counter = np.uint32(load_counter(counters, stripe) | ODD)
            begin_row(counters, stripe, counter)
        for done in range(0, row_bytes, CACHED_COPY_BYTES):
            byte_count = min(CACHED_COPY_BYTES, row_bytes - done)
            copy_bytes(target, begin + done, images, i * row_bytes + done, byte_count)
        if counters.size and row_bytes:
            end_row(counters, stripe, np.uint32(counter + ODD))


@kernel(write(types.uint32), returns=types.intp)
def make_even(counters: Any) -> Any:
    """Make the odd counters even; return how many there were."""
    count = 0
    for stripe in range(counters.size):
        counter = load_counter(counters, stripe)
        if counter & ODD:
            end_row(counters, stripe, np.uint32(counter + ODD))
            count += 1
    return count


def warm() -> None:
    """Run each kernel once, so that nothing of it is left to load."""
    counters = np.ones(1, np.uint32)
    row, rows = np.zeros((1, 1), np.uint8), np.zeros(1, np.int64)
    store_rows(row, counters, rows, row.copy())
    make_even(counters)
