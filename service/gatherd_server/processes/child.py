"""A process of the server, as its supervisor handles it: start, messages, restart.

channel.py is the other end of its channel.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

RESTART_SECONDS_MIN: Final = 0.1
RESTART_SECONDS_MAX: Final = 5.0
# A child that served this long before it died is restarted without a longer pause.
STEADY_SECONDS: Final = 10.0
# grpc's newer event engine makes a small call take a fifth longer than the older one; see
# docs/performance.md. grpc reads this when it is imported, and logs a name that it doesn't know.
ENVIRONMENT: Final = {
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    # Searches for neighbors have threads of their own. Those of BLAS wait awake for each other: on
    # cores that others use too, products take ten times as long with them.
    "OPENBLAS_NUM_THREADS": "1",
}
BEGIN: Final = "gatherd_server.processes.begin"
# Descriptors that go with one line; the kernel takes no more at once.
FDS_MAX: Final = 253
_LINE_BYTES_MAX: Final = 64 << 10


@dataclass(slots=True)
class Child:
    """A place for a process, and the process that has it at the moment."""

    name: str
    module: str
    brief: Callable[[bool], bytes]
    """Makes its brief, given whether another process had its place before."""
    inherits: Callable[[], tuple[int, ...]]
    """The descriptors that it inherits."""
    selector: selectors.BaseSelector
    """Its channel is registered here, with the child as `data`."""
    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    received: bytes = b""
    is_ready: bool = False
    started: float = 0.0
    was_started: bool = False
    restart_at: float | None = None
    restart_seconds: float = field(default=RESTART_SECONDS_MIN)

    def start(self) -> None:
        """Spawn a process and send it its brief."""
        ours, theirs = socket.socketpair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            self.process = subprocess.Popen(
                # -P: a file called grpc.py in the current folder must not shadow the package.
                [sys.executable, "-P", "-m", BEGIN, str(theirs.fileno()), self.module],
                pass_fds=(theirs.fileno(), *self.inherits()),
                stdin=subprocess.DEVNULL,
                env={**ENVIRONMENT, **os.environ},
            )
        self.channel = ours
        self.received = b""
        self.is_ready = False
        self.started = time.monotonic()
        self.restart_at = None
        self.tell(self.brief(self.was_started))
        self.was_started = True
        ours.setblocking(False)
        self.selector.register(ours, selectors.EVENT_READ, self)

    def tell(self, lines: bytes, fds: Sequence[int] = ()) -> None:
        """Send whole lines, unless the process is ending; its successor gets a full brief.

        It gets copies of the descriptors `fds`, at most FDS_MAX, with the lines' first bytes.
        """
        if self.channel is not None:
            with suppress(OSError):
                sent = socket.send_fds(self.channel, [lines], fds) if fds else 0
                self.channel.sendall(lines[sent:])

    def read(self) -> list[dict[str, Any]]:
        """Its events since the last call; the channel is closed after the last one."""
        if self.channel is None:
            return []
        try:
            data = self.channel.recv(_LINE_BYTES_MAX)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            # The process is ending; SIGCHLD comes when it has ended.
            self.close_channel()
            return []
        *lines, self.received = (self.received + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def ask_to_end(self) -> None:
        """Have it answer its pending requests and end; it isn't restarted."""
        self.restart_at = None
        if self.channel is not None:
            with suppress(OSError):
                self.channel.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it now, if it runs."""
        self.close_channel()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close_channel(self) -> None:
        """Close the channel; nothing more is read from it."""
        if self.channel is not None:
            self.selector.unregister(self.channel)
            self.channel.close()
            self.channel = None

    def restart_later(self) -> None:
        """Set `restart_at`: soon if it had served a while, later each time it dies young."""
        is_steady = self.is_ready and time.monotonic() - self.started >= STEADY_SECONDS
        self.restart_seconds = (
            RESTART_SECONDS_MIN if is_steady else min(self.restart_seconds * 2, RESTART_SECONDS_MAX)
        )
        self.restart_at = time.monotonic() + self.restart_seconds


def describe_exit(status: int) -> str:
    """How a process ended, from its `returncode`."""
    if status >= 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name
    if name == "SIGBUS":
        return "was killed by SIGBUS: a file it serves was truncated in place, or its disk failed"
    return f"was killed by {name}"
