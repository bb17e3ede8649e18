"""The server's log: to standard error, a line a record, for people or as JSON for machines.

A line that is written for a request has its id. Left out on purpose: a line for each request, which
metrics count and traces show; failed requests are logged at level debug.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from gatherd_server.observe import trail

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


def line_of(message: str, fields: Mapping[str, Any]) -> str:
    """A JSON line as the log would have it, for what is printed elsewhere."""
    record = logging.LogRecord("gatherd", logging.INFO, "", 0, message, None, None)
    record.fields = dict(fields)
    return _Json().format(record)


def configure_logging(level: str, log_format: LogFormat = LogFormat.TEXT) -> None:
    """Log to standard error from here on, in this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format is LogFormat.JSON else _Text())
    logging.basicConfig(handlers=[handler], level=level.upper())
    # It reports each start and stop, which the supervisor reports better.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # At debug it logs every step of every compilation, megabytes of it.
    logging.getLogger("numba").setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Log `level` and above from here on."""
    logging.getLogger().setLevel(level.upper())
