"""A log that was damaged: cut short at every length, and with a bit flipped in every byte.

Each time it is the documented outcome: an interrupted append is cut off, with a line in the log and
every push before it kept; anything else is refused, naming the byte. The control page may know of
the damaged push, as after a kill, or not, as after a power cut.
"""

import logging
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from durability.oracle import State, check
from durability.trainer import LIMITS, Quick, Trainer
from gatherd.errors import BadFile
from gatherd.store.control import COMMITTED_LSN_OFFSET, CONTROL_NAME
from gatherd.store.dtypes import DType
from gatherd_server.storage.wal_format import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    WAL_NAME,
    FrameHeader,
    SegmentHeader,
    segment_paths,
)
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.types import VALUE_OPS, UpdateOp
from gatherd_server.writer.checkpoint import checkpoint_path, read_checkpoint

SAMPLE = 29
"""Every such byte is tried with a whole start, the others by reading the log alone."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's bytes in its segment."""

    begin: int
    end: int
    last_lsn: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A refusal that names `position` of `path`, or else a log up to `lsn`, cut or not."""

    path: Path
    position: int
    lsn: int = -1
    is_torn: bool = False


@dataclass(frozen=True, slots=True)
class Logged:
    """A data dir after a power cut, what its log has, and its state by LSN."""

    data: Path
    segments: list[tuple[Path, list[Frame]]]
    states: list[State]

    @property
    def last_lsn(self) -> int:
        return self.segments[-1][1][-1].last_lsn

    def expected(self, path: Path, byte: int, *, is_flip: bool, committed: int) -> Outcome:
        """What has to become of a log with that byte wrong, or nothing from it on."""
        index = next(i for i, (other, _) in enumerate(self.segments) if other == path)
        frames, is_last = self.segments[index][1], index + 1 == len(self.segments)
        before = frames[0].last_lsn - 1 if index else 0
        if byte < SEGMENT_HEADER_BYTES:
            if is_flip or not is_last:
                return Outcome(path, 0)
            return self._end(Outcome(path, 0, before), committed)
        whole = [frame for frame in frames if frame.end <= byte]
        begin, lsn = (whole[-1].end, whole[-1].last_lsn) if whole else (64, before)
        hit = len(whole) < len(frames)
        if is_last and (not hit or not is_flip or len(whole) + 1 == len(frames)):
            is_torn = byte > begin if hit and not is_flip else is_flip
            return self._end(Outcome(path, begin, lsn, is_torn), committed)
        return Outcome(path, begin) if hit else Outcome(path, begin, self.last_lsn)

    @staticmethod
    def _end(end: Outcome, committed: int) -> Outcome:
        return end if end.lsn >= committed else Outcome(end.path, end.position)

    def damages(self, committed: int) -> Iterator[tuple[Path, bytes, Outcome]]:
        """Every damage: the segment, its damaged bytes, and what has to become of it."""
        for path, _ in self.segments:
            data = path.read_bytes()
            for byte in range(len(data)):
                flipped = bytearray(data)
                flipped[byte] ^= 1 << byte % 8
                outcome = self.expected(path, byte, is_flip=True, committed=committed)
                yield path, bytes(flipped), outcome
                outcome = self.expected(path, byte, is_flip=False, committed=committed)
                yield path, data[:byte], outcome


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """A few pushes and a table's creation, in two segments; the last has room left."""
    root = tmp_path_factory.mktemp("logged")
    trainer = Trainer(root, Quick(), 5, replace(LIMITS, segment_bytes=1_500))
    trainer.make()
    trainer.start()
    trainer.create("a", 8, 2, DType.FLOAT32, "momentum")
    copy = root / "lost power"
    shutil.copytree(trainer.data, copy)
    for op in (*VALUE_OPS, *VALUE_OPS):
        trainer.push(trainer.drawn(op, ["a"], 3))
    # Nothing was written back but the log: what a row holds, it has from there.
    shutil.rmtree(copy / WAL_NAME)
    shutil.copytree(trainer.data / WAL_NAME, copy / WAL_NAME)
    trainer.abandon()
    segments = [(path, list(_frames(path))) for _, path in segment_paths(copy / WAL_NAME)]
    assert len(segments) == 2, [(p.stat().st_size, f) for p, f in segments]
    assert all(len(frames) > 1 for _, frames in segments)
    return Logged(copy, segments, trainer.view().states())


def _frames(path: Path) -> Iterator[Frame]:
    data = path.read_bytes()
    header = SegmentHeader.decode(data)
    assert header is not None
    position = SEGMENT_HEADER_BYTES
    while frame := FrameHeader.decode(data[position : position + FRAME_HEADER_BYTES], header.salt):
        end = position + FRAME_HEADER_BYTES + frame.payload_bytes
        yield Frame(position, end, frame.last_lsn)
        position = end


