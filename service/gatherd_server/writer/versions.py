"""The versions that the writer stores into; each is mapped when it is first needed."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gatherd.errors import (
    BadFile,
    NoOptimizer,
    StorageError,
    TableReadOnly,
    TableRefused,
    TooManyFiles,
)
from gatherd.store.catalog import Catalog, CatalogEntry, open_table, table_not_found, version_dir
from gatherd.store.key_index import KeyIndex
from gatherd_server.storage.block_sums import VersionSums
from gatherd_server.storage.files import Files
from gatherd_server.storage.trained_version import TrainedVersion, open_trained
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.writer.policy import Policies


@dataclass(frozen=True, slots=True, eq=False)
class LiveVersion:
    """The live version of a table that can be trained."""

    name: str
    uid: str
    version: int
    mapped: TrainedVersion
    keys: KeyIndex | None


@dataclass(frozen=True, slots=True, eq=False)
class Summed:
    """The sources of a checkpoint's sums, by uid and version."""

    mapped: Mapping[tuple[str, int], TrainedVersion]
    kept: Mapping[tuple[str, int], VersionSums]
    """The unchanged sums of versions that can't be mapped."""

    def sum_up(self, byte_count: int) -> dict[tuple[str, int], VersionSums]:
        """Sum up blocks, up to `byte_count` bytes; return all known sums. On any thread."""
        for mapped in self.mapped.values():
            byte_count -= mapped.sum_up(byte_count)
        return {**{key: one.sums() for key, one in self.mapped.items()}, **self.kept}

    @property
    def is_whole(self) -> bool:
        """Whether every block has a sum."""
        return all(mapped.is_summed_up for mapped in self.mapped.values())


class Versions:
    """The catalog, and those of its versions that the writer has mapped. One thread uses it."""

    def __init__(
        self,
        files: Files,
        data_dir: Path,
        catalog: Catalog,
        sums: Mapping[tuple[str, int], VersionSums],
        policies: Policies | None = None,
    ) -> None:
        """`sums`, by uid and version, and `policies` are the last checkpoint's."""
        self.catalog = catalog
        self.policies = policies or Policies()
        """How the rows of open versions come and go."""
        self._sums = dict(sums)
        self._files = files
        self._data_dir = data_dir
        self._live: dict[str, LiveVersion] = {}
        self._mapped: dict[tuple[str, int], TrainedVersion] = {}
        self._dirty: set[tuple[str, int]] = set()
        self._names = {entry.uid: name for name, entry in catalog.tables.items()}
        self.held: set[str] = set()
        """The uids of tables that take no pushes at present, because their rows are replaced."""
        self._pushed: dict[str, int] = {}

    def live(self, name: str) -> LiveVersion:
        """The live version of the table or alias `name`, mapped.

        TableNotFound, TableReadOnly or, when its files can't be used, TableRefused.
        """
        found = self._live.get(name)
        if found is None:
            table = self.catalog.meant(name)
            found = self._live.get(table) or self._open(table, self.entry(table))
            self._live[table] = self._live[name] = found
        return found

    def _open(self, name: str, entry: CatalogEntry) -> LiveVersion:
        check_whole(name, entry, entry.live)
        try:
            table = open_table(self._data_dir, name, entry.live, entry.folder)
            if not table.is_trainable:
                raise frozen(name)
            mapped = self.mapped(entry.uid, entry.live)
            assert mapped is not None
        except BadFile as error:
            raise TableRefused(f"table {name!r} can't be updated: {error.message}") from None
        keys = table.keys if isinstance(table.keys, KeyIndex) else None
        return LiveVersion(name, entry.uid, entry.live, mapped, keys)

    def adopt(self, adopted: Mapping[tuple[str, int], TrainedVersion]) -> None:
        """Use versions that are mapped already, by uid and number, when a catalog names them."""
        self._mapped.update(adopted)

    def entry(self, name: str) -> CatalogEntry:
        """The catalog's entry of `name`; TableNotFound when there is none."""
        entry = self.catalog.tables.get(name)
        if entry is None:
            raise table_not_found(name, self.catalog.tables)
        return entry

    def mapped(self, uid: str, version: int) -> TrainedVersion | None:
        """A version's files, mapped to be changed.

        None when the catalog no longer has it, or lists it as damaged. StorageError when its files
        can't be mapped.
        """
        found = self._mapped.get((uid, version))
        if found is None:
            name = self._names.get(uid)
            if name is None:
                return None
            entry = self.catalog.tables[name]
            if version not in entry.versions or entry.damage_of(version) is not None:
                return None
            folder = version_dir(self._data_dir, entry.folder_of(name), version)
            found = open_trained(self._files, folder, self._sums.get((uid, version)))
            _use_optimizer(found, entry, version)
            self._mapped[(uid, version)] = found
        return found

    def mapped_already(self, key: tuple[str, int]) -> TrainedVersion | None:
        """The version of that uid and number if it is mapped to be changed; else None."""
        return self._mapped.get(key)

    def trainable(self) -> Iterator[TrainedVersion]:
        """Every live version that can be trained."""
        for name in self.catalog.tables:
            try:
                yield self.live(name).mapped
            except TooManyFiles:
                raise  # the table is sound
            except (TableReadOnly, TableRefused, StorageError):
                continue  # either read-only, or refused by the readers, who give the reason

    def changed(self, uid: str, version: int, lsn: int) -> None:
        """Note that a version was stored into since the last checkpoint, last by push `lsn`."""
        self._dirty.add((uid, version))
        self._pushed[uid] = lsn

    def pushed_lsn(self, uid: str) -> int:
        """The LSN of the last push to a table; 0 when there was none since the start's log."""
        return self._pushed.get(uid, 0)

    def take_dirty(self) -> list[TrainedVersion]:
        """The versions stored into since the last call; they become clean and start new notes."""
        dirty = [self._mapped[key] for key in sorted(self._dirty) if key in self._mapped]
        self._dirty.clear()
        for mapped in dirty:
            mapped.begin_sums()
        return dirty

    def summed(self) -> Summed:
        """The versions whose sums go into a checkpoint."""
        live = {(entry.uid, entry.live) for entry in self.catalog.tables.values()}
        mapped = {key: self._mapped[key] for key in sorted(live) if key in self._mapped}
        damaged = {
            (entry.uid, one.version)
            for entry in self.catalog.tables.values()
            for one in entry.damaged
        }
        rest = sorted((live | damaged) - mapped.keys())
        return Summed(mapped, {key: self._sums[key] for key in rest if key in self._sums})

    def switch(self, catalog: Catalog) -> None:
        """Use another catalog from here on."""
        before, tables = self.catalog.tables, catalog.tables
        for alias in {**self.catalog.aliases, **catalog.aliases}:
            self._live.pop(alias, None)
        self.catalog = catalog
        changed: list[tuple[str, CatalogEntry | None, CatalogEntry | None]] = [
            (name, old, new)
            for name, old in before.items()
            if (new := tables.get(name)) is not old and new != old
        ]
        changed += [(name, None, new) for name, new in tables.items() if name not in before]
        # By uid, because a renamed table stays mapped, and keeps what isn't durable yet.
        stays = {new.uid: new for _, _, new in changed if new is not None}
        for name, old, _ in changed:
            self._live.pop(name, None)
            if old is not None:
                self._leave(old, stays.get(old.uid))
        were_live = {(old.uid, old.live) for _, old, _ in changed if old is not None}
        for name, _, new in changed:
            if new is not None:
                self._names[new.uid] = name
                if (new.uid, new.live) not in were_live:
                    # So that a checkpoint sums it up before the first update, too.
                    with suppress(StorageError):
                        self.mapped(new.uid, new.live)
                elif (kept := self._mapped.get((new.uid, new.live))) is not None:
                    _use_optimizer(kept, new, new.live)

    def _leave(self, old: CatalogEntry, new: CatalogEntry | None) -> None:
        """Let go of what `old` named and `new`, the same table's entry from now on, doesn't."""
        if new is None:
            self._names.pop(old.uid, None)
            self._pushed.pop(old.uid, None)
        for damage in old.damaged:
            if new is None or new.damage_of(damage.version) is None:
                # It was mended, so the last checkpoint's sums don't hold any more.
                self._sums.pop((old.uid, damage.version), None)
        kept = set() if new is None else _whole(new)
        for version in {*old.versions} - kept:
            # Its pages are let go when the last who syncs or copies them is done.
            self._mapped.pop((old.uid, version), None)
            self.policies.forget((old.uid, version))
            self._dirty.discard((old.uid, version))

    def close(self) -> None:
        """Unmap everything."""
        for mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()
        self._live.clear()


