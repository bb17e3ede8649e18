"""Reads a stream of requests ahead of the answers, and so that it can end at any time.

grpc gives a stream's requests as an iterator that blocks until the client sends or hangs up;
nothing else wakes it. So each stream has a thread that reads it into a bounded queue. The handler
waits on the queue, and can end the call while the client is silent.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

# Requests of one stream that are read and not yet answered; more wait in HTTP/2's window.
QUEUE_MAX: Final = 16
# Bytes of these requests, unless a single one has more.
QUEUE_BYTES_MAX: Final = 4 << 20
# While draining, a stream that is silent for so long has been answered in full.
DRAIN_IDLE_SECONDS: Final = 0.05


class _Signal(Enum):
    END = auto()  # the client has sent everything, or the call is over
    WAKE = auto()  # a drain has begun


class RequestReader:
    """Reads one stream's requests on a thread. One handler iterates it; any thread may drain it."""

    def __init__(self, bodies: Iterator[bytes]) -> None:
        self.has_ended = False
        """Whether everything was read, to the end that the client set."""
        self._bodies = bodies
        self._queue: queue.Queue[bytes | _Signal] = queue.Queue(QUEUE_MAX)
        self._queued_bytes = 0
        self._room = threading.Condition()
        self._drain_deadline: float | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._read, name="gatherd-stream", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def drain(self, deadline: float) -> None:
        """End the iteration once all received requests are given, or at a monotonic `deadline`."""
        self._drain_deadline = deadline
        with contextlib.suppress(queue.Full):  # a full queue wakes its reader anyway
            self._queue.put_nowait(_Signal.WAKE)

    def close(self) -> None:
        """Stop reading. The thread ends with the call at the latest."""
        self._is_closed = True
        with self._room:
            self._room.notify()
        with contextlib.suppress(queue.Empty):
            while True:  # lets a put that waits for room go on
                self._queue.get_nowait()

    def __iter__(self) -> Iterator[bytes]:
        """The requests in order, until the client ends them or a drain does."""
        while True:
            deadline = self._drain_deadline
            if deadline is not None and time.monotonic() >= deadline:
                return
            try:
                body = self._queue.get(timeout=None if deadline is None else DRAIN_IDLE_SECONDS)
            except queue.Empty:
                return
            if body is _Signal.END:
                self.has_ended = True
                return
            if isinstance(body, bytes):
                with self._room:
                    self._queued_bytes -= len(body)
                    self._room.notify()
                yield body

    def _read(self) -> None:
        # When the call is cancelled the iterator raises a bare Exception, and nobody listens.
        with contextlib.suppress(Exception):
            for body in self._bodies:
                self._wait_for_room(len(body))
                self._queue.put(body)
                if self._is_closed:
                    return
        self._queue.put(_Signal.END)

    def _wait_for_room(self, nbytes: int) -> None:
        with self._room:
            self._room.wait_for(
                lambda: (
                    self._is_closed
                    or not self._queued_bytes
                    or self._queued_bytes + nbytes <= QUEUE_BYTES_MAX
                )
            )
            self._queued_bytes += nbytes
