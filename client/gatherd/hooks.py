"""Hooks: metrics, traces and logs of a client's calls, without a framework.

    class Slow(gatherd.Hook):
        def ended(self, call: gatherd.Call) -> None:
            if call.seconds > 0.1:
                print(call.method, call.tables, call.status, f"{call.seconds * 1000:.0f} ms")

    client = Client(url, hooks=[Slow()])

A client without hooks does nothing for them. gatherd/otel.py has a hook for OpenTelemetry.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from gatherd.errors import GatherdError


@dataclass(slots=True, eq=False)
class Call:
    """One call of a client's method, as hooks see it.

    `method` is its name, such as "lookup", and `tables` has the tables that it names. What a hook
    puts into `headers` when the call starts is sent with every request of the call. `notes` is for
    a hook's own use. The rest is known when the call ends: `seconds` it took, retries included,
    `requests` that were sent, `retries` after a pause, `bytes_sent` and `bytes_received` of their
    bodies, and `error`, what the call raised, or None.

    A call of a local: client sends nothing. Of lookups that `batching` merged, the one that sent
    the request has its bytes.
    """

    method: str
    tables: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    error: BaseException | None = None

    @property
    def status(self) -> str:
        """An error's `reason` such as "KEY_NOT_FOUND", any other error's class, or "OK"."""
        if self.error is None:
            return "OK"
        if isinstance(self.error, GatherdError):
            return self.error.reason
        return type(self.error).__name__


class Hook:
    """Told of each call of a client, in the thread or task that makes it; override what you need.

    An exception that a hook raises is logged (as `gatherd.hooks`), and the call goes on.
    """

    def started(self, call: Call) -> None:
        """Called before anything is checked or sent."""

    def ended(self, call: Call) -> None:
        """Called when the result, or the error, is known."""


current: ContextVar[Call | None] = ContextVar("gatherd_call", default=None)
"""The call that is under way in this thread or task, of a client that has hooks."""
