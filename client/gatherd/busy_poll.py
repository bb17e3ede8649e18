"""Whether to wait awake for what mostly comes at once.

Who sleeps has to be woken: some 5 µs on a machine of one's own, and 40 µs and more on a virtual
one, whose idle cores are given back to the host. A lookup of a few ids takes less, so its two
sleeps, the server's and the client's, are most of what it waits for. Looking again and again
instead costs a core's time until the answer is there. So it is done for a bounded time, and only as
long as it pays: what was waited for in vain a few times is slept for, but for a try now and then.
Linux waits in the same way for the guests of a host (halt polling), and for about as long.
"""

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Final

from gatherd.errors import InvalidArgument

BUSY_POLL_US: Final = 100
"""How many µs are waited awake at most, unless something else is asked for."""

BUSY_POLL_US_MAX: Final = 10_000
CORES_MIN: Final = 2
# https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files, as a container sees it.
CPU_MAX: Final = Path("/sys/fs/cgroup/cpu.max")

# One miss weighs as much as so many hits: they have to be the rule.
_MISS_COST: Final = 4
_CREDIT_MAX: Final = 32
# When it doesn't pay, one of so many times is tried.
_PROBE_EVERY: Final = 64


def _cores() -> float:
    if not hasattr(os, "sched_getaffinity"):  # as on macOS and Windows
        return os.cpu_count() or 1
    return min(len(os.sched_getaffinity(0)), _quota())


@lru_cache(1)
def _quota() -> float:
    """The cores that a container's limit stands for; infinite without one."""
    try:
        quota, period = CPU_MAX.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def checked_microseconds(value: object) -> int:
    """`value`, when it is a number of µs to wait awake. InvalidArgument when it isn't."""
    if type(value) is not int or not 0 <= value <= BUSY_POLL_US_MAX:
        raise InvalidArgument(
            f"busy_poll_us must be an integer from 0 to {BUSY_POLL_US_MAX}, not {value!r}"
        )
    return value


class BusyPoll:
    """Says, before each wait, whether to stay awake; is told what came of it. Not for threads."""

    __slots__ = ("_credit", "_skipped", "seconds")

    def __init__(self, microseconds: int) -> None:
        """For at most so long at a time; never with less than two cores, where others want them."""
        self.seconds = microseconds / 1e6 if _cores() >= CORES_MIN else 0.0
        self._credit = _MISS_COST
        self._skipped = 0

    def is_worthwhile(self) -> bool:
        """Whether to wait awake this time."""
        if self._credit > 0:
            return self.seconds > 0
        self._skipped += 1
        if self._skipped < _PROBE_EVERY:
            return False
        self._skipped = 0
        return self.seconds > 0

    def came(self) -> None:
        """It came while we were awake."""
        if self._credit < _CREDIT_MAX:
            self._credit += 1

    def missed(self) -> None:
        """It didn't."""
        if self._credit > 0:
            self._credit -= _MISS_COST
