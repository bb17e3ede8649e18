"""Connect for an event loop: an asyncio protocol over the same codec as http.py.

Belongs to one event loop; AsyncClient sees to that.
"""

import asyncio
import os
import socket
import ssl
import sys
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._plans.effects import Deadline, Send
from gatherd._plans.foreseen import Foreseen, Varying
from gatherd.errors import ClientClosed, DeadlineExceeded, GatherdError
from gatherd.transports import connect, mismatch
from gatherd.transports.connection_aio import EventLoopConnection
from gatherd.transports.credentials import Credentials
from gatherd.transports.http1 import HttpError
from gatherd.transports.proxy import ANSWER_BYTES_MAX
from gatherd.transports.target import Target

_FAILURES = (connect.TimeIsUp, HttpError, OSError)


class _Places:
    """Bounds how many exchanges are under way. Waiting ones get a place in turn."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiters: deque[asyncio.Future[None]] = deque()

    def take_now(self) -> bool:
        """Take a place if one is free and no exchange waits; whether it was taken."""
        if self._free <= 0 or self._waiters:
            return False
        self._free -= 1
        return True

    async def take(self) -> None:
        """Take a place, when one is free."""
        if self.take_now():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.give()  # it was given a place just before it was cancelled
            else:
                self._waiters.remove(waiter)
            raise

    def give(self) -> None:
        """Give a place back."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1


