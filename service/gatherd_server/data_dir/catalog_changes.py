"""Changes of the catalog: create, clone, publish, rollback, delete, another optimizer.

Changes of names alone are in name_changes.py.

Long work (copying, mapping in every worker) happens before the switch. The switch itself is one
record of the log, between two batches. Files that readers no longer see are deleted after it.
"""

import secrets
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatherd.errors import (
    BadFile,
    DiskFull,
    FailedPrecondition,
    GatherdError,
    InvalidArgument,
    StorageError,
    TableRefused,
    Unimplemented,
    VersionMismatch,
    VersionNotFound,
)
from gatherd.store.catalog import (
    STAGING_NAME,
    TABLES_NAME,
    Catalog,
    CatalogEntry,
    check_table_name,
    open_version,
    version_dir,
)
from gatherd.store.dtypes import DType
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.open_files import OPEN
from gatherd_server.data_dir.carrying import CarriedRows, carrying
from gatherd_server.data_dir.name_changes import NameChanges
from gatherd_server.data_dir.open_tables import settled, stage_created
from gatherd_server.data_dir.restoring import catch_up_restored
from gatherd_server.data_dir.staging import copy_live, finish_manifest, staged_folder
from gatherd_server.data_dir.sweeping import forget, freeze_superseded, sweep
from gatherd_server.loaders.initializers import created_origin, initial_blocks
from gatherd_server.snapshots.freezing import thaw
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.table_writer import Block, StagedTable, TableFiles, stage_table
from gatherd_server.storage.trainable import read_manifest
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    CloneTable,
    CreateTable,
    DeleteAlias,
    DeleteTable,
    DeleteVersion,
    OptimizerSpec,
    Publish,
    RenameTable,
    ReplaceTable,
    Rollback,
    SetAlias,
    SetOptimizer,
    StateOutcome,
    TableChange,
    VersionChange,
    WriterLimits,
)
from gatherd_server.writer.checkpoint import read_checkpoint
from gatherd_server.writer.damage import mend
from gatherd_server.writer.versions import check_whole
from gatherd_server.writer.writer import Writer

FIRST_VERSION = 1
# All workers together may take this long to map a new version.
PREPARE_SECONDS_MAX = 600.0

# A reader only looks up when it answered last.
UNUSED_SECONDS_MAX = 10.0

AskReaders = Callable[[str, int], "list[Future[None]]"]


