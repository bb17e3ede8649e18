"""Compares a data dir's contents with what was written, and mends what can be mended.

Files that don't change any more have checksums: a read-only version's in its manifest, the weights
and slots of a superseded one in frozen.json (snapshots/freezing.py). Weights and slots of a
trainable live version change with every update. Their blocks are compared with the last
checkpoint's sums, except for blocks that moved since (verify_live.py). Every frame of the log has a
checksum.

A server may be running meanwhile. So apparent damage is believed only if the catalog, the
checkpoint and the log did not change. Left out on purpose: comparing live rows with the log's
images, for which the server's pages would have to stand still too.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatherd.errors import BadFile
from gatherd.store.catalog import CatalogEntry, open_table, read_catalog, version_dir
from gatherd.store.checksums import read_document, verify_folder
from gatherd.store.control import ControlPage
from gatherd.store.format import file_bytes, npy_header, open_readonly
from gatherd.store.key_index import KeyIndex
from gatherd.store.open_files import OPEN
from gatherd.store.open_spec import OpenSpec
from gatherd.store.table import Table
from gatherd_server.data_dir.verify_live import (
    TRIES_MAX,
    Coverage,
    moving_bytes,
    moving_files,
    verify_live,
)
from gatherd_server.data_dir.verify_open import verify_open
from gatherd_server.snapshots.freezing import FROZEN_NAME
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import rebuild_slots
from gatherd_server.storage.trainable import is_moving, read_manifest
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.writer.checkpoint import read_checkpoint


@dataclass(frozen=True, slots=True)
class LogFound:
    """How far the log was read: the checkpoint's LSN, and the last one after it."""

    checkpoint_lsn: int
    last_lsn: int


def verify_version(
    data_dir: Path, name: str, version: int, coverage: Coverage | None = None
) -> Iterator[int]:
    """Check a table's version, yielding how many bytes were checked so far.

    `coverage` gets how much of what training changes was compared with sums.
    BadFile naming the first file, and the range of bytes, that differs from what was written, or
    the contradiction in its structure. It is no error if the version disappears meanwhile.
    """
    for _ in range(TRIES_MAX):
        before = _state(data_dir, name)
        if before is None or version not in before[0].versions:
            return
        try:
            covered = coverage or Coverage()
            yield from _verify_version(data_dir, name, version, before[0], covered)
            return
        except BadFile:
            if before == _state(data_dir, name):
                raise
    raise BadFile(f"table {name!r} changed {TRIES_MAX} times while version {version} was checked")


def _state(data_dir: Path, name: str) -> tuple[CatalogEntry, list[int]] | None:
    """The state that a change of the table would change: its entry, and its frozen versions."""
    entry = read_catalog(data_dir).tables.get(name)
    if entry is None:
        return None
    frozen = [v for v in entry.versions if (version_dir(data_dir, name, v) / FROZEN_NAME).exists()]
    return entry, frozen


def _verify_version(
    data_dir: Path, name: str, version: int, entry: CatalogEntry, coverage: Coverage
) -> Iterator[int]:
    damage = entry.damage_of(version)
    if damage is not None:
        raise BadFile(f"it is refused: {damage.reason}")
    folder = version_dir(data_dir, name, version)
    manifest: dict[str, Any] = read_manifest(folder)
    is_trainable = manifest.get("optimizer") is not None
    done = 0
    for done in verify_folder(folder, manifest, without=is_moving if is_trainable else None):
        yield done
    verified = done
    if is_trainable and version != entry.live and (folder / FROZEN_NAME).exists():
        for done in verify_folder(folder, read_document(folder / FROZEN_NAME), FROZEN_NAME):
            yield verified + done
        verified += done
    spec = OpenSpec.from_json(manifest[OPEN]) if OPEN in manifest else None
    if spec is not None:
        for _ in verify_open(folder, spec):
            yield verified
    else:
        verified += _verify_keys(folder, manifest)
        yield verified
    table = open_table(data_dir, name, version)
    optimizer = Optimizer.from_json(manifest["optimizer"]) if is_trainable else None
    _check_slots(folder, table, optimizer)
    if optimizer is not None and version == entry.live:
        files = moving_files(folder, table, optimizer, spec)
        coverage.byte_count = moving_bytes(folder, files, spec)
        of = (entry.uid, version)
        for coverage.held_bytes in verify_live(data_dir, folder, of, files):
            yield verified + coverage.held_bytes


def _verify_keys(folder: Path, manifest: dict[str, Any]) -> int:
    """Check the key index of a closed version, if it has one; its size."""
    keys = KeyIndex.open(folder)
    if (keys is not None) is not (manifest.get("keys") is not None):
        raise BadFile(f"{folder} has keys where its manifest has none, or the reverse")
    if keys is None:
        return 0
    keys.verify()
    return keys.nbytes


def _check_slots(folder: Path, table: Table, optimizer: Optimizer | None) -> None:
    """Check the headers and sizes of the slots, and that there are no others."""
    slots = optimizer.slots if optimizer is not None else ()
    for slot in slots:
        path = folder / slot.file_name
        dtype, shape = slot.array(table.row_count, table.dim)
        header = npy_header(dtype.str, shape)
        fd = open_readonly(path)
        try:
            found, begin = file_bytes(fd), os.pread(fd, len(header), 0)
        finally:
            os.close(fd)
        if begin != header:
            raise BadFile(
                f"{path}: bytes 0 to {len(header)} aren't the header of a {shape} {dtype} array"
            )
        expected = slot.file_bytes(table.row_count, table.dim)
        if found != expected:
            raise BadFile(f"{path} has {found} bytes; it must have {expected}")
    strays = {path.name for path in folder.glob("slot_*")} - {slot.file_name for slot in slots}
    if strays:
        raise BadFile(f"{folder / min(strays)} is no slot of its manifest's optimizer")


def verify_log(data_dir: Path) -> LogFound:
    """Check the control page, the checkpoint, and every frame of the log above it.

    BadFile naming file and byte. A torn tail, which was never acknowledged, is no damage.
    """
    wal = data_dir / WAL_NAME
    control = ControlPage(data_dir)
    try:
        is_busy = False
        for _ in range(TRIES_MAX):
            checkpoint_lsn, committed_lsn = read_checkpoint(data_dir).lsn, control.committed_lsn
            reader = LogReader(wal, checkpoint_lsn, committed_lsn)
            last_lsn = checkpoint_lsn
            try:
                for frame in reader:
                    last_lsn = frame.last_lsn
                    if is_busy and last_lsn >= committed_lsn:
                        # A frame that is being appended looks like damage.
                        break
                return LogFound(checkpoint_lsn, last_lsn)
            except BadFile:
                now = read_checkpoint(data_dir).lsn, control.committed_lsn
                if now[0] == checkpoint_lsn and (is_busy or now[1] == committed_lsn):
                    raise
                is_busy = True
        raise BadFile(f"{wal} was cut {TRIES_MAX} times while it was read; try again")
    finally:
        control.close()


def repair_keys(data_dir: Path, name: str, version: int, files: Files | None = None) -> None:
    """Build a key index's hash slots anew from its keys; the caller holds the data dir's lock.

    BadFile when the keys themselves are damaged or missing.
    """
    rebuild_slots(files or Files(), version_dir(data_dir, name, version))
