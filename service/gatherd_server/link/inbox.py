"""Calls that other threads have an event loop make, which is woken once for all that wait.

The writer's thread answers all pushes of a commit at once. `call_soon_threadsafe` would wake the
loop for each.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from gatherd_server.errors import unexpected

T = TypeVar("T")


class Inbox:
    """Of one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._is_woken = False

    def put(
        self, loop: asyncio.AbstractEventLoop, call: Callable[[T], object], argument: T
    ) -> None:
        """Have `loop` make a call, in the order of the puts. On any thread."""
        self._waiting.append((call, argument))
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        # Before the queue is looked at, so that a later put wakes the loop again.
        self._is_woken = False
        for _ in range(len(self._waiting)):
            call, argument = self._waiting.popleft()
            try:
                call(argument)
            except Exception as error:  # noqa: BLE001 - logged; the others wait for theirs
                unexpected(error)
