"""Connect over blocking sockets: one request at a time on a connection, connections kept in a pool.

Safe to use from many threads. After a fork the child leaves the parent's connections alone: it
closes its copies of the sockets, which the parent doesn't notice, and makes its own.
"""

# getaddrinfo imports it at its first call. A fork during that would leave the child waiting for an
# import by a thread that it doesn't have.
import encodings.idna  # noqa: F401 - see above
import os
import socket
import time
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import Any
from weakref import ref

from numpy.typing import NDArray

from gatherd._plans.effects import Deadline, Send
from gatherd._plans.foreseen import Foreseen, Varying
from gatherd.busy_poll import BUSY_POLL_US, checked_microseconds
from gatherd.errors import ClientClosed, GatherdError
from gatherd.transports import connect, mismatch
from gatherd.transports.connection import BlockingConnection
from gatherd.transports.credentials import Credentials
from gatherd.transports.http1 import HttpError
from gatherd.transports.proxy import ANSWER_BYTES_MAX
from gatherd.transports.target import Target

_FAILURES = (OSError, HttpError)
# How often a waiting call looks for a connection, in case no other call has woken it.
LOOK_SECONDS = 0.1


class _Pool:
    """The connections of one process: the one used last is used first, so the rest can go idle.

    An exception may be raised at any instant, as by Ctrl-C, and the step that it interrupts isn't
    made up for. So nothing is counted and no lock is held: a connection is either idle, and then in
    a deque with atomic methods, or a call's own. A dropped connection is thereby closed, and a
    closed one takes no place. A call that waits for a place is woken, and looks by itself now and
    then.
    """

    def __init__(self) -> None:
        self._idle: deque[BlockingConnection] = deque()
        # All open ones, and some that have been closed.
        self._known: list[ref[BlockingConnection]] = []
        self._waiting: deque[Lock] = deque()  # each locked until it is worth a look
        self._closed = False

    def idle(self) -> BlockingConnection | None:
        """An idle connection, if there is one."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def idle_unless_awaited(self) -> BlockingConnection | None:
        """As `idle`, but None while other calls wait for one: they come first."""
        return None if self._waiting else self.idle()

    @property
    def is_alone(self) -> bool:
        """Whether just one connection is in use: others would need the core that polling takes."""
        return len(self._known) - len(self._idle) == 1

    def acquire(self, url: str, deadline: Deadline, busy_poll_us: int) -> BlockingConnection:
        """A connection for the caller's use: an idle one, or one that isn't connected yet."""
        connection = self.idle_unless_awaited()
        if connection is None and not self._waiting:
            connection = self._new(busy_poll_us)
        if connection is not None:
            return connection
        gate = Lock()
        gate.acquire()
        self._waiting.append(gate)  # before looking: `release` reads it after giving one back
        try:
            while not self._closed:
                connection = self.idle() or self._new(busy_poll_us)
                if connection is not None:
                    return connection
                left = connect.remaining_seconds(url, deadline)
                if gate.acquire(timeout=min(left, LOOK_SECONDS)):
                    self._waiting.appendleft(gate)  # the waker took it out
        finally:
            with suppress(ValueError):
                self._waiting.remove(gate)
        raise ClientClosed("the client was closed")

    def _new(self, busy_poll_us: int) -> BlockingConnection | None:
        """One more connection, if there is room."""
        self._forget_closed()
        if len(self._known) >= connect.CONNECTIONS_MAX:
            return None
        connection = BlockingConnection(busy_poll_us)
        known = ref(connection)
        self._known.append(known)
        if len(self._known) <= connect.CONNECTIONS_MAX:
            return connection
        self._known.remove(known)  # others were faster
        return None

    def _forget_closed(self) -> None:
        for known in self._known.copy():
            connection = known()
            if connection is None or connection.closed:
                with suppress(ValueError):  # another thread does the same
                    self._known.remove(known)

    def release(self, connection: BlockingConnection) -> None:
        """Take a connection back for others to use; from then on the caller leaves it alone."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._closed:
            self._drain()
        elif self._waiting:
            self._wake()

    def discard(self, connection: BlockingConnection) -> None:
        """Close the caller's connection, which makes room for another."""
        connection.close()
        self._forget_closed()
        self._wake()

    def _wake(self) -> None:
        with suppress(IndexError, RuntimeError):  # no call waits any more, or it was woken already
            self._waiting.popleft().release()

    def close(self) -> None:
        """Close idle connections now, and those in use when they come back."""
        self._closed = True
        while self._waiting:
            self._wake()
        self._drain()

    def _drain(self) -> None:
        while (connection := self.idle()) is not None:
            connection.close()

    def abandon(self) -> None:
        """Close a forked child's copies."""
        for known in self._known:
            connection = known()
            if connection is not None:
                connection.close()


