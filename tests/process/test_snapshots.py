"""Snapshots: taken while updates go on, restored, damaged, cut short, by schedule.

The oracle has the pushes that were answered, in the order of their LSNs. Gradients and deltas are
small integers, so sums of them, and of their squares, are exact in float32 in whatever order.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd import Client
from gatherd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from gatherd_server.snapshots.schedule import Schedule
from gatherd_server.storage.files import Files
from gatherd_server.types import SnapshotResult
from support.cli import invoke
from support.server import RunningServer, clean_environment, wait_until
from support.tables import drawn_table, make_data_dir

ROWS, DIM, AT_ONCE, LR = 2_000, 16, 40, 0.5
SNAPSHOTS_MAX = 20


@dataclass(frozen=True, slots=True, eq=False)
class Pushed:
    """A push that was answered: gradients for "items" and deltas for "sums" are the same."""

    key: str
    table: str
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    lsn: int = 0

    def send(self, client: Client) -> "Pushed":
        """Push, under the same key each time."""
        push = client.apply_gradients if self.table == "items" else client.scatter_add
        done = push(self.table, self.ids, self.values, idempotency_key=self.key)
        assert done.versions == {self.table: 2}
        return Pushed(self.key, self.table, self.ids, self.values, done.lsn)


@dataclass(slots=True, eq=False)
class Oracle:
    """The tables as they are after the first pushes."""

    items: NDArray[np.float32]
    squares: NDArray[np.float32]
    sums: NDArray[np.float32]

    @classmethod
    def after(cls, pushes: list[Pushed]) -> "Oracle":
        oracle = cls(*(np.zeros((ROWS, DIM), np.float32) for _ in range(3)))
        for push in sorted(pushes, key=lambda push: push.lsn):
            oracle.add(push)
        return oracle

    def add(self, push: Pushed) -> None:
        total = np.zeros((ROWS, DIM), np.float32)
        np.add.at(total, push.ids, push.values)
        if push.table == "sums":
            self.sums += total
            return
        self.squares += total**2
        step = np.float32(LR) * total
        self.items -= step / (np.sqrt(self.squares) + np.float32(1e-10))

    def check(self, root: Path, version: int = 2) -> None:
        """Hold a data dir's files, or a snapshot's, against this."""
        folder = root / "tables/items" / f"v{version:06d}"
        np.testing.assert_array_equal(np.load(folder / "slot_sum.npy"), self.squares)
        np.testing.assert_allclose(np.load(folder / "weights.npy"), self.items, rtol=1e-4)
        sums = root / "tables/sums" / f"v{version:06d}" / "weights.npy"
        np.testing.assert_array_equal(np.load(sums), self.sums)


@dataclass(frozen=True, slots=True)
class Served:
    """A server with 2 workers, its data dir, and where its snapshots go."""

    server: RunningServer
    data_dir: Path
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("snapshots")
    data, folder = root / "data", root / "made" / "here"
    np.save(root / "rows.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    (root / "keys").write_text("a\nb\nc\n")
    invoke("import", "keyed", root / "rows.npy", "--keys", root / "keys", "--data-dir", data)
    make_data_dir(
        data,
        drawn_table("items", ROWS, DIM, optimizer="adagrad", options={"lr": LR}),
        drawn_table("sums", ROWS, DIM),
        # Copied last, and not at once: rows of the others change after they were copied.
        drawn_table("z", 100_000, 64, init="uniform", optimizer=None),
    )
    for table in ("items", "sums"):
        invoke("publish", table, "--data-dir", data)
    # Small files of the log and many checkpoints: both would be deleted but for the snapshot.
    log = ("--segment-bytes", "65536", "--checkpoint-seconds", "0.3")
    options = ("--workers", "2", "--snapshot-dir", folder, *log)
    with RunningServer("--data-dir", data, *options) as server:
        yield Served(server, data, folder)


class Pushers:
    """Threads that push until they are told to stop; a context manager."""

    def __init__(self, urls: list[str]) -> None:
        self.done: list[Pushed] = []
        self._urls = urls
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(len(urls))
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._futures = [self._pool.submit(self._push, *pair) for pair in enumerate(self._urls)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for future in self._futures:
            future.result()

    def wait(self) -> None:
        """Until some more pushes were answered."""
        count = len(self.done) + 5
        wait_until(lambda: len(self.done) >= count, "pushes go on")

    def _push(self, seed: int, url: str) -> None:
        rng = np.random.default_rng(seed)
        with Client(url, timeout=60) as client:
            while not self._stop.is_set():
                ids = rng.integers(0, ROWS, AT_ONCE)
                values = rng.integers(1, 4, (AT_ONCE, DIM)).astype(np.float32)
                table = ("items", "sums")[int(rng.integers(2))]
                key = f"{seed}-{len(self.done)}-{rng.integers(1 << 60)}"
                self.done.append(Pushed(key, table, ids, values).send(client))


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that was taken while pushes went on, all of them, and what was there before."""

    path: Path
    lsn: int
    pushes: list[Pushed]

    def split(self) -> tuple[list[Pushed], list[Pushed]]:
        """The pushes that are in it, and those after it."""
        inside = [push for push in self.pushes if push.lsn <= self.lsn]
        return inside, [push for push in self.pushes if push.lsn > self.lsn]


