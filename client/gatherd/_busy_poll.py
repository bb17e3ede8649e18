"""Whether to wait awake for what mostly comes at once.

Who sleeps has to be woken: some 5 µs on a machine of one's own, and 40 µs and more on a virtual one
whose idle cores are given back to the host. A lookup of a few ids takes less, so its two sleeps, the
server's and the client's, are most of what it waits for. Looking again and again instead costs a
core's time until the answer is there. So it is done for a bounded time, and only as long as it pays:
what was waited for in vain a few times is slept for, but for a try now and then. Linux waits in the
same way for the guests of a host (halt polling), and for about as long.
"""

import os
from typing import Final

BUSY_POLL_US: Final = 100
"""How many µs are waited awake at most, unless something else is asked for."""

# One miss weighs as much as so many hits: they have to be the rule.
_MISS_COST: Final = 4
_CREDIT_MAX: Final = 32
# When it doesn't pay, one of so many times is tried.
_PROBE_EVERY: Final = 64


class BusyPoll:
    """Says, before each wait, whether to stay awake; is told what came of it. Not for threads."""

    __slots__ = ("_credit", "_skipped", "seconds")

    def __init__(self, microseconds: int) -> None:
        """For at most so long at a time; never on a machine with one core, where nobody answers."""
        self.seconds = microseconds / 1e6 if len(os.sched_getaffinity(0)) > 1 else 0.0
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
