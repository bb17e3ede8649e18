"""Real `gatherd serve` processes, on ephemeral ports."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

# The very first start compiles kernels, and the suite may share its cores.
START_SECONDS = 180
STOP_SECONDS = 60


def run_cli(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `gatherd …` to its end, apart from settings that the environment may hold."""
    done = subprocess.run(
        [sys.executable, "-m", "gatherd_server", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=120,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"gatherd {arguments} exited {done.returncode}: {done.stderr}")
    return done


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GATHERD_")}


class RunningServer:
    """A server process, what it announced, and its addresses. Use it as a context manager.

    It has a process group of its own. Its log is appended to `log_path`. Without one it goes to a
    pipe, which isn't read before the end: that holds 64 KiB and then stops the server. `under` is a
    command that becomes the server by running the arguments after it.
    """

    def __init__(
        self,
        *arguments: str | Path,
        environment: dict[str, str] | None = None,
        log_path: Path | None = None,
        under: Sequence[str | Path] = (),
    ) -> None:
        command = [
            *map(str, under),
            sys.executable,
            "-m",
            "gatherd_server",
            "serve",
            *map(str, arguments),
        ]
        for option in ("--http", "--grpc"):
            if option not in command:
                command += [option, "127.0.0.1:0"]
        with ExitStack() as stack:
            log: IO[bytes] | int = subprocess.PIPE
            if log_path is not None:
                log = stack.enter_context(open(log_path, "ab"))
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**clean_environment(), **(environment or {})},
                process_group=0,
            )
        self.log = ""
        self._log_path = log_path
        self.announced = self.http = self.grpc = ""

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        output = self.process.stdout.fileno()
        announced = ""
        deadline = time.monotonic() + START_SECONDS
        while not re.search(r"^(?:  grpc |\{).*\n", announced, re.MULTILINE):
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(output, 65536) if ready else b""
            if not data:
                self.process.kill()
                errors = self._rest_of_log()
                raise AssertionError(f"the server didn't start:\n{announced}{errors}")
            announced += data.decode()
        self.announced = announced
        # As text, or as JSON with --log-format json.
        self.http = re.findall(r"\bhttps?://[\w.:\[\]]+", announced)[0]
        self.grpc = re.findall(r"\bgrpcs?://[\w.:\[\]]+", announced)[0]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, wait for the drain; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.log = self._rest_of_log(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode

    def kill(self) -> None:
        """Kill supervisor, workers and writer at once, by SIGKILL, and wait for their end."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.log = self._rest_of_log()

    def _rest_of_log(self, timeout_seconds: float | None = None) -> str:
        """The rest of the log when the server ends, or the whole file that it went to."""
        _, errors = self.process.communicate(timeout=timeout_seconds)
        if self._log_path is not None:
            return self._log_path.read_text(errors="replace")
        return errors or ""

    def worker_pids(self) -> list[int]:
        """The workers' process ids, by start."""
        return self._pids("gatherd_server.processes.worker")

    def writer_pids(self) -> list[int]:
        """The process id of the writer, if it is a process of its own and exists."""
        return self._pids("gatherd_server.processes.writer")

    def _pids(self, module: str) -> list[int]:
        return [pid for pid in children(self.process.pid) if module in arguments_of(pid)]


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """Process ids of the direct children of `pid`."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def private_bytes(pid: int) -> int:
    """The memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def pss_bytes(pid: int, mapped: str | None = None) -> int:
    """Proportional set size of a process, of all its memory or of the mappings of one file."""
    if mapped is None:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    total = 0
    is_mapped = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            is_mapped = mapped in line
        elif is_mapped and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Poll until `condition()` is true; AssertionError naming `what` when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not after {seconds} s: {what}")
        time.sleep(0.02)
