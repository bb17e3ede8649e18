"""When a call is tried again, and after which pause: exponential backoff with jitter.

Lookups change nothing, so every one may be sent twice; an update may by its request id. Other
changes may not, so an error tells what is known of its request: under OUTCOME in its metadata
stands NOT_SENT when it never left, UNKNOWN when its answer was lost, and nothing when a gatherd
server answered that it hadn't done it. A server too says UNKNOWN of what it lost track of.
"""

import math
import random
import time
from collections.abc import Callable
from typing import Final

from gatherd._effects import Deadline
from gatherd.errors import InvalidArgument, RetryableError

PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 2.0
RETRIES_MAX = 100
TIMEOUT_SECONDS_MAX = 86_400.0

OUTCOME: Final = "outcome"
NOT_SENT: Final = "not sent"
UNKNOWN: Final = "unknown"


class Tries:
    """How long a client's calls take at most, and how often each is tried."""

    def __init__(
        self,
        *,
        timeout: float,
        retries: int,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._retries = check_retries(retries)
        self._clock = clock
        self._uniform = uniform

    def deadline(self, timeout: float | None) -> Deadline:
        """The deadline of a call that begins now, `timeout` None for the client's own."""
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return Deadline(self._clock() + seconds, seconds)

    def pause(self, attempt: int, error: RetryableError, deadline: Deadline) -> float | None:
        """The pause after try number `attempt` (from 0) failed by `error`; None to give up."""
        if attempt >= self._retries:
            return None
        return pause_seconds(attempt, error, deadline.at - self._clock(), self._uniform)


def pause_seconds(
    attempt: int, error: RetryableError, remaining_seconds: float, random: Callable[[], float]
) -> float | None:
    """The pause before try number `attempt` + 1 (from 0), or None when the deadline forbids it.

    The pauses double from PAUSE_SECONDS_FIRST to PAUSE_SECONDS_MAX; each is shortened by up to a
    half at random, so that clients that failed together don't come back together. The server's
    hint is a lower bound.
    """
    # min() on the exponent: 2.0 ** 1100 is an OverflowError.
    full = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_FIRST * 2.0 ** min(attempt, 16))
    pause = full * (1.0 - random() / 2)
    if error.retry_after_seconds is not None:
        pause = max(pause, error.retry_after_seconds)
    return pause if pause < remaining_seconds else None


def parse_retry_after(text: str | None) -> float | None:
    """Seconds out of a Retry-After header or trailer; None for none, a date or nonsense."""
    try:
        seconds = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def check_timeout(timeout: object) -> float:
    """`timeout` in seconds when it can be one, else InvalidArgument."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise InvalidArgument(f"timeout is a number of seconds, not {timeout!r}")
    if not 0 < timeout <= TIMEOUT_SECONDS_MAX:
        raise InvalidArgument(
            f"timeout={timeout} isn't possible: it takes more than 0 and at most "
            f"{TIMEOUT_SECONDS_MAX:g} seconds"
        )
    return float(timeout)


def check_retries(retries: object) -> int:
    """`retries` when it can be a number of tries, else InvalidArgument."""
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= RETRIES_MAX:
        raise InvalidArgument(f"retries={retries!r} isn't possible: it takes 0 to {RETRIES_MAX}")
    return retries
