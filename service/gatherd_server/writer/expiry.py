"""Which rows of an open table are older than its TTL, a bounded part of the table at a time.

A row is looked at once in a sweep, and a sweep goes on where it was. When one has found nothing,
the next begins when the oldest row that it saw can be too old. So a row goes at the latest one
sweep after its TTL; until then it is answered and can be pushed, which keeps it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SCANNED_MAX: Final = 1 << 20
"""Rows of one step: 8 MB, about a millisecond."""


class Expiry:
    """Finds the rows to expire of one table. One thread uses it."""

    def __init__(self, stamps: NDArray[np.uint64], ttl_seconds: int) -> None:
        """`stamps`, (rows_max,), in microseconds, are the table's own; 0 is of no row."""
        self._stamps = stamps
        self._ttl_us = ttl_seconds * 1_000_000
        self._next = 0
        self._oldest: int | None = None
        self._has_found = False
        self._quiet_until_us = 0

    def step(
        self, now_us: int, used_rows: int, count_max: int, scanned_max: int = SCANNED_MAX
    ) -> NDArray[np.int64]:
        """Rows whose TTL is over, at most `count_max`, of the next `scanned_max`.

        `used_rows`: no row from it on lives. A row that is given and stays is given again.
        """
        if now_us < self._quiet_until_us:
            return np.empty(0, np.int64)
        end = min(self._next + scanned_max, used_rows)
        stamps = self._stamps[self._next : end]
        lives = stamps > 0
        is_over = lives & (stamps <= np.uint64(max(now_us - self._ttl_us, 0)))
        rows = np.flatnonzero(is_over)
        if rows.size > count_max:
            rows = rows[:count_max]
            end = self._next + int(rows[-1]) + 1
            lives, is_over = lives[: end - self._next], is_over[: end - self._next]
        staying = stamps[: lives.size][lives & ~is_over]
        if staying.size:
            oldest = int(staying.min())
            self._oldest = oldest if self._oldest is None else min(self._oldest, oldest)
        rows = rows + self._next
        self._has_found = self._has_found or rows.size > 0
        self._next = end
        if end >= used_rows:
            self._end_sweep(now_us)
        return rows

    def _end_sweep(self, now_us: int) -> None:
        if not self._has_found:
            oldest = now_us if self._oldest is None else self._oldest
            self._quiet_until_us = oldest + self._ttl_us
        self._next, self._oldest, self._has_found = 0, None, False
