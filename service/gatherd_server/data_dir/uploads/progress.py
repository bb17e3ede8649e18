"""How far an upload is: the file `progress`, which neither a killed process nor a cut spoils.

Four places, each in a sector of its own. The first two are written by turns and synced, the other
two by turns in between, when nothing is synced: a power cut may garble both of those. Of the whole
ones that of the highest sequence counts. A place is little-endian:

    offset  bytes  field
    0       8      sequence
    8       8      how many were synced, this one included
    16      8      rows that are there
    24      8      bytes of their keys
    32      4      crc32 of weights.npy's last block, as far as it is filled
    36      20     the same three, as they were when the files were last synced
    56      1      1 while the upload is being committed
    57      16     the machine's boot id
    73      4      crc32 of the bytes before

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
PLACE_BYTES: Final = 512
PLACES: Final = 4
_FIELDS: Final = struct.Struct("<QQQQIQQIB16s")
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
    sync_count: int = 0


@cache
def boot_id() -> bytes:
    """16 bytes that are the same until the machine starts anew; zeros where nobody knows."""
    with suppress(OSError, ValueError):
        return bytes.fromhex(
            Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        )
    return bytes(16)


def first_progress(mark: Mark) -> bytes:
    """The contents of the file when all that is there is synced."""
    return _encoded(Progress(mark, mark)).ljust(PLACES * PLACE_BYTES, b"\0")


def write_progress(
    files: Files, fd: int, path: Path, progress: Progress, *, syncs: bool
) -> Progress:
    """Write `progress` to the open file, durably if `syncs`; return it with its sequence."""
    written = replace(
        progress, sequence=progress.sequence + 1, sync_count=progress.sync_count + syncs
    )
    place = written.sync_count % 2 if syncs else 2 + written.sequence % 2
    files.write_at(fd, memoryview(_encoded(written)), place * PLACE_BYTES, path)
    if syncs:
        files.sync_data(fd, path)
    return written


def _encoded(progress: Progress) -> bytes:
    now, synced = progress.now, progress.synced
    fields = _FIELDS.pack(
        progress.sequence,
        progress.sync_count,
        *(now.rows, now.key_bytes, now.block_crc),
        *(synced.rows, synced.key_bytes, synced.block_crc),
        progress.is_committing,
        boot_id(),
    )
    return fields + _CRC.pack(zlib.crc32(fields))


def read_progress(fd: int, path: Path) -> Progress:
    """The progress in an open file; BadFile when it is damaged."""
    data = os.pread(fd, PLACES * PLACE_BYTES, 0)
    places = [data[i * PLACE_BYTES :][:PLACE_BYTES] for i in range(PLACES)]
    found = [one for place in places if (one := _read(place)) is not None]
    if not found:
        raise BadFile(f"{path} is damaged")
    return max(found, key=lambda one: one.sequence)


def _read(place: bytes) -> Progress | None:
    end = _FIELDS.size
    if len(place) < end + _CRC.size or _CRC.unpack_from(place, end)[0] != zlib.crc32(place[:end]):
        return None
    sequence, sync_count, *marks, is_committing, boot = _FIELDS.unpack_from(place)
    now, synced = Mark(*marks[:3]), Mark(*marks[3:])
    if boot != boot_id():
        now = synced
    return Progress(now, synced, bool(is_committing), sequence, sync_count)