class HttpTransport:
    """Connect over TCP, TLS or a Unix socket; for a local: URL over the data dir's socket."""

    def __init__(
        self, target: Target, credentials: Credentials, busy_poll_us: int = BUSY_POLL_US
    ) -> None:
        """InvalidArgument unless `busy_poll_us` is an integer from 0 to BUSY_POLL_US_MAX."""
        self._busy_poll_us = checked_microseconds(busy_poll_us)
        self._target = target
        self._tls = connect.tls_context(credentials) if target.tls else None
        # TLS and Windows have no call that fills several buffers; with TLS it would save little.
        self._takes_foreseen = self._tls is None and hasattr(socket.socket, "recvmsg_into")
        self._heads = connect.Heads(target, credentials)
        self._closed = False
        self._probe = mismatch.Probe(target)
        # By process: a dict's setdefault and pop need no lock, which a fork could leave locked.
        self._pools: dict[int, _Pool] = {os.getpid(): _Pool()}

    def ask_foreseen(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview:
        """See Transport."""
        pool = self._pools.get(os.getpid())
        wire = self._heads.wire(foreseen)
        connection = None
        if pool is not None and wire.expected and self._takes_foreseen:
            connection = pool.idle_unless_awaited()
        if pool is None or connection is None:
            return self._send_whole(foreseen, varying, deadline)
        try:
            idle_seconds = time.monotonic() - connection.idle_since
            if idle_seconds > connect.IDLE_UNCHECKED_SECONDS:
                connection.check_alive()
            targets = foreseen.targets(out)
            buffers, heads = foreseen.landing(targets)
            is_foreseen = connection.ask(
                wire, varying, buffers, deadline.at, stay_awake=pool.is_alone
            )
        except connect.Stale:
            # The server closed an idle connection just now, which isn't a failure of the call.
            pool.discard(connection)
            return self._send_whole(foreseen, varying, deadline)
        except _FAILURES as error:
            pool.discard(connection)
            raise self._explained(error, deadline) from None
        except BaseException:
            pool.discard(connection)
            raise
        if not is_foreseen:
            return self._finish(pool, connection, learn=foreseen.method)
        if connection.reader.reusable:
            pool.release(connection)
        else:
            pool.discard(connection)
        if heads != foreseen.later_heads:
            return memoryview(b"".join((foreseen.prefix, *buffers)))
        return targets

    def _send_whole(self, foreseen: Foreseen, varying: Varying, deadline: Deadline) -> memoryview:
        send = Send(foreseen.method, foreseen.request(varying), deadline)
        return self._call(send, learn=foreseen.method)

    def call(self, send: Send) -> memoryview:
        """See Transport."""
        return self._call(send)

    def _call(self, send: Send, *, learn: str | None = None) -> memoryview:
        pool = self._pool()
        connection = pool.acquire(self._target.url, send.deadline, self._busy_poll_us)
        try:
            if connection.is_connected and not self._is_usable(connection, send):
                connection.disconnect()
            fresh = not connection.is_connected
            if fresh:
                self._connect(connection, send.deadline)
            try:
                self._exchange(pool, connection, send)
            except connect.Stale as error:
                if fresh or send.once:
                    found = self._probed(send.deadline) if fresh else ""
                    raise connect.broken(self._target.url, error, found) from None
                # The server closed an idle connection just now, which isn't a failure of the call.
                connection.disconnect()
                self._connect(connection, send.deadline)
                try:
                    self._exchange(pool, connection, send)
                except connect.Stale as again:
                    raise connect.broken(self._target.url, again) from None
        except BaseException:
            # Whatever was raised, the connection's next response could be the answer to this call.
            pool.discard(connection)
            raise
        return self._finish(pool, connection, learn=learn)

    def _probed(self, deadline: Deadline) -> str:
        """What the port speaks, after a first connection that was closed unanswered."""
        if not self._probe.is_due():
            return ""
        return self._probe.hint(deadline.at - time.monotonic())

    def _finish(
        self, pool: _Pool, connection: BlockingConnection, *, learn: str | None
    ) -> memoryview:
        reader = connection.reader
        try:
            # The reader belongs to the connection, so it is read before the connection goes back.
            body = connect.reply_body(self._target.url, reader)
            if learn is not None and reader.reusable:
                self._heads.learn(learn, reader)
            return body
        finally:
            if reader.reusable:
                pool.release(connection)
            else:
                pool.discard(connection)

    def _exchange(self, pool: _Pool, connection: BlockingConnection, send: Send) -> None:
        head = self._heads.request(send, time.monotonic())
        try:
            connection.exchange(head, send, stay_awake=pool.is_alone)
        except _FAILURES as error:
            raise self._explained(error, send.deadline) from None

    def _explained(self, error: OSError | HttpError, deadline: Deadline) -> GatherdError:
        """The error to raise for an exchange that failed."""
        if isinstance(error, TimeoutError):
            return connect.no_answer(self._target.url, deadline)
        if isinstance(error, OSError):
            return connect.broken(self._target.url, error)
        return connect.unspoken(self._target, error)

    def _is_usable(self, connection: BlockingConnection, send: Send) -> bool:
        idle = time.monotonic() - connection.idle_since
        unchecked = idle < connect.IDLE_UNCHECKED_SECONDS and not send.once
        return unchecked or connection.is_alive()

    def _connect(self, connection: BlockingConnection, deadline: Deadline) -> None:
        target = self._target
        try:
            sock = self._dial(deadline)
        except TimeoutError:
            raise connect.no_answer(target.url, deadline) from None
        except OSError as error:
            raise connect.unreachable(target, error) from None
        connection.connect(sock)

    def _dial(self, deadline: Deadline) -> socket.socket:
        """A connected socket; OSError when no address of the host takes the connection."""
        target = self._target
        if target.scheme in ("unix", "local"):
            with connect.socket_path(target) as path:
                return self._dial_one(socket.AF_UNIX, path, deadline)
        # The resolver takes no deadline; resolv.conf sets its own.
        found = socket.getaddrinfo(*target.dialled, type=socket.SOCK_STREAM)
        failure: OSError | None = None
        for family, _, _, _, address in found:
            try:
                return self._dial_one(family, address, deadline)
            except TimeoutError:
                raise
            except OSError as error:
                failure = error
        raise failure or OSError(f"{target.host} has no address")

    def _dial_one(self, family: int, address: object, deadline: Deadline) -> socket.socket:
        target = self._target
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(connect.remaining_seconds(target.url, deadline))
            sock.connect(address)  # type: ignore[arg-type]  # its type depends on the family
            if target.scheme not in ("unix", "local"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connect.notice_vanishing(sock)
            if self._tls is not None:
                if target.proxy is not None:
                    self._open_tunnel(sock, deadline)
                sock.settimeout(connect.remaining_seconds(target.url, deadline))
                return self._tls.wrap_socket(sock, server_hostname=target.host)
        except BaseException:
            sock.close()
            raise
        return sock

    def _open_tunnel(self, sock: socket.socket, deadline: Deadline) -> None:
        tunnel = connect.Tunnel(self._target)
        sock.sendall(tunnel.request)
        # In TLS the client speaks first: nothing follows the proxy's answer.
        while not tunnel.received(sock.recv(ANSWER_BYTES_MAX)):
            sock.settimeout(connect.remaining_seconds(self._target.url, deadline))

    def _pool(self) -> _Pool:
        if self._closed:
            raise ClientClosed("the client was closed")
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            for other in [other for other in self._pools if other != pid]:
                inherited = self._pools.pop(other, None)
                if inherited is not None:
                    inherited.abandon()
            pool = self._pools.setdefault(pid, _Pool())
        return pool

    def close(self) -> None:
        """See Transport."""
        if not self._closed:
            pool = self._pool()
            self._closed = True
            pool.close()
