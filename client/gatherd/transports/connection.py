"""A connection over a blocking socket: one request at a time, and the response to it.

Left out on purpose: SO_RCVTIMEO in place of Python's timeouts. It would save a poll() for each
receive, about a microsecond, but a call in a process that gets signals would never time out: an
interrupted receive begins anew with its whole time.
"""

import errno
import socket
import time
from collections.abc import Sequence
from typing import Any

from gatherd._plans.effects import Send
from gatherd._plans.foreseen import Varying
from gatherd.busy_poll import BusyPoll
from gatherd.transports import connect as _connect
from gatherd.transports.http1 import ConnectionEnded, HttpError, ResponseReader, feed

# The socket's timeout is set anew only if it is shorter than the call's remaining time, or longer
# by more than this. So most calls need one system call less, and no call overstays its deadline by
# more.
REARM_SECONDS = 0.005


class BlockingConnection:
    """One connection and the reader of its responses. Used by one thread at a time."""

    def __init__(self, busy_poll_us: int) -> None:
        self._sock: socket.socket | None = None
        self._armed_seconds = -1.0
        self._start = bytearray(_connect.EXPECTED_BYTES_MAX)
        self._start_view = memoryview(self._start)
        self._surplus = bytearray(1)
        # For a reply's first bytes, and for later ones: polling may pay for one and not for the
        # other.
        self._first, self._more = BusyPoll(busy_poll_us), BusyPoll(busy_poll_us)
        self.reader = ResponseReader()
        self.idle_since = 0.0
        self.closed = False

    def connect(self, sock: socket.socket) -> None:
        """Use `sock`, which is connected."""
        self._armed_seconds = -1.0
        self._is_readable = _connect.readability(sock.fileno())
        self._sock = sock

    @property
    def is_connected(self) -> bool:
        """Whether there is a socket; not whether its peer has closed it."""
        return self._sock is not None

    def disconnect(self) -> None:
        """Close the socket, so that another one can take its place."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def exchange(self, head: bytes, send: Send, *, stay_awake: bool) -> ResponseReader:
        """Send a request and receive its response. Stale, TimeoutError, OSError, HttpError.

        `stay_awake` is as for `ask`, but applies only between the parts of a response: the wait for
        the first one depends on the request.
        """
        reader, ends_at = self.reader, send.deadline.at
        reader.reset()
        try:
            self._send(_connect.outgoing(head, send), ends_at)
            self._receive(ends_at, stay_awake)
        except TimeoutError:
            raise
        except (OSError, HttpError) as error:
            if reader.started:
                raise
            raise _connect.Stale(error) from error
        return reader

    def ask(
        self,
        wire: _connect.Wire,
        varying: Varying,
        buffers: Sequence[Any],
        ends_at: float,
        *,
        stay_awake: bool,
    ) -> bool:
        """Send a foreseen call and receive what its reply holds after the prefix into `buffers`.

        `stay_awake` says whether the wait may busy-poll; see BusyPoll.

        False if the response isn't the foreseen one: then it is complete in `reader`, and the
        content of `buffers` is undefined. Raises what `exchange` does. `reader.reusable` says
        whether the connection can be used again.
        """
        reader = self.reader
        reader.started = False  # it is reset only when it has something to read
        try:
            left = self._arm(ends_at)
            self._send(_connect.foreseen_pieces(wire, varying, left), ends_at)
            if stay_awake:
                self._await(self._first)
            return self._take(wire, buffers, ends_at, stay_awake)
        except TimeoutError:
            raise
        except (OSError, HttpError) as error:
            if reader.started:
                raise
            raise _connect.Stale(error) from error

    def _open(self) -> socket.socket:
        """The socket. OSError when it was closed."""
        if self._sock is None:
            raise OSError(errno.EBADF, "it was closed")
        return self._sock

    def _send(self, pieces: tuple[bytes | memoryview, ...], ends_at: float) -> None:
        sock = self._open()
        try:
            for piece in pieces:
                self._arm(ends_at)
                sock.sendall(piece)
        except BrokenPipeError:
            # A server may refuse a large body by answering before it has read it all: read the
            # answer.
            pass

    def _receive(self, ends_at: float, stay_awake: bool) -> None:
        reader, sock = self.reader, self._open()
        while not reader.done:
            if stay_awake and reader.started:
                self._await(self._more)
            self._arm(ends_at)
            count = sock.recv_into(reader.buffer())
            if count:
                reader.received(count)
            else:
                reader.eof()

    def _await(self, busy: BusyPoll) -> None:
        """Busy-poll until something comes, for a bounded time, if that is worthwhile."""
        if not busy.is_worthwhile():
            return
        is_readable, until = self._is_readable, time.perf_counter() + busy.seconds
        while not is_readable():
            if time.perf_counter() >= until:
                busy.missed()
                return
        busy.came()

    def _take(
        self, wire: _connect.Wire, buffers: Sequence[Any], ends_at: float, stay_awake: bool
    ) -> bool:
        """Receive the response, as `ask` says."""
        expected, end = wire.expected, wire.later_bytes
        size, reader, count = len(expected), self.reader, 0
        sock = self._open()
        while True:
            self._arm(ends_at)
            received = sock.recvmsg_into((self._start_view[count:size], *buffers, self._surplus))[0]
            count += received
            if received:
                reader.started = True
            if count >= size and self._start.startswith(expected):
                break
            if not received or count >= size or self._start[:count] != expected[:count]:
                self._take_otherwise(size, buffers, end, count, ends_at)
                return False
        at = count - size
        left = _behind(buffers, at) if at < end else []
        while at < end:
            if stay_awake:
                self._await(self._more)
            self._arm(ends_at)
            received = sock.recv_into(left[0]) if len(left) == 1 else sock.recvmsg_into(left)[0]
            if not received:
                raise ConnectionEnded("it was closed in the middle of the response")
            at += received
            left = _behind(left, received)
        # Bytes beyond the response answer nothing.
        reader.reusable = at == end
        return True

    def _take_otherwise(
        self, size: int, buffers: Sequence[Any], end: int, count: int, ends_at: float
    ) -> None:
        """Give the reader the `count` bytes that were received, and receive the rest."""
        reader = self.reader
        reader.reset()
        feed(reader, self._start_view[: min(count, size)])
        left = min(count - size, end)
        for buffer in buffers:
            if left > 0 and buffer.nbytes:
                feed(reader, _connect.bytes_of(buffer)[:left])
                left -= buffer.nbytes
        if count > size + end:
            feed(reader, memoryview(self._surplus))
        if not count:
            reader.eof()
        self._receive(ends_at, stay_awake=False)
        if count > size + end and not self.is_alive():
            # The buffers are full, so more bytes beyond the response may still be unread.
            reader.reusable = False

    def _arm(self, ends_at: float) -> float:
        """Let the socket wait until `ends_at`; returns the seconds. TimeoutError if it is over."""
        left = ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if not left <= self._armed_seconds <= left + REARM_SECONDS:
            self._armed_seconds = left + REARM_SECONDS / 2
            self._open().settimeout(self._armed_seconds)
        return left

    def is_alive(self) -> bool:
        """Whether an idle connection is still open, and silent as it should be."""
        return self._sock is not None and not self._is_readable()

    def check_alive(self) -> None:
        """Stale unless `is_alive`."""
        if not self.is_alive():
            raise _connect.Stale(ConnectionEnded("it was closed"))

    def close(self) -> None:
        """Close it for good, whatever is under way."""
        self.closed = True
        self.disconnect()


def _behind(buffers: Sequence[Any], count: int) -> list[Any]:
    """What is left of `buffers` after their first `count` bytes."""
    for i, buffer in enumerate(buffers):
        if count < buffer.nbytes:
            return [_connect.bytes_of(buffer)[count:], *buffers[i + 1 :]]
        count -= buffer.nbytes
    return []
