"""One damaged table, found at the start after a real kill: the others serve and take updates."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import FailedPrecondition, TableRefused
from gatherd.store.catalog import read_catalog, version_dir
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.snapshots.snapshot import take_snapshot
from gatherd_server.storage.files import Files
from gatherd_server.storage.wal_format import WAL_NAME, segment_paths
from gatherd_server.types import Push, TableUpdate, UpdateOp, WriterLimits
from gatherd_server.writer.writer import Writer
from support.cli import invoke
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 600, 8
SERVE = ("--checkpoint-seconds", "86400", "--segment-bytes", str(1 << 20))
ONES = np.ones((3, DIM), np.float32)
IDS = [0, 7, 599]


@dataclass(frozen=True)
class Crashed:
    """A data dir as a killed server left it, and what its tables are to hold."""

    path: Path
    values: np.ndarray
    lsn: int


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    root = tmp_path_factory.mktemp("damaged")
    data = root / "data"
    items = drawn_table("items", ROWS, DIM, init="normal", optimizer="adagrad")
    make_data_dir(data, items, drawn_table("other", ROWS, DIM))
    invoke("publish", "items", "--data-dir", data)
    with RunningServer("--data-dir", data, *SERVE) as server, Client(server.http) as client:
        client.scatter_add("items", IDS, ONES)
        client.scatter_add("other", IDS, ONES)
        last = client.scatter_add_many({"items": (IDS, ONES), "other": (IDS, ONES)})
        found = client.lookup("items", np.arange(ROWS))
        server.kill()
    return Crashed(data, found, last.lsn)


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def garble(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(12)
        file.write(b"\xff\x00garbled\xff")


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no weights": ("weights.npy", Path.unlink),
    "short weights": ("weights.npy", cut),
    "garbled weights": ("weights.npy", garble),
    "no slot": ("slot_sum.npy", Path.unlink),
    "garbled slot": ("slot_sum.npy", garble),
    "no counters": ("seq", Path.unlink),
    "short counters": ("seq", cut),
    "no manifest": ("manifest.json", Path.unlink),
    "garbled manifest": ("manifest.json", garble),
}


@dataclass
class Damaged:
    """A copy of the data dir with one file damaged, and the file as it was."""

    path: Path
    file: Path
    whole: Path

    def put_back(self) -> None:
        shutil.copyfile(self.whole, self.file)


def damaged(crashed: Crashed, root: Path, what: str) -> Damaged:
    data = root / "data"
    shutil.copytree(crashed.path, data, ignore=shutil.ignore_patterns("*.sock"))
    name, damage = DAMAGES[what]
    file = version_dir(data, "items", 2) / name
    shutil.copyfile(file, root / name)
    damage(file)
    return Damaged(data, file, root / name)


def check_others(crashed: Crashed, server: RunningServer, file: str) -> None:
    """The damaged table is refused on every way, with the reason; the other one isn't."""
    with Client(server.http) as client, Client(server.grpc) as rpc:
        for one in (client, rpc):
            with pytest.raises(TableRefused, match=file):
                one.lookup("items", [1])
            with pytest.raises(TableRefused, match=file):
                one.scatter_add("items", IDS, ONES)
        before = client.lookup("other", IDS)
        np.testing.assert_array_equal(before[:, 0], [2, 2, 2])
        with pytest.raises(TableRefused):
            client.scatter_add_many({"other": (IDS, ONES), "items": (IDS, ONES)})
        np.testing.assert_array_equal(client.lookup("other", IDS), before)
        assert client.scatter_add("other", IDS, ONES).lsn > crashed.lsn
        np.testing.assert_array_equal(rpc.lookup("other", IDS), before + 1)
    listed = {one["name"]: one for one in httpx.get(f"{server.http}/v1/tables").json()["tables"]}
    assert file in listed["items"]["refused"]
    assert not listed["other"]["refused"]
    metrics = httpx.get(f"{server.http}/metrics").text
    assert 'gatherd_table_refused{table="items"} 1' in metrics
    assert 'gatherd_table_refused{table="other"} 0' in metrics


