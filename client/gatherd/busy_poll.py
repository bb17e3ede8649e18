"""Whether to busy-poll for replies and requests that mostly come at once.

A sleeping thread has to be woken: that takes some 5 µs on a machine of one's own, and 40 µs and
more on a virtual one, whose idle cores are given back to the host. A lookup of a few ids takes
less, so its two sleeps, the server's and the client's, are most of its latency. Polling instead
costs a core's time until the answer is there. So it is done for a bounded time, and only as long as
it pays: after a few misses the caller sleeps, except for a trial now and then. Linux waits in the
same way for the guests of a host (halt polling), and for about as long.
"""

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Final

from gatherd.errors import InvalidArgument

BUSY_POLL_US: Final = 100
"""The default bound of one busy poll, in µs."""

BUSY_POLL_US_MAX: Final = 10_000
CORES_MIN: Final = 2
# https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files, as a container sees it.
CPU_MAX: Final = Path("/sys/fs/cgroup/cpu.max")

# One miss weighs as much as this many hits: hits have to be the rule.
_MISS_COST: Final = 4
_CREDIT_MAX: Final = 32
# While it doesn't pay, one wait in this many is a trial.
_PROBE_EVERY: Final = 64


def _cores() -> float:
    if not hasattr(os, "sched_getaffinity"):  # as on macOS and Windows
        return os.cpu_count() or 1
    return min(len(os.sched_getaffinity(0)), _quota())


@lru_cache(1)
def _quota() -> float:
    """The cores that a container's limit allows; infinite without a limit."""
    try:
        quota, period = CPU_MAX.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def checked_microseconds(value: object) -> int:
    """`value` if it is a valid number of µs to busy-poll, else InvalidArgument."""
    if type(value) is not int or not 0 <= value <= BUSY_POLL_US_MAX:
        raise InvalidArgument(
            f"busy_poll_us must be an integer from 0 to {BUSY_POLL_US_MAX}, not {value!r}"
        )
    return value


class BusyPoll:
    """Decides before each wait whether to busy-poll, by how earlier ones ended. Not for threads."""

    __slots__ = ("_credit", "_skipped", "seconds")

    def __init__(self, microseconds: int) -> None:
        """Poll for so long at most; never with fewer than two cores, which others need."""
        self.seconds = microseconds / 1e6 if _cores() >= CORES_MIN else 0.0
        self._credit = _MISS_COST
        self._skipped = 0

    def is_worthwhile(self) -> bool:
        """Whether to busy-poll this time."""
        if self._credit > 0:
            return self.seconds > 0
        self._skipped += 1
        if self._skipped < _PROBE_EVERY:
            return False
        self._skipped = 0
        return self.seconds > 0

    def came(self) -> None:
        """Count a poll that succeeded."""
        if self._credit < _CREDIT_MAX:
            self._credit += 1

    def missed(self) -> None:
        """Count a poll that timed out."""
        if self._credit > 0:
            self._credit -= _MISS_COST
