"""The supervisor's channel, as its children see it: a socket on which lines arrive.

A child is `python -P -m gatherd_server.processes.begin FD MODULE`, FD being its end. The first line
is its brief; it answers with one line, ready or failed. Each later line has settings that changed,
or a step of replacing files (replacing.py), whose descriptors come with it. When the channel
closes, for any reason, the child ends: at once while it starts, in good order once it serves, and
by force if that takes longer than its supervisor would have waited. A thread watches the channel,
because a start can wait for something that never comes, such as the other children.
"""

import asyncio
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

import uvloop

from gatherd.errors import GatherdError
from gatherd.store.memory import tune_allocator
from gatherd_server.processes.child import FDS_MAX

LINE_BYTES_MAX = 64 << 10
# The status of a child that ended because its supervisor is gone.
ORPHANED_STATUS = 3


class Channel:
    """A child's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._stop_seconds: float | None = None
        self._fds: list[int] = []

    @classmethod
    def from_arguments(cls) -> Self:
        """The channel that argv names."""
        return cls(socket.socket(fileno=int(sys.argv[1])))

    def read_line(self) -> bytes:
        """The brief; empty when the supervisor is gone."""
        # Unbuffered: `closed` must read a second line that is there already.
        with self._socket.makefile("rb", buffering=0) as lines:
            return lines.readline()

    def watch(self) -> None:
        """From here on this process ends when the supervisor is gone, whatever else it does."""
        threading.Thread(target=self._end_with_supervisor, name="channel", daemon=True).start()

    def _end_with_supervisor(self) -> None:
        # Nothing is logged here: the reader of the log may be gone too, or have stopped reading.
        changes = select.poll()
        changes.register(self._socket, select.POLLRDHUP)
        changes.poll()  # until the supervisor asks for the end, or is gone
        with self._lock:
            if self._stop_seconds is None:
                os._exit(ORPHANED_STATUS)
        changes.modify(self._socket, 0)
        changes.poll()  # until the supervisor is gone
        time.sleep(self._stop_seconds)
        os._exit(ORPHANED_STATUS)

    def tell_ready(self) -> None:
        """Say that everything is up."""
        self._tell({"event": "ready"})

    def tell_failed(self, message: str) -> None:
        """Say why the start failed."""
        self._tell({"event": "failed", "message": message})

    def tell_mapped(self, number: int, failure: str) -> None:
        """Say that the new files of reload `number` are mapped, or why they can't be."""
        self._tell({"event": "mapped", "number": number, "message": failure})

    def take_fds(self, count: int) -> list[int]:
        """The descriptors that came with the line at hand, for the caller to close."""
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken

    def _tell(self, event: dict[str, Any]) -> None:
        # The watching thread notices a supervisor that is gone.
        with suppress(OSError):
            self._socket.sendall(json.dumps(event).encode() + b"\n")

    def closed(
        self, on_change: Callable[[dict[str, Any]], None], stop_seconds: float
    ) -> asyncio.Event:
        """An event, set when the supervisor closes the channel or dies, or at SIGTERM.

        Call it on the event loop, before anything is accepted. Until then the process ends at once
        if the supervisor is gone; afterwards it has `stop_seconds`. `on_change` is called with
        each line: settings that changed, or a step of replacing files.
        """
        with self._lock:
            self._stop_seconds = stop_seconds
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        received = b""

        def on_channel() -> None:
            nonlocal received
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, LINE_BYTES_MAX, FDS_MAX)
            except OSError:
                data, fds = b"", []
            for fd in fds:
                os.set_inheritable(fd, False)
            self._fds += fds
            if not data:
                loop.remove_reader(self._socket)
                stop.set()
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                on_change(json.loads(line))

        loop.add_reader(self._socket, on_channel)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        return stop


def run_child(main: Callable[[Channel, bytes], Coroutine[Any, Any, None]]) -> None:
    """Run a child: `main` gets the channel and the brief."""
    # Ctrl-C reaches the whole process group, but only the supervisor orders a stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Only the supervisor reloads, too; a closing terminal sends SIGHUP to all of us.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    channel = Channel.from_arguments()
    line = channel.read_line()
    if not line:
        return
    channel.watch()
    tune_allocator()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(channel, line))
    except GatherdError as error:
        channel.tell_failed(error.message)
        sys.exit(1)
