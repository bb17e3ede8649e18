"""The work after a change, and after a start: delete what no catalog names, freeze the superseded.

The next start does it again, so a disk error here is logged and fails no change.
"""

import logging
from pathlib import Path

from gatherd.errors import StorageError
from gatherd.store.catalog import TABLES_NAME, Catalog, version_dir
from gatherd_server.snapshots.freezing import freeze, unfrozen
from gatherd_server.storage.files import Files

logger = logging.getLogger("gatherd.writer")


def forget(files: Files, folder: Path) -> None:
    """Delete a folder that no catalog names. Readers that have it mapped keep their mappings."""
    try:
        files.remove_tree(folder)
    except StorageError as error:
        # The next start sweeps it away.
        logger.warning("can't delete %s: %s", folder, error)


def sweep(files: Files, data_dir: Path, catalog: Catalog) -> None:
    """Delete folders of tables and versions that the catalog doesn't name."""
    entries = {entry.folder_of(name): entry for name, entry in catalog.tables.items()}
    for folder in sorted((data_dir / TABLES_NAME).glob("*")):
        entry = entries.get(folder.name)
        if entry is None:
            forget(files, folder)
            continue
        named = {version_dir(data_dir, folder.name, v) for v in entry.versions}
        for version in set(folder.iterdir()) - named:
            forget(files, version)


def freeze_superseded(files: Files, data_dir: Path, catalog: Catalog) -> None:
    """Take the checksums of superseded versions, which don't change any more."""
    for name, entry in catalog.tables.items():
        for version in entry.versions:
            folder = version_dir(data_dir, entry.folder_of(name), version)
            if version == entry.live or entry.damage_of(version) is not None:
                continue
            try:
                if unfrozen(folder):
                    freeze(files, folder)
            except StorageError as error:
                logger.error("can't freeze %s: %s", folder, error)  # noqa: TRY400 - says it all
