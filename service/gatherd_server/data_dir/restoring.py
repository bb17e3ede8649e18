"""Restores one table from a snapshot into a data dir in use, as a new table or a new version.

The version that was live in the snapshot is staged like an import. Its manifest names the origin.
So the owner of the data dir can store what the log keeps of that version, if it is damaged, above
the snapshot's LSN:

    "origin": {"restored": {"uid", "version", "lsn"}}
"""

import uuid
from pathlib import Path
from typing import Any

from gatherd.errors import BadFile
from gatherd.store.catalog import (
    CATALOG_NAME,
    MANIFEST_NAME,
    STAGING_NAME,
    CatalogEntry,
    Damage,
    decode_catalog,
    table_not_found,
    version_dir,
)
from gatherd.store.checksums import encode_document, read_document, read_file, verify_blocks
from gatherd_server.snapshots.snapshot import SnapshotFiles, read_snapshot, reading, sync_tree
from gatherd_server.storage.files import Files
from gatherd_server.storage.trained_version import open_trained
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.writer.logged import store_logged


def stage_from_snapshot(files: Files, data_dir: Path, snapshot: Path, name: str) -> tuple[str, int]:
    """Copy a snapshot's live version of `name` to staging; return its folder's name, and the LSN.

    Every byte of it is verified first. TableNotFound, or BadFile where the snapshot is damaged.
    """
    contents = read_snapshot(snapshot)
    with reading(files, snapshot):
        return _staged(files, data_dir, snapshot, contents, name), contents.lsn


def _staged(
    files: Files, data_dir: Path, snapshot: Path, contents: SnapshotFiles, name: str
) -> str:
    catalog_path = snapshot / CATALOG_NAME
    catalog = decode_catalog(read_file(catalog_path), catalog_path)
    entry = catalog.tables.get(name)
    if entry is None:
        raise table_not_found(name, catalog.tables)
    source = version_dir(snapshot, name, entry.live)
    listed = {
        file: sums for file, sums in contents.files.items() if (snapshot / file).parent == source
    }
    if str((source / MANIFEST_NAME).relative_to(snapshot)) not in listed:
        raise BadFile(f"{snapshot} has no manifest of table {name!r} in its list of files")
    for file, sums in listed.items():
        for _ in verify_blocks(snapshot / file, sums):
            pass
    staged = data_dir / STAGING_NAME / uuid.uuid4().hex
    files.make_dirs(staged, durable=False)
    try:
        for file in listed:
            files.copy(snapshot / file, staged / Path(file).name)
        manifest = read_document(staged / MANIFEST_NAME)
        restored = {"uid": entry.uid, "version": entry.live, "lsn": contents.lsn}
        manifest |= {"uid": uuid.uuid4().hex, "origin": {"restored": restored}}
        manifest["optimizer"] = entry.optimizer_of(entry.live) or manifest.get("optimizer")
        files.replace(staged / MANIFEST_NAME, encode_document(manifest), durable=False)
        sync_tree(files, staged)
    except BaseException:
        files.remove_tree(staged)
        raise
    return staged.name


def catch_up_restored(files: Files, data_dir: Path, entry: CatalogEntry, folder: Path) -> None:
    """Store what the log keeps of the damaged version that `folder` was restored from, durably.

    Does nothing if there is none, or if the snapshot is older than the log's part.
    """
    origin = read_document(folder / MANIFEST_NAME).get("origin")
    restored: Any = origin.get("restored") if isinstance(origin, dict) else None
    if restored is None or restored["uid"] != entry.uid:
        return
    damage = entry.damage_of(restored["version"])
    if damage is None or not _reaches(damage, restored["lsn"]):
        return
    mapped = open_trained(files, folder)
    try:
        of = (entry.uid, damage.version)
        store_logged(mapped, data_dir / WAL_NAME, of, restored["lsn"], damage.until_lsn)
        mapped.sync()
    finally:
        mapped.close()


def restored_lsn(entry: CatalogEntry | None, snapshot: Path, name: str, lsn: int) -> int:
    """The LSN of a restored table's contents, after `catch_up_restored`."""
    path = snapshot / CATALOG_NAME
    source = decode_catalog(read_file(path), path).tables[name]
    damage = entry.damage_of(source.live) if entry and entry.uid == source.uid else None
    return damage.until_lsn if damage is not None and _reaches(damage, lsn) else lsn


def _reaches(damage: Damage, lsn: int) -> bool:
    """Whether the log's part for the version begins at or below `lsn` and ends above it."""
    return damage.after_lsn <= lsn < damage.until_lsn
