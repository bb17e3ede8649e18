"""Versions by the command line: in a data dir of its own, and in one that a server has."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd import Client
from support.cli import invoke
from support.server import RunningServer, clean_environment, wait_until

ROWS = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
OTHER = np.random.default_rng(4).normal(size=(200, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    np.save(folder / "rows.npy", ROWS)
    np.save(folder / "other.npy", OTHER)
    np.save(folder / "wide.npy", np.ones((3, 9), np.float32))
    np.save(folder / "default.npy", np.full(8, 0.5, np.float32))
    (folder / "keys").write_text("".join(f"w{i}\n" for i in range(200)))
    return folder


@pytest.fixture(scope="module", params=["offline", "served"])
def data_dir(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A data dir that a server has, or none."""
    # A path that no Unix socket's address has room for.
    data = tmp_path_factory.mktemp("d" * 100) / "data"
    invoke("create", "items", "--rows", "3", "--dim", "2", "--data-dir", data)
    if request.param == "offline":
        yield data
        return
    with RunningServer("--data-dir", data, "--workers", "2"):
        yield data


@pytest.fixture
def table(data_dir: Path, sources: Path, request: pytest.FixtureRequest) -> str:
    """A trainable table of the test's own."""
    name = request.node.originalname
    optimizer = ("--optimizer", "adagrad", "--lr", "0.5", "--optimizer-option", "padding_id=1")
    default = ("--default-vector", sources / "default.npy")
    invoke("import", name, sources / "rows.npy", *optimizer, *default, "--data-dir", data_dir)
    return str(name)


def live_and_kept(data_dir: Path, table: str) -> tuple[int, list[int]]:
    shown = json.loads(invoke("versions", table, "--json", "--data-dir", data_dir).stdout)
    return shown["live"], shown["versions"]


def rows_of(data_dir: Path, table: str, count: int) -> NDArray[Any]:
    with Client(f"local:{data_dir}") as client:
        return client.lookup(table, np.arange(count))


def test_a_source_is_published_as_the_live_version(
    data_dir: Path, table: str, sources: Path
) -> None:
    place = ("--data-dir", data_dir)
    told = invoke("publish", table, sources / "other.npy", "--if-version", "1", *place).stdout
    assert told.startswith(f"{table} v2: 200 rows of 8 float32")
    assert live_and_kept(data_dir, table) == (2, [1, 2])
    np.testing.assert_array_equal(rows_of(data_dir, table, 200), OTHER)
    with Client(f"local:{data_dir}") as client:
        info = client.table(table)
        missing = client.lookup(table, [200], missing="default")
        np.testing.assert_array_equal(client.lookup(table, [299], version=1), ROWS[[299]])
    assert info.rows == 200
    assert info.optimizer is not None
    assert (info.optimizer["name"], info.optimizer["lr"]) == ("adagrad", 0.5)
    assert info.optimizer["padding_id"] == 1
    np.testing.assert_array_equal(missing, np.full((1, 8), 0.5))
    slot = np.load(data_dir / f"tables/{table}/v000002/slot_sum.npy")
    np.testing.assert_array_equal(slot, np.zeros((200, 8)))


def test_a_copy_is_a_point_to_roll_back_to(data_dir: Path, table: str) -> None:
    place = ("--data-dir", data_dir)
    assert invoke("publish", table, *place).stdout.startswith(f"{table}: version 2 is live, LSN ")
    invoke("set-optimizer", table, "sgd", "--lr", "2", *place)
    assert live_and_kept(data_dir, table) == (3, [1, 2, 3])
    assert invoke("rollback", table, *place).stdout.startswith(f"{table}: version 2 is live, LSN ")
    assert invoke("rollback", table, "--to", "3", *place).stdout.startswith(f"{table}: version 3")
    assert live_and_kept(data_dir, table) == (3, [1, 2, 3])
    np.testing.assert_array_equal(rows_of(data_dir, table, 300), ROWS)
    with Client(f"local:{data_dir}") as client:
        optimizer = client.table(table).optimizer
    assert optimizer is not None
    assert (optimizer["name"], optimizer["lr"]) == ("sgd", 2.0)
    told = invoke("verify", table, *place).stdout.splitlines()
    assert told[:2] == [f"{table} v1: ok", f"{table} v2: ok"]
    # The live one: as far as a checkpoint has summed it up.
    assert told[2].startswith(f"{table} v3: ok")
    assert len(told) == 3


def test_what_cannot_be_changed_changes_nothing(data_dir: Path, table: str, sources: Path) -> None:
    place = ("--data-dir", data_dir)
    other, wide, keys = sources / "other.npy", sources / "wide.npy", sources / "keys"
    refused = {
        ("publish", table, "--if-version", "7"): "has version 1 live, not 7",
        ("publish", table, other, "--if-version", "7"): "has version 1 live, not 7",
        ("publish", table, wide): f"has dim 9 and no keys; table '{table}' has dim 8",
        ("publish", table, other, "--keys", keys): "bytes keys; table",
        ("publish", table + "s", other): f"did you mean '{table}'?",
        ("publish", table, "--dtype", "float16"): "--dtype is about a source; give one",
        ("publish", table, other, "--dtype", "float64"): "can't be trained",
        ("rollback", table): "has no version before 1",
        ("rollback", table, "--to", "9"): "has no version 9; it has 1",
        ("set-optimizer", table, "sgd", "--optimizer-option", "beta1=0"): "has no option 'beta1'",
        ("import", table, other): "already",
        ("delete", table + "s", "--yes"): f"did you mean '{table}'?",
    }
    for arguments, message in refused.items():
        done = invoke(*arguments, *place, check=False)
        assert done.returncode > 1, arguments
        assert message in done.stderr, arguments
        assert len(done.stderr.splitlines()) == 1
    assert live_and_kept(data_dir, table) == (1, [1])
    assert not list((data_dir / "staging").iterdir())


