"""The numba kernel that copies rows by id; other modules call it through compiled.py.

One call checks the ids, copies the rows and, if they may change, reads their counters. For a few
ids it saves calls into NumPy that are most of a lookup. For many it is as fast as np.take, because
then memory decides.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import kernel, prefetch, read, write
from gatherd.store.kernels.row_intrinsics import copy_bytes, copy_whole

# How many ids ahead the start of a row is prefetched.
ROWS_AHEAD = 8
# How often a torn row is copied before the caller has to sleep instead: tens of microseconds.
SPINS_MAX = 1000
DONE = -1


@kernel(
    read(types.uint8, 2),
    read(types.uint32),
    read(types.int64),
    write(types.uint8),
    types.intp,
    returns=types.intp,
)
def gather(rows: Any, counters: Any, ids: Any, out: Any, begin: Any) -> Any:
    """Copy the rows of `ids` to `out` from byte `begin` on, one after the other.

    Returns DONE; the position of an id without a row, with nothing copied; or −2 − the position
    of a row that stays torn, with the rows before it copied. `counters` is empty for rows that
    never change.
    """
    row_count, row_bytes = rows.shape
    count = ids.size
    for i in range(count):
        # A negative id, seen as unsigned, is a huge one.
        if np.uint64(ids[i]) >= np.uint64(row_count):
            return i
    mask = counters.size - 1
    to = begin
    for i in range(count):
        if i + ROWS_AHEAD < count:
            prefetch(rows, ids[i + ROWS_AHEAD] * row_bytes)
        row = ids[i]
        if mask < 0:
            copy_bytes(out, to, rows, row * row_bytes, row_bytes)
        else:
            spins = 0
            while not copy_whole(rows, row * row_bytes, row_bytes, counters, row & mask, out, to):
                spins += 1
                if spins > SPINS_MAX:
                    return -2 - i
        to += row_bytes
    return DONE


def warm() -> None:
    """Run the kernel once."""
    rows = np.zeros((1, 1), np.uint8)
    ids = np.zeros(1, np.int64)
    for counters in (np.empty(0, np.uint32), np.zeros(1, np.uint32)):
        gather(rows, counters, ids, np.empty(1, np.uint8), 0)
