"""The threads that long work runs on, so that the event loop goes on with short work."""

import gc
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread

# A gather is bound by memory bandwidth: a few threads per core are all it can use.
THREADS_A_CORE: Final = 2
# A body up to this is parsed where it is: a hop to another thread takes as long.
PARSED_AT_ONCE_BYTES: Final = 32 << 10
# Longer bodies parsed at a time: parsers hold the GIL, and more of them would only delay the event
# loop. With eight bodies of a million ids, its longest wait was 0.47 s with 2 and 0.18 s with 1;
# all eight took as long either way.
PARSING_MAX: Final = 1

T = TypeVar("T")


class Offload:
    """One worker's bounds on threads, shared by everything that its HTTP port answers.

    There are two: work takes one of `threads`, a long body the one thread that parses. Parsing
    takes none of `threads`, so that gathers don't wait behind bodies.
    """

    def __init__(self, threads: int) -> None:
        self._working = anyio.CapacityLimiter(threads)
        self._parsing = anyio.CapacityLimiter(PARSING_MAX)
        self._lock = threading.Lock()
        self._uncollected_count = 0

    async def run(self, work: Callable[[], T], is_long: bool) -> T:
        """The result of `work`, run on a thread if `is_long`, else here."""
        if not is_long:
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self._working)

    async def parse(self, read: Callable[[], T], body: bytes) -> T:
        """The result of `read`, run on a thread if `body` is long, else here."""
        if len(body) <= PARSED_AT_ONCE_BYTES:
            return read()
        return await anyio.to_thread.run_sync(
            lambda: self._uncollected(read), limiter=self._parsing
        )

    def _uncollected(self, read: Callable[[], T]) -> T:
        # While a million lists are made, the collector would scan all objects again and again,
        # which takes ten times as long; and parsed values have no cycles.
        with self._lock:
            self._uncollected_count += 1
            gc.disable()
        try:
            return read()
        finally:
            with self._lock:
                self._uncollected_count -= 1
                if not self._uncollected_count:
                    gc.enable()
