"""One table restored out of a snapshot, beside others that go on: after real kills and damage."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import TableRefused
from gatherd.store.catalog import read_catalog, version_dir
from support.cli import invoke
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 600, 8
SERVE = ("--checkpoint-seconds", "86400", "--segment-bytes", str(1 << 20))
ONES = np.ones((3, DIM), np.float32)
IDS = [0, 7, 599]


@dataclass(frozen=True)
class Crashed:
    """A killed server's data dir, a snapshot from before its last updates, and what it had then."""

    path: Path
    snapshot: Path
    snapshot_lsn: int
    at_snapshot: np.ndarray
    at_end: np.ndarray
    end_lsn: int


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    root = tmp_path_factory.mktemp("restored")
    data, snaps = root / "data", root / "snaps"
    items = drawn_table("items", ROWS, DIM, init="normal", optimizer="adagrad")
    make_data_dir(data, items, drawn_table("other", ROWS, DIM))
    with (
        RunningServer("--data-dir", data, *SERVE, "--snapshot-dir", snaps) as server,
        Client(server.http) as client,
    ):
        client.apply_gradients("items", IDS, ONES)
        lsn = client.snapshot("monday").lsn
        before = client.lookup("items", np.arange(ROWS))
        client.apply_gradients("items", IDS, ONES)
        last = client.apply_gradients("items", [5], ONES[:1])
        after = client.lookup("items", np.arange(ROWS))
        server.kill()
    return Crashed(data, snaps / "monday", lsn, before, after, last.lsn)


def damaged(crashed: Crashed, root: Path, name: str) -> Path:
    data = root / "data"
    shutil.copytree(crashed.path, data, ignore=shutil.ignore_patterns("*.sock"))
    (version_dir(data, "items", 1) / name).unlink()
    return data


def restore(crashed: Crashed, data: Path, *, check: bool = True) -> str:
    done = invoke("restore", crashed.snapshot, "--table", "items", "--data-dir", data, check=check)
    return done.stdout if check else done.stderr


@pytest.mark.parametrize("name", ["weights.npy", "slot_sum.npy", "manifest.json"])
def test_a_damaged_table_of_a_running_server_is_restored_with_all_that_was_acknowledged(
    crashed: Crashed, tmp_path: Path, name: str
) -> None:
    data = damaged(crashed, tmp_path, name)
    with RunningServer("--data-dir", data, *SERVE) as server, Client(server.http) as client:
        with pytest.raises(TableRefused, match=name):
            client.lookup("items", IDS)
        client.scatter_add("other", IDS, ONES)
        told = restore(crashed, data)
        assert told == f"items: version 2 is live, restored as of LSN {crashed.end_lsn}\n"
        np.testing.assert_array_equal(client.lookup("items", np.arange(ROWS)), crashed.at_end)
        client.scatter_add("items", IDS, ONES)
        server.kill()
    with RunningServer("--data-dir", data, *SERVE) as server, Client(server.grpc) as client:
        expected = crashed.at_end[IDS] + ONES
        np.testing.assert_array_equal(client.lookup("items", IDS), expected)
        np.testing.assert_array_equal(client.lookup("other", IDS), ONES)
        with pytest.raises(TableRefused, match=name):
            client.lookup("items", IDS, version=1)


def test_the_optimizer_goes_on_from_the_state_of_the_last_acknowledged_update(
    crashed: Crashed, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(crashed.path, whole, ignore=shutil.ignore_patterns("*.sock"))
    mine = damaged(crashed, tmp_path, "weights.npy")
    restore(crashed, mine)
    found = []
    for data in (whole, mine):
        with RunningServer("--data-dir", data, *SERVE) as server, Client(server.http) as client:
            client.apply_gradients("items", [*IDS, 5], np.ones((4, DIM), np.float32))
            found.append(client.lookup("items", np.arange(ROWS)))
    np.testing.assert_array_equal(found[1], found[0])


def test_a_sound_table_becomes_the_snapshots_and_can_be_rolled_back(
    crashed: Crashed, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(crashed.path, data, ignore=shutil.ignore_patterns("*.sock"))
    told = restore(crashed, data)
    assert told == f"items: version 2 is live, restored as of LSN {crashed.snapshot_lsn}\n"
    with Client(f"local:{data}") as client:
        np.testing.assert_array_equal(client.lookup("items", np.arange(ROWS)), crashed.at_snapshot)
        found = client.lookup("items", np.arange(ROWS), version=1)
        np.testing.assert_array_equal(found, crashed.at_end)
    invoke("delete", "items", "--yes", "--data-dir", data)
    restore(crashed, data)
    assert read_catalog(data).tables["items"].versions == (1,)
    assert invoke("verify", "--data-dir", data).returncode == 0


def test_what_cannot_be_restored_changes_nothing(crashed: Crashed, tmp_path: Path) -> None:
    data, snapshot = tmp_path / "data", tmp_path / "monday"
    shutil.copytree(crashed.path, data, ignore=shutil.ignore_patterns("*.sock"))
    shutil.copytree(crashed.snapshot, snapshot)
    weights = version_dir(snapshot, "items", 1) / "weights.npy"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    before = read_catalog(data)
    for table, why in (("items", "weights.npy"), ("nothing", "no table 'nothing'")):
        done = invoke("restore", snapshot, "--table", table, "--data-dir", data, check=False)
        assert done.returncode > 1
        assert why in done.stderr
    assert read_catalog(data) == before
    assert list((data / "staging").glob("*")) == []
