"""Unusable versions: a start refuses only these, and mends them when their files are back.

A start stores the log's images into tables. If a table can't take them, the others go on. The
catalog then says what is wrong with that version and which part of the log it still needs
(`Damage` in the store's catalog.py): every reader therefore refuses it, and the log keeps those
segments. Their size is bounded by the log at that start, because such a table takes no updates.

Each start, and a rollback to the version, checks whether its files are sound again and have their
contents of the LSN from which the log is kept. Then the log's images are stored, and the table is
an ordinary one again. Left out on purpose: a search for damage in files that can be mapped, which
would read every table at every start. `gatherd verify` does that.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from gatherd.errors import BadFile, StorageError
from gatherd.store.catalog import Catalog, CatalogEntry, Damage, open_version, version_dir
from gatherd_server.storage.block_sums import VersionSums
from gatherd_server.storage.files import Files
from gatherd_server.storage.images_record import logged_images
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.trainable import is_trainable
from gatherd_server.storage.trained_version import TrainedVersion, open_trained
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.storage.wal_reader import Frame
from gatherd_server.writer.logged import logged_images_of, store_logged
from gatherd_server.writer.versions import Versions

_NO_ROWS = np.empty(0, np.int64)

logger = logging.getLogger("gatherd.writer")


class Replay:
    """Stores a log's images into versions, and notes those that can't take them."""

    def __init__(self, files: Files, data_dir: Path, versions: Versions, from_lsn: int) -> None:
        """`from_lsn` is the checkpoint's: the tables' files are known to be durable up to it."""
        self._files = files
        self._data_dir = data_dir
        self._versions = versions
        self._from_lsn = from_lsn
        self._found: dict[tuple[str, int], str] = {}
        self._last_lsn: dict[tuple[str, int], int] = {}
        self.has_open = False
        """Whether a live version is open; known after `settle`."""

    def take(self, frame: Frame, *, is_applied: bool) -> None:
        """Store a frame of pushes; if it `is_applied`, only note its rows as not yet durable."""
        for images in logged_images(frame.record):
            key = (images.uid, images.version)
            self._last_lsn[key] = frame.last_lsn
            mapped = self._mapped(*key)
            if mapped is None:
                continue  # dropped or deleted since, or damaged
            if images.opened is not None and isinstance(mapped, OpenVersion):
                self._versions.policies.of(key, mapped).stored(images.opened.counted, _NO_ROWS)
            try:
                if is_applied:
                    mapped.note_images(images)
                else:
                    mapped.apply(images)
            except BadFile as error:
                self._found[key] = error.message
                continue
            self._versions.changed(*key, frame.last_lsn)

    def _mapped(self, uid: str, version: int) -> TrainedVersion | None:
        if (uid, version) in self._found:
            return None
        try:
            return self._versions.mapped(uid, version)
        except StorageError as error:
            self._found[(uid, version)] = error.message
            return None

    def settle(self, sums: Mapping[tuple[str, int], VersionSums]) -> Catalog:
        """The catalog with the damage found, after the whole log was taken; unchanged without any.

        Versions that were damaged before, and whose files are back, get the log's images.
        """
        catalog = self._versions.catalog
        tables = catalog.tables.copy()
        for name, entry in catalog.tables.items():
            damaged = self._damaged(name, entry, sums)
            if damaged != entry.damaged:
                tables[name] = replace(entry, damaged=damaged)
        if tables == catalog.tables:
            return catalog
        return replace(catalog, generation=catalog.generation + 1, tables=tables)

    def _damaged(
        self, name: str, entry: CatalogEntry, sums: Mapping[tuple[str, int], VersionSums]
    ) -> tuple[Damage, ...]:
        self._try(name, entry)
        found = []
        for version in entry.versions:
            key = (entry.uid, version)
            damage, why = entry.damage_of(version), self._found.get(key)
            if damage is not None:
                try:
                    mend(self._files, self._data_dir, name, entry, damage, sums.get(key))
                    logger.info("table %r: version %d is whole again", name, version)
                    continue
                except StorageError as error:
                    damage = replace(damage, why=error.message)
            elif why is not None:
                until_lsn = self._last_lsn.get(key, self._from_lsn)
                damage = Damage(version, why, self._from_lsn, max(self._from_lsn, until_lsn))
            else:
                continue
            logger.error("table %r, version %d, is refused: %s", name, version, damage.reason)
            found.append(damage)
        return tuple(found)

    def _try(self, name: str, entry: CatalogEntry) -> None:
        """Map the live version if it can be trained, even if the log has nothing of it.

        The index of an open one is built, of the rows as they are now.
        """
        try:
            is_needed = is_trainable(version_dir(self._data_dir, entry.folder_of(name), entry.live))
        except BadFile:
            return  # the log has nothing for it; readers of the table report the damage
        if is_needed:
            key = (entry.uid, entry.live)
            mapped = self._mapped(*key)
            if isinstance(mapped, OpenVersion):
                self.has_open = True
                try:
                    mapped.settle()
                except StorageError as error:
                    self._found[key] = error.message


def mend(
    files: Files,
    data_dir: Path,
    name: str,
    entry: CatalogEntry,
    damage: Damage,
    sums: VersionSums | None,
) -> None:
    """Store the log's images into a version whose files are back; durable on return.

    `sums` are those of the files at `damage.after_lsn`. A StorageError says what is still wrong.
    Idempotent: after a crash inside it, it can be done again.
    """
    folder = version_dir(data_dir, entry.folder_of(name), damage.version)
    open_version(folder, name, damage.version)
    mapped = open_trained(files, folder)
    try:
        of, wal = (entry.uid, damage.version), data_dir / WAL_NAME
        for images in logged_images_of(wal, of, damage.after_lsn, damage.until_lsn):
            mapped.note_images(images)
        if sums is not None:
            mapped.check(sums, damage.after_lsn)
        store_logged(mapped, wal, of, damage.after_lsn, damage.until_lsn)
        mapped.make_even()
        mapped.sync()
    finally:
        mapped.close()
