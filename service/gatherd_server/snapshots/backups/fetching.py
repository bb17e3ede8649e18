"""Reads a backup: to restore it to an empty volume, or only to verify it."""

from collections.abc import Iterator
from pathlib import Path

from gatherd.errors import BadFile
from gatherd.store.catalog import CATALOG_NAME
from gatherd_server.snapshots.backups.contents import Backup
from gatherd_server.snapshots.backups.copying import checked_pieces, is_of_open_version
from gatherd_server.snapshots.backups.store import Store
from gatherd_server.snapshots.restoring import check_is_empty, fill_data_dir
from gatherd_server.storage.files import Files


def fetch(files: Files, store: Store, backup: Backup, data_dir: Path) -> int:
    """Make the new or empty folder `data_dir` a copy of the backup's data dir, durably; its LSN.

    Every byte is checked against its checksum on the way. BadFile leaves the folder empty, as does
    any other error. The catalog comes last, so that a kill leaves no data dir. AlreadyExists when
    the folder contains anything.
    """
    check_is_empty(data_dir)
    if CATALOG_NAME not in backup.snapshot.files:
        raise BadFile(f"{store.shown}/{backup.name} has no {CATALOG_NAME}")
    catalog = b"".join(_pieces(store, backup, CATALOG_NAME))

    def place(name: str, target: Path) -> None:
        byte_count = backup.snapshot.files[name].byte_count
        with open(target, "xb", buffering=0) as file:
            position = 0
            for piece in _pieces(store, backup, name):
                position = files.write_at(file.fileno(), memoryview(piece), position, target)
            if position < byte_count:
                files.truncate(file.fileno(), byte_count, target)  # to the hole at its end

    files.make_dirs(data_dir)
    fill_data_dir(files, data_dir, backup.snapshot, catalog, place)
    return backup.snapshot.lsn


def verify_backup(store: Store, backup: Backup) -> int:
    """Read the whole backup; its bytes. BadFile naming the first damaged file and range."""
    return sum(
        len(piece) for name in backup.snapshot.files for piece in _pieces(store, backup, name)
    )


def _pieces(store: Store, backup: Backup, name: str) -> Iterator[bytes]:
    path = f"{backup.name}/{name}"
    recorded = backup.snapshot.files[name]
    where = f"{store.shown}/{path}"
    try:
        is_sparse = is_of_open_version(name, backup.snapshot)
        yield from checked_pieces(store.read(path), recorded, where, is_sparse=is_sparse)
    except FileNotFoundError:
        raise BadFile(f"{where} isn't there") from None
