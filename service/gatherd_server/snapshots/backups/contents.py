"""The contents of a store: backups, unfinished ones, and the ones that are too old to stay."""

import json
import logging
import time
from dataclasses import dataclass
from typing import Final

from gatherd.errors import BadFile, DataDirVersion, StorageError
from gatherd_server.snapshots.backups.store import UPLOAD_NAME, Store, read_document
from gatherd_server.snapshots.snapshot import (
    SNAPSHOT_NAME,
    SnapshotFiles,
    decode_snapshot,
    timed_names,
)

logger = logging.getLogger("gatherd.writer")

# Copying one backup takes no longer than this: an upload that began earlier was given up.
UPLOAD_SECONDS_MAX: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup: its snapshot.json, as bytes and decoded."""

    name: str
    document: bytes
    snapshot: SnapshotFiles


@dataclass(frozen=True, slots=True)
class StoreContents:
    """A store's contents by name. `unfinished` have no snapshot.json, `damaged` a bad one."""

    backups: dict[str, Backup]
    unfinished: list[str]
    damaged: dict[str, str]

    @property
    def newest(self) -> Backup | None:
        """The backup whose snapshot was taken last, whatever its name."""
        ordered = sorted(
            self.backups.values(), key=lambda one: (one.snapshot.created, one.snapshot.lsn)
        )
        return ordered[-1] if ordered else None


def list_store(store: Store) -> StoreContents:
    """The contents of `store`; reads every snapshot.json."""
    backups: dict[str, Backup] = {}
    unfinished: list[str] = []
    damaged: dict[str, str] = {}
    for name in store.names():
        try:
            found = _read(store, name)
        except (BadFile, DataDirVersion) as error:
            damaged[name] = error.message
            continue
        if found is None:
            unfinished.append(name)
        else:
            backups[name] = found
    return StoreContents(backups, unfinished, damaged)


def read_backup(store: Store, name: str) -> Backup:
    """The backup `name`. BadFile when it doesn't exist, or was never finished."""
    found = _read(store, name)
    if found is None:
        raise BadFile(
            f"{store.shown} has no whole backup {name!r}: there is no {SNAPSHOT_NAME}; "
            "`gatherd backups` lists those there are"
        )
    return found


def _read(store: Store, name: str) -> Backup | None:
    path = f"{name}/{SNAPSHOT_NAME}"
    try:
        document = read_document(store, path)
    except FileNotFoundError:
        return None
    return Backup(name, document, decode_snapshot(document, f"{store.shown}/{path}"))


def upload_document() -> bytes:
    """The bytes of an upload.json that is written now."""
    return json.dumps({"begun": time.time()}).encode()


def drop_old(store: Store, contents: StoreContents, keep: int, spare: str) -> list[str]:
    """Delete the backups named by the time but for the newest `keep`, and uploads given up.

    `spare` stays in any case. Returns the deleted names. What can't be deleted is left to the next
    call, because only the new backup matters.
    """
    named = timed_names(contents.backups)
    doomed = named[: max(0, len(named) - keep)]
    doomed += [name for name in contents.unfinished if _is_given_up(store, name)]
    gone = []
    for name in doomed:
        if name == spare:
            continue
        try:
            store.remove(name)
            gone.append(name)
        except StorageError as error:
            logger.warning("backup %s can't be deleted: %s", name, error)
    return gone


def _is_given_up(store: Store, name: str) -> bool:
    """Whether `name` is an upload of ours that began too long ago to be still under way."""
    try:
        document = json.loads(read_document(store, f"{name}/{UPLOAD_NAME}"))
        begun = float(document["begun"])
    except (BadFile, FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return False  # not ours
    return time.time() - begun > UPLOAD_SECONDS_MAX
