"""The counters that make rows atomic for readers in other processes: the file `seq` of a version.

    offset  bytes  field
    0       4·n    n counters, uint32, little-endian; n = stripe_count(rows)

The rows of a table fall into n stripes, row r into stripe r & (n − 1). Its counter is even at rest
and odd while a row of the stripe is being written; each row written raises it by 2. A reader reads
the counter before and after it copies a row, and trusts the copy if both values are equal and even:
a sequence lock, as in Boehm, "Can seqlocks get along with programming language memory models?"
(2012). Only versions that can be trained have the file.

The writer's half is in the server's `storage/compiled_rows.py`. The readers' half is in
`kernels/row_intrinsics.py` for compiled kernels, and here for NumPy code. Between NumPy's calls
only the processor reorders. x86 doesn't reorder loads; elsewhere a lock is released and taken again
in between, so that loads before and after it stay apart.

Left out on purpose: a counter per row, which would cost 4 bytes each; and the case of a stripe that
is written 2³¹ times during one copy, which takes minutes.
"""

import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, Unavailable
from gatherd.store.format import file_bytes, open_readonly
from gatherd.store.mapping import MappedFile, naming

SEQ_NAME = "seq"
STRIPES_MAX = 1 << 16
COUNTER = np.dtype("<u4")

WAIT_SECONDS = 1.0
"""How long a reader waits for a row that stays odd: longer than a store to a slow disk's page."""
PAUSE_SECONDS = 50e-6
# Rows that are copied between two reads of the counters. Larger parts are torn more often, because
# any write to their stripes meanwhile counts.
CHECKED_ROWS = 4096
# Each attempt at the torn rows takes pieces smaller by this factor.
SHRINK = 8

_LOADS_ARE_ORDERED = platform.machine() in ("x86_64", "AMD64", "i686")


def stripe_count(row_count: int) -> int:
    """The number of a version's counters: the first power of two ≥ rows, at most STRIPES_MAX."""
    return min(1 << max(row_count - 1, 0).bit_length(), STRIPES_MAX)


def seq_bytes(row_count: int) -> int:
    """The size of the file `seq`."""
    return COUNTER.itemsize * stripe_count(row_count)


def map_counters(folder: Path, row_count: int) -> NDArray[np.uint32]:
    """The counters of the version in `folder`, mapped read-only, (stripe_count(row_count),).

    BadFile when the file is absent or has another size.
    """
    path = folder / SEQ_NAME
    fd = open_readonly(path)
    try:
        expected = seq_bytes(row_count)
        if (found := file_bytes(fd)) != expected:
            raise BadFile(
                f"{path} has {found} bytes; the counters of {row_count} rows have {expected}"
            )
        with naming(path):
            return MappedFile(fd, expected, populate=True).array().view(COUNTER)
    finally:
        os.close(fd)


class RowReader:
    """Copies rows, never torn, of a table that is being written. Safe from many threads."""

    def __init__(self, table: str, counters: NDArray[np.uint32]) -> None:
        """`counters` is a power of two of uint32; `table` is named in errors."""
        self.counters = counters
        self.table = table
        self._mask = counters.size - 1
        self._words = counters.data
        self.stuck = (-1, 0)
        """Stripe and value of an odd counter for which a wait has timed out."""

    def read(
        self,
        index: NDArray[np.intp],
        out: NDArray[Any],
        copy: Callable[[NDArray[np.intp], NDArray[Any]], None],
    ) -> None:
        """Fill `out`, (n, …), with the rows of `index`, (n,), by `copy(index, out)`.

        `copy` may be called for parts, in any order, and again. Unavailable when a row stays odd
        for WAIT_SECONDS.
        """
        if index.size == 1:
            stripe = int(index[0]) & self._mask
            before = self._words[stripe]
            _keep_apart()
            copy(index, out)
            _keep_apart()
            if before & 1 or self._words[stripe] != before:
                self._mend(index, out, copy, np.zeros(1, np.intp))
            return
        for start in range(0, index.size, CHECKED_ROWS):
            part = index[start : start + CHECKED_ROWS]
            filled = out[start : start + CHECKED_ROWS]
            torn = self._try(part, filled, copy)
            if torn is not None:
                self._mend(part, filled, copy, torn)

    def _try(
        self,
        index: NDArray[np.intp],
        out: NDArray[Any],
        copy: Callable[[NDArray[np.intp], NDArray[Any]], None],
    ) -> NDArray[np.intp] | None:
        """Copy once; return the positions that are torn, or None."""
        stripes = index & self._mask
        before = self.counters.take(stripes)
        _keep_apart()
        copy(index, out)
        _keep_apart()
        torn = self.counters.take(stripes)
        torn ^= before
        before &= 1
        torn |= before
        return torn.nonzero()[0] if np.bitwise_or.reduce(torn) else None

    def _mend(
        self,
        index: NDArray[np.intp],
        out: NDArray[Any],
        copy: Callable[[NDArray[np.intp], NDArray[Any]], None],
        torn: NDArray[np.intp],
    ) -> None:
        """Copy the positions in `torn` again until they are whole."""
        patience = Patience(self)
        # A row is written in less than a microsecond: most are whole at the next attempt.
        step = max(1, torn.size // SHRINK)
        while True:
            left = []
            for start in range(0, torn.size, step):
                some = torn[start : start + step]
                fresh = np.empty((some.size, *out.shape[1:]), out.dtype)
                again = self._try(index[some], fresh, copy)
                out[some] = fresh
                if again is not None:
                    left.append(some[again])
            if not left:
                return
            torn = np.concatenate(left)
            step = max(1, min(step, torn.size) // SHRINK)
            if step == 1:
                patience.wait(int(index[torn[0]]))


class Patience:
    """Waits for rows that stay torn, no longer than WAIT_SECONDS in all."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader
        self._deadline = 0.0
        self._first = (-1, 0)

    def wait(self, row: int) -> None:
        """Wait a little before `row` is read again. Unavailable once WAIT_SECONDS have passed.

        After a timeout nobody waits for the same counter again until it changes, so that only the
        first request pays for a dead writer.
        """
        reader = self._reader
        stripe = row & (reader.counters.size - 1)
        found = (stripe, int(reader.counters[stripe]))
        now = time.monotonic()
        if not self._deadline:
            self._deadline, self._first = now + WAIT_SECONDS, found
        if found == reader.stuck:
            raise self._error(row)
        if now >= self._deadline:
            if found == self._first and found[1] & 1:
                reader.stuck = found
            raise self._error(row)
        time.sleep(PAUSE_SECONDS)

    def _error(self, row: int) -> Unavailable:
        table = self._reader.table
        return Unavailable(
            f"table {table!r}: row {row} couldn't be read whole in {WAIT_SECONDS:g} s: the writer "
            "died inside it, or hangs; try again when the writer is back",
            {"table": table, "row": str(row)},
            retry_after_seconds=WAIT_SECONDS,
        )


def _keep_apart() -> None:
    """Keep earlier loads before this call and later ones after it."""
    if not _LOADS_ARE_ORDERED:
        lock = threading.Lock()
        lock.acquire()
        lock.release()
        lock.acquire()
