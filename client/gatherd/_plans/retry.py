"""When a call is tried again, and after which pause: exponential backoff with full jitter.

A call is tried until its time is up, so that a default client outlives a server's restart. A number
of retries bounds that further, for callers that want an error sooner.

Lookups change nothing, so each may be sent twice; an update may, under its request id. Other
changes may not, so an error's OUTCOME decides; see gatherd/_outcome.py.
"""

import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from gatherd._outcome import NOT_SENT, OUTCOME, UNKNOWN
from gatherd._plans.effects import Deadline, Plan, Send, Sleep
from gatherd.errors import InvalidArgument, RetryableError

PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 2.0
# With less than this left, another try would hardly be answered.
LAST_TRY_SECONDS = 0.1
RETRIES_MAX = 100
TIMEOUT_SECONDS_MAX = 86_400.0


class Tried:
    """A request's failed tries so far, and whether one was sent or its outcome was lost."""

    def __init__(self) -> None:
        self.count = 0
        self.was_sent = self.is_lost = False

    def failed(self, error: RetryableError) -> None:
        """Count one more failed try."""
        outcome = error.metadata.get(OUTCOME)
        self.count += 1
        self.was_sent |= outcome != NOT_SENT
        self.is_lost |= outcome == UNKNOWN


class Tries:
    """Bounds how long a client's calls take, and how often each is tried."""

    def __init__(self, *, timeout: float, retries: int | None) -> None:
        self._timeout = check_timeout(timeout)
        self._retries = check_retries(retries)

    def deadline(self, timeout: float | None) -> Deadline:
        """The deadline of a call that begins now, `timeout` None for the client's own."""
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return Deadline(time.monotonic() + seconds, seconds)

    def send(
        self, send: Send, tried: Tried | None = None, *, may_repeat: bool = True
    ) -> Plan[memoryview]:
        """The reply to one request, tried again while that may help.

        `tried` has its earlier tries, and is kept up to date. Without `may_repeat` nothing is sent
        again once the server may have done what was asked.
        """
        if tried is None:
            tried = Tried()
        while True:
            try:
                reply: memoryview = yield send
                return reply
            except RetryableError as error:
                tried.failed(error)
                if tried.is_lost and not may_repeat:
                    raise
                pause = self.pause(tried.count - 1, error, send.deadline)
                if pause is None:
                    raise
            yield Sleep(pause)

    def pause(self, attempt: int, error: RetryableError, deadline: Deadline) -> float | None:
        """The pause after try number `attempt` (from 0) failed by `error`; None to give up."""
        if self._retries is not None and attempt >= self._retries:
            return None
        return pause_seconds(attempt, error, deadline.at - time.monotonic(), random.random)


def pause_seconds(
    attempt: int, error: RetryableError, remaining_seconds: float, random: Callable[[], float]
) -> float | None:
    """The pause before try number `attempt` + 1 (from 0), or None when the deadline forbids it.

    It is drawn between 0 and a bound that doubles from PAUSE_SECONDS_FIRST to PAUSE_SECONDS_MAX, so
    that clients that failed together don't come back together. The server's hint is a lower bound,
    to which the drawn pause is added for the same reason. Without a hint the remaining time is used
    up: no pause takes more than half of it.
    """
    # min() on the exponent: 2.0 ** 1100 is an OverflowError.
    pause = random() * min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_FIRST * 2.0 ** min(attempt, 16))
    hint = error.retry_after_seconds
    if hint is None:
        if remaining_seconds <= LAST_TRY_SECONDS:
            return None
        return min(pause, remaining_seconds / 2)
    if hint >= remaining_seconds:
        return None
    return min(hint + pause, (hint + remaining_seconds) / 2)


def parse_retry_after(text: str | None) -> float | None:
    """Seconds out of a Retry-After header or trailer, a date or a number; None for nonsense."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            return None
        if at.tzinfo is None:  # "-0000": in UTC, says RFC 5322
            at = at.replace(tzinfo=UTC)
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    return seconds if 0 <= seconds < math.inf else None


def check_timeout(timeout: object) -> float:
    """`timeout` in seconds if it is valid, else InvalidArgument."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise InvalidArgument(f"timeout is a number of seconds, not {timeout!r}")
    if not 0 < timeout <= TIMEOUT_SECONDS_MAX:
        raise InvalidArgument(
            f"timeout={timeout} isn't possible: it takes more than 0 and at most "
            f"{TIMEOUT_SECONDS_MAX:g} seconds"
        )
    return float(timeout)


def check_retries(retries: object) -> int | None:
    """`retries` if it is valid, with None for no bound; else InvalidArgument."""
    if retries is None:
        return None
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= RETRIES_MAX:
        raise InvalidArgument(
            f"retries={retries!r} isn't possible: it takes 0 to {RETRIES_MAX}, or None for as many "
            "as the timeout has room for"
        )
    return retries
