"""Snapshots: copies of a data dir at one LSN, taken while updates go on.

A snapshot has the files of a data dir with an empty log. `local:` reads it as it is, and copying it
restores it. No writer opens it, because serving it would change it. Besides the files of a data dir
it has snapshot.json, written last except for the folder's name:

    {"format", "lsn", "created", "files": {PATH: checksums as in manifest.json}, "crc32"}

Its superseded versions have no frozen.json, because those checksums cover all files. The first
writer of a restored data dir makes frozen.json anew.

A folder of snapshots belongs to one data dir. Its owner deletes there what a kill left unfinished,
and by schedule the oldest snapshots.
"""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gatherd.errors import (
    AlreadyExists,
    BadFile,
    DataDirVersion,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StorageError,
)
from gatherd.store.catalog import (
    CATALOG_NAME,
    MANIFEST_NAME,
    NAMES_SHOWN_MAX,
    STAGING_NAME,
    TABLES_NAME,
    Catalog,
    CatalogEntry,
    version_dir,
)
from gatherd.store.catalog_text import encode_catalog
from gatherd.store.checksums import (
    CHECKSUMS,
    FileChecksums,
    decode_document,
    encode_document,
    file_checksums,
    read_document,
    verify_blocks,
)
from gatherd.store.control import CONTROL_NAME
from gatherd.store.mapping import not_opened
from gatherd_server.snapshots.copying import CatchUp, copy_files, without_index
from gatherd_server.snapshots.freezing import FROZEN_NAME
from gatherd_server.snapshots.naming import PARTIAL_SUFFIX, check_name
from gatherd_server.storage.control_writer import page_at
from gatherd_server.storage.files import Files
from gatherd_server.storage.trainable import is_moving, is_trainable
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.types import SnapshotInfo, SnapshotList, SnapshotResult
from gatherd_server.writer.checkpoint import checkpoint_path
from gatherd_server.writer.writer import Writer

SNAPSHOT_NAME = "snapshot.json"
SNAPSHOT_FORMAT = 1
# Names of other snapshots that an error shows.
SHOWN_MAX = 8
# A snapshot's name is a folder's, as a table's is.
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_TIMED = re.compile(r"(\d{8}T\d{6}Z)-(\d+)")
_CONTENTS = frozenset(
    {CATALOG_NAME, CONTROL_NAME, SNAPSHOT_NAME, STAGING_NAME, TABLES_NAME, WAL_NAME}
)