class AsyncHttpTransport:
    """Connect over TCP, TLS or a Unix socket; for a local: URL over the data dir's socket."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        self._target = target
        self._tls: ssl.SSLContext | None = connect.tls_context(credentials) if target.tls else None
        self._heads = connect.Heads(target, credentials)
        self._idle: list[EventLoopConnection] = []
        self._places = _Places(connect.CONNECTIONS_MAX)
        self._closed = False
        self._probe = mismatch.Probe(target)

    async def ask_foreseen(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview:
        """See AsyncTransport."""
        wire = self._heads.wire(foreseen)
        if not wire.expected or not self._idle or not self._places.take_now():
            return await self._send_whole(foreseen, varying, deadline)
        connection = self._idle.pop()
        targets = foreseen.targets(out) if len(foreseen.parts) == 1 else None
        later = np.empty(wire.later_bytes, np.uint8) if targets is None else targets[0]
        usable = False
        try:
            pieces = connect.foreseen_pieces(wire, varying, deadline.at - time.monotonic())
            into = connect.bytes_of(later)
            is_foreseen = await connection.begin(pieces, deadline.at, wire.expected, into)
            usable = connection.reader.reusable
            if not is_foreseen:
                return self._body(connection, learn=foreseen.method)
            found = foreseen.split(into, out) if targets is None else targets
            return memoryview(foreseen.prefix + into) if found is None else found
        except connect.Stale:
            pass  # the server closed an idle connection just now: not a failure of the call
        except _FAILURES as error:
            raise self._explained(error, deadline) from None
        finally:
            self._put_back(connection, usable=usable)
            self._places.give()
        return await self._send_whole(foreseen, varying, deadline)

    async def _send_whole(
        self, foreseen: Foreseen, varying: Varying, deadline: Deadline
    ) -> memoryview:
        send = Send(foreseen.method, foreseen.request(varying), deadline)
        return await self._call(send, learn=foreseen.method)

    async def call(self, send: Send) -> memoryview:
        """See AsyncTransport."""
        return await self._call(send)

    async def _call(self, send: Send, *, learn: str | None = None) -> memoryview:
        if self._closed:
            raise ClientClosed("the client was closed")
        if not self._places.take_now():
            await self._in_time(self._places.take(), send.deadline)
        try:
            connection = self._take_idle(send)
            if connection is not None:
                try:
                    return await self._exchange(connection, send, learn=learn)
                except connect.Stale as error:
                    if send.once:
                        raise connect.broken(self._target.url, error) from None
                    # The server closed an idle connection just now: not a failure of the call.
            connection = await self._in_time(self._connect(), send.deadline)
            try:
                return await self._exchange(connection, send, learn=learn)
            except connect.Stale as error:
                found = await self._probed(send.deadline)
                raise connect.broken(self._target.url, error, found) from None
        finally:
            self._places.give()

    async def _probed(self, deadline: Deadline) -> str:
        """What the port speaks, after a first connection that was closed unanswered."""
        if not self._probe.is_due():
            return ""
        return await asyncio.to_thread(self._probe.hint, deadline.at - time.monotonic())

    async def _exchange(
        self, connection: EventLoopConnection, send: Send, *, learn: str | None
    ) -> memoryview:
        head = self._heads.request(send, time.monotonic())
        usable = False
        try:
            await connection.begin(connect.outgoing(head, send), send.deadline.at)
            usable = connection.reader.reusable
            return self._body(connection, learn=learn)
        except _FAILURES as error:
            raise self._explained(error, send.deadline) from None
        finally:
            self._put_back(connection, usable=usable)

    def _body(self, connection: EventLoopConnection, *, learn: str | None) -> memoryview:
        reader = connection.reader
        body = connect.reply_body(self._target.url, reader)
        if learn is not None and reader.reusable:
            self._heads.learn(learn, reader)
        return body

    def _put_back(self, connection: EventLoopConnection, *, usable: bool) -> None:
        """Keep a connection for the next request, or close it.

        It is closed also when the call was cancelled: the response would be taken for the next
        request's.
        """
        if usable and connection.open and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def _explained(self, error: Exception, deadline: Deadline) -> GatherdError:
        """The error to raise for an exchange that failed."""
        if isinstance(error, GatherdError):
            return error  # some are OSErrors as well
        if isinstance(error, HttpError):
            return connect.unspoken(self._target, error)
        if isinstance(error, connect.TimeIsUp):
            return connect.no_answer(self._target.url, deadline)
        return connect.broken(self._target.url, error)

    def _take_idle(self, send: Send) -> EventLoopConnection | None:
        while self._idle:
            connection = self._idle.pop()
            # The loop notices that a server closed one, if it had a turn since.
            if connection.is_alive() if send.once else connection.open:
                return connection
            connection.close()
        return None

    async def _in_time(self, awaitable: Any, deadline: Deadline) -> Any:
        """The result of `awaitable`; DeadlineExceeded when that takes too long."""
        timeout = asyncio.timeout(deadline.at - time.monotonic())
        try:
            async with timeout:
                return await awaitable
        except TimeoutError as error:
            # A connection can time out as well; here our own timeout has expired.
            if timeout.expired() and not isinstance(error, DeadlineExceeded):
                raise connect.no_answer(self._target.url, deadline) from None
            raise

    async def _connect(self) -> EventLoopConnection:
        target, loop = self._target, asyncio.get_running_loop()
        try:
            if target.scheme in ("unix", "local"):
                with connect.socket_path(target) as path:
                    _, connection = await loop.create_unix_connection(EventLoopConnection, path)
            else:
                where: dict[str, Any] = dict(zip(("host", "port"), target.dialled, strict=True))
                if target.proxy is not None and self._tls is not None:
                    where = {"sock": await self._tunnel(loop)}
                transport, connection = await loop.create_connection(
                    EventLoopConnection,
                    **where,
                    ssl=self._tls,
                    server_hostname=target.host if self._tls else None,
                )
                _notice_vanishing(transport.get_extra_info("socket"))
        except OSError as error:
            raise connect.unreachable(target, error) from None
        return connection

    async def _tunnel(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        """A socket with an open tunnel through the proxy."""
        tunnel = connect.Tunnel(self._target)
        failure: OSError | None = None
        for family, kind, protocol, _, address in await loop.getaddrinfo(
            *self._target.dialled, type=socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, tunnel.request)
                # In TLS the client speaks first: nothing follows the proxy's answer.
                while not tunnel.received(await loop.sock_recv(sock, ANSWER_BYTES_MAX)):
                    pass
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError):
                    raise
                failure = error
            else:
                return sock
        raise failure or OSError(f"the proxy {self._target.dialled[0]} has no address")

    def abandon(self) -> None:
        """See AsyncTransport."""
        self._closed = True
        while self._idle:
            self._idle.pop().abandon()

    async def aclose(self) -> None:
        """See AsyncTransport."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        # abort() closes the sockets in the loop's next turn.
        await asyncio.sleep(0)


def _notice_vanishing(sock: Any) -> None:
    """As `notice_vanishing` of connect.py, for the event loop's own kind of socket."""
    if sys.platform == "win32":
        connect.notice_vanishing(sock)
        return
    # By a copy of the descriptor, because uvloop's own socket object sets no options.
    with socket.socket(fileno=os.dup(sock.fileno())) as copied:
        connect.notice_vanishing(copied)
