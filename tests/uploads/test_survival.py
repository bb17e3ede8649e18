"""Uploads through kills of servers, workers and the writer, through expiry and full disks."""

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd import Client
from gatherd.errors import DiskFull, FailedPrecondition, LimitExceeded, NotFound, Unavailable
from gatherd.store.dtypes import DType
from gatherd_server.data_dir.uploads import folder as upload_folder
from gatherd_server.data_dir.uploads import progress
from gatherd_server.data_dir.uploads.spec import Chunk, UploadLimits, UploadSpec
from gatherd_server.data_dir.uploads.store import Uploads
from gatherd_server.storage.files import Files
from support.server import RunningServer, wait_until
from support.tables import make_data_dir

ROWS = np.random.default_rng(7).normal(size=(4000, 16)).astype(np.float32)
KEYS = [f"key {i}" for i in range(len(ROWS))]
STEP = 250


def batches(halfway: Callable[[], None], at: int = 8) -> Iterator[tuple[list[str], NDArray[Any]]]:
    """ROWS in batches; `halfway` is called before batch `at`."""
    for number, begin in enumerate(range(0, len(ROWS), STEP)):
        if number == at:
            halfway()
        yield KEYS[begin : begin + STEP], ROWS[begin : begin + STEP]


def check(client: Client, name: str = "items") -> None:
    np.testing.assert_array_equal(client.lookup(name, keys=KEYS), ROWS)
    assert client.table(name).versions == (1,)
    assert client.uploads() == []


@pytest.mark.timeout(300)
def test_an_upload_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    make_data_dir(data_dir)
    chunk_bytes = STEP * 100
    with RunningServer("--data-dir", data_dir, log_path=tmp_path / "log") as server:
        with Client(server.http, timeout=1) as client, pytest.raises(Unavailable) as lost:
            client.create_table("items", batches(server.kill), chunk_bytes=chunk_bytes)
    upload = lost.value.metadata["upload"]
    assert f"resume={upload!r}" in str(lost.value)
    with RunningServer("--data-dir", data_dir, log_path=tmp_path / "log") as server:
        with Client(server.http) as client:
            (info,) = client.uploads()
            assert (info.upload, info.table) == (upload, "items")
            assert info.rows >= 6 * STEP, "what was answered is kept"
            client.create_table("items", batches(lambda: None), resume=upload)
            check(client)
            with pytest.raises(FailedPrecondition, match="was committed"):
                client.create_table("items", batches(lambda: None), resume=upload)
    assert [path.name for path in (data_dir / "staging").iterdir()] == ["uploads"]


@pytest.mark.timeout(300)
def test_a_call_outlives_kills_of_workers_writer_and_server(tmp_path: Path) -> None:
    data_dir, socket = tmp_path / "data", Path("/tmp") / f"gatherd-{uuid.uuid4().hex[:12]}"
    make_data_dir(data_dir)
    options = (
        *("--data-dir", data_dir, "--workers", "2", "--unix", socket),
        *("--http", "127.0.0.1:0"),
    )
    with RunningServer(*options, log_path=tmp_path / "log") as server:
        with Client(f"unix://{socket}", timeout=60) as client:

            def kill_children() -> None:
                for pid in (*server.worker_pids(), *server.writer_pids()):
                    os.kill(pid, signal.SIGKILL)

            client.create_table("items", batches(kill_children), chunk_bytes=STEP * 100)
            check(client)

            # And in the middle of the commit.
            done: list[Any] = []
            publishing = threading.Thread(
                target=lambda: done.append(client.create_table("more", ROWS, keys=KEYS))
            )
            publishing.start()
            staged = data_dir / "staging"
            wait_until(lambda: bool(done) or len([*staged.iterdir()]) > 1, "the commit has begun")
            kill_children()
            publishing.join()
            assert done[0].rows == len(ROWS)
            check(client, "more")
    socket.unlink(missing_ok=True)


