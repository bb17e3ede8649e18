"""The protocols of transports: the methods that a shell calls."""

from typing import Any, Protocol

from numpy.typing import NDArray

from gatherd._plans.effects import Deadline, Send
from gatherd._plans.foreseen import Foreseen, Varying


class Transport(Protocol):
    """One way to carry a request, blocking."""

    def call(self, send: Send) -> memoryview:
        """The reply's body; a GatherdError for everything that goes wrong."""

    def ask_foreseen(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview:
        """Carry a foreseen call: its targets, filled, if the reply is as foreseen, else its body.

        Raises what `call` does; the content of `out` is undefined then.
        """

    def close(self) -> None:
        """Close idle connections now, and those in use when their call ends."""


class AsyncTransport(Protocol):
    """One way to carry a request, awaited, from one event loop."""

    async def call(self, send: Send) -> memoryview:
        """The reply's body; a GatherdError for everything that goes wrong."""

    async def ask_foreseen(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview:
        """As Transport.ask_foreseen."""

    def abandon(self) -> None:
        """Drop the connections: their event loop was closed, or is another process's."""

    async def aclose(self) -> None:
        """Close idle connections now, and those in use when their call ends."""
