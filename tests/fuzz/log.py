"""The decoders of the log, the checkpoint, and the messages between worker and writer."""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuzz.target import Target
from gatherd.errors import BadFile
from gatherd_server.link.messages import MessageKind, MessageReader, message_parts
from gatherd_server.storage.files import Files
from gatherd_server.storage.records import Record, pack, unpack
from gatherd_server.storage.wal_format import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    FrameHeader,
    FrameKind,
    SegmentHeader,
    segment_path,
    segment_paths,
)
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.storage.wal_writer import LogWriter
from gatherd_server.types import PushResult, SessionSequence
from gatherd_server.writer.checkpoint import checkpoint_path, encode_checkpoint, read_checkpoint
from gatherd_server.writer.policy import Policies
from gatherd_server.writer.window import Window

LAST_LSN = 6


def record(number: int) -> bytes:
    arrays: list[NDArray[Any]] = [
        np.arange(number, dtype=np.int64),
        np.full((2, 3), number, np.float32),
    ]
    return b"".join(pack({"number": number, "versions": [[1]]}, arrays))


def same(one: Record, other: Record) -> bool:
    return one.directory == other.directory and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one.arrays, other.arrays, strict=True)
    )


def record_check(data: bytes) -> None:
    with suppress(BadFile):
        found = unpack(memoryview(data), "a record")
        assert sum(array.nbytes for array in found.arrays) <= len(data) * max(1, len(found.arrays))


def write_log(wal: Path) -> None:
    """LAST_LSN frames in two segments."""
    wal.mkdir(parents=True)
    for first in (1, LAST_LSN // 2 + 1):
        log = LogWriter(Files(), wal, first, 1 << 12, syncs=False)
        for lsn in range(first, first + LAST_LSN // 2):
            log.append(FrameKind.PUSHES, lsn, lsn, [record(lsn)])
        log.close()


def with_crcs(data: bytes) -> bytes:
    """A segment whose first frame's checksums fit again, whatever its payload has become."""
    header = SegmentHeader.decode(data[:SEGMENT_HEADER_BYTES])
    begin = SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES
    if header is None or len(data) <= begin:
        return data
    whole = FrameHeader.decode(data[SEGMENT_HEADER_BYTES:begin], header.salt)
    if whole is None:
        return data
    payload = data[begin : begin + whole.payload_bytes]
    fields = (whole.first_lsn, whole.last_lsn, len(payload), zlib.crc32(payload), whole.kind)
    return data[:SEGMENT_HEADER_BYTES] + FrameHeader(*fields, 0).encode(header.salt) + data[begin:]


def log_check(wal: Path, first_lsn: int) -> Callable[[bytes], None]:
    """Refused, or all that was acknowledged; without knowing how much was, the beginning of it."""
    whole = {path: path.read_bytes() for _, path in segment_paths(wal)}
    frames = {frame.first_lsn: frame.record for frame in LogReader(wal, 0)}
    assert sorted(frames) == list(range(1, LAST_LSN + 1))
    path = segment_path(wal, first_lsn)

    def check(data: bytes) -> None:
        for contents, is_whole in ((data, True), (with_crcs(data), False)):
            path.unlink()
            path.write_bytes(contents)
            try:
                for committed in (0, LAST_LSN):
                    with suppress(BadFile):
                        found = list(LogReader(wal, 0, committed))
                        if not is_whole:
                            continue
                        assert committed == 0 or len(found) == LAST_LSN
                        for number, one in enumerate(found, 1):
                            assert one.first_lsn == number
                            assert same(one.record, frames[number])
            finally:
                path.unlink()
                path.write_bytes(whole[path])

    return check


def checkpoint() -> bytes:
    window = Window()
    for number in range(1, 6):
        result = PushResult(number, (1, 2))
        window.add(f"key {number}", bytes(16), result)
        window.add(SessionSequence(bytes(range(16)), number), bytes([number] * 16), result)
    return encode_checkpoint(9, window, Policies())


def checkpoint_check(data_dir: Path) -> Callable[[bytes], None]:
    path = checkpoint_path(data_dir)
    path.parent.mkdir(parents=True)
    whole = checkpoint()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(BadFile):
            found = read_checkpoint(data_dir)
            # But for the 4 bytes of padding.
            assert encode_checkpoint(found.lsn, found.window, found.policies) == whole
        if len(data) > 24:
            crc = zlib.crc32(data[24:], zlib.crc32(data[:16]))
            path.write_bytes(data[:16] + struct.pack("<I4x", crc) + data[24:])
            with suppress(BadFile):
                read_checkpoint(data_dir)

    return check


def messages() -> list[bytes]:
    parts = [message_parts(MessageKind.PUSH, number, [record(number % 7)]) for number in (1, 2**40)]
    return [b"".join(bytes(part) for part in message) for message in parts]


def messages_check(data: bytes) -> None:
    outcomes: list[Any] = []
    for step in (len(data) or 1, 11):
        reader = MessageReader()
        found: list[Any] = []
        try:
            for begin in range(0, len(data), step):
                found += reader.feed(data[begin : begin + step])
        except (BadFile, ValueError):
            outcomes.append(None)
            continue
        outcomes.append([(kind, number) for kind, number, _ in found])
    assert outcomes[0] == outcomes[1]


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """Those of this file."""
    wal = folder / "wal"
    write_log(wal)
    segments = {first: path.read_bytes() for first, path in segment_paths(wal)}
    yield [
        Target("records", [record(number) for number in (0, 3)], record_check),
        *(
            Target(f"log, segment {number}", [data], log_check(wal, first))
            for number, (first, data) in enumerate(segments.items(), 1)
        ),
        Target("checkpoint", [checkpoint()], checkpoint_check(folder / "data")),
        Target("messages", [*messages(), b"".join(messages())], messages_check),
    ]
