"""Backups in a store: whole or not there, checked when they come back, and never too many."""

import fcntl
import json
import logging
import os
import shutil
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gatherd import Client
from gatherd_server.observe.metrics.recorder import Recorder
from gatherd_server.snapshots.backups import store as store_module
from gatherd_server.snapshots.backups.copying import copy_snapshots
from gatherd_server.snapshots.backups.keeper import Keeper
from gatherd_server.snapshots.backups.store import open_store
from gatherd_server.snapshots.snapshot import drop_snapshots
from gatherd_server.storage.files import Files
from gatherd_server.writer.measures import Measures
from support.cli import Done, invoke
from support.server import wait_until
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 50, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two unnamed snapshots of a data dir, and a named one."""
    root = tmp_path_factory.mktemp("made")
    make_data_dir(root / "data", drawn_table("t", ROWS, DIM, init="uniform", optimizer="adam"))
    for name in ("20200101T000000Z-9", "20200101T000000Z-10", "monday"):
        invoke("snapshot", name, "--to", root / "s", "--data-dir", root / "data")
    return root / "s"


@pytest.fixture
def snapshots(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture(params=["memory://", "local://", "file://", ""])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place by fsspec in memory, one by fsspec in files, and a folder by both its names."""
    yield f"{request.param}{tmp_path}/store"
    fsspec.filesystem("memory").store.clear()


def as_files(url: str) -> Any:
    """The store, as its own file system shows it."""
    return fsspec.core.url_to_fs(url)[0]


def place(url: str) -> str:
    return str(fsspec.core.url_to_fs(url)[1])


def listed(url: str, *options: str) -> Any:
    return json.loads(invoke("backups", url, "--json", *options).stdout)


def restored(source: str, data: Path, *options: str) -> Done:
    return invoke("restore", source, "--data-dir", data, *options, check=False)


def assert_same_tree(found: Path, snapshot: Path) -> None:
    """Every file of the snapshot, and no other, byte for byte."""
    wanted = {p.relative_to(snapshot) for p in snapshot.rglob("*") if p.is_file()}
    wanted.discard(Path("snapshot.json"))
    assert {p.relative_to(found) for p in found.rglob("*") if p.is_file()} == wanted
    for path in wanted:
        assert (found / path).read_bytes() == (snapshot / path).read_bytes(), path


def test_what_comes_back_is_byte_for_byte_the_snapshot(
    snapshots: Path, url: str, tmp_path: Path
) -> None:
    told = invoke("backup", snapshots, url).stdout.splitlines()
    # The newest of those named by the time, by number and not by digits, and all others.
    assert [line.partition(":")[0] for line in told] == ["20200101T000000Z-10", "monday"]
    assert invoke("backup", snapshots, url).stdout == "nothing new to copy\n"
    backups = listed(url, "--verify")
    assert [one["name"] for one in backups["backups"]] == ["20200101T000000Z-10", "monday"]
    assert {one["lsn"] for one in backups["backups"]} == {1}
    assert (backups["unfinished"], backups["damaged"]) == ([], {})
    done = restored(f"{url}/monday", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/monday as of LSN 1\n")
    assert_same_tree(tmp_path / "data", snapshots / "monday")
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    assert restored(url, tmp_path / "volume", "--newest").returncode == 0
    with Client(f"local:{tmp_path / 'volume'}") as client:
        assert client.lookup("t", np.arange(ROWS)).shape == (ROWS, DIM)
    refused = restored(url, tmp_path / "volume", "--newest")
    assert refused.returncode > 1
    assert "isn't empty" in refused.stderr


def test_one_that_was_never_finished_is_not_restored_and_goes_when_it_is_old(
    snapshots: Path, url: str, tmp_path: Path
) -> None:
    invoke("backup", snapshots / "monday", url)
    invoke("backup", snapshots / "20200101T000000Z-9", url)
    file_system, root = as_files(url), place(url)
    cut = f"{root}/20200101T000000Z-9"
    file_system.rm_file(f"{cut}/snapshot.json")
    done = restored(f"{url}/20200101T000000Z-9", tmp_path / "data")
    assert done.returncode > 1
    assert "snapshot.json" in done.stderr
    assert not (tmp_path / "data").exists()
    assert listed(url)["unfinished"] == ["20200101T000000Z-9"]
    assert restored(url, tmp_path / "newest", "--newest").stdout.endswith("monday as of LSN 1\n")
    # It may be under way yet.
    invoke("backup", snapshots, url, "--keep", "1")
    assert listed(url)["unfinished"] == ["20200101T000000Z-9"]
    upload = json.loads(file_system.cat_file(f"{cut}/upload.json"))
    assert abs(time.time() - upload["begun"]) < 60
    file_system.pipe_file(
        f"{cut}/upload.json", json.dumps({"begun": upload["begun"] - 1e5}).encode()
    )
    # Somebody else's.
    file_system.makedirs(f"{root}/mine", exist_ok=True)
    file_system.pipe_file(f"{root}/mine/note", b"not a backup")
    assert (
        "20200101T000000Z-9: deleted there"
        in invoke("backup", snapshots, url, "--keep", "1").stdout
    )
    names = set(open_store(url).names())
    assert names == {"mine", "monday", "20200101T000000Z-10"}


def test_a_copy_that_was_cut_anywhere_is_taken_up_again(
    snapshots: Path, url: str, tmp_path: Path
) -> None:
    source = snapshots / "monday"
    invoke("backup", source, url)
    file_system = as_files(url)
    files = sorted(file_system.find(place(url)), key=lambda path: path.endswith("snapshot.json"))
    whole = {path: file_system.cat_file(path) for path in files}
    for count in range(len(files)):
        file_system.rm(place(url), recursive=True)
        for path in files[:count]:
            file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
            file_system.pipe_file(path, whole[path])
        # The file that was under way then.
        file_system.makedirs(files[count].rpartition("/")[0], exist_ok=True)
        file_system.pipe_file(files[count], whole[files[count]][:-1])
        assert restored(f"{url}/monday", tmp_path / "data").returncode == 6
        assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())
        invoke("backup", source, url)
        assert listed(url, "--verify")["damaged"] == {}


