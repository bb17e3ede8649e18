"""The server's log: to standard error, a line a record, for people or as JSON for machines.

A line that is written for a request has its id. Failed requests are logged at level debug;
access_log.py has a line for each request.
"""

import json
import logging
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from enum import Enum
from types import TracebackType
from typing import Any

from gatherd_server.observe import trail
from gatherd_server.observe.json_stderr import json_stderr

# As every line of _Json begins.
_JSON_BEGINS = b'{"time": "'
_TEXT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s%(request)s"


class LogFormat(Enum):
    """The format of a log line."""

    TEXT = "text"
    JSON = "json"


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        request_id = _request_id(record)
        record.request = f" [request {request_id}]" if request_id else ""
        return super().format(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        document: dict[str, Any] = {
            "time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        request_id = _request_id(record)
        if request_id:
            document["request_id"] = request_id
        document.update(getattr(record, "fields", {}))
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def _request_id(record: logging.LogRecord) -> str:
    given = getattr(record, "request_id", "")
    if given:
        return str(given)
    request = trail.current()
    return request.request_id if request is not None else ""


def line_of(
    message: str,
    fields: Mapping[str, Any] | None = None,
    *,
    level: int = logging.INFO,
    logger: str = "gatherd",
) -> str:
    """A JSON line as the log would have it, for what is printed elsewhere."""
    record = logging.LogRecord(logger, level, "", 0, message, None, None)
    record.fields = dict(fields or {})
    return _Json().format(record)


def stderr_in(log_format: LogFormat) -> AbstractContextManager[None]:
    """Inside, everything that this process and its children write to standard error has the format.

    Only JSON needs anything for that.
    """
    if log_format is LogFormat.TEXT:
        return nullcontext()
    return json_stderr(_as_json, _JSON_BEGINS)


def _as_json(line: str) -> str:
    """`line` if it is a JSON object, as a span is; else one with it as the message."""
    try:
        if line.startswith("{") and isinstance(json.loads(line), dict):
            return line
    except (ValueError, RecursionError):
        pass
    return line_of(line, level=logging.ERROR, logger="stderr")


def configure_logging(level: str, log_format: LogFormat = LogFormat.TEXT) -> None:
    """Log to standard error from here on, in this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format is LogFormat.JSON else _Text())
    logging.basicConfig(handlers=[handler], level=level.upper())
    logging.captureWarnings(True)
    if log_format is LogFormat.JSON:
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda args: _log_uncaught(
            args.exc_type, args.exc_value, args.exc_traceback
        )
    # Its lines are wanted whatever the level of the others.
    logging.getLogger("gatherd.access").setLevel(logging.INFO)
    # It reports each start and stop, which the supervisor reports better.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # At debug it logs every step of every compilation, megabytes of it.
    logging.getLogger("numba").setLevel(logging.WARNING)


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Log a traceback in one record, where Python would print it."""
    told = (kind, error if error is not None else kind(), trace)
    logging.getLogger("gatherd").critical("uncaught %s", kind.__name__, exc_info=told)


def set_level(level: str) -> None:
    """Log `level` and above from here on."""
    logging.getLogger().setLevel(level.upper())
