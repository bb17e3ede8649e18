"""The log's next segment is made ahead, taken, given up and deleted; every push is there after."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gatherd.errors import DiskFull
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.storage.files import Files
from gatherd_server.storage.records import pack
from gatherd_server.storage.wal_format import FrameKind, segment_paths
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.storage.wal_writer import LogWriter
from gatherd_server.types import Push, PushResult, TableUpdate, UpdateOp, WriterLimits
from gatherd_server.writer.writer import Writer
from support.server import wait_until
from support.tables import drawn_table, make_data_dir

ROWS, DIM, SEGMENT_BYTES = 400, 32, 512 << 10
LIMITS = WriterLimits(segment_bytes=SEGMENT_BYTES, checkpoint_seconds=3600.0)


class Full(Files):
    """A disk without room for one more file, or frame; counts how often it is asked for a file."""

    def __init__(self) -> None:
        self.is_full = self.takes_no_frame = False
        self.asked = 0

    def write_all_at(
        self, fd: int, parts: Sequence[bytes | memoryview], position: int, path: Path
    ) -> int:
        if self.takes_no_frame:
            raise DiskFull(f"{path}: the disk is full")
        return super().write_all_at(fd, parts, position, path)

    def create_reserved(self, path: Path, byte_count: int) -> int:
        self.asked += 1
        if self.is_full:
            raise DiskFull(f"{path}: the disk is full")
        return super().create_reserved(path, byte_count)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    make_data_dir(path, drawn_table("items", ROWS, DIM))
    return path


@contextmanager
def writing(data: Path, files: Files | None = None) -> Iterator[Writer]:
    writer = Writer(data, files or Files(), LIMITS)
    try:
        yield writer
    finally:
        writer.close()


def push(writer: Writer, rows: int = 1) -> PushResult:
    """Plus one in the first rows."""
    values = np.ones((rows, DIM), np.float32)
    update = TableUpdate("items", np.arange(rows), values)
    future: Future[PushResult] = writer.submit(Push(UpdateOp.SCATTER_ADD, (update,)), b"")
    return future.result(20)


def spare(data: Path) -> Path:
    return data / "wal" / "next"


def segments(data: Path) -> list[int]:
    return [first_lsn for first_lsn, _ in segment_paths(data / "wal")]


def first_row(data: Path) -> float:
    with own_data_dir(data):
        pass  # recovers it
    return float(np.load(data / "tables/items/v000001/weights.npy", mmap_mode="r")[0, 0])


def test_the_first_segment_made_ahead_is_used_at_once(data: Path) -> None:
    with writing(data) as writer:
        first = push(writer).lsn
        writer.prepare_segment(SEGMENT_BYTES // 2)
        push(writer)
        assert segments(data)[-1] == first, "it isn't complete"
        writer.prepare_segment(SEGMENT_BYTES)
        assert spare(data).stat().st_size == SEGMENT_BYTES
        third = push(writer).lsn
        assert segments(data)[-2:] == [first, third]
        assert not spare(data).exists()
        # The next one waits until this one is full.
        writer.prepare_segment(SEGMENT_BYTES)
        assert push(writer).lsn == third + 1
        assert segments(data)[-1] == third
        assert spare(data).exists()


def test_what_a_killed_writer_left_is_deleted_and_every_push_is_there(
    data: Path, tmp_path: Path
) -> None:
    before = first_row(data)
    with writing(data) as writer:
        push(writer)
        writer.prepare_segment(SEGMENT_BYTES)
        push(writer)
        writer.prepare_segment(SEGMENT_BYTES // 2)
        shutil.copytree(data, tmp_path / "killed")
    assert not spare(data).exists(), "a stop deletes it"
    killed = tmp_path / "killed"
    assert spare(killed).exists()
    with writing(killed):
        assert not spare(killed).exists()
    assert first_row(killed) == first_row(data) == np.float32(before) + np.float32(2)


def test_many_small_pushes_have_one_made(data: Path) -> None:
    with writing(data) as writer:
        for _ in range(12):
            push(writer, ROWS)  # 55 kB each
        wait_until(lambda: len(segments(data)) > 1 or spare(data).exists(), "it was made ahead")


@pytest.mark.parametrize(
    ("frame_bytes", "syncs", "wants"),
    [(20_000, True, True), (200_000, True, False), (20_000, False, False)],
    ids=["small", "long", "not synced"],
)
def test_it_is_wanted_where_it_pays(
    tmp_path: Path, frame_bytes: int, syncs: bool, wants: bool
) -> None:
    log = LogWriter(Files(), tmp_path, 1, 1 << 20, syncs=syncs)
    asked = []
    for lsn in range(1, 600_000 // frame_bytes):
        asked.append(log.wants_spare)
        log.append(FrameKind.PUSHES, lsn, lsn, [bytes(frame_bytes)])
    log.close()
    assert not asked[0]
    assert log.wants_spare == wants


def test_without_room_for_it_pushes_go_on(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Full()
    with writing(data, files) as writer:
        push(writer)
        files.is_full = True
        with pytest.raises(DiskFull):
            writer.prepare_segment(SEGMENT_BYTES)
        for _ in range(6):
            push(writer, ROWS)
        wait_until(lambda: "isn't made ahead" in caplog.text, "it was tried")
        asked = files.asked
        push(writer)
        assert files.asked == asked, "not again so soon"
        assert not spare(data).exists()
        assert not writer.is_full


def test_nothing_is_appended_to_a_segment_that_was_given_up(tmp_path: Path) -> None:
    files = Full()
    log = LogWriter(files, tmp_path, 1, 1 << 20)
    payload = b"".join(map(bytes, pack({}, [np.zeros(1_000, np.uint8)])))
    files.takes_no_frame = True
    with pytest.raises(DiskFull):
        log.append(FrameKind.PUSHES, 1, 1, [payload])
    files.takes_no_frame, files.is_full = False, True
    with pytest.raises(DiskFull):
        log.append(FrameKind.PUSHES, 1, 1, [bytes(2 << 20)])
    files.is_full = False
    log.append(FrameKind.PUSHES, 1, 1, [payload])
    log.close()
    assert [frame.last_lsn for frame in LogReader(tmp_path, 0)] == [1]
