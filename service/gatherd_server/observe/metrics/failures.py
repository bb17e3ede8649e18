"""Counts the errors of requests by class, and logs some.

Every class is counted under its reason. Errors that the operator has to act on are logged too, at
most once a second for each class: a full disk refuses thousands of updates a second, and one line
says it. docs/operations.md has the list, with the alerts.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gatherd import errors
from gatherd_server.errors import StartError
from gatherd_server.observe.metrics.names import ERRORS
from gatherd_server.observe.metrics.recorder import Recorder

logger = logging.getLogger("gatherd.failures")

SECONDS_BETWEEN_LINES: Final = 1.0
MESSAGE_CHARS_MAX: Final = 500

SILENT: Final = 0
"""The client gets the error and can mend it: counted, and logged only at level debug."""

LEVELS: Final[Mapping[type[errors.GatherdError], int]] = {
    errors.GatherdError: logging.ERROR,
    errors.InvalidArgument: SILENT,
    errors.NotFound: SILENT,
    errors.AlreadyExists: SILENT,
    errors.FailedPrecondition: SILENT,
    errors.TableRefused: logging.WARNING,
    errors.Unauthenticated: logging.WARNING,
    errors.PermissionDenied: logging.WARNING,
    errors.LimitExceeded: SILENT,
    errors.RetryableError: logging.WARNING,
    errors.DeadlineExceeded: SILENT,
    errors.Unimplemented: SILENT,
    # `unexpected` logs each, with its traceback.
    errors.InternalError: SILENT,
    errors.StorageError: logging.ERROR,
    # These end a command or a start, which prints them; no request gets them.
    errors.ClientError: SILENT,
    StartError: SILENT,
}


def level_of(cls: type[errors.GatherdError]) -> int:
    """The level at which a class is logged: its own, or that of the nearest class above it."""
    return next(LEVELS[one] for one in cls.__mro__ if one in LEVELS)


@dataclass(slots=True)
class _Line:
    """The lines of one reason: when the last was written, and the errors since."""

    level: int
    written_at: float = -SECONDS_BETWEEN_LINES
    suppressed: int = 0
    message: str = ""


class Failures:
    """Counts and logs errors. Safe to use from many threads."""

    def __init__(self, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        """Counts into `recorder`, each class from zero on: an alert has to see the first rise."""
        self._recorder = recorder
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()
        for cls in errors.subclasses():
            if not issubclass(cls, (errors.ClientError, StartError)):
                recorder.first(ERRORS, cls.reason)

    def note(self, error: errors.GatherdError, request_id: str = "") -> None:
        """Count an error that a request was answered with, and log it if it is time for a line."""
        self._recorder.add(ERRORS, error.reason)
        level = level_of(type(error))
        if level == SILENT:
            return
        with self._lock:
            line = self._lines.setdefault(error.reason, _Line(level))
            line.message = " ".join(error.message.split())[:MESSAGE_CHARS_MAX]
            if self._clock() - line.written_at < SECONDS_BETWEEN_LINES:
                line.suppressed += 1
                return
            self._write(error.reason, line, request_id)

    def flush(self) -> None:
        """Write the lines held back for a second or more. To be called now and then."""
        with self._lock:
            for reason, line in self._lines.items():
                is_due = self._clock() - line.written_at >= SECONDS_BETWEEN_LINES
                if line.suppressed and is_due:
                    # The line itself shows the last of them.
                    line.suppressed -= 1
                    self._write(reason, line, "")

    def _write(self, reason: str, line: _Line, request_id: str) -> None:
        more = f" ({line.suppressed} more like it)" if line.suppressed else ""
        line.written_at, line.suppressed = self._clock(), 0
        extra = {"request_id": request_id, "fields": {"reason": reason}}
        logger.log(line.level, "%s: %s%s", reason, line.message, more, extra=extra)
