"""The access log: a line for each request, at the setting `access_log`.

    method path status, ms, bytes of the request's body and of the reply's, tables, caller, id

With it every request is answered the general way, so that no line is missing; without it nothing
here runs. The tables are those that the engine was asked for; noting_engine.py notes them. Left out
on purpose: requests that can't be read as HTTP, and the peer's address, which behind a proxy is the
proxy's.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from gatherd_server.observe.trail import Trail

logger = logging.getLogger("gatherd.access")

PATH_CHARS_SHOWN_MAX: Final = 256
TABLES_SHOWN_MAX: Final = 8
NAME_CHARS_SHOWN_MAX: Final = 128
NOBODY: Final = "-"
GRPC: Final = "gRPC"


@dataclass(slots=True)
class Noted:
    """What is known of one request so far. `method` is the HTTP method, or "gRPC"."""

    method: str
    path: str
    request_id: str = ""
    caller: str = NOBODY
    status: str = ""
    request_bytes: int = 0
    reply_bytes: int = 0
    tables: dict[str, None] = field(default_factory=dict)

    def follow(self, request: Trail | None) -> None:
        """Take the request's id, and the table that a refusal names."""
        if request is not None:
            self.request_id = request.request_id
            refused = request.error.metadata.get("table") if request.error is not None else None
            if refused:
                self.tables[refused] = None

    def write(self, elapsed_ms: float) -> None:
        """Write the line. Control characters are escaped, because clients choose path and names."""
        tables = [_shown(name, NAME_CHARS_SHOWN_MAX) for name in self.tables][:TABLES_SHOWN_MAX]
        more = len(self.tables) - len(tables)
        fields = {
            "method": self.method,
            "path": _shown(self.path, PATH_CHARS_SHOWN_MAX),
            "status": self.status,
            "ms": round(elapsed_ms, 3),
            "request_bytes": self.request_bytes,
            "reply_bytes": self.reply_bytes,
            "tables": [*tables, *([f"and {more} more"] if more > 0 else [])],
            "caller": self.caller,
        }
        listed = ",".join(tables) + (f",+{more}" if more > 0 else "")
        logger.info(
            "%s %s %s %.3f ms, %d bytes in, %d out, table %s, caller %s",
            *(self.method, fields["path"], self.status, elapsed_ms),
            *(self.request_bytes, self.reply_bytes, listed or NOBODY, self.caller),
            extra={"request_id": self.request_id, "fields": fields},
        )


_current: ContextVar[Noted | None] = ContextVar("noted", default=None)


@contextmanager
def noting(noted: Noted) -> Iterator[None]:
    """Note what happens inside; then write the line."""
    token = _current.set(noted)
    begun = time.perf_counter()
    try:
        yield
    finally:
        _current.reset(token)
        noted.write((time.perf_counter() - begun) * 1e3)


def note_tables(names: Iterable[str]) -> None:
    """Note that the current request, if it is logged, asks for these tables."""
    noted = _current.get()
    if noted is not None:
        noted.tables.update(dict.fromkeys(names))


def log_refusal(path: str, code: str, request: Trail) -> None:
    """Write the line of a gRPC call that was refused before its message was read."""
    noted = Noted(GRPC, path, status=code)
    noted.follow(request)
    noted.write(0.0)


def _shown(text: str, chars_max: int) -> str:
    return text[:chars_max].encode("unicode_escape").decode("ascii")