def _use_optimizer(mapped: TrainedVersion, entry: CatalogEntry, version: int) -> None:
    """Train a version by the optimizer that the catalog has for it, if it has one."""
    changed = entry.optimizer_of(version)
    if changed is not None:
        mapped.optimizer = Optimizer.from_json(changed)


def _whole(entry: CatalogEntry) -> set[int]:
    """The versions that an entry keeps and that aren't damaged."""
    return {version for version in entry.versions if entry.damage_of(version) is None}


def held_lsns(catalog: Catalog) -> list[tuple[int, int]]:
    """First and last LSN of each range that the log keeps for a damaged version."""
    return [
        (damage.after_lsn + 1, damage.until_lsn)
        for entry in catalog.tables.values()
        for damage in entry.damaged
        if damage.until_lsn > damage.after_lsn
    ]


def check_whole(name: str, entry: CatalogEntry, version: int) -> None:
    """TableRefused when the catalog lists the version as damaged."""
    damage = entry.damage_of(version)
    if damage is not None:
        raise TableRefused(
            f"version {version} of table {name!r} is refused: {damage.reason}", {"table": name}
        )


def frozen(name: str) -> TableReadOnly:
    """The error for an update of a table that takes none."""
    return TableReadOnly(
        f"table {name!r} is frozen: it takes no updates. `gatherd set-optimizer {name} none` makes "
        "it take them, and another optimizer than none gradients too",
        {"table": name},
    )


def served_file(name: str) -> TableReadOnly:
    """The error for an update of a table that is a file, served where it lies."""
    return TableReadOnly(
        f"table {name!r} is read-only: it is a file that is served where it lies. `gatherd import` "
        "makes a table of it that takes updates",
        {"table": name},
    )


def no_optimizer(name: str) -> NoOptimizer:
    """The error for gradients of a table without an optimizer."""
    return NoOptimizer(
        f"table {name!r} has no optimizer, so it takes scatter_add and assign but no gradients; "
        f"`gatherd set-optimizer {name} adagrad --lr 0.05`, or set_optimizer, gives it one",
        {"table": name},
    )
