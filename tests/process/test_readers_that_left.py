"""Nobody has to read what is printed and logged: a server goes on, and a command ends quietly."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from support.cli import invoke
from support.server import children, clean_environment, wait_until


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers")
    np.save(folder / "rows.npy", np.zeros((5000, 8), np.float32))
    invoke("import", "t", folder / "rows.npy", "--optimizer", "sgd", "--data-dir", folder / "data")
    return folder / "data"


def is_ready(unix: Path) -> bool:
    """Whether the supervisor has heard from both workers and the writer."""
    answer = b""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(unix))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while piece := sock.recv(1 << 16):
            answer += piece
    return len(re.findall(rb"gatherd_process_up\{.*\} 1", answer)) >= 3


@contextmanager
def serving(data_dir: Path, unix: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-m", "gatherd_server", "serve", "--data-dir", data_dir, "--unix", unix,
        "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*map(str, command)],
        env=clean_environment(),
        process_group=0,
        **options,  # type: ignore[call-overload]  # whichever there are
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_that_it_goes_on(process: subprocess.Popen[bytes], unix: Path) -> None:
    """Have every process log something, and stop it."""
    wait_until(lambda: is_ready(unix), "it is ready")
    before = children(process.pid)
    assert len(before) == 3
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def are_back() -> bool:
        return len({*children(process.pid)} - {*before}) == 3 and is_ready(unix)

    wait_until(are_back, "all came back")
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 0


def test_a_server_goes_on_when_the_readers_of_its_log_have_left(
    data_dir: Path, tmp_path: Path
) -> None:
    unix = tmp_path / "s"
    with serving(data_dir, unix, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        check_that_it_goes_on(process, unix)


def test_a_server_needs_no_standard_files(data_dir: Path, tmp_path: Path) -> None:
    unix = tmp_path / "s"
    with serving(data_dir, unix, preexec_fn=lambda: os.closerange(0, 3)) as process:
        wait_until(lambda: is_ready(unix), "it is ready")
        for fd in range(3):
            assert str(Path(f"/proc/{process.pid}/fd/{fd}").readlink()) == "/dev/null"
        check_that_it_goes_on(process, unix)


@pytest.mark.parametrize(
    "arguments",
    [
        ("lookup", "t", *map(str, range(4000)), "--url", "local:{data_dir}"),
        ("lookup", "t", *map(str, range(4000)), "--url", "local:{data_dir}", "--json"),
        ("tables", "--url", "local:{data_dir}"),
        ("verify", "--data-dir", "{data_dir}"),
        ("versions", "t", "--url", "local:{data_dir}"),
        ("completion", "bash"),
        ("serve", "--help"),
    ],
)
def test_a_command_ends_quietly_when_its_reader_has_left(
    arguments: tuple[str, ...], data_dir: Path
) -> None:
    command = [one.format(data_dir=data_dir) for one in arguments]
    with ExitStack() as stack:
        reader, writer = os.pipe()
        os.close(reader)
        stack.callback(os.close, writer)
        done = subprocess.run(
            [sys.executable, "-m", "gatherd_server", *command],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            timeout=60,
        )
    assert done.stderr == b""
    assert done.returncode in (0, 1)