@pytest.mark.timeout(180)
def test_uploads_that_nobody_goes_on_with_expire(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    make_data_dir(data_dir)
    limits = ("--upload-seconds", "2", "--uploads-max", "1", "--uploads-bytes-max", str(1 << 20))
    with RunningServer("--data-dir", data_dir, *limits, log_path=tmp_path / "log") as server:
        with Client(server.http) as client:
            with pytest.raises(LimitExceeded, match="uploads_bytes_max"):
                client.create_table("large", np.zeros((1 << 16, 8), np.float32))
            assert client.uploads() == []
            begun = httpx.post(f"{server.http}/v1/uploads", json={"name": "given-up", "dim": 2})
            with pytest.raises(FailedPrecondition, match="uploads_max"):
                client.create_table("one", ROWS[:8])
            assert [one.upload for one in client.uploads()] == [begun.json()["upload"]]
            wait_until(lambda: client.uploads() == [], "the upload expires")
            folder = data_dir / "staging" / "uploads"
            wait_until(lambda: not [*folder.iterdir()], "its files are deleted")
            client.create_table("one", ROWS[:8])


NAME = "00" * 16
SPEC = UploadSpec("items", 16, DType.FLOAT32)


def chunk(begin: int, end: int) -> Chunk:
    return Chunk(NAME, begin, ROWS[begin:end], DType.FLOAT32)


def test_after_a_power_cut_an_upload_goes_on_from_what_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_folder, "SYNC_BYTES", 100 * SPEC.row_bytes)
    uploads = Uploads(Files(), tmp_path, UploadLimits())
    uploads.begin(NAME, SPEC)
    for begin in range(0, 250, 50):
        uploads.append(chunk(begin, begin + 50))
    assert uploads.status(NAME).next_row == 250
    monkeypatch.setattr(progress, "boot_id", lambda: b"another boot....")
    assert uploads.status(NAME).next_row == 200
    with pytest.raises(FailedPrecondition, match="begins at row 200"):
        uploads.append(chunk(250, 300))
    assert uploads.append(chunk(200, 300)) == 300
    assert uploads.status(NAME).next_row == 300


class FullDisk(Files):
    """A disk without room for more than `left` bytes."""

    left = 0

    def allocate(self, fd: int, byte_count: int, path: Path, begin: int = 0) -> None:
        if byte_count - os.fstat(fd).st_size > self.left:
            raise DiskFull(f"{path}: the disk is full")
        super().allocate(fd, byte_count, path, begin)


def test_a_full_disk_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    files = FullDisk()
    uploads = Uploads(files, tmp_path, UploadLimits())
    with pytest.raises(DiskFull):
        uploads.begin(NAME, UploadSpec("items", 16, DType.FLOAT32, row_count=1 << 30))
    with pytest.raises(NotFound):
        uploads.status(NAME)
    uploads.begin(NAME, SPEC)
    with pytest.raises(DiskFull):
        uploads.append(chunk(0, 10))
    assert uploads.status(NAME).next_row == 0
    files.left = 1 << 30
    assert uploads.append(chunk(0, 10)) == 10
    uploads.cancel(NAME)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def peak_bytes(pid: int) -> int:
    """The most memory that a process of this machine has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return peak * 1024


@pytest.mark.timeout(180)
def test_a_server_holds_a_few_chunks_of_an_upload(tmp_path: Path) -> None:
    """64 MiB of rows, in chunks of 1 MiB, over both wires."""
    data_dir = tmp_path / "data"
    make_data_dir(data_dir)
    part = np.zeros((1 << 13, 256), np.float32)
    with RunningServer("--data-dir", data_dir, log_path=tmp_path / "log") as server:
        for url in (server.http, server.grpc):
            peaks = []

            def rows() -> Iterator[NDArray[Any]]:
                yield part[:1]
                peaks.append(peak_bytes(server.worker_pids()[0]))  # noqa: B023 - used at once
                for _ in range(8):
                    yield part
                peaks.append(peak_bytes(server.worker_pids()[0]))  # noqa: B023 - used at once

            with Client(url) as client:
                client.create_table(f"of-{url[:4]}", rows(), chunk_bytes=1 << 20)
            assert peaks[1] - peaks[0] < 16 << 20
