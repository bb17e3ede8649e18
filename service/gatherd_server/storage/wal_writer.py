"""Appends frames to the update log; wal_format.py has the layout.

While small frames are appended, the next segment is made ahead; see wal_spare.py.
"""

import os
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gatherd.errors import DiskFull, StorageError
from gatherd_server.storage.files import Files
from gatherd_server.storage.wal_format import (
    FRAME_HEADER_BYTES,
    SALT_BYTES,
    SEGMENT_HEADER_BYTES,
    FrameHeader,
    FrameKind,
    SegmentHeader,
    segment_path,
    segment_paths,
)
from gatherd_server.storage.wal_spare import SpareSegment

# A log that has grown by so much will probably go on growing.
SPARE_AFTER_BYTES = 256 << 10
# The sync of a longer frame takes no less time in a segment made ahead.
SPARE_FRAME_BYTES_MAX = 128 << 10


class LogWriter:
    """The end of the log. One thread appends, another prepares; others may ask for its size."""

    def __init__(
        self, files: Files, wal: Path, next_lsn: int, segment_bytes: int, *, syncs: bool = True
    ) -> None:
        """The first append makes a new segment: the tail of an older one is never written to.

        Without `syncs`, appends survive the process but not the machine.
        """
        self._syncs = syncs
        self._files = files
        self._wal = wal
        self._segment_bytes = segment_bytes
        self._next_lsn = next_lsn
        self._fd: int | None = None
        self._path = wal
        self._salt = b""
        self._position = 0
        self._end = 0
        self._frame_count = 0
        self._is_spare = False
        self._spare = SpareSegment(files, wal, segment_bytes)
        self.held: Sequence[tuple[int, int]] = ()
        """First and last LSN of each range that is kept, however old it is."""

    @property
    def next_lsn(self) -> int:
        """The LSN that the next frame must begin with."""
        return self._next_lsn

    def append(
        self,
        kind: FrameKind,
        first_lsn: int,
        last_lsn: int,
        payload: Sequence[bytes | memoryview],
    ) -> None:
        """Write one frame; durable on return, with `syncs`.

        DiskFull or TooManyFiles when there is no room; the log is unchanged. After any other
        StorageError the frame may or may not be in the log, and nothing may be appended after it.
        """
        assert first_lsn == self._next_lsn
        payload_bytes = sum(len(part) for part in payload)
        self._make_room(FRAME_HEADER_BYTES + payload_bytes)
        assert self._fd is not None
        crc = 0
        for part in payload:
            crc = zlib.crc32(part, crc)
        now_us = time.time_ns() // 1000
        header = FrameHeader(first_lsn, last_lsn, payload_bytes, crc, kind, now_us)
        parts = [header.encode(self._salt), *payload]
        try:
            end = self._files.write_all_at(self._fd, parts, self._position, self._path)
        except DiskFull:
            self._blank(self._fd)
            raise
        if self._syncs:
            self._files.sync_data(self._fd, self._path)
        self._position = end
        self._frame_count += 1
        self._next_lsn = last_lsn + 1

    @property
    def wants_spare(self) -> bool:
        """Whether it pays to prepare the next segment. On any thread."""
        position = self._position
        return (
            self._syncs
            and not self._spare.is_ready
            and SPARE_AFTER_BYTES <= position <= self._frame_count * SPARE_FRAME_BYTES_MAX
        )

    def prepare(self, byte_count: int) -> None:
        """Go on making the next segment ahead, by up to `byte_count` bytes. On one other thread.

        DiskFull when there is no room for it; nothing has changed.
        """
        self._spare.fill(byte_count)

    def _blank(self, fd: int) -> None:
        """Erase, durably, the header of a frame that did not fit.

        If the missing tail would have been zeros, the refused frame would otherwise read as
        complete.
        """
        blank = memoryview(bytes(FRAME_HEADER_BYTES))
        try:
            self._files.write_at(fd, blank, self._position, self._path)
        except DiskFull as error:
            raise StorageError(f"{self._path}: can't take back a frame: {error}") from error
        if self._syncs:
            self._files.sync_data(fd, self._path)

    def size(self) -> tuple[int, int]:
        """Bytes of all segments and the one made ahead, and the number of segments."""
        total = 0
        segments = segment_paths(self._wal)
        for _, path in segments:
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total + self._spare.size(), len(segments)

    def byte_count(self) -> int:
        """Bytes of the segments that aren't held, reserved ones included."""
        total = 0
        for _, _, path in self._droppable():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def drop_until(self, lsn: int) -> int:
        """Delete the segments that hold nothing above `lsn` and aren't held; return how many.

        The last segment stays: it may still be written to.
        """
        dropped = 0
        last = segment_paths(self._wal)[-1:]
        for first_lsn, last_lsn, path in self._droppable():
            if last_lsn > lsn or (first_lsn, path) in last:
                break
            self._files.unlink(path)
            dropped += 1
        return dropped

    def drop_all(self) -> None:
        """Delete every segment that isn't held, durably: the checkpoint has all their contents.

        Without sync, a deleted segment could come back, and the next start would call it damage.
        """
        for _, _, path in self._droppable():
            self._files.unlink(path)
        self._files.sync_dir(self._wal)

    def _droppable(self) -> list[tuple[int, int, Path]]:
        """First and last LSN and path of each segment without a held LSN."""
        segments = segment_paths(self._wal)
        ends = [*(first_lsn - 1 for first_lsn, _ in segments), self._next_lsn - 1][1:]
        held = self.held
        return [
            (first_lsn, last_lsn, path)
            for (first_lsn, path), last_lsn in zip(segments, ends, strict=True)
            if not any(first_lsn <= last and first <= last_lsn for first, last in held)
        ]

    def close(self) -> None:
        """Close the segment; the appended frames are durable already."""
        self._spare.close()
        self._leave()

    def _leave(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _make_room(self, frame_bytes: int) -> None:
        end = max(self._segment_bytes, SEGMENT_HEADER_BYTES + frame_bytes)
        is_spare = self._spare.is_ready and end == self._segment_bytes
        if (
            self._fd is not None
            and self._position + frame_bytes <= self._end
            # A segment that was only reserved is left for the first one that was made ahead.
            and (self._is_spare or not is_spare)
        ):
            return
        header = SegmentHeader(os.urandom(SALT_BYTES), self._next_lsn)
        path = segment_path(self._wal, self._next_lsn)
        if path == self._path:
            self._leave()  # it has no frame; if no other can be made, nothing may be appended to it
        # An earlier start may have left this segment, without a frame.
        self._files.unlink(path)
        spare = self._spare.take() if is_spare else None
        if spare is None:
            fd = self._files.create_allocated(path, end, header.encode())
        else:
            fd = spare
            self._files.put_reserved(fd, self._spare.path, path, header.encode())
        self._seal()
        self._is_spare, self._frame_count = spare is not None, 0
        self._fd, self._path, self._salt = fd, path, header.salt
        self._position, self._end = SEGMENT_HEADER_BYTES, end

    def _seal(self) -> None:
        """Free the unused end of the full segment; it does no harm if a crash undoes that."""
        if self._fd is None:
            return
        with suppress(StorageError):
            self._files.truncate(self._fd, self._position, self._path)
        self._leave()
