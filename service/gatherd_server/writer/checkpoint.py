"""The checkpoint: up to which LSN the tables' files are durable, and the window at that LSN.

data/wal/checkpoint is two records (storage/records.py) after 24 bytes: the magic "gatherdK", the
LSN, the crc32 of magic, LSN and records, and 4 zeros. The first record is the window, with the
key counts of open tables (policy.py). The second has the sums of live tables' blocks
(storage/block_sums.py); a snapshot's checkpoint, and one of an older release, has only the first:

    {"block_bytes", "versions": [[UID, VERSION, [[FILE, bytes], …]], …]}

and for each file two arrays: the blocks' crc32, uint32, and a bit for each that is known.

The checkpoint is replaced atomically: after every page that the log up to its LSN changed is on the
disk, and before the log's segments up to that LSN are deleted.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.mapping import not_opened
from gatherd_server.storage.block_sums import BLOCK_BYTES, FileSums, VersionSums, block_count
from gatherd_server.storage.files import Files
from gatherd_server.storage.records import Record, pack, unpack
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.writer.policy import Policies, read_states
from gatherd_server.writer.window import Window

CHECKPOINT_NAME = "checkpoint"
_MAGIC = b"gatherdK"
_MALFORMED = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    StopIteration,
)
_HEAD = struct.Struct("<8sQI4x")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state at `lsn`, up to which the log isn't needed any more."""

    lsn: int
    window: Window
    sums: Mapping[tuple[str, int], VersionSums] = field(default_factory=dict)
    """By uid and version, the sums of weights and slots at `lsn`."""
    policies: Policies = field(default_factory=Policies)


def checkpoint_path(data_dir: Path) -> Path:
    """The path of a data dir's checkpoint."""
    return data_dir / WAL_NAME / CHECKPOINT_NAME


def encode_checkpoint(lsn: int, window: Window, policies: Policies) -> bytes:
    """The bytes of the file, without sums."""
    directory, arrays = window.to_record()
    counted, cells = policies.to_record()
    if counted:
        directory["key_counts"] = counted
    return _sealed(lsn, b"".join(pack(directory, [*arrays, *cells])))


def with_sums(encoded: bytes, sums: Mapping[tuple[str, int], VersionSums]) -> bytes:
    """The bytes that `encode_checkpoint` gave, followed by the sums at its LSN."""
    listed: list[object] = []
    arrays: list[NDArray[Any]] = []
    for (uid, version), by_file in sums.items():
        listed.append([uid, version, [[name, one.byte_count] for name, one in by_file.items()]])
        for one in by_file.values():
            arrays += [one.crcs, np.packbits(one.known)]
    directory = {"block_bytes": BLOCK_BYTES, "versions": listed}
    _, lsn, _ = _HEAD.unpack_from(encoded)
    return _sealed(lsn, encoded[_HEAD.size :] + b"".join(pack(directory, arrays)))


def _sealed(lsn: int, body: bytes) -> bytes:
    crc = zlib.crc32(body, zlib.crc32(_MAGIC + lsn.to_bytes(8, "little")))
    return _HEAD.pack(_MAGIC, lsn, crc) + body


def _read_sums(record: Record) -> dict[tuple[str, int], VersionSums]:
    """The sums that `with_sums` wrote; none if its release had blocks of another size."""
    if record.directory["block_bytes"] != BLOCK_BYTES:
        return {}
    arrays = iter(record.arrays)
    found: dict[tuple[str, int], VersionSums] = {}
    for uid, version, listed in record.directory["versions"]:
        by_file = {}
        for name, byte_count in listed:
            crcs, bits = next(arrays), next(arrays)
            known = np.unpackbits(bits, count=crcs.size).astype(np.bool_)
            if crcs.dtype != np.uint32 or crcs.size != block_count(byte_count):
                raise ValueError(f"{name} has {crcs.size} sums")
            by_file[str(name)] = FileSums(int(byte_count), crcs.copy(), known)
        found[(str(uid), int(version))] = by_file
    return found


def write_checkpoint(files: Files, data_dir: Path, encoded: bytes) -> None:
    """Replace the checkpoint, durable on return."""
    files.replace(checkpoint_path(data_dir), encoded)


def read_checkpoint(data_dir: Path) -> Checkpoint:
    """The checkpoint; one of LSN 0 if there is none. BadFile when it is damaged."""
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
    is_whole = crc == zlib.crc32(body, zlib.crc32(data[:16])) and not any(data[20 : _HEAD.size])
    if magic != _MAGIC or not is_whole:
        raise BadFile(f"{path} is damaged (crc32)")
    record = unpack(body, str(path))
    rest = body[record.byte_count :]
    try:
        sums = _read_sums(unpack(rest, str(path))) if rest.nbytes else {}
        return Checkpoint(lsn, Window.from_record(record), sums, Policies(read_states(record)))
    except _MALFORMED as error:
        raise BadFile(f"{path} is damaged: {type(error).__name__}: {error}") from None
