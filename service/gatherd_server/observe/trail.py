"""The request that the running code works for, so that log lines and errors can name it.

A request's id is the client's X-Request-Id if that is valid, else the trace id of its traceparent,
else an id that is drawn when it is first needed; most requests never need it.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from gatherd.errors import GatherdError

REQUEST_ID_HEADER: Final = "x-request-id"
TRACEPARENT_HEADER: Final = "traceparent"

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; later versions may append to it.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


class Trail:
    """One request under way. `code` and `error` are those of its failure, "" and None before."""

    __slots__ = ("_header", "_id", "code", "error")

    def __init__(self, header: Callable[[str], str | None]) -> None:
        """`header` gives a header, or gRPC metadata, by its name in lower case."""
        self._header = header
        self._id = ""
        self.code = ""
        self.error: GatherdError | None = None

    @property
    def request_id(self) -> str:
        """The request's id, the same at every call."""
        if not self._id:
            given = self._header(REQUEST_ID_HEADER)
            if given is None or not _REQUEST_ID.fullmatch(given):
                match = _TRACEPARENT.fullmatch(self._header(TRACEPARENT_HEADER) or "")
                given = match[1] if match else _drawn()
            self._id = given
        return self._id

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that came with the request, if it is valid."""
        given = self._header(TRACEPARENT_HEADER) or ""
        return given if _TRACEPARENT.fullmatch(given) else None


# Our own generator: seeding the module's, as tests do, must not repeat ids.
_ids: Final = random.Random()  # noqa: S311 - no secret, and a refusal mustn't wait for the kernel


def _drawn() -> str:
    return f"{_ids.getrandbits(128):032x}"


_current: ContextVar[Trail | None] = ContextVar("trail", default=None)


def current() -> Trail | None:
    """The request that this task or thread works for."""
    return _current.get()


@contextmanager
def following(trail: Trail) -> Iterator[None]:
    """Work for `trail` inside; threads that get a copy of the context do so too."""
    token = _current.set(trail)
    try:
        yield
    finally:
        _current.reset(token)


def failed(code: str, error: GatherdError) -> None:
    """Note the error that the current request, if there is one, is answered with."""
    trail = _current.get()
    if trail is not None:
        trail.code, trail.error = code, error