@pytest.mark.parametrize("what", DAMAGES)
def test_every_damage_is_found_at_a_start_and_mended_at_the_next(
    crashed: Crashed, tmp_path: Path, what: str
) -> None:
    mine = damaged(crashed, tmp_path, what)
    for is_whole in (False, True):
        if is_whole:
            mine.put_back()
        with own_data_dir(mine.path) as owned:
            owned.recover()
        with Client(f"local:{mine.path}") as client:
            np.testing.assert_array_equal(client.lookup("other", IDS)[:, 0], [2, 2, 2])
            if is_whole:
                found = client.lookup("items", np.arange(ROWS))
                np.testing.assert_array_equal(found, crashed.values)
            else:
                with pytest.raises(TableRefused, match=mine.file.name):
                    client.lookup("items", [1])
        assert bool(segment_paths(mine.path / WAL_NAME)) is not is_whole


@pytest.mark.parametrize("what", ["short weights", "no slot", "garbled manifest"])
def test_a_damaged_table_is_refused_alone_and_mended_by_its_file(
    crashed: Crashed, tmp_path: Path, what: str
) -> None:
    mine = damaged(crashed, tmp_path, what)
    log = tmp_path / "log"
    workers = ("--workers", "2") if what == "no slot" else ()
    with RunningServer("--data-dir", mine.path, *SERVE, *workers, log_path=log) as server:
        check_others(crashed, server, mine.file.name)
        assert "is refused" in log.read_text()
        assert mine.file.name in log.read_text()
        # Still damaged: nothing but an older version can be live.
        with Client(server.grpc) as client:
            with pytest.raises(FailedPrecondition, match=mine.file.name):
                client.rollback("items", 2)
            mine.put_back()
            client.rollback("items", 2)
            # Slots and weights as if nothing had been: what was acknowledged is there.
            np.testing.assert_array_equal(client.lookup("items", np.arange(ROWS)), crashed.values)
            client.scatter_add("items", IDS, ONES)
            np.testing.assert_array_equal(client.lookup("items", IDS), crashed.values[IDS] + ONES)
    assert invoke("verify", "--data-dir", mine.path).returncode == 0


def test_the_log_is_kept_over_stops_and_checkpoints_until_the_file_is_back(
    crashed: Crashed, tmp_path: Path
) -> None:
    mine = damaged(crashed, tmp_path, "short weights")
    held = [path.name for _, path in segment_paths(mine.path / WAL_NAME)]
    eager = ("--checkpoint-seconds", "1", "--segment-bytes", str(1 << 20))
    for _ in range(2):
        with RunningServer("--data-dir", mine.path, *eager) as server:
            with Client(server.http) as client:
                for _ in range(50):
                    client.scatter_add("other", np.arange(ROWS), np.ones((ROWS, DIM), np.float32))
        # All that is left after a stop is what was there at the crash.
        assert [path.name for _, path in segment_paths(mine.path / WAL_NAME)] == held
    refused = invoke("verify", "--data-dir", mine.path, check=False)
    assert refused.returncode > 1
    assert "items v2: it is refused: " in refused.stderr
    mine.put_back()
    with RunningServer("--data-dir", mine.path, *SERVE) as server, Client(server.http) as client:
        np.testing.assert_array_equal(client.lookup("items", np.arange(ROWS)), crashed.values)
        np.testing.assert_array_equal(client.lookup("other", IDS)[:, 0], [102, 102, 102])
    assert segment_paths(mine.path / WAL_NAME) == []
    assert invoke("verify", "--data-dir", mine.path).returncode == 0


def test_a_file_of_another_time_is_no_repair(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("items", 40_000, DIM, init="normal"))
    weights = version_dir(tmp_path, "items", 1) / "weights.npy"
    older = weights.read_bytes()
    writer = Writer(tmp_path, Files(), WriterLimits(checkpoint_seconds=86_400))
    for ids, is_checkpoint in (([30_000], True), ([7], False)):
        values = np.ones((1, DIM), np.float32)
        update = TableUpdate("items", np.array(ids, np.int64), values, None, 0)
        writer.submit(Push(UpdateOp.SCATTER_ADD, (update,), None), b"").result(60)
        if is_checkpoint:
            writer.checkpoint()
    crashed = tmp_path / "crashed"
    shutil.copytree(tmp_path, crashed)
    writer.close()
    weights = version_dir(crashed, "items", 1) / "weights.npy"
    newer = weights.read_bytes()
    weights.unlink()
    for contents, what in (
        (None, r"weights\.npy can't be opened"),
        (older, r"weights\.npy: bytes \d+ to \d+ aren't what they were at LSN"),
        (newer, None),
    ):
        if contents is not None:
            weights.write_bytes(contents)
        with own_data_dir(crashed) as owned:
            owned.recover()
        with Client(f"local:{crashed}") as client:
            if what is None:
                assert client.lookup("items", [7]).shape == (1, DIM)
                continue
            with pytest.raises(TableRefused, match=what):
                client.lookup("items", [7])
    assert weights.read_bytes() == newer