def take_snapshot(writer: Writer, folder: Path, name: str) -> SnapshotResult:
    """Copy the writer's data dir to `folder`/`name`, durable on return.

    The caller keeps the catalog from changing. InvalidArgument for a folder in the data dir, and
    for an impossible name. BadFile when a file differs from its own checksums: a copy of it would
    only look sound. After any error, such as AlreadyExists, DiskFull or StorageError, nothing is
    left of the snapshot. A kill leaves a folder that ends in PARTIAL_SUFFIX; the next snapshot, or
    the next start, deletes it.
    """
    files, data_dir = writer.files, writer.data_dir
    target = _target(data_dir, folder, name or _timed_name(writer.applied_lsn))
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    files.make_dirs(folder)
    drop_partials(files, folder)
    catching: list[CatchUp] = []
    is_whole = False
    try:
        pinned = writer.pin_log(partial)
        files.make_dirs(partial, durable=False)
        catalog = writer.versions().catalog
        for table, entry in catalog.tables.items():
            _check_is_whole(table, entry)
            for version in entry.versions:
                source = version_dir(data_dir, table, version)
                copy = version_dir(partial, table, version)
                catches_up = version == entry.live and is_trainable(source)
                copy_files(files, source, copy, without_index(source) if catches_up else ())
                if catches_up:
                    catching.append(CatchUp(files, data_dir, entry.uid, version, copy, pinned))
        for one in catching:
            one.to(writer.applied_lsn)
        lsn, checkpoint = writer.between(lambda: (writer.applied_lsn, writer.encoded_window()))
        for one in catching:
            one.to(lsn)
            one.settle()
        control = page_at(catalog.generation, lsn)
        _write_rest(files, partial, encode_catalog(catalog), control, checkpoint)
        listed = {
            str(path.relative_to(partial)): file_checksums(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        _check_published(data_dir, partial, catalog, listed)
        _write_checksums(files, partial, lsn, listed)
        sync_tree(files, partial)
        is_whole = True
        files.rename(partial, target)
    except BaseException:
        # The folder may be renamed already, but perhaps not durably.
        left = target if is_whole and not partial.exists() else partial
        with suppress(StorageError):
            if left.exists():
                files.remove_tree(left)
        raise
    finally:
        writer.unpin_log(partial)
        for one in catching:
            one.close()
    return SnapshotResult(str(target), lsn)


def _check_is_whole(table: str, entry: CatalogEntry) -> None:
    """BadFile when a version is refused as damaged.

    Otherwise new snapshots without the table would replace the scheduled ones that have it.
    """
    for damage in entry.damaged:
        raise BadFile(
            f"version {damage.version} of table {table!r} is damaged, so that no snapshot is "
            f"taken: {damage.reason}; mend, restore or delete it first"
        )


def _timed_name(lsn: int) -> str:
    return f"{datetime.now(UTC):{_TIME_FORMAT}}-{lsn}"


def _target(data_dir: Path, folder: Path, name: str) -> Path:
    """The folder of the new snapshot `name`, which doesn't exist yet."""
    check_name(name)
    if folder.resolve().is_relative_to(data_dir.resolve()):
        raise InvalidArgument(
            f"snapshots can't go to {folder}: it is in the data dir {data_dir} itself; choose a "
            "folder beside it, better on another disk"
        )
    target = folder / name
    if target.exists():
        raise AlreadyExists(f"there is a snapshot {name!r} in {folder} already")
    return target


def _write_rest(files: Files, partial: Path, catalog: bytes, control: bytes, window: bytes) -> None:
    """Write everything but the versions and the checksums."""
    files.make_dirs(partial / STAGING_NAME, durable=False)
    files.make_dirs(checkpoint_path(partial).parent, durable=False)
    files.write_new(checkpoint_path(partial), window, durable=False)
    files.write_new(partial / CATALOG_NAME, catalog, durable=False)
    files.write_new(partial / CONTROL_NAME, control, durable=False)


def sync_tree(files: Files, path: Path) -> None:
    """Make a file, or a folder and everything in it, durable; but not its own name."""
    if not path.is_dir():
        files.sync_path(path)
        return
    entries = sorted(path.iterdir())
    for entry in entries:
        sync_tree(files, entry)
    if entries:
        files.sync_dir(path)


def _check_published(
    data_dir: Path, partial: Path, catalog: Catalog, listed: dict[str, FileChecksums]
) -> None:
    """BadFile when a copied file differs from what was published, or frozen."""
    for table, entry in catalog.tables.items():
        for version in entry.versions:
            source, copy = (version_dir(root, table, version) for root in (data_dir, partial))
            recorded = dict(_checksums_in(source / MANIFEST_NAME))
            if is_trainable(source):
                recorded = {name: one for name, one in recorded.items() if not is_moving(name)}
                if version != entry.live and (source / FROZEN_NAME).exists():
                    recorded |= _checksums_in(source / FROZEN_NAME)
            for name, one in recorded.items():
                if listed.get(str((copy / name).relative_to(partial))) != one:
                    raise BadFile(
                        f"{source / name} isn't what was published, so that no snapshot is taken; "
                        "`gatherd verify` says where it is damaged"
                    )


def _checksums_in(path: Path) -> dict[str, FileChecksums]:
    entries: Any = read_document(path).get(CHECKSUMS)
    return {name: FileChecksums.from_json(entry, name) for name, entry in entries.items()}


def _write_checksums(
    files: Files, partial: Path, lsn: int, listed: dict[str, FileChecksums]
) -> None:
    document: dict[str, Any] = {
        "format": SNAPSHOT_FORMAT,
        "lsn": lsn,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {name: one.to_json() for name, one in listed.items()},
    }
    files.write_new(partial / SNAPSHOT_NAME, encode_document(document), durable=False)


def drop_partials(files: Files, folder: Path) -> None:
    """Delete what kills left of snapshots in `folder`, if that exists."""
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*" + PARTIAL_SUFFIX)):
        is_ours = path.is_dir() and {entry.name for entry in path.iterdir()} <= _CONTENTS
        if is_ours and not path.is_symlink():
            files.remove_tree(path)


def drop_snapshots(files: Files, folder: Path, keep: int) -> None:
    """Delete the snapshots that are named by the time, except for the newest `keep`."""
    named = _timed_snapshots(folder)
    for path in named[: max(0, len(named) - keep)]:
        _drop(files, path)  # one that is being read is deleted by the next call


def _drop(files: Files, path: Path) -> bool:
    """Delete a snapshot, unless somebody is reading it; whether it was deleted."""
    # A kill on the way mustn't leave half a snapshot under its name.
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with files.shared_folder(path, exclusive=True) as is_free:
        if not is_free:
            return False
        files.rename(path, partial)
    files.remove_tree(partial)
    return True


def delete_snapshot(files: Files, folder: Path, name: str) -> None:
    """Delete the snapshot `name` in `folder`, durably.

    InvalidArgument for an impossible name, NotFound when there is no such snapshot, with those that
    there are; FailedPrecondition for a folder that isn't a snapshot, or has anything else in it,
    and for a snapshot that is being copied or restored. A damaged snapshot can be deleted.
    """
    path = folder / check_name(name)
    if not path.is_dir() and not path.is_symlink():
        known = [one.name for one in snapshots_in(folder)][-SHOWN_MAX:]
        told = f"; there is {', '.join(known)}" if known else ""
        raise NotFound(f"there is no snapshot {name!r} in {folder}{told}", {"snapshot": name})
    contents = set() if path.is_symlink() else {entry.name for entry in path.iterdir()}
    if SNAPSHOT_NAME not in contents or not contents <= _CONTENTS:
        foreign = sorted(contents - _CONTENTS)
        why = f"has {foreign[0]!r} in it" if foreign else f"is a folder without {SNAPSHOT_NAME}"
        if path.is_symlink():
            why = "is a symbolic link"
        raise FailedPrecondition(f"{path} {why}: it is no snapshot of gatherd's, and stays")
    if not _drop(files, path):
        raise FailedPrecondition(
            f"snapshot {name!r} is being copied or restored; delete it when that is done",
            {"snapshot": name},
        )


def list_snapshots(folder: Path) -> SnapshotList:
    """The snapshots in `folder`, oldest first; none when it doesn't exist."""
    infos = []
    for path in snapshots_in(folder):
        try:
            found = read_snapshot(path)
        except (BadFile, DataDirVersion) as error:
            if not path.exists():
                continue  # it was deleted meanwhile
            infos.append(SnapshotInfo(path.name, str(path), damaged=error.message))
            continue
        created = int(found.created.timestamp())
        infos.append(SnapshotInfo(path.name, str(path), found.lsn, created, found.byte_count))
    infos.sort(key=lambda info: (info.created_seconds, info.lsn, info.name))
    return SnapshotList(tuple(infos))


def snapshot_age_seconds(folder: Path) -> float | None:
    """The age of the newest snapshot that is named by the time; None when there is none."""
    if not folder.is_dir() or not (named := _timed_snapshots(folder)):
        return None
    made = datetime.strptime(named[-1].name.partition("-")[0], _TIME_FORMAT).replace(tzinfo=UTC)
    return time.time() - made.timestamp()


def timed_names(names: Iterable[str]) -> list[str]:
    """Those of `names` that were made from the time and the LSN, oldest first."""
    matches = [match for name in names if (match := _TIMED.fullmatch(name))]
    return [match[0] for match in sorted(matches, key=lambda match: (match[1], int(match[2])))]


def snapshots_in(folder: Path) -> list[Path]:
    """The snapshots in `folder`, by name; none when it doesn't exist."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if (path / SNAPSHOT_NAME).is_file() and not path.name.endswith(PARTIAL_SUFFIX)
    )


def _timed_snapshots(folder: Path) -> list[Path]:
    """The snapshots in `folder` that are named by the time, oldest first."""
    return [folder / name for name in timed_names(path.name for path in snapshots_in(folder))]


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """The contents of snapshot.json: LSN, time, and every file's checksums by relative path."""

    lsn: int
    created: datetime
    files: dict[str, FileChecksums]

    @property
    def byte_count(self) -> int:
        """Bytes of all files."""
        return sum(one.byte_count for one in self.files.values())


def read_snapshot(folder: Path) -> SnapshotFiles:
    """The contents of the snapshot in `folder`. BadFile when snapshot.json is unusable."""
    path = folder / SNAPSHOT_NAME
    if folder.name.endswith(PARTIAL_SUFFIX):
        raise BadFile(f"{folder} is a snapshot that was never finished; take another one")
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        raise BadFile(
            f"{folder} isn't a snapshot: it has no {SNAPSHOT_NAME}{_snapshots_near(folder)}"
        ) from None
    except OSError as error:
        raise not_opened(path, error) from None
    return decode_snapshot(encoded, str(path))


def _snapshots_near(folder: Path) -> str:
    """The end of the message for a folder that has snapshots in it, or others beside it."""
    for place in (folder, folder.parent):
        with suppress(OSError):
            named = sorted(one.parent.name for one in place.glob(f"*/{SNAPSHOT_NAME}"))
            if named:
                more = len(named) - NAMES_SHOWN_MAX
                others = f" and {more} more" if more > 0 else ""
                return f"; {place} has {', '.join(named[:NAMES_SHOWN_MAX])}{others}"
    return ""


def decode_snapshot(encoded: bytes, where: str) -> SnapshotFiles:
    """The contents of a snapshot.json. BadFile, naming `where` it is from, when it isn't one."""
    document = decode_document(encoded, where)
    try:
        found = (int(document["format"]), int(document["lsn"]), dict(document["files"]))
        created = datetime.fromisoformat(document["created"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadFile(f"{where} can't be read as a snapshot's: {error}") from None
    version, lsn, listed = found
    if version != SNAPSHOT_FORMAT:
        raise DataDirVersion(f"{where} has format {version}; this release reads {SNAPSHOT_FORMAT}")
    checksums = {}
    for name, entry in sorted(listed.items()):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadFile(f"{where} names {name!r}, outside of the snapshot")
        checksums[name] = FileChecksums.from_json(entry, name)
    return SnapshotFiles(lsn, created, checksums)


@contextmanager
def reading(files: Files, folder: Path) -> Iterator[None]:
    """Keep the snapshot in `folder` from being deleted in the block; a kill ends that.

    FailedPrecondition when it is being deleted.
    """
    with files.shared_folder(folder, exclusive=False) as is_held:
        if not is_held:
            raise FailedPrecondition(f"{folder} is being deleted")
        yield


def verify_snapshot(folder: Path) -> Iterator[int]:
    """Check a snapshot by its checksums, yielding how many bytes are verified so far.

    BadFile naming the first file and range that differs from what was written.
    """
    done = 0
    for name, recorded in read_snapshot(folder).files.items():
        for verified in verify_blocks(folder / name, recorded):
            yield done + verified
        done += recorded.byte_count