@pytest.mark.parametrize("knows", [True, False], ids=["known", "unknown"])
def test_every_damage_of_the_log_is_cut_off_or_refused(logged: Logged, knows: bool) -> None:
    """Read alone, for every byte. `knows`: the control page has the last push."""
    committed = logged.last_lsn if knows else 0
    wrong = []
    for path, damaged, outcome in logged.damages(committed):
        with _damaged(path, damaged):
            reader = LogReader(logged.data / WAL_NAME, 0, committed)
            what = _compared(outcome, partial(_read, reader))
        if what:
            wrong.append(f"{path.name} of {len(damaged)} bytes: {what}, not {outcome}")
    assert not wrong, "\n".join([f"{len(wrong)} outcomes are wrong", *wrong[:8]])


def _read(reader: LogReader) -> tuple[int, bool]:
    for _ in reader:
        pass
    return reader.tail.last_lsn, reader.tail.torn_bytes > 0


@pytest.mark.parametrize("knows", [True, False], ids=["known", "unknown"])
def test_a_start_on_a_damaged_log_keeps_what_was_before_or_changes_nothing(
    logged: Logged, knows: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole start, for a sample of the bytes."""
    committed = logged.last_lsn if knows else 0
    caplog.set_level(logging.WARNING, "gatherd.writer")
    wrong = []
    for number, (path, damaged, expected) in enumerate(logged.damages(committed)):
        if number % SAMPLE:
            continue
        root = tmp_path / str(number)
        data = root / "data"
        shutil.copytree(logged.data, data)
        _set_committed(data, committed)
        (data / WAL_NAME / path.name).write_bytes(damaged)
        caplog.clear()
        outcome = replace(expected, path=data / WAL_NAME / path.name)
        trainer = Trainer(root, Quick(), limits=LIMITS)
        try:
            what = _compared(outcome, partial(_started, trainer, logged, caplog))
        finally:
            trainer.abandon()
        if outcome.lsn < 0 and (data / WAL_NAME / path.name).read_bytes() != damaged:
            what = "refused, and changed"
        if what:
            wrong.append(f"{path.name} of {len(damaged)} bytes: {what}, not {outcome}")
    assert not wrong, "\n".join([f"{len(wrong)} outcomes are wrong", *wrong[:8]])


def _started(
    trainer: Trainer, logged: Logged, caplog: pytest.LogCaptureFixture
) -> tuple[int, bool]:
    """Start, check what the tables hold, and push once more."""
    lsn = trainer.start()
    is_cut = any("cut at byte" in message for message in caplog.messages)
    state = logged.states[lsn]
    check(trainer.data, state, is_settled=True)
    if state:
        trainer.begin, trainer.acknowledged = state, 0
        push = trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 3, keyless=True)
        assert trainer.writer.submit(push, b"").result(20).lsn == lsn + 1
    return lsn, is_cut


def _compared(outcome: Outcome, act: Callable[[], tuple[int, bool]]) -> str:
    """How it came out differently; nothing when it came out as it has to."""
    try:
        lsn, is_torn = act()
    except BadFile as error:
        if outcome.lsn < 0 and f"{outcome.path}, byte {outcome.position}:" in str(error):
            return ""
        return f"refused: {error}"
    except AssertionError as error:
        return f"wrong: {error}"
    return "" if (lsn, is_torn) == (outcome.lsn, outcome.is_torn) else f"{lsn=} {is_torn=}"


class _damaged:  # noqa: N801 - a context manager
    """The segment holds other bytes inside the block."""

    def __init__(self, path: Path, damaged: bytes) -> None:
        self._path, self._damaged = path, damaged

    def __enter__(self) -> None:
        self._sound = self._path.read_bytes()
        self._write(self._damaged)

    def __exit__(self, *_: object) -> None:
        self._write(self._sound)

    def _write(self, data: bytes) -> None:
        # Anew: whoever truncates a file and writes it again waits for the disk, on some of them.
        self._path.unlink()
        self._path.write_bytes(data)


def _set_committed(data: Path, lsn: int) -> None:
    with open(data / CONTROL_NAME, "r+b") as page:
        page.seek(COMMITTED_LSN_OFFSET)
        page.write(struct.pack("<Q", lsn))


def test_every_damage_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, Quick(), 5)
    trainer.make()
    trainer.start()
    trainer.create("a", 8, 2, DType.FLOAT32, "sgd")
    for _ in range(4):
        trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 3))
    trainer.stop()
    path = checkpoint_path(trainer.data)
    sound = path.read_bytes()
    assert read_checkpoint(trainer.data).lsn == trainer.acknowledged
    # Four bytes of its head mean nothing.
    for byte in (byte for byte in range(len(sound)) if not 20 <= byte < 24):
        flipped = bytearray(sound)
        flipped[byte] ^= 1 << byte % 8
        for damaged in (bytes(flipped), sound[:byte]):
            path.write_bytes(damaged)
            with pytest.raises(BadFile, match="checkpoint is damaged"):
                read_checkpoint(trainer.data)
