"""How far an upload is: the file `progress`, which a killed process can't leave half-written.

Two places of PLACE_BYTES, little-endian, written by turns; the whole one of the higher sequence
counts:

    offset  bytes  field
    0       8      sequence
    8       8      rows that are there
    16      8      bytes of their keys
    24      4      crc32 of weights.npy's last block, as far as it is filled
    28      20     the same three, as they were when the files were last synced
    48      1      1 while the upload is being committed
    49      16     the machine's boot id
    65      4      crc32 of the bytes before

What a process wrote is there after its death, so the rows count. After another boot only the synced
ones do.
"""

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from gatherd.errors import BadFile
from gatherd_server.storage.files import Files

PROGRESS_NAME: Final = "progress"
PLACE_BYTES: Final = 128
_FIELDS: Final = struct.Struct("<QQQIQQIB16s")
_CRC: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in an upload's files."""

    rows: int = 0
    key_bytes: int = 0
    block_crc: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What is there, and how much of it is surely on the disk."""

    now: Mark
    synced: Mark
    is_committing: bool = False
    sequence: int = 0


@cache
def boot_id() -> bytes:
    """16 bytes that are the same until the machine starts anew; zeros where nobody knows."""
    with suppress(OSError, ValueError):
        return bytes.fromhex(
            Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        )
    return bytes(16)


def write_progress(files: Files, fd: int, path: Path, progress: Progress) -> Progress:
    """Write `progress` to the open file, and return it with its sequence. Not durable."""
    written = replace(progress, sequence=progress.sequence + 1)
    now, synced = written.now, written.synced
    fields = _FIELDS.pack(
        written.sequence,
        *(now.rows, now.key_bytes, now.block_crc),
        *(synced.rows, synced.key_bytes, synced.block_crc),
        written.is_committing,
        boot_id(),
    )
    place = fields + _CRC.pack(zlib.crc32(fields))
    files.write_at(fd, memoryview(place), written.sequence % 2 * PLACE_BYTES, path)
    return written


def read_progress(fd: int, path: Path) -> Progress:
    """The progress in an open file; BadFile when it is damaged."""
    data = os.pread(fd, 2 * PLACE_BYTES, 0)
    found = [one for one in (_read(data[:PLACE_BYTES]), _read(data[PLACE_BYTES:])) if one]
    if not found:
        raise BadFile(f"{path} is damaged")
    return max(found, key=lambda one: one.sequence)


def _read(place: bytes) -> Progress | None:
    end = _FIELDS.size
    if len(place) < end + _CRC.size or _CRC.unpack_from(place, end)[0] != zlib.crc32(place[:end]):
        return None
    sequence, *marks, is_committing, boot = _FIELDS.unpack_from(place)
    now, synced = Mark(*marks[:3]), Mark(*marks[3:])
    return Progress(now if boot == boot_id() else synced, synced, bool(is_committing), sequence)
