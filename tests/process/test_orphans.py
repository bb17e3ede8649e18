"""Nothing of a server outlives its supervisor, at whatever instant that is killed."""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support.server import RunningServer, arguments_of, run_cli, wait_until

# What a stop may take here: the drain, processes/channel.py's margin on top, and a busy machine.
DRAIN_SECONDS = 1
GONE_SECONDS = 20
# A start takes a second and a half; on a busy machine some instants are before its middle.
INSTANTS = 6
INSTANT_SECONDS_MAX = 2.5


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orphans") / "data"
    run_cli(
        "create", "t", "--rows", "100", "--dim", "4", "--optimizer", "sgd", "--data-dir", folder
    )
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def alive_in(group: int) -> list[int]:
    """Processes of a group that aren't zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, _, pgrp = entry.joinpath("stat").read_text().rpartition(")")[2].split()[:3]
                if int(pgrp) == group and state != "Z":
                    found.append(int(entry.name))
    return found


class Started:
    """A server from its first instant on."""

    def __init__(self, data_dir: Path, log_path: Path, *options: str) -> None:
        self.ports = [free_port(), free_port()]
        self.log_path = log_path
        http, grpc = (f"127.0.0.1:{port}" for port in self.ports)
        self.server = RunningServer(
            "--data-dir", data_dir, "--drain-seconds", str(DRAIN_SECONDS),
            "--http", http, "--grpc", grpc, *options, log_path=log_path,
        )  # fmt: skip
        self.pid = self.server.process.pid

    def logged(self, words: str) -> bool:
        return words in self.log_path.read_text()

    def runs(self, module: str) -> bool:
        return bool(self.server._pids(module))  # noqa: SLF001 - of the tests' own support

    def check_that_all_is_gone(self) -> None:
        wait_until(lambda: not alive_in(self.pid), "no process is left", GONE_SECONDS)
        # A zombie's other threads may be ending still, and hold it meanwhile.
        wait_until(lambda: all(map(is_free, self.ports)), "the ports are free", GONE_SECONDS)


@contextmanager
def started(data_dir: Path, log_path: Path, *options: str) -> Iterator[Started]:
    """Whatever is left of it at the end is killed."""
    one = Started(data_dir, log_path, *options)
    try:
        yield one
    finally:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.server.process.communicate()


def kill_when(one: Started, reached: Callable[[Started], bool]) -> None:
    wait_until(lambda: reached(one), "the step is reached", 60)
    one.server.process.kill()
    one.server.process.wait()


STEPS: dict[str, Callable[[Started], bool]] = {
    "a writer is there": lambda one: one.runs("gatherd_server.processes.writer"),
    "writer is ready": lambda one: one.logged("writer is ready"),
    "a worker is there": lambda one: one.runs("gatherd_server.processes.worker"),
    "a worker is ready": lambda one: one.logged("worker-0 is ready") or one.logged("worker-1 is"),
    "all is ready": lambda one: one.logged("worker-0 is ready") and one.logged("worker-1 is"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_supervisor_killed_at_a_step_leaves_nothing(
    step: str, data_dir: Path, tmp_path: Path
) -> None:
    with started(data_dir, tmp_path / "log", "--workers", "2") as one:
        kill_when(one, STEPS[step])
        one.check_that_all_is_gone()


def test_a_supervisor_killed_at_any_instant_leaves_nothing(data_dir: Path, tmp_path: Path) -> None:
    drawn = random.Random(11)
    for number in range(INSTANTS):
        with started(data_dir, tmp_path / f"{number}", "--workers", str(1 + number % 2)) as one:
            time.sleep(drawn.uniform(0, INSTANT_SECONDS_MAX))
            one.server.process.kill()
            one.server.process.wait()
            one.check_that_all_is_gone()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_supervisor_killed_while_it_drains_leaves_nothing(
    workers: str, data_dir: Path, tmp_path: Path
) -> None:
    with (
        started(data_dir, tmp_path / "log", "--workers", workers) as one,
        one.server,
        ExitStack() as stack,
    ):
        # One that waits for the rest of its body: the drain waits for it.
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", one.ports[0])))
        sock.sendall(
            b"POST /v1/tables/t:lookup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        one.server.process.terminate()
        wait_until(lambda: one.logged("stopping:"), "it drains")
        one.server.process.kill()
        one.server.process.wait()
        one.check_that_all_is_gone()


def test_a_copying_process_ends_with_its_server(data_dir: Path, tmp_path: Path) -> None:
    hung = tmp_path / "hung"
    hung.mkdir()
    with started(
        data_dir, tmp_path / "log", "--snapshot-dir", str(tmp_path / "snapshots"),
        "--backup-url", str(hung),
    ) as one, one.server:  # fmt: skip
        run_cli("snapshot", "--url", one.server.http)
        # It may be done with the copy at once: stopped, it hasn't ended.
        found: list[int] = []

        def is_found() -> bool:
            module = "gatherd_server.snapshots.backups.child"
            found[:] = [pid for pid in alive_in(one.pid) if module in arguments_of(pid)]
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            return bool(found)

        wait_until(is_found, "a copying process is there")
        one.server.process.kill()
        one.server.process.wait()
        for pid in found:
            os.kill(pid, signal.SIGCONT)
        one.check_that_all_is_gone()


def test_what_was_acknowledged_is_there_after_an_orphaned_start(
    data_dir: Path, tmp_path: Path
) -> None:
    """Ending by force amid a recovery is but another crash."""
    with started(data_dir, tmp_path / "first", "--workers", "2") as one:
        kill_when(one, STEPS["writer is ready"])
        one.check_that_all_is_gone()
    with RunningServer("--data-dir", data_dir, "--workers", "2") as server:
        told = json.loads(run_cli("tables", "--url", server.http, "--json").stdout)
        assert [table["name"] for table in told] == ["t"]
