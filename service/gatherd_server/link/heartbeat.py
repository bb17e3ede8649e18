"""Whether the writer gives signs of life: it waits for work, or makes progress with its work.

The committer counts its steps. If it stays at the same step for long, it hangs in its disk. A
writer process that doesn't answer at all was stopped, or hangs altogether. Only the time that this
process was awake counts, so neither a busy event loop nor a suspended machine looks like a dead
writer.

A hung writer isn't killed: a process that waits for a disk can't be, and a new one would wait for
the same disk.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from gatherd._outcome import NOT_SENT, OUTCOME, UNKNOWN
from gatherd.errors import Unavailable

logger = logging.getLogger("gatherd.writer")

BEAT_SECONDS: Final = 0.25
HUNG_SECONDS: Final = 3.0
HUNG_RETRY_SECONDS: Final = 1.0
OUTCOME_UNKNOWN: Final = {OUTCOME: UNKNOWN}
OUTCOME_NOT_SENT: Final = {OUTCOME: NOT_SENT}


class Heartbeat:
    """Tracks the writer's signs of life. The event loop writes; any thread may read."""

    def __init__(self, hung_seconds: float) -> None:
        """The writer counts as hung after `hung_seconds` without a sign."""
        self._hung_seconds = hung_seconds
        self._silent_seconds = 0.0
        self._step: int | None = None

    @property
    def is_hung(self) -> bool:
        """Whether the last sign of life is too long ago."""
        return self._silent_seconds >= self._hung_seconds

    def heard(self, step: int | None) -> None:
        """Note that the writer is in this step, None if it waits for work."""
        if step is None or step != self._step:
            self._silent_seconds = 0.0
        self._step = step

    def waited(self, seconds: float) -> None:
        """Note that nothing new was heard for `seconds`; at most two beats of it count."""
        self._silent_seconds += min(seconds, 2 * BEAT_SECONDS)

    def check(self) -> None:
        """Unavailable when the writer is hung, so that nothing is handed to it."""
        if self.is_hung:
            raise Unavailable(
                "the writer gives no sign of life, its disk may be stalled: this update was not "
                "handed to it and changed nothing; lookups go on",
                OUTCOME_NOT_SENT,
                HUNG_RETRY_SECONDS,
            )

    async def watch(self, ask: Callable[[], None], on_hung: Callable[[], None]) -> None:
        """At each beat, for ever, `ask` for a sign; if the writer hangs, call `on_hung`."""
        loop = asyncio.get_running_loop()
        was_hung, since = False, 0.0
        while True:
            begun = loop.time()
            ask()
            await asyncio.sleep(BEAT_SECONDS)
            self.waited(loop.time() - begun)
            is_hung = self.is_hung
            if is_hung:
                if not was_hung:
                    since = loop.time() - self._silent_seconds
                    logger.critical(
                        "the writer has given no sign of life for %.1f s: updates are refused "
                        "until it does; lookups go on",
                        self._silent_seconds,
                    )
                on_hung()
            elif was_hung:
                logger.warning(
                    "the writer is back after %.1f s; updates go on", loop.time() - since
                )
            was_hung = is_hung


def lost() -> Unavailable:
    """The answer to a push that the writer had when it hung."""
    return Unavailable(
        "the writer gives no sign of life, its disk may be stalled: the update was handed to it "
        "and may still be done; sent again with the same request id, it is done once",
        OUTCOME_UNKNOWN,
        HUNG_RETRY_SECONDS,
    )