@pytest.fixture(scope="module")
def taken(served: Served) -> Taken:
    """The first snapshot during which, and after which, pushes were answered."""
    server = served.server
    with Client(server.grpc, timeout=60) as client:
        urls = [server.http, server.grpc, f"local:{served.data_dir}"]
        with Pushers(urls) as pushers:
            for number in range(SNAPSHOTS_MAX):
                pushers.wait()
                lsn = client.table("items").lsn
                made = client.snapshot(f"during-{number}")
                pushers.wait()
                if made.lsn > lsn + 3:
                    break
            else:
                raise AssertionError(f"no push in {SNAPSHOTS_MAX} snapshots")
    assert Path(made.path) == served.folder / f"during-{number}"
    return Taken(Path(made.path), made.lsn, pushers.done)


def test_rows_slots_and_done_pushes_of_a_snapshot_are_of_one_lsn(
    taken: Taken, served: Served, tmp_path: Path
) -> None:
    inside, after = taken.split()
    assert inside
    assert after
    oracle = Oracle.after(inside)
    oracle.check(taken.path)
    Oracle.after(taken.pushes).check(served.data_dir)
    zeros = np.zeros((ROWS, DIM), np.float32)
    Oracle(zeros, zeros, zeros).check(taken.path, version=1)
    assert invoke("verify", "--data-dir", taken.path).stdout == f"snapshot: ok, LSN {taken.lsn}\n"

    data = tmp_path / "data"
    (data / "lost+found").mkdir(parents=True)
    told = invoke("restore", taken.path, "--data-dir", data).stdout
    assert told == f"{data}: {taken.path} as of LSN {taken.lsn}\n"
    oracle.check(data)
    with RunningServer("--data-dir", data) as server, Client(server.http) as client:
        assert client.table("items").lsn == taken.lsn
        assert client.table("items").versions == (1, 2)
        np.testing.assert_array_equal(client.lookup("sums", np.arange(ROWS)), oracle.sums)
        assert client.lookup("keyed", keys=["c"]).tolist() == [[4, 5]]
        for push in inside[-20:]:
            assert push.send(client).lsn == push.lsn
        np.testing.assert_array_equal(client.lookup("sums", np.arange(ROWS)), oracle.sums)
        # What came after the snapshot was never done here, so that it is done now, once.
        for push in after[:3] * 2:
            assert taken.lsn < push.send(client).lsn <= taken.lsn + 3
        with pytest.raises(FailedPrecondition, match="start it with --snapshot-dir"):
            client.snapshot()
        for push in after[:3]:
            oracle.add(push)
        np.testing.assert_array_equal(client.lookup("sums", np.arange(ROWS)), oracle.sums)
    oracle.check(data)
    shown = invoke("verify", "--data-dir", data).stdout.splitlines()
    assert shown[-1].startswith(f"log: ok, LSN {taken.lsn + 3}, ")


