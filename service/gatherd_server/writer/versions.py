"""The versions that the writer stores into, mapped as they are first needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gatherd.errors import BadFile, StorageError, TableReadOnly, TableRefused, TooManyFiles
from gatherd.store.catalog import Catalog, CatalogEntry, open_table, table_not_found, version_dir
from gatherd.store.key_index import KeyIndex
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion


@dataclass(frozen=True, slots=True, eq=False)
class LiveVersion:
    """The live version of a table that can be trained."""

    name: str
    uid: str
    version: int
    mapped: MappedVersion
    keys: KeyIndex | None


class Versions:
    """What the catalog names, as far as the writer has touched it. One thread uses it."""

    def __init__(self, files: Files, data_dir: Path, catalog: Catalog) -> None:
        self.catalog = catalog
        self._files = files
        self._data_dir = data_dir
        self._live: dict[str, LiveVersion] = {}
        self._mapped: dict[tuple[str, int], MappedVersion] = {}
        self._dirty: set[tuple[str, int]] = set()

    def live(self, name: str) -> LiveVersion:
        """The live version of table `name`, mapped.

        TableNotFound, TableReadOnly or, when its files can't be used, TableRefused.
        """
        found = self._live.get(name)
        if found is None:
            found = self._live[name] = self._open(name, self.entry(name))
        return found

    def _open(self, name: str, entry: CatalogEntry) -> LiveVersion:
        try:
            if not open_table(self._data_dir, name, entry.live).is_trainable:
                raise read_only(name)
            mapped = self.mapped(entry.uid, entry.live)
            assert mapped is not None
            keys = KeyIndex.open(version_dir(self._data_dir, name, entry.live))
        except BadFile as error:
            raise TableRefused(f"table {name!r} can't be updated: {error.message}") from None
        return LiveVersion(name, entry.uid, entry.live, mapped, keys)

    def entry(self, name: str) -> CatalogEntry:
        """The catalog's entry of `name`; TableNotFound when there is none."""
        entry = self.catalog.tables.get(name)
        if entry is None:
            raise table_not_found(name, self.catalog.tables)
        return entry

    def mapped(self, uid: str, version: int) -> MappedVersion | None:
        """A version's files, mapped to be changed; None when the catalog has it no longer."""
        found = self._mapped.get((uid, version))
        if found is None:
            name = next((n for n, entry in self.catalog.tables.items() if entry.uid == uid), None)
            if name is None or version not in self.catalog.tables[name].versions:
                return None
            folder = version_dir(self._data_dir, name, version)
            found = self._mapped[(uid, version)] = MappedVersion.open(self._files, folder)
        return found

    def trainable(self) -> Iterator[MappedVersion]:
        """Every live version that can be trained."""
        for name in self.catalog.tables:
            try:
                yield self.live(name).mapped
            except TooManyFiles:
                raise  # the table is sound
            except (TableReadOnly, TableRefused, StorageError):
                continue  # nothing to be written, or refused by the readers, who say why

    def changed(self, uid: str, version: int) -> None:
        """Note that a version was stored into since the last checkpoint."""
        self._dirty.add((uid, version))

    def take_dirty(self) -> list[MappedVersion]:
        """The versions that were stored into, which so become clean."""
        dirty = [self._mapped[key] for key in sorted(self._dirty) if key in self._mapped]
        self._dirty.clear()
        return dirty

    def switch(self, catalog: Catalog) -> None:
        """Go by another catalog from here on."""
        self.catalog = catalog
        self._live.clear()
        kept = {
            (entry.uid, version) for entry in catalog.tables.values() for version in entry.versions
        }
        for key in self._mapped.keys() - kept:
            # Its pages are let go when the last who syncs or copies them is done.
            del self._mapped[key]
            self._dirty.discard(key)

    def close(self) -> None:
        """Unmap everything."""
        for mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()
        self._live.clear()


def read_only(name: str) -> TableReadOnly:
    """The error for an update of a table without an optimizer."""
    return TableReadOnly(
        f"table {name!r} is read-only: it has no optimizer. `gatherd set-optimizer {name} sgd` "
        "makes it trainable, once it is in a data dir",
        {"table": name},
    )
