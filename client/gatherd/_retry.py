"""When a call is tried again, and after which pause: exponential backoff with jitter.

Lookups change nothing, so every one may be sent twice.
"""

import math
from collections.abc import Callable

from gatherd._effects import Deadline
from gatherd.errors import InvalidArgument, RetryableError

PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 2.0
RETRIES_MAX = 100
TIMEOUT_SECONDS_MAX = 86_400.0


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


def deadline_after(timeout_seconds: float, now: float) -> Deadline:
    """The deadline of a call that begins `now`."""
    return Deadline(now + timeout_seconds, timeout_seconds)
