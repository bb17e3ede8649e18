"""Snapshots: a copy of a data dir that is of one LSN, taken while updates go on.

A snapshot is a data dir itself, with an empty log: `gatherd serve` and `local:` read it as it is,
and to restore it is to copy it. Beside the files of a data dir it has snapshot.json:

    {"format", "lsn", "created", "files": {PATH: checksums as in manifest.json}, "crc32"}
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gatherd.errors import AlreadyExists, BadFile
from gatherd.store.catalog import CATALOG_NAME, STAGING_NAME, check_table_name, version_dir
from gatherd.store.checksums import FileChecksums, document_crc, file_checksums, verify_blocks
from gatherd.store.control import CONTROL_NAME
from gatherd_server.storage.catalog_writer import encode_catalog
from gatherd_server.storage.control_writer import page_at
from gatherd_server.storage.files import Files
from gatherd_server.types import SnapshotResult
from gatherd_server.writer.checkpoint import checkpoint_path
from gatherd_server.writer.copying import CatchUp, copy_files, sync_files
from gatherd_server.writer.freezing import FROZEN_NAME, freeze, is_trainable
from gatherd_server.writer.writer import Writer

SNAPSHOT_NAME = "snapshot.json"
SNAPSHOT_FORMAT = 1
PARTIAL_SUFFIX = ".partial"
_TIMED = re.compile(r"\d{8}T\d{6}Z-\d+")


def take_snapshot(writer: Writer, folder: Path, name: str) -> SnapshotResult:
    """Copy the writer's data dir to `folder`/`name`, durable on return.

    The caller keeps the catalog from changing. AlreadyExists, DiskFull or StorageError leave
    nothing behind that looks like a snapshot.
    """
    files, data_dir = writer.files, writer.data_dir
    if name:
        check_table_name(name)
    else:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{writer.applied_lsn}"
    target = folder / name
    if target.exists():
        raise AlreadyExists(f"there is a snapshot {name!r} already")
    partial = folder / (name + PARTIAL_SUFFIX)
    files.make_dirs(folder)
    if partial.exists():
        files.remove_tree(partial)
    files.make_dirs(partial)
    pinned = writer.pin_log(partial)
    catching: list[CatchUp] = []
    try:
        catalog = writer.versions().catalog
        for table, entry in catalog.tables.items():
            for version in entry.versions:
                source = version_dir(data_dir, table, version)
                copy = version_dir(partial, table, version)
                copy_files(files, source, copy)
                if version == entry.live and is_trainable(source):
                    catching.append(CatchUp(files, data_dir, entry.uid, version, copy, pinned))
        for one in catching:
            one.to(writer.applied_lsn)
        lsn, checkpoint = writer.between(lambda: (writer.applied_lsn, writer.encoded_window()))
        for one in catching:
            one.to(lsn)
            one.sync()
        _write_rest(files, partial, encode_catalog(catalog), checkpoint)
        files.write_new(partial / CONTROL_NAME, page_at(catalog.generation, lsn))
        _write_checksums(files, partial, lsn)
        files.rename(partial, target)
    except BaseException:
        files.remove_tree(partial)
        raise
    finally:
        writer.unpin_log(partial)
        for one in catching:
            one.close()
    return SnapshotResult(str(target), lsn)


def _write_rest(files: Files, partial: Path, catalog: bytes, checkpoint: bytes) -> None:
    """Everything that isn't a version, and what makes the versions whole and durable."""
    for folder in sorted((partial / "tables").glob("*/*")):
        if is_trainable(folder) and not (folder / FROZEN_NAME).exists():
            freeze(files, folder)
        sync_files(files, folder)
        files.sync_dir(folder.parent)
    files.make_dirs(partial / STAGING_NAME)
    files.make_dirs(checkpoint_path(partial).parent)
    files.write_new(checkpoint_path(partial), checkpoint)
    files.sync_dir(checkpoint_path(partial).parent)
    files.write_new(partial / CATALOG_NAME, catalog)


def _write_checksums(files: Files, partial: Path, lsn: int) -> None:
    listed = {
        str(path.relative_to(partial)): file_checksums(path).to_json()
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    document: dict[str, Any] = {
        "format": SNAPSHOT_FORMAT,
        "lsn": lsn,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": listed,
    }
    document["crc32"] = document_crc(document)
    files.write_new(partial / SNAPSHOT_NAME, json.dumps(document, indent=1).encode())
    files.sync_dir(partial)


def drop_snapshots(files: Files, folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` of the snapshots that got their names from the time."""
    named = [path for path in folder.iterdir() if _TIMED.fullmatch(path.name)]
    for path in sorted(named)[:-keep]:
        files.remove_tree(path)


def verify_snapshot(folder: Path) -> int:
    """Hold a snapshot against its checksums; its LSN. BadFile naming the first damaged range."""
    path = folder / SNAPSHOT_NAME
    try:
        document = json.loads(path.read_bytes())
        listed, lsn = dict(document["files"]), int(document["lsn"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path} can't be read as a snapshot's: {error}") from None
    if document.get("crc32") != document_crc(document):
        raise BadFile(f"{path} isn't what was written (crc32)")
    for name, entry in sorted(listed.items()):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadFile(f"{path} names {name!r}, outside of the snapshot")
        for _ in verify_blocks(folder / name, FileChecksums.from_json(entry, name)):
            pass
    return lsn


def restore(files: Files, snapshot: Path, data_dir: Path) -> int:
    """Make the new or empty folder `data_dir` what the snapshot was of; its LSN.

    The snapshot is verified first. The catalog comes last: without it the folder is no data dir.
    AlreadyExists when the folder holds anything.
    """
    lsn = verify_snapshot(snapshot)
    if data_dir.exists() and any(data_dir.iterdir()):
        raise AlreadyExists(f"{data_dir} isn't empty; restore to a new folder")
    files.make_dirs(data_dir)
    sources = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
    for path in sources:
        name = path.relative_to(snapshot)
        if str(name) in (SNAPSHOT_NAME, CATALOG_NAME) or path.name == FROZEN_NAME:
            continue
        files.make_dirs((data_dir / name).parent)
        files.copy(path, data_dir / name)
        files.sync_path(data_dir / name)
        files.sync_dir((data_dir / name).parent)
    files.replace(data_dir / CATALOG_NAME, (snapshot / CATALOG_NAME).read_bytes())
    return lsn
