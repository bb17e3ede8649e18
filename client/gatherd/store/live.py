"""The tables of a data dir while it changes, as a reader sees them at each request.

A request takes one `View`, the tables of one catalog, so it has one set of versions. Each check for
a newer one reads the control page's generation; the catalog is read if that has changed.
The writer keeps to this order, and readers rely on it:

1. a version's files are complete in its folder;
2. the catalog that names it is replaced;
3. the control page's generation is raised to the catalog's;
4. only then are files deleted that the catalog doesn't name.

So a version that was opened while the page showed no later generation than the catalog's is the one
this catalog names, and is complete. Otherwise the catalog is read again, and versions that it no
longer names are let go.

A mapping passes from one view to the next as long as the catalog keeps the version, by the table's
uid: a deleted table's rows are never taken for those of another table of the same name. Rows are
unmapped when neither a view nor a request refers to them any more. When the index of an open table
has grown, its file is another one before the generation is raised, and all else of the table stays:
a new view has a table with the new index, which shares every other mapping with the one before.

Left out on purpose: a lock. A fork could leave it locked in the child, and `local:` clients live in
processes that fork. Two threads may both build the view of a new generation; both views are right.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gatherd.errors import (
    BadFile,
    FailedPrecondition,
    GatherdError,
    TableRefused,
    TooManyFiles,
    Unavailable,
    VersionNotFound,
)
from gatherd.store.catalog import (
    NO_OPTIMIZER,
    WEIGHTS_NAME,
    Catalog,
    CatalogEntry,
    check_table_name,
    open_table,
    read_catalog,
    table_not_found,
    version_dir,
)
from gatherd.store.catalog_text import CatalogReader
from gatherd.store.control import ControlPage
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.slot_files import SlotFiles
from gatherd.store.table import Table

# How often a request begins anew when versions are dropped faster than it opens them.
VIEWS_MAX = 10
VERSIONS_SHOWN_MAX = 8

T = TypeVar("T")
logger = logging.getLogger("gatherd")


class DroppedMeanwhile(Exception):
    """A version was deleted while a view opened it; `LiveTables.read` asks a newer view."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The tables at one generation, made by `LiveTables`. Safe to use from many threads."""

    catalog: Catalog
    entries: Mapping[str, CatalogEntry]
    """The data dir's tables, except those that a fixed one hides."""
    fixed: Mapping[str, Table]
    """Tables outside the data dir; they have one version."""
    refused: Mapping[str, str]
    """Tables known to be unreadable, and why; in the data dir, those with a bad live version."""
    data_dir: Path | None
    control: ControlPage | None
    mapped: dict[tuple[str, int], Table] = field(default_factory=dict)
    """By name and version, live ones under LIVE_VERSION too; filled as they are first asked for."""

    def table(self, name: str, version: int = LIVE_VERSION) -> Table:
        """One version of a table; mapped now unless it was before.

        TableNotFound, VersionNotFound or TableRefused when it can't be served, or DroppedMeanwhile.
        TooManyFiles when only this attempt to map it failed.
        """
        found = self.mapped.get((name, version)) or self._find(name, version)
        if isinstance(found, str):
            raise TableRefused(f"table {name!r} can't be served: {found}", {"table": name})
        return found

    def live_or_reason(self, name: str) -> Table | str:
        """The live version of a table, or why it can't be read. Raises `table`'s other errors."""
        try:
            return self.mapped.get((name, LIVE_VERSION)) or self._find(name, LIVE_VERSION)
        except TooManyFiles as error:
            return error.message

    def optimizer_of(self, name: str, table: Table) -> dict[str, Any] | None:
        """The optimizer of a table's version; None for one that takes no gradients."""
        entry = self.entries.get(name)
        changed = None if entry is None else entry.optimizer_of(table.version)
        if changed is None:
            return table.optimizer
        return None if changed == NO_OPTIMIZER else changed

    def names(self) -> list[str]:
        """Every table in order, unreadable ones included."""
        return sorted({*self.fixed, *self.refused, *self.entries})

    def live_version(self, name: str) -> int:
        """The number of a table's live version, 0 when it has none."""
        if name in self.fixed:
            return self.fixed[name].version
        return self.entries[name].live if name in self.entries else 0

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of a table that a request can name, ascending."""
        if name in self.fixed:
            return (self.fixed[name].version,)
        return self.entries[name].versions if name in self.entries else ()

    def _find(self, name: str, version: int) -> Table | str:
        """A version that isn't mapped yet, or why it can't be."""
        entry = self.entries.get(name)
        reason = self.refused.get(name)
        if reason is not None and (entry is None or version in (LIVE_VERSION, entry.live)):
            return reason
        if entry is None and name not in self.fixed:
            raise table_not_found(name, self.names())
        if entry is None or version not in (LIVE_VERSION, *entry.versions):
            raise self._no_version(name, version)
        try:
            return self.open(name, entry, version or entry.live)
        except TooManyFiles:
            raise
        except GatherdError as error:
            return error.message

    def open(self, name: str, entry: CatalogEntry, version: int) -> Table:
        """Map a version that `entry` names, unless it is mapped already.

        Raises what `open_table` does, also if the catalog calls it damaged; DroppedMeanwhile.
        """
        damage = entry.damage_of(version)
        if damage is not None:
            raise BadFile(damage.reason)
        known = self.mapped.get((name, version))
        if known is not None:
            return known
        assert self.data_dir is not None
        assert self.control is not None
        try:
            table = open_table(self.data_dir, name, version)
        except GatherdError:
            self._check_kept(name, entry, version)
            raise
        if self.control.generation > self.catalog.generation:
            self._check_kept(name, entry, version)
        return self.hold(name, version, table)

    def hold(self, name: str, version: int, table: Table) -> Table:
        """Keep a mapped table; returns the one that another thread kept before, if there is one."""
        table = self.mapped.setdefault((name, version), table)
        if version == self.entries[name].live:
            self.mapped.setdefault((name, LIVE_VERSION), table)
        return table

    def drop(self, name: str, version: int) -> None:
        """Undo `hold`."""
        self.mapped.pop((name, version), None)
        self.mapped.pop((name, LIVE_VERSION), None)

    def kept_by(self, name: str, entry: CatalogEntry) -> dict[int, Table]:
        """The mapped versions that `entry` keeps undamaged; none of them for another uid."""
        mine = self.entries.get(name)
        if mine is None or mine.uid != entry.uid:
            return {}
        found = {version: self.mapped.get((name, version)) for version in entry.versions}
        renewed = {
            version: _renewed(table)
            for version, table in found.items()
            if table is not None and entry.damage_of(version) is None
        }
        return {version: table for version, table in renewed.items() if table is not None}

    def check_kept(self, name: str, version: int) -> None:
        """DroppedMeanwhile unless the catalog, as it is now, still has the version."""
        assert self.control is not None
        if self.control.generation > self.catalog.generation:
            self._check_kept(name, self.entries[name], version)

    def _check_kept(self, name: str, entry: CatalogEntry, version: int) -> None:
        """DroppedMeanwhile unless the catalog still has the version, and so always had it."""
        assert self.data_dir is not None
        now = read_catalog(self.data_dir).tables.get(name)
        if now is None or now.uid != entry.uid or version not in now.versions:
            raise DroppedMeanwhile(f"version {version} of table {name!r}")

    def _no_version(self, name: str, version: int) -> VersionNotFound:
        live, kept = self.live_version(name), self.versions(name)
        older = len(kept) - VERSIONS_SHOWN_MAX
        known = ", ".join(map(str, kept[-VERSIONS_SHOWN_MAX:]))
        more = f" and {older} older ones" if older > 0 else ""
        return VersionNotFound(
            f"table {name!r} has no version {version}; it has {known}{more}; version {live} "
            "is live",
            {"table": name, "version": str(version), "live": str(live)},
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A version that was mapped for a change that comes after `generation`.

    `file` is its rows' device and inode number; no other file gets it while the file is mapped.
    """

    table: Table
    file: tuple[int, int]
    generation: int