def test_a_snapshot_is_read_as_it_is_and_changed_by_nobody(taken: Taken) -> None:
    oracle = Oracle.after(taken.split()[0])
    with Client(f"local:{taken.path}") as client:
        np.testing.assert_array_equal(client.lookup("sums", np.arange(ROWS)), oracle.sums)
    refused = "is a snapshot; `gatherd restore` makes a data dir of it"
    for command in (("publish", "items"), ("create", "n", "--rows", "1", "--dim", "1")):
        assert refused in invoke(*command, "--data-dir", taken.path, check=False).stderr
    assert refused in invoke("serve", "--data-dir", taken.path, check=False).stderr


# One file of each kind.
PLACES = [
    "catalog.json",
    "control",
    "snapshot.json",
    "tables/items/v000001/weights.npy",
    "tables/items/v000002/manifest.json",
    "tables/items/v000002/seq",
    "tables/items/v000002/slot_sum.npy",
    "tables/items/v000002/weights.npy",
    "tables/keyed/v000001/keys.slots.npy",
    "wal/checkpoint",
]


def copy_or_link(source: str, target: str) -> None:
    """What isn't damaged needn't be copied."""
    if "/tables/z/" in source:
        os.link(source, target)
    else:
        shutil.copy(source, target)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_snapshot_is_refused_by_the_name_of_the_file(
    taken: Taken, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(taken.path, copy, copy_function=copy_or_link)
    document = json.loads((copy / "snapshot.json").read_text())
    for place in PLACES:
        whole = (copy / place).read_bytes()
        assert place == "snapshot.json" or place in document["files"]
        damage(copy / place)
        for command in (
            ("verify", "--data-dir", copy),
            ("restore", copy, "--data-dir", tmp_path / "data"),
        ):
            if (place, damage) == ("snapshot.json", Path.unlink) and command[0] == "verify":
                continue  # without it, it is verified as a data dir
            done = invoke(*command, check=False)
            assert done.returncode > 1, (command, place)
            assert place in done.stderr, (command, place)
        assert not (tmp_path / "data").exists()
        (copy / place).write_bytes(whole)


def test_it_is_restored_to_an_empty_folder_only(taken: Taken, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    done = invoke("restore", taken.path, "--data-dir", tmp_path, check=False)
    assert done.returncode > 1
    assert f"{tmp_path} isn't empty (there is 'note')" in done.stderr
    done = invoke("restore", taken.path, "--data-dir", tmp_path / "note", check=False)
    assert f"Directory '{tmp_path / 'note'}' is a file" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    done = invoke("restore", tmp_path, "--data-dir", tmp_path / "new", check=False)
    assert "isn't a snapshot: it has no snapshot.json\n" in done.stderr
    folder = taken.path.parent
    for wrong in (folder, folder / "mistyped"):
        done = invoke("restore", wrong, "--data-dir", tmp_path / "new", check=False)
        assert f"; {folder} has {taken.path.name}" in done.stderr


def test_what_cannot_be_a_snapshot_is_refused_and_leaves_nothing(
    taken: Taken, served: Served
) -> None:
    before = sorted(served.folder.parent.rglob("*"))
    with Client(served.server.http) as client:
        for name in ("../up", "/tmp/up", ".hidden", "a/b", "..", "n" * 129, "x.partial"):
            with pytest.raises(InvalidArgument, match="can't name a snapshot"):
                client.snapshot(name)
        with pytest.raises(AlreadyExists, match=f"a snapshot '{taken.path.name}' in"):
            client.snapshot(taken.path.name)
    told = invoke("snapshot", "--to", served.folder, "--data-dir", served.data_dir, check=False)
    assert "makes snapshots in its own --snapshot-dir; leave --to out" in told.stderr
    assert sorted(served.folder.parent.rglob("*")) == before


def test_snapshots_are_listed_and_deleted_over_every_wire(served: Served) -> None:
    server = served.server
    urls = [server.http, server.grpc, f"local:{served.data_dir}"]
    for number, url in enumerate(urls):
        with Client(url, timeout=60) as client:
            made = client.snapshot(f"listed-{number}")
            (found,) = [one for one in client.snapshots() if one.path == made.path]
            assert (found.name, found.lsn, found.damaged) == (f"listed-{number}", made.lsn, "")
            files = [path for path in Path(made.path).rglob("*") if path.is_file()]
            listed = sum(path.stat().st_size for path in files if path.name != "snapshot.json")
            assert found.bytes == listed
            assert found.created is not None
            assert abs((datetime.now(UTC) - found.created).total_seconds()) < 120
            assert client.snapshots()[-1] == found
            client.delete_snapshot(found.name)
            assert not Path(made.path).exists()
            assert found not in client.snapshots()
            with pytest.raises(NotFound, match=f"no snapshot 'listed-{number}' in"):
                client.delete_snapshot(found.name)


def test_only_whole_snapshots_that_nobody_reads_are_deleted(served: Served) -> None:
    with Client(served.server.http, timeout=60) as client:
        made = Path(client.snapshot("kept").path)
        with Files().shared_folder(made, exclusive=False):
            with pytest.raises(FailedPrecondition, match="'kept' is being copied or restored"):
                client.delete_snapshot("kept")
        others = {"mine": "without snapshot.json", "link": "symbolic link", "more": "'note' in it"}
        (served.folder / "mine").mkdir()
        (served.folder / "link").symlink_to(made)
        shutil.copytree(made, served.folder / "more", copy_function=os.link)
        (served.folder / "more" / "note").write_text("mine")
        try:
            for name, why in others.items():
                with pytest.raises(FailedPrecondition, match=f"{why}: it is no snapshot"):
                    client.delete_snapshot(name)
                assert (served.folder / name).exists()
            for name in ("../data", "a/b", "..", "kept.partial", ""):
                with pytest.raises(InvalidArgument, match="can't name a snapshot"):
                    client.delete_snapshot(name)
            flip(made / "snapshot.json")
            (damaged,) = [one for one in client.snapshots() if one.name == "kept"]
            assert damaged.created is None
            assert "snapshot.json" in damaged.damaged
            client.delete_snapshot("kept")
            assert not made.exists()
        finally:
            (served.folder / "link").unlink(missing_ok=True)
            for name in ("mine", "more"):
                shutil.rmtree(served.folder / name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data dir without a server."""
    data = tmp_path_factory.mktemp("small") / "data"
    make_data_dir(data, drawn_table("t", 5, 3, optimizer="adam"), drawn_table("u", 5, 3))
    return data


def test_without_a_server_a_command_takes_it(small: Path, tmp_path: Path) -> None:
    place = ("--data-dir", small)
    told = invoke("snapshot", "--to", tmp_path / "s", *place).stdout
    (made,) = (tmp_path / "s").iterdir()
    assert re.fullmatch(r"\d{8}T\d{6}Z-2", made.name)
    assert told == f"{made}: snapshot as of LSN 2\n"
    within = invoke("snapshot", "x", "--to", small / "s", *place, check=False)
    assert "it is in the data dir" in within.stderr
    assert "say by --to where" in invoke("snapshot", *place, check=False).stderr
    up = invoke("snapshot", "../up", "--to", tmp_path / "s", *place, check=False)
    assert "can't name a snapshot" in up.stderr
    assert not (small / "s").exists()


def test_a_damaged_data_dir_gives_no_snapshot_that_looks_sound(small: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small, data)
    invoke("publish", "u", "--data-dir", data)
    superseded = data / "tables/u/v000001/weights.npy"
    whole = superseded.read_bytes()
    superseded.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = invoke("snapshot", "--to", tmp_path / "s", "--data-dir", data, check=False)
    assert done.returncode > 1
    assert f"{superseded} isn't what was published, so that no snapshot is taken" in done.stderr
    assert not list((tmp_path / "s").iterdir())


# Ends in the middle of the copy of the second file, as a kill would.
KILLED = """
import os, sys
from pathlib import Path
from gatherd_server.storage.files import Files
from gatherd_server.data_dir.owning import own_data_dir

class Killed(Files):
    copied = 0
    def copy(self, source, target):
        if self.copied:
            target.write_bytes(b"half")
            os._exit(9)
        self.copied += 1
        super().copy(source, target)

with own_data_dir(Path(sys.argv[1]), files=Killed()) as owned:
    owned.snapshot(Path(sys.argv[2]), "killed")
"""


def test_a_snapshot_that_was_cut_short_is_told_from_one_and_swept_away(
    small: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    command = [sys.executable, "-c", KILLED, str(small), str(folder)]
    assert subprocess.run(command, env=clean_environment()).returncode == 9
    (partial,) = folder.iterdir()
    assert partial.name == "killed.partial"
    for told in (
        invoke("restore", partial, "--data-dir", tmp_path / "data", check=False),
        invoke("verify", "--data-dir", partial, check=False),
    ):
        assert told.returncode > 1
    assert not (tmp_path / "data").exists()
    (folder / "mine.partial").mkdir()
    (folder / "mine.partial" / "note").write_text("not a snapshot's")
    invoke("snapshot", "next", "--to", folder, "--data-dir", small)
    assert {path.name for path in folder.iterdir()} == {"next", "mine.partial"}
    assert invoke("verify", "--data-dir", folder / "next").returncode == 0


def test_by_schedule_the_oldest_unnamed_snapshots_go_and_the_named_stay(
    small: Path, tmp_path: Path
) -> None:
    folder, data = tmp_path / "s", tmp_path / "data"
    shutil.copytree(small, data)
    # By number, not by digits: the last of these is the newest.
    olds = ["20200101T000000Z-1", "20200102T000000Z-9", "20200102T000000Z-10"]
    for name in ("monday", *olds):
        invoke("snapshot", name, "--to", folder, "--data-dir", data)
    (folder / "killed.partial").mkdir()

    def names() -> set[str]:
        return {path.name for path in folder.iterdir()}

    options = ("--snapshot-dir", folder, "--snapshot-seconds", "86400", "--snapshot-keep", "2")
    with RunningServer("--data-dir", data, *options):
        wait_until(lambda: not names() & {"killed.partial", *olds[:2]}, "it was taken")
        wait_until(lambda: not any(name.endswith(".partial") for name in names()), "it is whole")
    (new,) = names() - {"monday", olds[2]}
    assert re.fullmatch(r"2[0-9]{7}T\d{6}Z-2", new)
    assert {"monday", olds[2]} < names()
    assert invoke("verify", "--data-dir", folder / new).stdout == "snapshot: ok, LSN 2\n"


def test_the_schedule_goes_on_where_it_was_before_a_restart(tmp_path: Path) -> None:
    made = datetime.now(UTC) - timedelta(seconds=3598)
    (tmp_path / f"{made:%Y%m%dT%H%M%SZ}-7").mkdir()
    (tmp_path / f"{made:%Y%m%dT%H%M%SZ}-7" / "snapshot.json").touch()
    begun = time.monotonic()
    taken: Future[float] = Future()

    def take() -> Future[SnapshotResult]:
        taken.set_result(time.monotonic() - begun)
        result: Future[SnapshotResult] = Future()
        result.set_result(SnapshotResult("", 8))
        return result

    schedule = Schedule(tmp_path, 3600.0, take)
    schedule.begin()
    # The name has whole seconds.
    assert 0.9 <= taken.result(30) <= 10
    schedule.close()
