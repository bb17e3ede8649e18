"""Keeps an event loop awake for a moment after an answer, while clients ask again that soon.

See client/gatherd/busy_poll.py. It costs nothing while requests come faster than they are answered,
nor while none come.
"""

import asyncio
from time import perf_counter

from gatherd.busy_poll import BusyPoll


class BusyLoop:
    """Busy polling on one event loop."""

    def __init__(self, microseconds: int) -> None:
        """Polls for at most so long after an answer; with 0 never."""
        self._poll = BusyPoll(microseconds)
        self._until = 0.0
        self._is_awake = False

    def answered(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stay awake for a moment, unless that was in vain lately."""
        poll = self._poll
        if self._is_awake:
            poll.came()
            self._until = perf_counter() + poll.seconds
        elif poll.is_worthwhile():
            self._is_awake = True
            self._until = perf_counter() + poll.seconds
            loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # A ready callback keeps the loop from sleeping when it polls its sockets.
        if perf_counter() < self._until:
            loop.call_soon(self._look, loop)
        else:
            self._is_awake = False
            self._poll.missed()