def test_tables_are_imported_created_and_deleted(data_dir: Path, sources: Path) -> None:
    place = ("--data-dir", data_dir)
    invoke("import", "k", sources / "other.npy", "--keys", sources / "keys", *place)
    invoke("create", "c", "--rows", "5", "--dim", "3", "--init", "zeros", *place)
    with Client(f"local:{data_dir}") as client:
        np.testing.assert_array_equal(client.lookup("k", keys=["w9"]), OTHER[[9]])
        assert client.lookup("c", [4]).tolist() == [[0, 0, 0]]
    assert invoke("delete", "k", "--yes", *place).stdout.startswith("k: deleted, LSN ")
    with Client(f"local:{data_dir}") as client:
        names = {info.name for info in client.tables()}
    assert "c" in names
    assert "k" not in names
    assert not list((data_dir / "staging").iterdir())


def test_a_running_server_sees_an_import_of_another_process_at_its_next_request(
    tmp_path: Path, sources: Path
) -> None:
    data = tmp_path / "data"
    invoke("create", "items", "--rows", "3", "--dim", "2", "--data-dir", data)
    with RunningServer("--data-dir", data, "--workers", "2", "--keep-versions", "1") as server:
        invoke("import", "k", sources / "other.npy", "--data-dir", data)
        for url in [server.http, server.grpc] * 4:
            with Client(url) as client:
                np.testing.assert_array_equal(client.lookup("k", np.arange(200)), OTHER)
        invoke("publish", "k", sources / "rows.npy", "--data-dir", data)
        for url in [server.http, server.grpc] * 4:
            with Client(url) as client:
                np.testing.assert_array_equal(client.lookup("k", np.arange(300)), ROWS)
        invoke("rollback", "k", "--url", server.http)
        assert invoke("versions", "k", "--url", server.http).stdout == "1  (live)\n2\n"
        done = invoke("publish", "k", "--keep-versions", "3", "--data-dir", data, check=False)
        assert "a server has data dir" in done.stderr
        invoke("publish", "k", "--if-version", "1", "--url", server.grpc)
        # The server keeps as many as it was told: the one that was live before, and the highest.
        assert invoke("versions", "k", "--url", server.http).stdout == "1\n3  (live)\n"


def test_without_a_server_a_change_keeps_as_many_versions_as_it_is_told(tmp_path: Path) -> None:
    place = ("--data-dir", tmp_path / "data")
    invoke("create", "w", "--rows", "3", "--dim", "2", *place)
    for _ in range(4):
        invoke("publish", "w", *place)
    assert live_and_kept(tmp_path / "data", "w") == (5, [3, 4, 5])
    invoke("publish", "w", "--keep-versions", "0", *place)
    assert live_and_kept(tmp_path / "data", "w") == (6, [6])
    assert [path.name for path in (tmp_path / "data/tables/w").iterdir()] == ["v000006"]


HOLD = """
import sys
from pathlib import Path
from gatherd_server.data_dir.owning import own_data_dir
with own_data_dir(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_data_dir_that_another_command_has_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    invoke("create", "w", "--rows", "3", "--dim", "2", "--data-dir", data)
    # What a killed server leaves: nobody answers there.
    (data / "server.sock").touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environment(),
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        done = invoke("publish", "w", "--data-dir", data, check=False)
    assert f"is in use by process {holder.pid}" in done.stderr


def writing_end(pipe: Path) -> IO[bytes]:
    """The end of a named pipe to write to, once somebody has opened the other."""
    found: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    wait_until(is_read, "the pipe is read")
    return open(found[0], "wb")


def test_a_server_that_starts_leaves_what_is_being_staged(tmp_path: Path) -> None:
    """An import whose source is a pipe, by way of a server that is replaced meanwhile."""
    data, pipe = tmp_path / "data", tmp_path / "words.txt"
    invoke("create", "w", "--rows", "3", "--dim", "2", "--data-dir", data)
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "gatherd_server", "import", "k", str(pipe)]

    def is_staging() -> bool:
        return any((data / "staging").glob("scratch-*"))

    with ExitStack() as stack:
        with RunningServer("--data-dir", data):
            importing = stack.enter_context(
                subprocess.Popen(
                    [*command, "--data-dir", str(data)],
                    env=clean_environment(),
                    stderr=subprocess.PIPE,
                )
            )
            stack.callback(importing.kill)
            text = stack.enter_context(writing_end(pipe))
            wait_until(is_staging, "it is staging")
        with RunningServer("--data-dir", data):
            assert is_staging()
            text.write(b"king 1 2\nqueen 3 4\n")
            text.close()
            _, errors = importing.communicate(timeout=60)
            assert importing.returncode == 0, errors
            with Client(f"local:{data}") as client:
                assert client.lookup("k", keys=["queen"]).tolist() == [[3, 4]]


def test_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    data = tmp_path / "data"
    invoke("create", "w", "--rows", "3", "--dim", "2", "--data-dir", data)
    both = ("--data-dir", data, "--url", "http://x")
    assert "give one of them" in invoke("versions", "w", *both, check=False).stderr
    environment = {**clean_environment(), "GATHERD_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "gatherd_server", "versions", "w", "--data-dir", str(data)]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert shown.stdout == "1  (live)\n"