class LiveTables:
    """The tables that a reader reads. Safe to use from many threads, and after a fork.

    With `at_open`, the thread that first sees a new generation maps every live version and gives it
    to `at_open` before it can be read; a table for which either raises GatherdError is refused
    until the next change. Without `at_open`, the first request for a version maps it.

    At each change `at_drop` gets the mapped tables that are let go. With `keep_superseded` False
    these are all versions that aren't live any more, not only those that the catalog dropped; the
    next request maps such a version anew, without the effects of `at_open`.
    """

    def __init__(
        self,
        data_dir: Path | None,
        *,
        fixed: Mapping[str, Table] | None = None,
        refused: Mapping[str, str] | None = None,
        at_open: Callable[[Table], None] | None = None,
        at_drop: Callable[[Sequence[Table]], None] | None = None,
        keep_superseded: bool = True,
    ) -> None:
        """Touches no file; the first `current` does.

        `fixed` tables, and those `refused` for the reasons given, hide tables of the same name in
        the data dir.
        """
        self._data_dir = data_dir
        self._fixed = dict(fixed or {})
        self._refused = dict(refused or {})
        self._at_open = at_open
        self._at_drop = at_drop
        self._keep_superseded = keep_superseded
        self._control: ControlPage | None = None
        self._reader = CatalogReader(data_dir) if data_dir is not None else None
        self._prepared: dict[tuple[str, int], _Prepared] = {}
        # The generation that the page showed and the view that was built then: one reference, so
        # that no thread sees one without the other.
        self._state = (-1, self._view_of(Catalog(-1, {}), None))

    def current(self) -> View:
        """The tables as they are now. BadFile or DataDirVersion when the data dir can't be read."""
        control = self._control
        seen, view = self._state
        if control is not None and control.generation == seen:
            return view
        return self._refreshed()

    def take(self, wanted: Sequence[tuple[str, int]]) -> list[Table]:
        """The table of each name and version (LIVE_VERSION for the live one), all of one view.

        TableNotFound, VersionNotFound or TableRefused when one can't be served. Unavailable when
        versions are dropped, time after time, before they are opened.
        """
        mapped = self.current().mapped
        try:
            return [mapped[name_version] for name_version in wanted]
        except KeyError:
            return self.read(lambda view: [view.table(*name_version) for name_version in wanted])

    def take_with_slots(self, name: str, version: int) -> tuple[Table, SlotFiles | None]:
        """One table as `take` gives it, and its slots; None for a fixed table.

        VersionNotFound, too, if the version is dropped while its slots are opened.
        """

        def opened(view: View) -> tuple[Table, SlotFiles | None]:
            table = view.table(name, version)
            if name in view.fixed or view.control is None or view.data_dir is None:
                return table, None
            folder = version_dir(view.data_dir, name, table.version)
            try:
                return table, SlotFiles.open(folder, table.row_count, view.control)
            finally:
                # Another table's files may be there by now, or none.
                view.check_kept(name, table.version)

        return self.read(opened)

    def read(self, ask: Callable[[View], T]) -> T:
        """The result of `ask` for the current view; repeated if a version was deleted meanwhile.

        Unavailable when that happens time after time.
        """
        view = self.current()
        for _ in range(VIEWS_MAX):
            try:
                return ask(view)
            except DroppedMeanwhile as error:
                dropped = error
                view = self._refreshed()
        raise _too_fast(dropped)

    def prepare(self, name: str, version: int, make_ready: Callable[[Table], None]) -> None:
        """Map a version before it becomes live, so that the change delays no request.

        Its files must be in place; the catalog needn't name it yet. It is let go at the next change
        unless it is live by then, and when it is prepared anew. Raises what `open_table` and
        `make_ready` do; FailedPrecondition without a data dir.
        """
        if self._data_dir is None:
            raise FailedPrecondition(f"table {name!r} can't be prepared: there is no data dir")
        view = self.current()  # this also lets go of tables prepared before
        weights = version_dir(self._data_dir, check_table_name(name), version) / WEIGHTS_NAME
        file = _identity(weights)
        table = open_table(self._data_dir, name, version)
        if file is None or _identity(weights) != file:
            raise BadFile(f"{weights} was replaced while it was opened")
        make_ready(table)
        if table.rows.size:  # an empty table isn't mapped, so its inode isn't held
            self._prepared[(name, version)] = _Prepared(table, file, view.catalog.generation)

    def replace_fixed(self, tables: Mapping[str, Table]) -> None:
        """Let `tables` take the place of fixed tables of the same names, all of them at once.

        Not from two threads at a time. Requests that began before go on with the old ones.
        """
        self._refused = {name: why for name, why in self._refused.items() if name not in tables}
        self._fixed = {**self._fixed, **tables}
        seen, before = self._state
        mapped = {key: one for key, one in before.mapped.copy().items() if key[0] not in tables}
        for name, table in tables.items():
            mapped[(name, table.version)] = mapped[(name, LIVE_VERSION)] = table
        refused = {name: why for name, why in before.refused.items() if name not in tables}
        # A view that another thread has built meanwhile, of a newer catalog, is built once more:
        # the page then shows another generation than `seen`.
        self._state = (seen, replace(before, fixed=self._fixed, refused=refused, mapped=mapped))
        dropped = [table for name, table in before.fixed.items() if name in tables]
        if self._at_drop is not None and dropped:
            self._at_drop(dropped)

    @property
    def applied_lsn(self) -> int:
        """The last update that every lookup sees; 0 before the first `current`."""
        return 0 if self._control is None else self._control.applied_lsn

    def _refreshed(self) -> View:
        """The view of the present catalog, whatever the page shows."""
        reader = self._reader
        if reader is None:
            return self._state[1]
        for _ in range(VIEWS_MAX):
            try:
                return self._read_anew(reader)
            except DroppedMeanwhile as error:
                dropped = error
        raise _too_fast(dropped)

    def _read_anew(self, reader: CatalogReader) -> View:
        control = self._control
        if control is None:
            control = self._control = ControlPage(reader.data_dir)
        generation = control.generation
        catalog = reader.read()
        before = self._state[1]
        is_same = before.catalog == catalog and before.fixed is self._fixed
        view = before if is_same else self._built(catalog, control, before)
        if self._state[1].catalog.generation > catalog.generation:
            return view  # another thread read a newer one meanwhile; this request began before
        # A catalog older than the page, as in a restored data dir, is read again at each request
        # until the two agree.
        self._state = (min(generation, catalog.generation), view)
        if view.fixed is not self._fixed:
            return self._read_anew(reader)  # files were replaced while it was built
        if view is not before:
            self._let_go_prepared(catalog)
            dropped = {*before.mapped.copy().values()} - {*view.mapped.copy().values()}
            if self._at_drop is not None and dropped:
                self._at_drop(list(dropped))
        return view

    def _view_of(
        self, catalog: Catalog, control: ControlPage | None, refused: dict[str, str] | None = None
    ) -> View:
        hidden = {*self._fixed, *self._refused}
        view = View(
            catalog,
            {name: entry for name, entry in catalog.tables.items() if name not in hidden},
            self._fixed,
            self._refused if refused is None else refused,
            self._data_dir,
            control,
        )
        for name, table in self._fixed.items():
            view.mapped[(name, table.version)] = view.mapped[(name, LIVE_VERSION)] = table
        return view

    def _built(self, catalog: Catalog, control: ControlPage, before: View) -> View:
        """The view of `catalog`, with the tables prepared for it and those mapped in `before`."""
        refused = self._refused.copy()
        view = self._view_of(catalog, control, refused)
        # The reader gives the same object for an entry that is the same: most are.
        other = {name for name, old in before.entries.items() if view.entries.get(name) is not old}
        for (name, version), table in before.mapped.copy().items():
            if name in other or name in view.fixed or version == LIVE_VERSION:
                continue
            renewed = _renewed(table)
            if renewed is not None:
                view.hold(name, version, renewed)
        for name, entry in view.entries.items():
            is_mapped = self._at_open is None or (name, LIVE_VERSION) in view.mapped
            if is_mapped and before.entries.get(name) is entry:
                continue
            now = self._state[1]
            if now is not before and now.catalog == catalog and now.fixed is view.fixed:
                return now  # another thread was faster
            is_whole = entry.damage_of(entry.live) is None
            adopted = self._adopted(catalog, name, entry.live) if is_whole else None
            if adopted is not None:
                view.hold(name, entry.live, adopted)
            known = before.kept_by(name, entry)
            was_live = before.live_version(name)
            for version, table in known.items():
                if version != was_live or version == entry.live or self._keep_superseded:
                    view.hold(name, version, table)
            is_ready = adopted is not None or (entry.live == was_live and was_live in known)
            if self._at_open is not None and not is_ready:
                reason = self._open_live(view, name, entry)
                if reason is not None:
                    refused[name] = reason
        return view

    def _open_live(self, view: View, name: str, entry: CatalogEntry) -> str | None:
        """Map a live version and make it ready; returns why it can't be."""
        assert self._at_open is not None
        try:
            self._at_open(view.open(name, entry, entry.live))
        except TooManyFiles as error:
            view.drop(name, entry.live)
            if self._state[1].catalog.generation < 0:
                raise
            logger.error("%s; the next request for table %r tries again", error, name)  # noqa: TRY400
        except GatherdError as error:
            view.drop(name, entry.live)
            if self._state[1].catalog.generation >= 0:  # the owner reports the first view's
                logger.error("table %r is refused: %s", name, error)  # noqa: TRY400
            return error.message
        return None

    def _adopted(self, catalog: Catalog, name: str, version: int) -> Table | None:
        """The table prepared as version `version`, if `catalog` means the same file."""
        prepared = self._prepared.get((name, version))
        if prepared is None or prepared.generation >= catalog.generation:
            return None
        assert self._data_dir is not None
        file = _identity(version_dir(self._data_dir, name, version) / WEIGHTS_NAME)
        return _renewed(prepared.table) if file == prepared.file else None

    def _let_go_prepared(self, catalog: Catalog) -> None:
        """Forget the tables prepared for `catalog`, used or not."""
        for key, prepared in self._prepared.copy().items():
            if prepared.generation < catalog.generation and self._prepared.get(key) is prepared:
                self._prepared.pop(key, None)


def _renewed(table: Table) -> Table | None:
    """The table with the index that its files have now; None when that is damaged."""
    try:
        return table.renewed()
    except GatherdError as error:
        logger.error("table %r is mapped anew: %s", table.name, error)  # noqa: TRY400
        return None


def _too_fast(dropped: DroppedMeanwhile) -> Unavailable:
    return Unavailable(
        f"{dropped} was dropped before it was opened, as were {VIEWS_MAX - 1} before it; try again"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """The device and inode number of the file `path`; None if it doesn't exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
