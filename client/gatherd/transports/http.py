"""Connect over blocking sockets: one request at a time on a connection, connections kept in a pool.

Safe to use from many threads. After a fork the child leaves the parent's connections alone: it
closes its copies of the sockets, which the parent doesn't notice, and makes its own.
"""

# getaddrinfo imports it at its first call. A fork during that would leave the child waiting for the
# import of a thread that it doesn't have.
import encodings.idna  # noqa: F401 - see above
import os
import socket
import threading
import time
from collections import deque

from gatherd._effects import Deadline, Send
from gatherd._http1 import HttpError, ResponseReader
from gatherd._target import Target
from gatherd.errors import ClientClosed, GatherdError
from gatherd.transports import _connect

# The socket's timeout is set anew when this much of the deadline has gone since it was set: a
# system call less for most, and no call overstays its deadline by more.
_REARM_SECONDS = 0.005


class _Stale(Exception):
    """The connection failed before a byte of the response came."""


class _Connection:
    """One connection and the reader of its responses. Used by one thread at a time."""

    def __init__(self, url: str, sock: socket.socket) -> None:
        self._url = url
        self._sock = sock
        self._reader = ResponseReader()
        self._armed_at = 0.0
        self._armed_for: Deadline | None = None
        self.idle_since = 0.0

    def exchange(self, head: bytes, send: Send) -> ResponseReader:
        """Send a request and receive its response. _Stale, TimeoutError, OSError, HttpError."""
        reader = self._reader
        reader.reset()
        try:
            self._send(head, send)
            while not reader.done:
                self._arm(send.deadline)
                count = self._sock.recv_into(reader.buffer())
                if count:
                    reader.received(count)
                else:
                    reader.eof()
        except TimeoutError:
            raise
        except (OSError, HttpError) as error:
            if reader.started:
                raise
            raise _Stale(error) from error
        return reader

    def _send(self, head: bytes, send: Send) -> None:
        try:
            for piece in _connect.outgoing(head, send):
                self._arm(send.deadline)
                self._sock.sendall(piece)
        except BrokenPipeError:
            # A server may refuse a large body by answering before it has read it all: look.
            pass

    def _arm(self, deadline: Deadline) -> None:
        now = time.monotonic()
        if deadline is not self._armed_for or now - self._armed_at > _REARM_SECONDS:
            self._armed_for, self._armed_at = deadline, now
            self._sock.settimeout(_connect.remaining_seconds(self._url, deadline))

    def is_alive(self) -> bool:
        """Whether an idle connection is still open, and silent as it should be."""
        return _connect.is_silent(self._sock.fileno())

    def close(self) -> None:
        self._sock.close()


