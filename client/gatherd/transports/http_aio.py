"""Connect for an event loop: an asyncio protocol over the same codec as transports/http.py.

Belongs to one event loop; AsyncClient sees to that.
"""

import asyncio
import ssl
import time

from gatherd._effects import Send
from gatherd._http1 import ConnectionEnded, HttpError, ResponseReader
from gatherd._target import Target
from gatherd.errors import ClientClosed, Unavailable
from gatherd.transports import _connect


class _Stale(Exception):
    """The connection failed before a byte of the response came."""


class _Connection(asyncio.BufferedProtocol):
    """One connection and the reader of its responses; one exchange at a time."""

    def __init__(self) -> None:
        self._reader = ResponseReader()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.open = False

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open = True

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._waiter is None:
            self.close()  # nothing was asked: nobody knows what this answers
            return
        try:
            self._reader.received(nbytes)
        except HttpError as error:
            self._end(error)
        else:
            if self._reader.done:
                self._end(None)

    def eof_received(self) -> bool:
        self.open = False
        if self._waiter is not None:
            try:
                self._reader.eof()
            except HttpError as error:
                self._end(error)
            else:
                self._end(None)
        return False  # asyncio closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end(exc or ConnectionEnded("it was closed"))

    def _end(self, error: Exception | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    # --- what the transport below calls ---

    async def exchange(self, head: bytes, send: Send) -> ResponseReader:
        """Send a request and receive its response. _Stale, OSError, HttpError."""
        transport = self._transport
        if transport is None or not self.open:
            raise _Stale(ConnectionEnded("it was closed"))
        reader = self._reader
        reader.reset()
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            for piece in _connect.outgoing(head, send):
                transport.write(piece)
            await waiter
        except (OSError, HttpError) as error:
            if reader.started:
                raise
            raise _Stale(error) from error
        finally:
            self._waiter = None
        return reader

    def is_alive(self) -> bool:
        """Whether it is open, also when the loop hasn't yet heard that it was closed."""
        if self._transport is None or not self.open:
            return False
        return _connect.is_silent(self._transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()


class AsyncHttpTransport:
    """Connect over TCP, TLS or a Unix socket; that of a data dir for a local: URL."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tls: ssl.SSLContext | None = _connect.tls_context() if target.tls else None
        self._idle: list[_Connection] = []
        self._places = asyncio.Semaphore(_connect.CONNECTIONS_MAX)
        self._closed = False

    async def call(self, send: Send) -> memoryview:
        """See AsyncTransport."""
        if self._closed:
            raise ClientClosed("the client was closed")
        url = self._target.url
        timeout = asyncio.timeout(_connect.remaining_seconds(url, send.deadline))
        try:
            async with timeout, self._places:
                return await self._call(send)
        except TimeoutError:
            # DeadlineExceeded from the server is a TimeoutError as well; ours has expired.
            if timeout.expired():
                raise _connect.no_answer(url, send.deadline) from None
            raise

    async def _call(self, send: Send) -> memoryview:
        connection = self._take_idle(send)
        if connection is not None:
            try:
                return await self._exchange(connection, send)
            except _Stale as error:
                if send.once:
                    raise _connect.broken(self._target.url, error) from None
                # The server closed an idle connection just now, which isn't a failure of the call.
        connection = await self._connect()
        try:
            return await self._exchange(connection, send)
        except _Stale as error:
            raise _connect.broken(self._target.url, error) from None

    async def _exchange(self, connection: _Connection, send: Send) -> memoryview:
        url = self._target.url
        head = _connect.request_head(self._target, send, time.monotonic())
        reusable = False
        try:
            reader = await connection.exchange(head, send)
            reusable = reader.reusable and connection.open and not self._closed
            return _connect.reply_body(url, reader)
        except HttpError as error:
            raise _connect.unspoken(url, error) from None
        except ConnectionError as error:
            if isinstance(error, Unavailable):
                raise
            raise _connect.broken(url, error) from None
        finally:
            # Also when cancelled: the response would be taken for the next request's.
            if reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def _take_idle(self, send: Send) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            # The loop tells when a server closes one, if it had a turn since.
            if connection.is_alive() if send.once else connection.open:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        target, loop = self._target, asyncio.get_running_loop()
        try:
            if target.scheme in ("unix", "local"):
                with _connect.socket_path(target) as path:
                    _, connection = await loop.create_unix_connection(_Connection, path)
            else:
                _, connection = await loop.create_connection(
                    _Connection,
                    target.host,
                    target.port,
                    ssl=self._tls,
                    server_hostname=target.host if self._tls else None,
                )
        except OSError as error:
            raise _connect.unreachable(target, error) from None
        return connection

    async def aclose(self) -> None:
        """See AsyncTransport."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        # abort() closes the sockets in the loop's next turn.
        await asyncio.sleep(0)