def test_damage_in_the_store_is_told_by_the_file_and_leaves_the_volume_empty(
    snapshots: Path, url: str, tmp_path: Path
) -> None:
    invoke("backup", snapshots / "monday", url)
    file_system = as_files(url)
    (tmp_path / "data").mkdir()
    contents = json.loads((snapshots / "monday/snapshot.json").read_text())["files"]
    for name in (*contents, "snapshot.json"):
        path = f"{place(url)}/monday/{name}"
        whole = file_system.cat_file(path)
        flipped = bytearray(whole)
        flipped[len(flipped) // 2] ^= 4
        for damaged in (bytes(flipped), whole[:-1], whole + b"x", None):
            if damaged is None:
                file_system.rm_file(path)
            else:
                file_system.pipe_file(path, damaged)
            done = restored(f"{url}/monday", tmp_path / "data")
            assert done.returncode > 1, (name, damaged)
            assert name in done.stderr, (name, done.stderr)
            assert not list((tmp_path / "data").iterdir()), name
            if (name, damaged) != ("snapshot.json", None):
                checked = invoke("backups", url, "--verify", check=False)
                assert checked.returncode > 1, name
                assert name in checked.stderr, (name, checked.stderr)
        file_system.pipe_file(path, whole)


def test_a_damaged_snapshot_is_not_copied_as_a_sound_one(snapshots: Path, url: str) -> None:
    path = snapshots / "monday/tables/t/v000001/weights.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = invoke("backup", snapshots, url, check=False)
    assert done.returncode > 1
    assert f"monday: {path}: bytes 0 to" in done.stderr
    # The sound one is there.
    backups = listed(url)
    assert [one["name"] for one in backups["backups"]] == ["20200101T000000Z-10"]
    assert backups["unfinished"] == ["monday"]


def test_the_newest_stay_and_named_ones_too(snapshots: Path, url: str) -> None:
    for number in (7, 8, 9, 10):
        shutil.copytree(snapshots / "20200101T000000Z-10", snapshots / f"20210101T000000Z-{number}")
        invoke("backup", snapshots, url, "--keep", "2")
    names = ["20210101T000000Z-10", "20210101T000000Z-9", "monday"]
    assert sorted(one["name"] for one in listed(url)["backups"]) == names


def test_another_snapshot_of_the_same_name_does_not_replace_a_backup(
    snapshots: Path, url: str
) -> None:
    invoke("backup", snapshots / "monday", url)
    document = snapshots / "monday/snapshot.json"
    shutil.copy(snapshots / "20200101T000000Z-9/snapshot.json", document)
    other = document.read_bytes() + b"\n"
    document.write_bytes(other)
    done = invoke("backup", snapshots, url, check=False)
    assert done.returncode > 1
    assert "has another backup called 'monday'" in done.stderr
    assert len(listed(url, "--verify")["backups"]) == 2


def test_places_that_cannot_be_are_refused(snapshots: Path, tmp_path: Path) -> None:
    for url, told in (
        ("nosuch://bucket/x", "fsspec can't open it here"),
        ("s3://", "names no place"),
        ("", "this one is empty"),
        (str(snapshots), "the snapshots themselves are in"),
        (str(snapshots / "deeper"), "the snapshots themselves are in"),
    ):
        done = invoke("backup", snapshots, url, check=False)
        assert done.returncode > 1
        assert told in done.stderr
    done = invoke("backups", "nosuch://who:secret@bucket/x", check=False)
    assert "nosuch://…@bucket/x" in done.stderr
    assert "who" not in done.stderr.partition("pip")[0].partition("nosuch://")[2]
    assert invoke("backups", tmp_path / "none").stdout == ""
    done = invoke(
        "restore", tmp_path / "none", "--newest", "--data-dir", tmp_path / "d", check=False
    )
    assert "has no backup that is whole" in done.stderr


class Flaky(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Fails each time, until `failures` of them are used up."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("flaky://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if Flaky.failures > 0:
            Flaky.failures -= 1
            raise ConnectionResetError("the store hung up")
        return super()._open(path, mode, **options)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> str:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(store_module, "PAUSES_SECONDS", (0.0, 0.0))
    Flaky.store.clear()
    return "flaky://bucket"


def test_a_store_that_breaks_off_is_tried_again_but_not_for_ever(
    snapshots: Path, flaky: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flaky, "failures", 2)
    # The first are the listing's of an empty store, which needs no file; so put has both.
    invoke("backup", snapshots / "monday", flaky)
    monkeypatch.setattr(Flaky, "failures", 2)
    done = restored(f"{flaky}/monday", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert_same_tree(tmp_path / "data", snapshots / "monday")
    monkeypatch.setattr(Flaky, "failures", 3)
    done = restored(f"{flaky}/monday", tmp_path / "other")
    assert done.returncode > 1
    assert "ConnectionResetError: the store hung up" in done.stderr
    shutil.copytree(snapshots / "monday", snapshots / "tuesday")
    monkeypatch.setattr(Flaky, "failures", 10**6)
    done = invoke("backup", snapshots / "tuesday", flaky, check=False)
    assert done.returncode > 1
    monkeypatch.setattr(Flaky, "failures", 0)
    assert [one["name"] for one in listed(flaky)["backups"]] == ["monday"]


def test_a_large_file_takes_no_more_memory_than_a_piece(tmp_path: Path) -> None:
    make_data_dir(tmp_path / "data", drawn_table("t", 500_000, 50, optimizer=None))
    invoke("snapshot", "big", "--to", tmp_path / "s", "--data-dir", tmp_path / "data")
    for number, url in enumerate((f"local://{tmp_path}/a", f"{tmp_path}/b")):
        store = open_store(url)
        tracemalloc.start()
        outcome = copy_snapshots(tmp_path / "s", store, None)
        _, copying = tracemalloc.get_traced_memory()
        assert outcome.copied[0].byte_count > 100_000_000
        tracemalloc.reset_peak()
        assert restored(f"{url}/big", tmp_path / f"d{number}").returncode == 0
        _, fetching = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert max(copying, fetching) < 40 << 20


def test_a_snapshot_that_is_being_copied_is_not_deleted(snapshots: Path) -> None:
    held = os.open(snapshots / "20200101T000000Z-9", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    drop_snapshots(Files(), snapshots, 1)
    assert (snapshots / "20200101T000000Z-9/snapshot.json").exists()
    os.close(held)
    drop_snapshots(Files(), snapshots, 1)
    assert sorted(path.name for path in snapshots.iterdir()) == ["20200101T000000Z-10", "monday"]


def test_a_copy_that_hangs_is_ended_told_and_does_not_hold_the_end(
    snapshots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Whoever opens it waits for a writer, for ever.
    stuck = snapshots / "20200101T000000Z-10/catalog.json"
    stuck.unlink()
    os.mkfifo(stuck)
    recorder = Recorder()
    with caplog.at_level(logging.INFO, "gatherd.writer"):
        keeper = Keeper(snapshots, f"{tmp_path}/store", 3, Measures(recorder), stall_seconds=2.0)
        keeper.begin()
        wait_until(lambda: "no byte more went in 2 s; next try" in caplog.text, "it is told")
        patient = Keeper(snapshots, f"{tmp_path}/store", 3, Measures(), stall_seconds=300.0)
        patient.begin()
        closing = threading.Thread(target=patient.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        keeper.close()
    assert not listed(f"{tmp_path}/store")["backups"]
