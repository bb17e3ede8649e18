"""Reads the update log; wal_format.py has the layout.

Where a frame isn't whole, the log either ends or is damaged. It ends there when no later frame is
whole, in that segment or a later one, and nothing above was ever acknowledged: a crash in the
middle of an append leaves that. Anything else is damage, and an error that names the byte: going on
without the frame would lose updates that were acknowledged.
"""

import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gatherd.errors import BadFile
from gatherd.store.format import open_readonly
from gatherd.store.mapping import not_opened
from gatherd_server.storage.records import ALIGNMENT, Record, unpack
from gatherd_server.storage.wal_format import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    SEGMENT_HEADER_BYTES,
    FrameHeader,
    FrameKind,
    SegmentHeader,
    segment_paths,
)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One commit. The record's arrays are views of the mapped segment."""

    kind: FrameKind
    first_lsn: int
    last_lsn: int
    record: Record


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the log ends: `position` of `path` is the first byte after its last frame.

    `path` is None for a log without segments. `torn_bytes` are the bytes of a frame that was never
    whole, up to its last nonzero byte. `is_blank` says that the segment has not even a header.
    """

    last_lsn: int
    path: Path | None
    position: int = 0
    torn_bytes: int = 0
    is_blank: bool = False


class LogReader:
    """The frames above `after_lsn`, in order. `tail` is set when they were all read.

    BadFile, naming the byte, where the log is damaged, or ends before `committed_lsn`, which is
    known to have been durable.
    """

    def __init__(self, wal: Path, after_lsn: int, committed_lsn: int = 0) -> None:
        self._wal = wal
        self._lsn = after_lsn
        self._committed_lsn = committed_lsn
        self.tail = Tail(after_lsn, None)

    def __iter__(self) -> Iterator[Frame]:
        segments = segment_paths(self._wal)
        # A segment that ends at or below the LSN isn't read.
        while len(segments) > 1 and segments[1][0] <= self._lsn + 1:
            del segments[0]
        if segments and segments[0][0] > self._lsn + 1:
            raise BadFile(
                f"{segments[0][1]}: the log begins with LSN {segments[0][0]}; "
                f"{self._lsn + 1} and what follows is missing"
            )
        for index, (first_lsn, path) in enumerate(segments):
            yield from self._segment(path, first_lsn, is_last=index + 1 == len(segments))
        if self.tail.last_lsn < self._committed_lsn:
            where = f"{self.tail.path}, byte {self.tail.position}" if self.tail.path else self._wal
            raise BadFile(
                f"{where}: the log ends with LSN {self.tail.last_lsn}, but "
                f"{self._committed_lsn} was acknowledged; it was damaged or truncated"
            )

    def _segment(self, path: Path, first_lsn: int, *, is_last: bool) -> Iterator[Frame]:
        data = _map(path)
        header = SegmentHeader.decode(bytes(data[:SEGMENT_HEADER_BYTES]))
        if header is None or header.first_lsn != first_lsn:
            # A segment is durable before its first frame is: a segment without a header is empty.
            if not is_last or _last_nonzero(data, SEGMENT_HEADER_BYTES) > SEGMENT_HEADER_BYTES:
                raise BadFile(f"{path}, byte 0: the header of the log's segment is damaged")
            self.tail = Tail(self._lsn, path, 0, 0, is_blank=True)
            return
        position = SEGMENT_HEADER_BYTES
        expected = first_lsn
        while (frame := _frame_at(data, position, header.salt)) and frame.first_lsn == expected:
            begin = position + FRAME_HEADER_BYTES
            position = begin + frame.payload_bytes
            expected = frame.last_lsn + 1
            if frame.first_lsn > self._lsn:
                record = unpack(data[begin:position], f"{path}, byte {begin}")
                self._lsn = frame.last_lsn
                yield Frame(frame.kind, frame.first_lsn, frame.last_lsn, record)
        self._end_of_segment(path, data, position, header.salt, is_last=is_last)

    def _end_of_segment(
        self, path: Path, data: memoryview, position: int, salt: bytes, *, is_last: bool
    ) -> None:
        if not is_last:
            # The next segment begins where this one ended, or a part of this one is lost. Bytes in
            # between don't matter; an append that met a full disk may have left them.
            following = next(
                first for first, other in segment_paths(self._wal) if other.name > path.name
            )
            if following != self._lsn + 1:
                raise BadFile(f"{path}, byte {position}: the log's frame is damaged")
            return
        end = _last_nonzero(data, position)
        if end > position and _has_frame(data, position + ALIGNMENT, salt):
            raise BadFile(
                f"{path}, byte {position}: the log's frame is damaged, and others follow it"
            )
        self.tail = Tail(self._lsn, path, position, end - position)


def _map(path: Path) -> memoryview:
    fd = open_readonly(path)
    try:
        if os.fstat(fd).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    except OSError as error:
        raise not_opened(path, error) from None
    finally:
        os.close(fd)


def _frame_at(data: memoryview, position: int, salt: bytes) -> FrameHeader | None:
    """The header of the frame at `position`, when header and payload are whole."""
    begin = position + FRAME_HEADER_BYTES
    frame = FrameHeader.decode(bytes(data[position:begin]), salt)
    if frame is None or frame.payload_bytes > len(data) - begin:
        return None
    if zlib.crc32(data[begin : begin + frame.payload_bytes]) != frame.payload_crc:
        return None
    return frame


def _has_frame(data: memoryview, start: int, salt: bytes) -> bool:
    """Whether a whole frame begins anywhere at or after `start`."""
    rest = bytes(data[start:])
    offset = rest.find(FRAME_MAGIC)
    while offset >= 0:
        if (start + offset) % ALIGNMENT == 0 and _frame_at(data, start + offset, salt):
            return True
        offset = rest.find(FRAME_MAGIC, offset + 1)
    return False


def _last_nonzero(data: memoryview, start: int) -> int:
    """The position after the last nonzero byte at or after `start`; `start` if there is none."""
    block = 1 << 20
    for begin in range(start + (max(0, len(data) - start - 1) // block) * block, start - 1, -block):
        stripped = bytes(data[begin : begin + block]).rstrip(b"\0")
        if stripped:
            return begin + len(stripped)
    return start
