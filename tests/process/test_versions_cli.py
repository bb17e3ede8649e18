"""Versions by the command line: in a data dir of its own, and in one that a server has."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from gatherd_server.cli import cli
from support.server import RunningServer, clean_environment, run_cli, wait_until

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


@pytest.fixture(scope="module")
def imported(sources: Path) -> Path:
    data = sources / "data"
    optimizer = ("--optimizer", "adagrad", "--lr", "0.5", "--optimizer-option", "padding_id=1")
    default = ("--default-vector", sources / "default.npy")
    run_cli("import", "w", sources / "rows.npy", *optimizer, *default, "--data-dir", data)
    return data


@pytest.fixture(params=["offline", "served"])
def data_dir(imported: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy of the data dir; a server has it, or none."""
    data = Path(shutil.copytree(imported, tmp_path / "data"))
    if request.param == "offline":
        yield data
        return
    with RunningServer("--data-dir", data, "--workers", "2"):
        yield data


def live_and_kept(data_dir: Path) -> tuple[int, list[int]]:
    shown = json.loads(run_cli("versions", "w", "--json", "--data-dir", data_dir).stdout)
    return shown["live"], shown["versions"]


def rows_of(data_dir: Path, count: int = 300) -> np.ndarray:
    with Client(f"local:{data_dir}") as client:
        return client.lookup("w", np.arange(count))


def test_a_source_is_published_as_the_live_version(data_dir: Path, sources: Path) -> None:
    place = ("--data-dir", data_dir)
    told = run_cli("publish", "w", sources / "other.npy", "--if-version", "1", *place).stdout
    assert told.startswith("w v2: 200 rows of 8 float32")
    assert live_and_kept(data_dir) == (2, [1, 2])
    np.testing.assert_array_equal(rows_of(data_dir, 200), OTHER)
    with Client(f"local:{data_dir}") as client:
        info = client.table("w")
        missing = client.lookup("w", [200], missing="default")
        np.testing.assert_array_equal(client.lookup("w", [299], version=1), ROWS[[299]])
    assert info.rows == 200
    assert info.optimizer is not None
    assert (info.optimizer["name"], info.optimizer["lr"]) == ("adagrad", 0.5)
    assert info.optimizer["padding_id"] == 1
    np.testing.assert_array_equal(missing, np.full((1, 8), 0.5))
    slot = np.load(data_dir / "tables/w/v000002/slot_sum.npy")
    np.testing.assert_array_equal(slot, np.zeros((200, 8)))


def test_a_copy_is_a_point_to_roll_back_to(data_dir: Path) -> None:
    place = ("--data-dir", data_dir)
    assert run_cli("publish", "w", *place).stdout.startswith("w: version 2 is live, LSN ")
    run_cli("set-optimizer", "w", "sgd", "--lr", "2", *place)
    assert live_and_kept(data_dir) == (3, [1, 2, 3])
    assert run_cli("rollback", "w", *place).stdout.startswith("w: version 2 is live, LSN ")
    assert run_cli("rollback", "w", "--to", "3", *place).stdout.startswith("w: version 3")
    assert live_and_kept(data_dir) == (3, [1, 2, 3])
    np.testing.assert_array_equal(rows_of(data_dir), ROWS)
    with Client(f"local:{data_dir}") as client:
        optimizer = client.table("w").optimizer
    assert optimizer is not None
    assert (optimizer["name"], optimizer["lr"]) == ("sgd", 2.0)
    assert run_cli("verify", *place).stdout.splitlines()[:3] == ["w v1: ok", "w v2: ok", "w v3: ok"]


def test_what_cannot_be_changed_changes_nothing(data_dir: Path, sources: Path) -> None:
    place = ("--data-dir", data_dir)
    refused = {
        ("publish", "w", "--if-version", "7"): "has version 1 live, not 7",
        ("publish", "w", sources / "other.npy", "--if-version", "7"): "has version 1 live, not 7",
        ("publish", "w", sources / "wide.npy"): "has dim 9 and no keys; table 'w' has dim 8",
        ("publish", "w", sources / "other.npy", "--keys", sources / "keys"): "bytes keys; table",
        ("publish", "v", sources / "other.npy"): "no table 'v'; did you mean 'w'?",
        ("publish", "w", "--dtype", "float16"): "--dtype is about a source; give one",
        ("publish", "w", sources / "other.npy", "--dtype", "float64"): "can't be trained",
        ("rollback", "w"): "has no version before 1",
        ("rollback", "w", "--to", "9"): "has no version 9; it has 1",
        ("set-optimizer", "w", "sgd", "--optimizer-option", "beta1=0.5"): "has no option 'beta1'",
        ("import", "w", sources / "other.npy"): "has a table 'w' already",
    }
    for arguments, message in refused.items():
        done = run_cli(*arguments, *place, check=False)
        assert done.returncode == 1, arguments
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert live_and_kept(data_dir) == (1, [1])
    assert not list((data_dir / "staging").iterdir())


