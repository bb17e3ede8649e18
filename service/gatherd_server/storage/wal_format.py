"""The layout of the update log; the reader and the writer share it.

The log is segments, data/wal/<first LSN, 20 digits>.log, whose blocks are reserved when they are
created. A segment is a header and frames, one for each commit, each at a multiple of 8 bytes:

    offset  bytes  segment header                    all integers little-endian
    0       8      magic "gatherdL"
    8       4      format version (1)
    12      4      crc32 of the bytes 0 to 12 and 16 to 64
    16      16     salt, random
    32      8      LSN of its first frame
    40      24     zeros

    offset  bytes  frame header
    0       4      magic "gFr1"
    4       4      crc32 of the salt and the bytes 8 to 48
    8       8      first LSN
    16      8      last LSN
    24      8      bytes of the payload, a multiple of 8
    32      4      crc32 of the payload
    36      4      kind: 1 pushes, 2 catalog
    40      8      time, microseconds since 1970
    48      n      payload, a record (records.py)

The salt makes sure that bytes which somebody stored in a table are never taken for a frame. LSNs
have no gaps: a frame's first LSN is the last one of the frame before it, plus one. After the last
frame there are zeros, or the file ends.

Payload of kind 1, pushes:
    {"pushes": [[request id, digest, [version, …]], …],     one for each LSN; with a fourth member
                                                            [[created, removed, not admitted], …],
                                                            of each table, unless all are 0
     "images": [[table uid, version, [slot, …], [scalar, …]], …]}
    arrays of each image: rows int64 (n,), weights uint8 (n, row bytes), each slot float32
    (n, width), each scalar int64 (1,)

    An image of an open version has a fifth member, the kind of its keys, and more arrays: stamps
    uint64 (n,), counts uint32 (n,); created int64 (c,), positions among the n rows of those that
    got a key, their keys, and uint64 (c,) with the keys' bits or their entries in the heap;
    removed int64 (r,), the rows that lost their keys, and those keys; counted uint64, hashes of
    keys that were counted and not admitted. Keys are one array of int64 or uint64, or the bytes of
    all, uint8, and int64 (keys + 1,) with where each begins. What is removed goes before what is
    created: a row may be in both, by two keys. Rows and places are named, not chosen anew, so a
    replay gives the same bytes anywhere.

    A request id is [session in hex, sequence] or an idempotency key; [session, sequence, owner] or
    {"key", "owner"} if it has an owner; or null, with the digest "". The images are the rows'
    contents after the last push of the frame. Applying them twice, or over pages that had some of
    them already, changes nothing. Sums would not have that property.

Payload of kind 2, catalog: {"catalog": the new contents of catalog.json}. It takes one LSN.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

WAL_NAME = "wal"
SEGMENT_SUFFIX = ".log"
SEGMENT_MAGIC = b"gatherdL"
SEGMENT_FORMAT = 1
SEGMENT_HEADER_BYTES = 64
FRAME_MAGIC = b"gFr1"
FRAME_HEADER_BYTES = 48
SALT_BYTES = 16

_SEGMENT = struct.Struct("<8sII16sQ24x")
_FRAME = struct.Struct("<4sIQQQIIQ")


class FrameKind(IntEnum):
    """What a frame's payload is."""

    PUSHES = 1
    CATALOG = 2


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first bytes of a segment."""

    salt: bytes
    first_lsn: int

    def encode(self) -> bytes:
        """Its bytes."""
        blank = _SEGMENT.pack(SEGMENT_MAGIC, SEGMENT_FORMAT, 0, self.salt, self.first_lsn)
        crc = zlib.crc32(blank[16:], zlib.crc32(blank[:12]))
        return _SEGMENT.pack(SEGMENT_MAGIC, SEGMENT_FORMAT, crc, self.salt, self.first_lsn)

    @classmethod
    def decode(cls, data: bytes) -> "SegmentHeader | None":
        """The header that `encode` gave; None for any other bytes."""
        if len(data) < SEGMENT_HEADER_BYTES:
            return None
        magic, version, crc, salt, first_lsn = _SEGMENT.unpack_from(data)
        header = data[:SEGMENT_HEADER_BYTES]
        if magic != SEGMENT_MAGIC or version != SEGMENT_FORMAT:
            return None
        if crc != zlib.crc32(header[16:], zlib.crc32(header[:12])):
            return None
        return cls(salt, first_lsn)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The first bytes of a frame."""

    first_lsn: int
    last_lsn: int
    payload_bytes: int
    payload_crc: int
    kind: FrameKind
    time_us: int

    def encode(self, salt: bytes) -> bytes:
        """Its bytes, in a segment with that salt."""
        rest = _FRAME.pack(FRAME_MAGIC, 0, *self._fields())[8:]
        crc = zlib.crc32(rest, zlib.crc32(salt))
        return _FRAME.pack(FRAME_MAGIC, crc, *self._fields())

    def _fields(self) -> tuple[int, ...]:
        return (
            self.first_lsn,
            self.last_lsn,
            self.payload_bytes,
            self.payload_crc,
            self.kind,
            self.time_us,
        )

    @classmethod
    def decode(cls, data: bytes, salt: bytes) -> "FrameHeader | None":
        """The header that `encode` gave, with the same salt; None for any other bytes."""
        if len(data) < FRAME_HEADER_BYTES:
            return None
        magic, crc, *fields = _FRAME.unpack_from(data)
        if magic != FRAME_MAGIC or crc != zlib.crc32(data[8:FRAME_HEADER_BYTES], zlib.crc32(salt)):
            return None
        first_lsn, last_lsn, payload_bytes, payload_crc, kind, time_us = fields
        if kind not in tuple(FrameKind):
            return None
        return cls(first_lsn, last_lsn, payload_bytes, payload_crc, FrameKind(kind), time_us)


def segment_path(wal: Path, first_lsn: int) -> Path:
    """Where the segment that begins with `first_lsn` is."""
    return wal / f"{first_lsn:020d}{SEGMENT_SUFFIX}"


def segment_paths(wal: Path) -> list[tuple[int, Path]]:
    """First LSN and path of every segment, in order."""
    if not wal.is_dir():
        return []
    named = [path for path in wal.glob("*" + SEGMENT_SUFFIX) if path.stem.isdigit()]
    return sorted((int(path.stem), path) for path in named)
