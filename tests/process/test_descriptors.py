"""Open files: tables take none, the limit is raised, and one that is too low is told of."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import TooManyFiles
from gatherd.store.catalog import read_catalog
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.live import LiveTables
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.engine.tables import ServedTables
from gatherd_server.types import CreateTable
from support.cli import invoke
from support.server import RunningServer, children, clean_environment, run_cli

TABLES = 20


def made(data_dir: Path, *names: str) -> Path:
    for name in names:
        invoke(
            "create", name, "--rows", "8", "--dim", "2", "--optimizer", "adam", "--lr", "0.1",
            "--data-dir", data_dir,
        )  # fmt: skip
    return data_dir


def with_limits(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def few_descriptors(spare: int = 0) -> Iterator[None]:
    """This process can open `spare` files more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, limits[1]))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for fd in taken[len(taken) - spare :]:
            os.close(fd)
        for fd in taken[: len(taken) - spare]:
            stack.callback(os.close, fd)
        yield


@pytest.mark.parametrize("workers", ["1", "2"])
def test_tables_take_no_descriptors(workers: str, tmp_path: Path) -> None:
    data_dir = made(tmp_path / "data", "first")
    with (
        RunningServer("--data-dir", data_dir, "--workers", workers) as server,
        Client(server.http) as client,
    ):
        processes = [server.process.pid, *children(server.process.pid)]

        def opened() -> list[str]:
            found = []
            for pid in processes:
                for entry in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(FileNotFoundError):
                        found.append(str(entry.readlink()))
            return found

        def use(name: str) -> None:
            client.apply_gradients(name, [1], np.ones((1, 2), np.float32))
            for _ in range(8):  # every worker, most likely
                with Client(server.http) as other:
                    assert other.lookup(name, [1]).shape == (1, 2)

        use("first")
        for number in range(TABLES):
            client.create_table(f"t{number}", 8, 2, optimizer={"name": "adam", "lr": 0.1})
            use(f"t{number}")
            client.publish(f"t{number}")
            use(f"t{number}")
        assert not [name for name in opened() if "/tables/" in name]


def test_the_limit_is_raised_for_all_processes(tmp_path: Path) -> None:
    data_dir = made(tmp_path / "data", "t")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with RunningServer("--data-dir", data_dir, "--workers", "2") as server:
            for pid in (server.process.pid, *children(server.process.pid)):
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_limit_that_is_too_low_is_said_at_the_start(workers: str, tmp_path: Path) -> None:
    data_dir = made(tmp_path / "data", "t")
    command = [
        sys.executable, "-m", "gatherd_server", "serve", "--data-dir", data_dir,
        "--workers", workers, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
    ]  # fmt: skip
    done = subprocess.run(
        [*map(str, command)],
        env=clean_environment(),
        preexec_fn=with_limits(64, 1024),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode > 1
    assert "this process may have 1024 files open, and may need" in done.stderr
    assert "connections_max" in done.stderr
    assert "Traceback" not in done.stderr


SERVE_UNDER_A_LOW_LIMIT = """
import resource, sys
from pathlib import Path
from gatherd import Client
from support.server import RunningServer
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024))
options = ("--connections-max", "300", "--grpc-connections-max", "300")
with RunningServer("--data-dir", Path(sys.argv[1]), *options) as server:
    with Client(server.http) as client:
        print(client.lookup("t", [1]).shape)
"""


def test_what_the_message_advises_is_enough(tmp_path: Path) -> None:
    data_dir = made(tmp_path / "data", "t")
    # In a process of its own, because a hard limit isn't raised again.
    done = subprocess.run(
        [sys.executable, "-c", SERVE_UNDER_A_LOW_LIMIT, str(data_dir)],
        env={**clean_environment(), "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "(1, 2)" in done.stdout, done.stderr


def test_too_many_open_files_are_no_damage_to_a_reader(tmp_path: Path) -> None:
    data_dir = made(tmp_path / "data", "a", "b")
    for tables in (LiveTables(data_dir), ServedTables({}, {}, data_dir)):
        with few_descriptors(), pytest.raises(TooManyFiles, match="ulimit -n"):
            tables.take([("a", 0)])
        assert tables.take([("a", 0)])[0].row_count == 8
        made(data_dir, name := f"late{len(read_catalog(data_dir).tables)}")
        # Its files can't be opened, nor the catalog that tells of it; what is mapped is served.
        with few_descriptors(), pytest.raises(TooManyFiles):
            tables.take([(name, 0)])
        assert tables.take([(name, 0), ("b", 0)])[0].row_count == 8
    with few_descriptors(), pytest.raises(TooManyFiles):
        read_catalog(data_dir)


def test_a_change_that_runs_out_of_descriptors_changes_nothing(tmp_path: Path) -> None:
    """At whichever of its opens that is."""
    data_dir = made(tmp_path / "data", "a")
    outcomes = []
    for spare in range(8):
        name = f"t{spare}"
        table = CreateTable(name, 8, 2, DType.FLOAT32, Initializer.parse("zeros"), 1, None)
        before = read_catalog(data_dir)
        with own_data_dir(data_dir) as owned:
            try:
                with few_descriptors(spare):
                    owned.change(table)
                outcomes.append("done")
            except TooManyFiles:
                outcomes.append("refused")
                assert read_catalog(data_dir) == before
                owned.change(table)
            assert name in read_catalog(data_dir).tables
    assert outcomes == sorted(outcomes, reverse=True)
    assert {*outcomes} == {"done", "refused"}
    assert run_cli("verify", "--data-dir", data_dir).returncode == 0