@pytest.mark.parametrize("is_served", [True, False])
def test_one_table_is_restored_from_a_snapshot_while_the_others_go_on(
    crashed: Crashed, tmp_path: Path, is_served: bool
) -> None:
    sound = tmp_path / "sound"
    shutil.copytree(crashed.path, sound, ignore=shutil.ignore_patterns("*.sock"))
    invoke("snapshot", "s", "--data-dir", sound, "--to", tmp_path / "snaps")
    mine = damaged(crashed, tmp_path, "short weights")
    restore = ("restore", tmp_path / "snaps" / "s", "--table", "items", "--data-dir", mine.path)
    with ExitStack() as stack:
        if is_served:
            stack.enter_context(RunningServer("--data-dir", mine.path, *SERVE))
        done = invoke(*restore)
        assert f"items: version 3 is live, restored as of LSN {crashed.lsn}" in done.stdout
        with Client(f"local:{mine.path}") as client:
            np.testing.assert_array_equal(client.lookup("items", np.arange(ROWS)), crashed.values)
            np.testing.assert_array_equal(client.lookup("other", IDS)[:, 0], [2, 2, 2])


def test_what_the_log_keeps_is_stored_into_a_table_of_an_older_snapshot(tmp_path: Path) -> None:
    data, snaps = tmp_path / "data", tmp_path / "snaps"
    make_data_dir(data, drawn_table("items", ROWS, DIM, init="normal"))
    writer = Writer(data, Files(), WriterLimits(checkpoint_seconds=86_400))
    for number in range(4):
        update = TableUpdate("items", np.array(IDS), ONES, None, 0)
        last = writer.submit(Push(UpdateOp.SCATTER_ADD, (update,), None), b"").result(60)
        if number == 1:
            assert take_snapshot(writer, snaps, "s").lsn == last.lsn
    crashed = tmp_path / "crashed"
    shutil.copytree(data, crashed)
    writer.close()
    version_dir(crashed, "items", 1).joinpath("weights.npy").unlink()
    with own_data_dir(crashed) as owned:
        assert owned.restore_table(snaps / "s", "items")[1] == last.lsn
    with Client(f"local:{crashed}") as client, Client(f"local:{data}") as sound:
        every = np.arange(ROWS)
        np.testing.assert_array_equal(client.lookup("items", every), sound.lookup("items", every))


@pytest.mark.parametrize(
    ("what", "wire"),
    [
        ("short weights", "http"),
        ("no slot", "grpc"),
        ("no manifest", "command"),
        ("no weights", "command without a server"),
    ],
)
def test_a_damaged_table_can_be_rolled_back_and_deleted(
    crashed: Crashed, tmp_path: Path, what: str, wire: str
) -> None:
    mine = damaged(crashed, tmp_path, what)
    if wire == "command without a server":
        invoke("rollback", "items", "--data-dir", mine.path)
        invoke("publish", "items", "--data-dir", mine.path)
        invoke("delete", "items", "--yes", "--data-dir", mine.path)
        assert read_catalog(mine.path).tables.keys() == {"other"}
        assert segment_paths(mine.path / WAL_NAME) == []
        return
    with RunningServer("--data-dir", mine.path, *SERVE) as server:
        with Client(server.grpc if wire == "grpc" else server.http) as client:
            with pytest.raises(TableRefused, match=mine.file.name):
                client.publish("items")
            with pytest.raises(TableRefused, match=mine.file.name):
                client.set_optimizer("items", {"name": "sgd"})
            if wire == "command":
                invoke("rollback", "items", "--data-dir", mine.path)
            else:
                client.rollback("items")
            assert client.table("items").version == 1
            assert client.lookup("items", IDS).shape == (3, DIM)
            client.scatter_add("items", IDS, ONES)
            with pytest.raises(TableRefused, match=mine.file.name):
                client.lookup("items", IDS, version=2)
            if wire == "command":
                invoke("delete", "items", "--yes", "--data-dir", mine.path)
            else:
                client.delete_table("items")
            assert [one.name for one in client.tables()] == ["other"]
            client.scatter_add("other", IDS, ONES)
