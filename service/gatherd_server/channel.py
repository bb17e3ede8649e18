"""The supervisor's channel, as its children see it: a socket that lines come in on.

A child is `python -P -m MODULE FD`, FD being its end. The first line is its brief; it answers with
one line, ready or failed. Each later line has settings that changed. When the channel closes, for
whatever reason, the child ends.
"""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Self

import uvloop

from gatherd.errors import GatherdError
from gatherd.store.memory import tune_allocator

LINE_BYTES_MAX = 64 << 10


class Channel:
    """A child's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def from_arguments(cls) -> Self:
        """The one that argv names."""
        return cls(socket.socket(fileno=int(sys.argv[1])))

    def read_line(self) -> bytes:
        """The brief; empty when the supervisor is gone."""
        # Unbuffered: a second line, if there is one already, is for `closed` to read.
        with self._socket.makefile("rb", buffering=0) as lines:
            return lines.readline()

    def tell_ready(self) -> None:
        """Say that all is up."""
        self._tell({"event": "ready"})

    def tell_failed(self, message: str) -> None:
        """Say why nothing will be."""
        self._tell({"event": "failed", "message": message})

    def _tell(self, event: dict[str, str]) -> None:
        self._socket.sendall(json.dumps(event).encode() + b"\n")

    def closed(self, on_change: Callable[[dict[str, Any]], None]) -> asyncio.Event:
        """Set when the supervisor closes the channel or dies, or SIGTERM comes; on a loop.

        `on_change` is called with settings that changed.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        received = b""

        def on_channel() -> None:
            nonlocal received
            try:
                data = self._socket.recv(LINE_BYTES_MAX)
            except OSError:
                data = b""
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
    """Run a child: `main` is given the channel and the brief."""
    # Ctrl-C reaches the whole process group; stopping is the supervisor's to order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So is reloading; a terminal that closes sends it to all of us.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    channel = Channel.from_arguments()
    line = channel.read_line()
    if not line:
        return
    tune_allocator()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(channel, line))
    except GatherdError as error:
        channel.tell_failed(error.message)
        sys.exit(1)
