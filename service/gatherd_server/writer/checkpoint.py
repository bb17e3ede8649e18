"""The checkpoint: up to which LSN the tables' files are durable, and the window at that LSN.

data/wal/checkpoint is a record (records.py) behind 24 bytes: the magic "gatherdK", the LSN, the
crc32 of magic, LSN and record, and 4 zeros. It is replaced atomically, after every page that the
log up to its LSN changed is on the disk, and before the log's segments up to there are deleted.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from gatherd.errors import BadFile
from gatherd.store.mapping import not_opened
from gatherd_server.storage.files import Files
from gatherd_server.storage.records import pack, unpack
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.writer.window import Window

CHECKPOINT_NAME = "checkpoint"
_MAGIC = b"gatherdK"
_HEAD = struct.Struct("<8sQI4x")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to `lsn` the log isn't needed any more."""

    lsn: int
    window: Window


def checkpoint_path(data_dir: Path) -> Path:
    """Where it is."""
    return data_dir / WAL_NAME / CHECKPOINT_NAME


def encode_checkpoint(lsn: int, window: Window) -> bytes:
    """What the file holds."""
    body = b"".join(pack(*window.to_record()))
    crc = zlib.crc32(body, zlib.crc32(_MAGIC + lsn.to_bytes(8, "little")))
    return _HEAD.pack(_MAGIC, lsn, crc) + body


def write_checkpoint(files: Files, data_dir: Path, encoded: bytes) -> None:
    """Replace the checkpoint, durable on return."""
    files.replace(checkpoint_path(data_dir), encoded)


def read_checkpoint(data_dir: Path) -> Checkpoint:
    """The checkpoint; one of LSN 0 where there is none. BadFile when it is damaged."""
    path = checkpoint_path(data_dir)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Checkpoint(0, Window())
    except OSError as error:
        raise not_opened(path, error) from None
    if len(data) < _HEAD.size:
        raise BadFile(f"{path} is damaged: it has {len(data)} bytes")
    magic, lsn, crc = _HEAD.unpack_from(data)
    body = memoryview(data)[_HEAD.size :]
    if magic != _MAGIC or crc != zlib.crc32(body, zlib.crc32(data[:16])):
        raise BadFile(f"{path} is damaged (crc32)")
    record = unpack(body, str(path))
    try:
        return Checkpoint(lsn, Window.from_record(record))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadFile(f"{path} is damaged: {type(error).__name__}: {error}") from None