def test_tables_are_imported_created_and_deleted(data_dir: Path, sources: Path) -> None:
    place = ("--data-dir", data_dir)
    run_cli("import", "k", sources / "other.npy", "--keys", sources / "keys", *place)
    run_cli("create", "c", "--rows", "5", "--dim", "3", "--init", "zeros", *place)
    with Client(f"local:{data_dir}") as client:
        np.testing.assert_array_equal(client.lookup("k", keys=["w9"]), OTHER[[9]])
        assert client.lookup("c", [4]).tolist() == [[0, 0, 0]]
    assert run_cli("delete", "k", "--yes", *place).stdout.startswith("k: deleted, LSN ")
    with Client(f"local:{data_dir}") as client:
        assert [info.name for info in client.tables()] == ["c", "w"]
    assert not list((data_dir / "staging").iterdir())


def test_a_running_server_sees_an_import_at_its_next_request(
    imported: Path, tmp_path: Path, sources: Path
) -> None:
    # A path that no Unix socket's address has room for.
    data = Path(shutil.copytree(imported, tmp_path / ("d" * 120) / "data"))
    with RunningServer("--data-dir", data, "--workers", "2") as server:
        run_cli("import", "k", sources / "other.npy", "--data-dir", data)
        for url in [server.http, server.grpc] * 4:
            with Client(url) as client:
                np.testing.assert_array_equal(client.lookup("k", np.arange(200)), OTHER)
        run_cli("publish", "k", sources / "rows.npy", "--data-dir", data)
        for url in [server.http, server.grpc] * 4:
            with Client(url) as client:
                np.testing.assert_array_equal(client.lookup("k", np.arange(300)), ROWS)
        url = ("--url", server.http)
        run_cli("rollback", "k", *url)
        assert run_cli("versions", "k", *url).stdout == "1  (live)\n2\n"
        run_cli("publish", "k", "--if-version", "1", "--url", server.grpc)
        assert run_cli("versions", "k", *url).stdout == "1\n2\n3  (live)\n"


def test_without_a_server_a_change_keeps_as_many_versions_as_it_is_told(
    imported: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(imported, tmp_path / "data"))
    for _ in range(4):
        run_cli("publish", "w", "--data-dir", data)
    assert live_and_kept(data) == (5, [3, 4, 5])
    run_cli("publish", "w", "--keep-versions", "0", "--data-dir", data)
    assert live_and_kept(data) == (6, [6])
    assert [path.name for path in (data / "tables/w").iterdir()] == ["v000006"]


def test_a_server_keeps_as_many_versions_as_it_was_told(imported: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(imported, tmp_path / "data"))
    with RunningServer("--data-dir", data, "--keep-versions", "0"):
        done = run_cli("publish", "w", "--keep-versions", "3", "--data-dir", data, check=False)
        assert "a server has data dir" in done.stderr
        run_cli("publish", "w", "--data-dir", data)
        assert live_and_kept(data) == (2, [2])


HOLD = """
import sys
from pathlib import Path
from gatherd_server.writer.publish import own_data_dir
with own_data_dir(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_data_dir_that_another_command_has_is_refused(imported: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(imported, tmp_path / "data"))
    # What a killed server leaves: nobody answers there.
    (data / "server.sock").touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environment(),
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    done = run_cli("rollback", "w", "--data-dir", data, check=False)
    holder.communicate()
    assert f"is in use by process {holder.pid}" in done.stderr


def test_a_server_that_starts_leaves_what_is_being_staged(imported: Path, tmp_path: Path) -> None:
    """An import that reads a pipe, by way of a server that is replaced meanwhile."""
    data = Path(shutil.copytree(imported, tmp_path / "data"))
    pipe = tmp_path / "words.txt"
    os.mkfifo(pipe)
    with RunningServer("--data-dir", data):
        command = [sys.executable, "-m", "gatherd_server", "import", "k", str(pipe)]
        importing = subprocess.Popen(
            [*command, "--data-dir", str(data)],
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        with open(pipe, "wb") as text:
            staging = data / "staging"
            wait_until(lambda: len(list(staging.glob("scratch-*"))) > 0, "it begins to read")
    # The pipe has ended: what was staged waits for a server that is gone. Another one comes.
    with RunningServer("--data-dir", data):
        _, errors = importing.communicate(timeout=60)
    assert importing.returncode == 1, errors
    assert len(errors.splitlines()) == 1


def test_both_places_are_refused_and_the_command_line_wins_over_the_environment(
    imported: Path,
) -> None:
    done = run_cli("versions", "w", "--data-dir", imported, "--url", "http://x", check=False)
    assert "give either --data-dir or --url" in done.stderr
    environment = {**clean_environment(), "GATHERD_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "gatherd_server", "versions", "w"]
    shown = subprocess.run(
        [*command, "--data-dir", str(imported)], env=environment, capture_output=True, text=True
    )
    assert shown.stdout == "1  (live)\n"


def test_every_verb_stands_once() -> None:
    assert len(set(cli.commands)) == len(cli.commands)
    assert {"publish", "rollback", "versions", "set-optimizer", "delete", "snapshot"} <= set(
        cli.commands
    )
