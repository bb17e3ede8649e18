"""What a call asks of the shell that runs it: the seam between the logic and the waiting.

A call is a generator (a `Plan`) that yields effects and is sent their results, or has a
`GatherdError` thrown into it. `client.py` runs plans by blocking, `aio.py` by awaiting; neither
knows more. Left out on purpose: any effect for cancelling; a plan that isn't run on just ends.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

# The paths are the same over Connect and gRPC.
LOOKUP: Final = "/gatherd.v1.EmbeddingService/Lookup"
LOOKUP_MANY: Final = "/gatherd.v1.EmbeddingService/LookupMany"
LOOKUP_BAGS: Final = "/gatherd.v1.EmbeddingService/LookupBags"
LOOKUP_BAGS_MANY: Final = "/gatherd.v1.EmbeddingService/LookupBagsMany"
KEYS_OF: Final = "/gatherd.v1.EmbeddingService/KeysOf"
LIST_TABLES: Final = "/gatherd.v1.TableService/ListTables"
GET_TABLE: Final = "/gatherd.v1.TableService/GetTable"

# What a reply may take at most, whatever the server says its limits are.
REPLY_BYTES_MAX = 2 << 30


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must have ended (`at`, on `time.monotonic`), and the timeout it came from."""

    at: float
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """One request over the wire. The result is the reply's body as a memoryview of bytes."""

    method: str
    body: bytes
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause. The result is None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """A computation that fills about `nbytes` of memory. The result is what `run` returns."""

    run: Callable[[], Any]
    nbytes: int


Effect: TypeAlias = Send | Sleep | Work
Plan: TypeAlias = Generator[Effect, Any, T]


class Transport(Protocol):
    """One way to carry a request, blocking."""

    def call(self, send: Send) -> memoryview:
        """The reply's body; a GatherdError for everything that goes wrong."""

    def close(self) -> None:
        """Close idle connections now, and those in use when their call ends."""


class AsyncTransport(Protocol):
    """One way to carry a request, awaited, from one event loop."""

    async def call(self, send: Send) -> memoryview:
        """The reply's body; a GatherdError for everything that goes wrong."""

    async def aclose(self) -> None:
        """Close idle connections now, and those in use when their call ends."""