class _Pool:
    """The connections of one process: the one used last is used first, so the rest can go idle."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._idle: deque[_Connection] = deque()
        self._all: set[_Connection] = set()
        self._open = 0
        self._waiting = 0
        self._closed = False

    def acquire(self, url: str, deadline: Deadline) -> _Connection | None:
        """An idle connection, or None and with it the right to make one."""
        with self._changed:
            while not self._closed:
                if self._idle:
                    return self._idle.pop()
                if self._open < _connect.CONNECTIONS_MAX:
                    self._open += 1
                    return None
                self._waiting += 1
                try:
                    self._changed.wait(_connect.remaining_seconds(url, deadline))
                finally:
                    self._waiting -= 1
        raise ClientClosed("the client was closed")

    def adopt(self, connection: _Connection) -> None:
        """Count a connection that was made by the right from `acquire`."""
        with self._changed:
            self._all.add(connection)

    def release(self, connection: _Connection) -> None:
        """Take a connection back for others to use."""
        connection.idle_since = time.monotonic()
        with self._changed:
            if not self._closed:
                self._idle.append(connection)
                if self._waiting:
                    self._changed.notify()
                return
        self.discard(connection)

    def discard(self, connection: _Connection | None, *, keep_right: bool = False) -> None:
        """Close a connection, and give back its place unless another takes it at once."""
        if connection is not None:
            connection.close()
        with self._changed:
            if connection is not None:
                self._all.discard(connection)
            if not keep_right:
                self._open -= 1
                if self._waiting:
                    self._changed.notify()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, deque()
            self._all.difference_update(idle)
            self._open -= len(idle)
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """Close a forked child's copies. No lock: a thread that isn't in the child may hold it."""
        for connection in self._all:
            connection.close()


class HttpTransport:
    """Connect over TCP, TLS or a Unix socket; that of a data dir for a local: URL."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tls = _connect.tls_context() if target.tls else None
        self._closed = False
        # By process: a dict's setdefault and pop need no lock, which a fork could leave locked.
        self._pools: dict[int, _Pool] = {os.getpid(): _Pool()}

    def call(self, send: Send) -> memoryview:
        """See Transport."""
        pool = self._pool()
        connection = pool.acquire(self._target.url, send.deadline)
        fresh = connection is None
        if connection is not None and not self._is_usable(connection, send):
            pool.discard(connection, keep_right=True)
            connection, fresh = None, True
        try:
            if connection is None:
                connection = self._connect(pool, send.deadline)
            try:
                reader = self._exchange(connection, send)
            except _Stale as error:
                if fresh or send.once:
                    raise _connect.broken(self._target.url, error) from None
                # The server closed an idle connection just now, which isn't a failure of the call.
                pool.discard(connection, keep_right=True)
                connection = None
                connection = self._connect(pool, send.deadline)
                try:
                    reader = self._exchange(connection, send)
                except _Stale as again:
                    raise _connect.broken(self._target.url, again) from None
        except BaseException:
            # Whatever it was, the connection's next response could be the answer to this call.
            pool.discard(connection)
            raise
        return self._finish(pool, connection, reader)

    def _finish(self, pool: _Pool, connection: _Connection, reader: ResponseReader) -> memoryview:
        try:
            # The reader belongs to the connection, so it is read before the connection goes back.
            return _connect.reply_body(self._target.url, reader)
        finally:
            if reader.reusable:
                pool.release(connection)
            else:
                pool.discard(connection)

    def _exchange(self, connection: _Connection, send: Send) -> ResponseReader:
        url = self._target.url
        head = _connect.request_head(self._target, send, time.monotonic())
        try:
            return connection.exchange(head, send)
        except GatherdError:
            raise
        except TimeoutError:
            raise _connect.no_answer(url, send.deadline) from None
        except OSError as error:
            raise _connect.broken(url, error) from None
        except HttpError as error:
            raise _connect.unspoken(url, error) from None

    def _is_usable(self, connection: _Connection, send: Send) -> bool:
        idle = time.monotonic() - connection.idle_since
        unchecked = idle < _connect.IDLE_UNCHECKED_SECONDS and not send.once
        return unchecked or connection.is_alive()

    def _connect(self, pool: _Pool, deadline: Deadline) -> _Connection:
        target = self._target
        try:
            sock = self._dial(deadline)
        except TimeoutError:
            raise _connect.no_answer(target.url, deadline) from None
        except OSError as error:
            raise _connect.unreachable(target, error) from None
        connection = _Connection(target.url, sock)
        pool.adopt(connection)
        return connection

    def _dial(self, deadline: Deadline) -> socket.socket:
        """A connected socket; OSError when no address of the host takes the connection."""
        target = self._target
        if target.scheme in ("unix", "local"):
            with _connect.socket_path(target) as path:
                return self._dial_one(socket.AF_UNIX, path, deadline)
        # The resolver can't be given a deadline; its own is a matter of resolv.conf.
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
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
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(_connect.remaining_seconds(self._target.url, deadline))
            sock.connect(address)  # type: ignore[arg-type]  # its type depends on the family
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock.settimeout(_connect.remaining_seconds(self._target.url, deadline))
                return self._tls.wrap_socket(sock, server_hostname=self._target.host)
        except BaseException:
            sock.close()
            raise
        return sock

    def _pool(self) -> _Pool:
        if self._closed:
            raise ClientClosed("the client was closed")
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            pool = self._pools.setdefault(pid, _Pool())
            for other in [other for other in self._pools if other != pid]:
                inherited = self._pools.pop(other, None)
                if inherited is not None:
                    inherited.abandon()
        return pool

    def close(self) -> None:
        """See Transport."""
        if not self._closed:
            pool = self._pool()
            self._closed = True
            pool.close()
