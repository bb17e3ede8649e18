"""The effects that a call asks its shell for: the seam between the logic and the waiting.

A call is a generator (a `Plan`) that yields effects and is sent their results, or has a
`GatherdError` thrown into it. `gatherd/client.py` runs plans by blocking, `gatherd/aio.py` by
awaiting; neither knows the logic. Left out on purpose: an effect for cancelling; a shell cancels a
plan by not running it on.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

# The most bytes that a reply may have, whatever limits the server states.
REPLY_BYTES_MAX = 2 << 30


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time by which a call must end (`at`, on `time.monotonic`), and its timeout."""

    at: float
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """One request over the wire. The result is the reply's body as a memoryview of bytes.

    The request's body is `body` and then `rest`, which has flat views of the caller's bytes: a
    transport doesn't copy them if it can. With `once` a transport sends the request once at most,
    also when a connection turns out to have been closed while it was idle.
    """

    method: str
    body: bytes
    deadline: Deadline
    rest: tuple[bytes | memoryview, ...] = ()
    once: bool = False

    @property
    def nbytes(self) -> int:
        """The length of the whole body."""
        return len(self.body) + sum(map(len, self.rest))

    def joined(self) -> bytes:
        """The whole body in one piece."""
        return b"".join((self.body, *self.rest)) if self.rest else self.body


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause. The result is None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Computation:
    """A computation that fills about `nbytes` of memory. The result is what `run` returns."""

    run: Callable[[], Any]
    nbytes: int


Effect: TypeAlias = Send | Sleep | Computation
Plan: TypeAlias = Generator[Effect, Any, T]