class CatalogChanges:
    """Makes changes of the catalog through a writer. The caller makes them one at a time."""

    def __init__(
        self,
        writer: Writer,
        limits: WriterLimits,
        prepare: AskReaders,
        check_unused: AskReaders,
    ) -> None:
        """Two questions to every reader about a version, each with one future for each reader.

        `prepare` has them map it; `check_unused` raises FailedPrecondition if lookups name it.
        """
        self._writer = writer
        self._data_dir = writer.data_dir
        self._files = writer.files
        self._limits = limits
        self._prepare = prepare
        self._check_unused = check_unused
        self._names = NameChanges(writer, limits)

    def make(self, change: TableChange) -> ChangeResult:
        """Make a change. On return it is durable, and every reader's next request sees it."""
        if isinstance(change, VersionChange):
            return self._make_of_version(replace(change, table=self._table(change.table)))
        match change:
            case CreateTable():
                return self._create(change)
            case AddStaged(table, staged):
                return self._add(table, staged)
            case DeleteTable():
                return self._delete(change)
            case CloneTable():
                return self._clone(change)
            case RenameTable():
                return self._names.rename(change)
            case SetAlias():
                return self._names.set_alias(change)
            case DeleteAlias():
                return self._names.delete_alias(change)

    def _make_of_version(self, change: VersionChange) -> ChangeResult:
        match change:
            case DeleteVersion(table, version):
                return self._delete_version(table, version)
            case Publish():
                return self._publish(change)
            case ReplaceTable():
                return self._replace(change)
            case Rollback(table, version, if_version):
                return self._rollback(table, version, if_version)
            case SetOptimizer(table, spec, if_version):
                return self._set_optimizer(table, if_version, spec)

    def _table(self, name: str) -> str:
        """The table that `name` means, which isn't a file."""
        self._names.check_is_no_file(name)
        return self._catalog().meant(name)

    # ------------------------------------------------------------------ tables

    def _create(self, change: CreateTable) -> ChangeResult:
        check_table_name(change.table)
        self._names.check_is_new(change.table)
        staging = self._data_dir / STAGING_NAME
        if change.open is not None:
            if change.open.touch_on_lookup:
                raise Unimplemented(
                    f"table {change.table!r}: touch_on_lookup isn't there yet: only pushes keep a "
                    "row from its TTL and from eviction; leave it out"
                )
            return self._add_staged(change.table, stage_created(self._files, staging, change))
        seed = secrets.randbits(63) if change.seed is None else change.seed
        given = None if change.optimizer is None else Optimizer.from_spec(change.optimizer)
        optimizer = Optimizer.for_new_table(given, change.dtype, frozen=change.frozen)
        padding_id = None if optimizer is None else optimizer.padding_id
        blocks = initial_blocks(
            change.init, change.row_count, change.dim, change.dtype, seed, padding_id
        )
        table = TableFiles(
            change.table,
            change.dtype,
            change.row_count,
            change.dim,
            map(Block, blocks),
            created_origin(change.init, seed),
            optimizer=optimizer,
        )
        return self._add_staged(change.table, stage_table(self._files, staging, table))

    def _add_staged(self, name: str, staged: StagedTable) -> ChangeResult:
        """Add a table that was staged here; delete its files if that fails."""
        try:
            return self._add(name, staged.folder.name)
        except GatherdError:
            if staged.folder.exists():
                forget(self._files, staged.folder)
            raise

    def _add(self, name: str, staged: str) -> ChangeResult:
        check_table_name(name)
        self._names.check_is_new(name)
        folder = staged_folder(self._data_dir, staged)
        uid = finish_manifest(self._files, folder, name, FIRST_VERSION)
        entry = self._new_entry(name, uid)
        target = self._folder(name, entry, FIRST_VERSION)
        self._place(folder, target, name, FIRST_VERSION)
        opened = self._settled(target)
        return ChangeResult(FIRST_VERSION, self._switched_in(name, entry, lambda: opened))

    def _new_entry(self, name: str, uid: str) -> CatalogEntry:
        folder = self._names.folder_for(name, uid)
        entry = CatalogEntry(uid, FIRST_VERSION, (FIRST_VERSION,))
        return entry if folder == name else replace(entry, folder=folder)

    def _switched_in(
        self, name: str, entry: CatalogEntry, catch_up: Callable[[], OpenVersion | None]
    ) -> int:
        """Make a new table of the files in its folder, which is deleted if that fails."""

        def switch() -> int:
            self._names.check_is_new(name)
            return self._replace_entry(name, entry, catch_up())

        return self._switched(switch, self._folder(name, entry, FIRST_VERSION).parent)

    def _clone(self, change: CloneTable) -> ChangeResult:
        self._names.check_clone(change)
        name, (source, source_entry) = change.table, self._names.meant(change.source)
        check_whole(source, source_entry, source_entry.live)
        entry = self._new_entry(name, uuid.uuid4().hex)
        to = name, FIRST_VERSION, self._folder(name, entry, FIRST_VERSION)
        self._files.make_dirs(to[2].parent)
        with copy_live(self._writer, (source, source_entry), to, None) as catch_up:
            return ChangeResult(FIRST_VERSION, self._switched_in(name, entry, catch_up))

    def _delete(self, change: DeleteTable) -> ChangeResult:
        name = change.table
        self._names.check_is_no_file(name)
        self._names.check_can_be_deleted(change)
        entry = self._entry(name, LIVE_VERSION)

        def switch() -> int:
            catalog = self._catalog()
            rest = {n: one for n, one in catalog.tables.items() if n != name}
            aliases = {alias: of for alias, of in catalog.aliases.items() if of != name}
            return self._writer.change_catalog(replace(catalog, tables=rest, aliases=aliases))

        lsn = self._writer.between(switch)
        forget(self._files, self._data_dir / TABLES_NAME / entry.folder_of(name))
        return ChangeResult(0, lsn)

    # ---------------------------------------------------------------- versions

    def _publish(self, change: Publish) -> ChangeResult:
        name = change.table
        entry = self._entry(name, change.if_version)
        if not change.staged:
            return self._copied(name, change.if_version, None)
        folder = staged_folder(self._data_dir, change.staged)
        version = max(entry.versions) + 1
        with ExitStack() as stack:
            rows = None
            if change.keep_rows:
                rows = stack.enter_context(CarriedRows(self._writer, entry, change))
            else:
                stack.enter_context(self._writer.holding(entry.uid))
            self._check_not_pushed(name, entry, change.if_lsn)
            finish_manifest(self._files, folder, name, version)
            target = self._folder(name, entry, version)
            self._place(folder, target, name, version)
            with self._forgotten_on_error(target):
                follows = self._follows(name, entry, target, change.allow_dim_change)
                catch_up_restored(self._files, self._data_dir, entry, target)
                opened = settled(self._files, target)
                carried = None
                if change.keep_rows or not change.reset_state:
                    ways = carrying(self._writer, name, entry, target, keep_rows=change.keep_rows)
                    carried = stack.enter_context(ways)
            state = carried.state if carried is not None else follows

            def catch_up() -> OpenVersion | None:
                if rows is not None and carried is not None:
                    rows.catch_up(carried)
                else:
                    self._check_not_pushed(name, entry, change.if_lsn)
                return opened

            return self._make_live(name, entry, version, target, catch_up, state)

    def _replace(self, change: ReplaceTable) -> ChangeResult:
        self._names.check_is_no_file(change.source)
        name, of = change.table, self._names.meant(change.source)
        entry = self._entry(name, change.if_version)
        if of[0] == name:
            raise InvalidArgument(f"{change.source!r} is table {name!r} itself", {"table": name})
        check_whole(*of, of[1].live)
        version = max(entry.versions) + 1
        to = name, version, self._folder(name, entry, version)
        with (
            self._writer.holding(entry.uid),
            copy_live(self._writer, of, to, None) as catch_up,
        ):
            with self._forgotten_on_error(to[2]):
                self._follows(name, entry, to[2], change.allow_dim_change)
            return self._make_live(name, entry, *to[1:], catch_up, self._state_of(to[2]))

    def _check_not_pushed(self, name: str, entry: CatalogEntry, if_lsn: int | None) -> None:
        """FailedPrecondition when the table took a push above `if_lsn`, or may have."""
        last = self._writer.last_push(entry.uid)
        if if_lsn is not None and last > if_lsn:
            raise FailedPrecondition(
                f"table {name!r} took a push after LSN {if_lsn}, or may have: its last one has at "
                f"most LSN {last}; read it again, or publish with keep_rows (--keep-rows), which "
                "keeps what the table has of rows that stay",
                {"table": name, "lsn": str(last)},
            )

    @contextmanager
    def _forgotten_on_error(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except GatherdError:
            forget(self._files, folder)
            raise

    def _folder(self, name: str, entry: CatalogEntry, version: int) -> Path:
        return version_dir(self._data_dir, entry.folder_of(name), version)

    def _copied(self, name: str, if_version: int, optimizer: Optimizer | None) -> ChangeResult:
        """Publish a copy of the live version, trained by `optimizer` (None: by the same as now)."""
        entry = self._entry(name, if_version)
        check_whole(name, entry, entry.live)
        version = max(entry.versions) + 1
        target = self._folder(name, entry, version)
        with copy_live(self._writer, (name, entry), (name, version, target), optimizer) as catch_up:
            return self._make_live(name, entry, version, target, catch_up)

    def _set_optimizer(self, name: str, if_version: int, spec: OptimizerSpec) -> ChangeResult:
        """Change the options in place if the slots stay as they are, else publish a copy."""
        entry = self._entry(name, if_version)
        check_whole(name, entry, entry.live)
        manifest = read_manifest(self._folder(name, entry, entry.live))
        document = entry.optimizer_of(entry.live) or manifest.get("optimizer")
        now = None if document is None else Optimizer.from_json(document)
        wanted = Optimizer.changed(now, spec)
        if now is None or now.slots != wanted.slots:
            return self._copied(name, if_version, wanted)
        dtype, row_count = DType(manifest["dtype"]), manifest.get("rows")
        wanted.check_table(dtype, row_count if isinstance(row_count, int) else None)

        def switch() -> int:
            live = self._entry(name, entry.live)
            return self._replace_entry(name, live.with_optimizer(entry.live, wanted.to_json()))

        return ChangeResult(entry.live, self._writer.between(switch))

    def _rollback(self, name: str, version: int, if_version: int) -> ChangeResult:
        entry = self._entry(name, if_version)
        if version == LIVE_VERSION:
            older = [number for number in entry.versions if number < entry.live]
            if not older:
                raise VersionNotFound(
                    f"table {name!r} has no version before {entry.live}, which is live",
                    {"table": name},
                )
            version = max(older)
        _check_is_kept(name, entry, version)
        if entry.damage_of(version) is not None:
            self._mend(name, entry, version)
        elif version == entry.live:
            raise FailedPrecondition(f"version {version} of table {name!r} is live already")
        target = self._folder(name, entry, version)
        try:
            thaw(self._files, target)
            opened = settled(self._files, target)
            return self._make_live(name, entry, version, None, lambda: opened)
        except GatherdError:
            # Once updates are stopped, the version may be live after the next start.
            if self._writer.stopped is None:
                self.freeze()
            raise

    def _delete_version(self, name: str, version: int) -> ChangeResult:
        entry = self._entry(name, LIVE_VERSION)
        _check_is_kept(name, entry, version)
        if version == entry.live:
            raise FailedPrecondition(
                f"version {version} of table {name!r} is live; publish or roll back to another one "
                "first",
                {"table": name},
            )
        if version == max(entry.versions):
            raise FailedPrecondition(
                f"version {version} of table {name!r} stays, because it has the highest number, "
                "and no number is given twice; it can be deleted once another one is published",
                {"table": name},
            )
        for future in self._check_unused(name, version):
            with suppress(TimeoutError):  # lookups that fail are told that there is no such version
                future.result(UNUSED_SECONDS_MAX)
        kept = tuple(number for number in entry.versions if number != version)
        damaged = tuple(one for one in entry.damaged if one.version != version)

        def switch() -> int:
            return self._replace_entry(name, replace(entry, versions=kept, damaged=damaged))

        lsn = self._writer.between(switch)
        forget(self._files, self._folder(name, entry, version))
        return ChangeResult(entry.live, lsn)

    def _mend(self, name: str, entry: CatalogEntry, version: int) -> None:
        """Store the log's images into a damaged version whose files are back; else TableRefused.

        Nobody reads or writes it before the change that follows.
        """
        damage = entry.damage_of(version)
        assert damage is not None
        sums = read_checkpoint(self._data_dir).sums.get((entry.uid, version))
        try:
            mend(self._files, self._data_dir, name, entry, damage, sums)
        except DiskFull:
            raise
        except StorageError as error:
            raise TableRefused(
                f"version {version} of table {name!r} is refused: "
                f"{replace(damage, why=error.message).reason}",
                {"table": name},
            ) from None

    def _make_live(
        self,
        name: str,
        entry: CatalogEntry,
        version: int,
        fresh: Path | None,
        catch_up: Callable[[], OpenVersion | None],
        state: StateOutcome = StateOutcome.NONE,
    ) -> ChangeResult:
        """Switch from `entry`'s live version to `version`, after every worker mapped that.

        `fresh` is its folder when it is new; the folder is deleted when the switch fails.
        `catch_up` is called between two batches, and returns the version if it is open and mapped.
        """
        versions = kept_versions(
            {*entry.versions, version}, version, entry.live, self._limits.keep_versions
        )

        damaged = tuple(
            one for one in entry.damaged if one.version in versions and one.version != version
        )

        def switch() -> int:
            self._entry(name, entry.live)
            opened = catch_up()
            fresh_entry = replace(entry, live=version, versions=versions, damaged=damaged)
            return self._replace_entry(name, fresh_entry, opened)

        try:
            for future in self._prepare(name, version):
                future.result(PREPARE_SECONDS_MAX)
        except (GatherdError, TimeoutError) as error:
            if fresh is not None:
                forget(self._files, fresh)
            raise FailedPrecondition(
                f"version {version} of table {name!r} can't be served: {error}", {"table": name}
            ) from None
        lsn = self._switched(switch, fresh)
        for number in set(entry.versions) - set(versions):
            forget(self._files, self._folder(name, entry, number))
        self.freeze()
        return ChangeResult(version, lsn, state)

    def _switched(self, switch: Callable[[], int], fresh: Path | None) -> int:
        """Run `switch` between two batches; delete `fresh` if that changed nothing."""
        try:
            return self._writer.between(switch)
        except GatherdError:
            if fresh is not None and self._writer.stopped is None:
                forget(self._files, fresh)
            raise

    def _replace_entry(
        self, name: str, entry: CatalogEntry, opened: OpenVersion | None = None
    ) -> int:
        """Log the entry of a table; `opened` is its live version, if that is open and new."""
        catalog = self._writer.versions().catalog
        tables = {**catalog.tables, name: entry.kept()}
        adopted = {(entry.uid, entry.live): opened} if opened is not None else {}
        return self._writer.change_catalog(replace(catalog, tables=tables), adopted)

    def _settled(self, target: Path) -> OpenVersion | None:
        """See open_tables.settled; the version's folder is deleted when that fails."""
        try:
            return settled(self._files, target)
        except GatherdError:
            forget(self._files, target)
            raise

    def _catalog(self) -> Catalog:
        return self._writer.versions().catalog

    def _entry(self, name: str, if_version: int) -> CatalogEntry:
        entry = self._writer.versions().entry(name)
        if if_version not in (LIVE_VERSION, entry.live):
            raise VersionMismatch(
                f"table {name!r} has version {entry.live} live, not {if_version}",
                {"table": name, "live": str(entry.live)},
            )
        return entry

    def _place(self, folder: Path, target: Path, name: str, version: int) -> None:
        """Move a staged folder to its version's place, and check that it can be served there."""
        try:
            self._files.make_dirs(target.parent)
            self._files.rename(folder, target)
            open_version(target, name, version)
        except GatherdError:
            forget(self._files, target)
            raise

    def _follows(
        self, name: str, entry: CatalogEntry, target: Path, allow_dim_change: bool
    ) -> StateOutcome:
        """FailedPrecondition unless the version in `target` can follow the live one.

        Returns what becomes of its state if none is carried. A version whose manifest is
        unreadable may be followed by any table.
        """
        new = read_manifest(target)
        try:
            now = read_manifest(self._folder(name, entry, entry.live))
        except BadFile:
            return self._state_of(target, StateOutcome.NEW)
        if (OPEN in now) != (OPEN in new):
            raise FailedPrecondition(
                f"rows of an open table come and go by updates, and table {name!r} is "
                f"{'open' if OPEN in now else 'not open'}; only such a table can follow it",
                {"table": name},
            )
        has_dim = allow_dim_change or now.get("dim") == new.get("dim")
        if not has_dim or now.get("keys") != new.get("keys"):
            allow = "" if has_dim else "; to publish another dim, say so: allow_dim_change"
            raise FailedPrecondition(
                f"table {name!r} has dim {now.get('dim')} and {_told(now.get('keys'))}; "
                f"the new version has dim {new.get('dim')} and {_told(new.get('keys'))}{allow}",
                {"table": name},
            )
        return self._state_of(target, StateOutcome.NEW)

    def _state_of(self, target: Path, outcome: StateOutcome = StateOutcome.KEPT) -> StateOutcome:
        """`outcome` if the version in `target` has any optimizer state."""
        return outcome if any(target.glob("slot_*.npy")) else StateOutcome.NONE

    def sweep(self) -> None:
        """Delete the folders that the catalog doesn't name."""
        sweep(self._files, self._data_dir, self._catalog())

    def freeze(self) -> None:
        """Take the checksums of superseded versions."""
        freeze_superseded(self._files, self._data_dir, self._catalog())


def kept_versions(versions: set[int], live: int, superseded: int, keep: int) -> tuple[int, ...]:
    """Those of `versions` that stay: the live one and `keep` others.

    The first of the others is the version that was live before, then come the newest ones. After a
    rollback and a publish it is an older version; the one that was rolled back from is no version
    to return to. The highest number stays too, so that no number is ever given twice.
    """
    others = sorted(versions - {live}, key=lambda number: (number == superseded, number))
    return tuple(sorted({live, max(versions), *others[len(others) - min(keep, len(others)) :]}))


def _check_is_kept(name: str, entry: CatalogEntry, version: int) -> None:
    if version not in entry.versions:
        kept = ", ".join(map(str, entry.versions))
        raise VersionNotFound(
            f"table {name!r} has no version {version}; it has {kept}", {"table": name}
        )


def _told(kind: Any) -> str:
    return "no keys" if kind is None else f"{kind} keys"
