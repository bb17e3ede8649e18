"""A connection of an event loop: an asyncio protocol for one request and response at a time.

Each connection has one timer, not each request. A request sets it if it isn't running. If it goes
off before the current request's deadline, it is set anew.
"""

import asyncio
import time
from typing import cast

from gatherd.transports import connect
from gatherd.transports.http1 import ConnectionEnded, HttpError, ResponseReader, feed


class EventLoopConnection(asyncio.BufferedProtocol):
    """One connection and the reader of its responses; one exchange at a time."""

    def __init__(self) -> None:
        self.reader = ResponseReader()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._ends_at = 0.0  # of the exchange under way, on time.monotonic
        # The beginning of a foreseen response, and the place for its vectors.
        self._expected = b""
        self._target: memoryview | None = None
        self._start = bytearray(connect.RECEIVE_BYTES)
        self._start_view = memoryview(self._start)
        self._filled = 0  # bytes received, while the response is the foreseen one
        self.open = False

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport that requests are written to."""
        # uvloop's transports have the methods of this class, but aren't instances of it.
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def get_buffer(self, _sizehint: int) -> memoryview:
        """The memory for the next bytes: the caller's array for the foreseen response."""
        if self._target is None:
            return self.reader.buffer()
        size = len(self._expected)
        if self._filled < size:
            return self._start_view[self._filled :]
        return self._target[self._filled - size :]

    def buffer_updated(self, nbytes: int) -> None:
        """Read the bytes that came; they may end the exchange."""
        if self._waiter is None:
            self.close()  # nothing was asked, so this answers nothing
        elif self._target is not None:
            self._take(self._target, nbytes)
        else:
            try:
                self.reader.received(nbytes)
            except HttpError as error:
                self._end(error)
            else:
                if self.reader.done:
                    self._end(None)

    def _take(self, target: memoryview, nbytes: int) -> None:
        """Take bytes of a response that looked like the foreseen one so far."""
        size, before = len(self._expected), self._filled
        self.reader.started = True
        self._filled = count = before + nbytes
        if before < size:
            if count < size and self._start[:count] == self._expected[:count]:
                return
            if count < size or not self._start.startswith(self._expected):
                self._take_otherwise(self._start_view[:count])
                return
            part = self._start_view[size : min(count, size + len(target))]
            target[: len(part)] = part
        if count >= size + len(target):
            self.reader.reusable = count == size + len(target)
            self._end(None, is_foreseen=True)

    def _take_otherwise(self, received: memoryview) -> None:
        self._target = None
        self.reader.reset()
        try:
            feed(self.reader, received)
        except HttpError as error:
            self._end(error)
        else:
            if self.reader.done:
                self._end(None)

    def eof_received(self) -> bool:
        """End the exchange: a response without a length is whole, any other has failed."""
        self.open = False
        if self._waiter is not None:
            try:
                if self._target is not None:
                    raise ConnectionEnded("it was closed before the end of the response")
                self.reader.eof()
            except HttpError as error:
                self._end(error)
            else:
                self._end(None)
        return False  # asyncio closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange under way."""
        self.open = False
        self._end(exc or ConnectionEnded("it was closed"))
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, error: Exception | None, *, is_foreseen: bool = False) -> None:
        waiter, self._waiter, self._target = self._waiter, None, None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(is_foreseen)
        elif self.reader.started or isinstance(error, connect.TimeIsUp):
            waiter.set_exception(error)
        else:
            waiter.set_exception(connect.Stale(error))

    def _ring(self) -> None:
        """The timer went off."""
        self._timer = None
        if self._waiter is None:
            return
        if time.monotonic() < self._ends_at:
            self._set_timer(self._ends_at)
        else:
            self._end(connect.TimeIsUp())

    def _set_timer(self, ends_at: float) -> None:
        if self._timer is not None:
            if self._timer_at <= ends_at:
                return
            self._timer.cancel()
        self._timer_at = ends_at
        self._timer = self._loop.call_later(max(0.0, ends_at - time.monotonic()), self._ring)

    # --- what the transport above calls ---

    def begin(
        self,
        pieces: tuple[bytes | memoryview, ...],
        ends_at: float,
        expected: bytes = b"",
        target: memoryview | None = None,
    ) -> asyncio.Future[bool]:
        """Send a request; the future is done when its response is complete.

        Its result is True if the response began with `expected` and the rest went into `target`,
        and False if the response is in `reader`. `reader.reusable` says whether the connection can
        be used again. Errors are Stale, OSError, HttpError, and TimeIsUp without a response by
        `ends_at`. After a failure or a cancellation the connection must be closed: the response
        would be taken for the next request's.
        """
        transport = self._transport
        if transport is None or not self.open:
            raise connect.Stale(ConnectionEnded("it was closed"))
        if target is None:
            self.reader.reset()
        else:
            self.reader.started = False  # it is reset only when it has something to read
        waiter = self._waiter = self._loop.create_future()
        self._ends_at, self._filled = ends_at, 0
        self._expected, self._target = expected, target
        if self._timer is None or self._timer_at > ends_at:
            self._set_timer(ends_at)
        for piece in pieces:
            transport.write(piece)
        return waiter

    def is_alive(self) -> bool:
        """Whether it is still open; the loop may not have noticed yet that the server closed it."""
        if self._transport is None or not self.open:
            return False
        return connect.is_silent(self._transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def abandon(self) -> None:
        """Let go of it when its loop can't run any more; asyncio closes the socket in time."""
        self.open = False
        self._transport = self._timer = None
