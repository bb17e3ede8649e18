"""The façade that every transport calls. It knows tables and arrays, and no wire."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import FailedPrecondition, IdOutOfRange, KeyNotFound, VersionNotFound
from gatherd.store.key_pages import find_ids, find_keys
from gatherd.store.keys import Keys
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.live import View
from gatherd.store.query import ByKey, FoundKeys, KeyQuery, NeighborsQuery
from gatherd.store.scans import PAGE_BYTES_MAX, ScanPage, ScanQuery, version_is_gone
from gatherd.store.table import Gathered, Table
from gatherd_server.build import this_build
from gatherd_server.data_dir.uploads.store import Uploads
from gatherd_server.engine.lookup import (
    gather,
    may_wait,
    needs_mean,
    reply_bytes,
    resolve,
    touched_bytes,
)
from gatherd_server.engine.means import Means
from gatherd_server.engine.searching import PreparedSearch, Searches
from gatherd_server.engine.tables import ServedTables
from gatherd_server.engine.updates import check_push
from gatherd_server.engine.uploads import UploadDesk
from gatherd_server.link.link import Link
from gatherd_server.observe import trail
from gatherd_server.observe.metrics.telemetry import MISSED_IDS, MISSED_KEYS, Telemetry
from gatherd_server.types import (
    ChangeResult,
    Limits,
    Lookup,
    Push,
    PushResult,
    ServerInfo,
    SnapshotList,
    SnapshotResult,
    TableChange,
    TableInfo,
    UpdatesState,
)
from gatherd_server.writer.versions import served_file

# Up to this many bytes a gather takes less than a hop to another thread and back (about 60 µs).
SHORT_BYTES = 256 << 10
# Up to so many keys are found, or read back, as quickly.
KEYS_SHORT = 4096


@dataclass(frozen=True, slots=True)
class PreparedLookup:
    """A lookup whose tables are found and whose size is known, before any row is read."""

    run: Callable[[], list[Gathered]]
    is_long: bool
    """Whether an event loop should let another thread run it."""
    tables: Sequence[Table]
    """The table of each lookup."""


@dataclass(frozen=True, slots=True)
class PreparedKeys:
    """A page of keys that is still to be read."""

    run: Callable[[], FoundKeys]
    is_long: bool
    """Whether an event loop should let another thread run it."""


@dataclass(frozen=True, slots=True)
class PreparedScan:
    """A page of rows that is still to be read."""

    run: Callable[[], ScanPage]
    is_long: bool
    """Whether an event loop should let another thread run it."""


class Engine:
    """Answers lookups from the live tables. Safe to use from many threads."""

    def __init__(
        self,
        tables: ServedTables,
        limits: Limits,
        link: Link | None = None,
        telemetry: Telemetry | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        """Without `link` there is no data dir, and nothing can be changed."""
        self._telemetry = telemetry or Telemetry()
        self.limits = limits
        self._tables = tables
        self._link = link
        self.uploads = UploadDesk(tables, self._writer, uploads, limits)
        self._means = Means(limits.default_mean_bytes_max)
        self.is_ready = False
        """Whether the server takes traffic; the worker sets it."""
        self._searches = Searches(limits.neighbors)

    def prepare(self, lookups: Sequence[Lookup]) -> PreparedLookup:
        """Check a request's tables, versions and size.

        TableNotFound, TableRefused, VersionNotFound or LimitExceeded when it can't be answered;
        Unavailable or FailedPrecondition when a default vector is missing, see Means.
        """
        tables = resolve(lookups, self._tables, self.limits)
        self._means.check(lookups, tables)
        work = max(reply_bytes(lookups, tables), touched_bytes(lookups, tables))
        keys = sum(lookup.asked.size for lookup in lookups if isinstance(lookup.asked, ByKey))
        is_long = (
            work > SHORT_BYTES
            or keys > KEYS_SHORT
            or needs_mean(lookups, tables)
            or may_wait(lookups, tables)
        )
        return PreparedLookup(lambda: self._gather(lookups, tables), is_long, tables)

    def _gather(self, lookups: Sequence[Lookup], tables: Sequence[Table]) -> list[Gathered]:
        lsn = self._tables.lsn  # before the rows, which may have later updates
        try:
            gathered = gather(lookups, tables)
        except (IdOutOfRange, KeyNotFound) as error:
            self._count_refused(error)
            raise
        for i, lookup in enumerate(lookups):
            if lookup.with_lsn:
                gathered[i] = replace(gathered[i], lsn=lsn)
        for lookup, table, one in zip(lookups, tables, gathered, strict=True):
            self._telemetry.gathered(table.name, lookup.asked.size, one.vectors.nbytes)
            if one.status is not None:
                by = MISSED_KEYS if isinstance(lookup.asked, ByKey) else MISSED_IDS
                self._telemetry.missed(table.name, by, int(np.count_nonzero(one.status)))
            if lookup.version != LIVE_VERSION:
                self._count_named(table)
        return gathered

    def _count_refused(self, error: IdOutOfRange | KeyNotFound) -> None:
        """Count the ids or keys that a lookup was refused for."""
        by = MISSED_KEYS if isinstance(error, KeyNotFound) else MISSED_IDS
        self._telemetry.missed(error.metadata["table"], by, int(error.metadata["offenders"]))

    def _count_named(self, table: Table) -> None:
        """Count a lookup that named its version, if that isn't live."""
        if self._tables.current().live_version(table.name) != table.version:
            self.note_superseded(table.name, table.version, 1)

    def note_superseded(self, name: str, version: int, lookups: int) -> None:
        """Count lookups that a version answered that isn't live. On any thread."""
        self._telemetry.superseded(name, lookups)
        self._tables.note_superseded(name, version)

    def view(self) -> View:
        """The tables as they are now. BadFile or DataDirVersion when the data dir can't be read."""
        return self._tables.current()

    def lookup_many(self, lookups: Sequence[Lookup]) -> list[Gathered]:
        """Answer `lookups` in order, all or nothing.

        Raises the errors of `prepare`, IdOutOfRange or KeyNotFound when an id or key has no row and
        its lookup's `missing` is ERROR, and NoKeys for keys in a table without any.
        """
        return self.prepare(lookups).run()

    def lookup(self, lookup: Lookup) -> Gathered:
        """Answer one lookup; see `lookup_many`."""
        return self.lookup_many([lookup])[0]

    def keys_of(
        self, name: str, ids: NDArray[np.integer[Any]], version: int = LIVE_VERSION
    ) -> tuple[Keys, int]:
        """The keys of `ids`, of the same shape, and the version that answered.

        Raises the errors of `lookup_many` for one table.
        """
        lookup = Lookup(name, ids, version=version)
        (table,) = resolve([lookup], self._tables, self.limits)
        return table.keys_of(ids, self._check_key_bytes), table.version

    def _check_key_bytes(self, nbytes: int) -> None:
        self.limits.check("reply_bytes_max", "the reply's keys would have", nbytes)

    def prepare_neighbors(
        self, name: str, query: NeighborsQuery, version: int = LIVE_VERSION
    ) -> PreparedSearch:
        """Check a search's table, version and size.

        TableNotFound, TableRefused, VersionNotFound; LimitExceeded; FailedPrecondition on a server
        that takes no searches. It raises the errors of gatherd.store.neighbors.search when it is
        run, Overloaded when too many are, and DeadlineExceeded when it is stopped.
        """
        self._searches.check_query(query)
        (table,) = self._tables.take([(name, version)])
        return self._searches.prepare(table, query, self._check_key_bytes)

    def ids_of(
        self, name: str, keys: Keys, version: int = LIVE_VERSION, *, allow_missing: bool = False
    ) -> tuple[NDArray[np.int64], int]:
        """The ids of `keys`, of the same shape, and the version that answered.

        Raises the errors of `lookup_many` for one table; with `allow_missing` a key without a row
        has −1.
        """
        lookup = Lookup(name, ByKey(keys), version=version)
        (table,) = resolve([lookup], self._tables, self.limits)
        return find_ids(table, keys, allow_missing=allow_missing), table.version

    def prepare_keys(self, name: str, query: KeyQuery, version: int = LIVE_VERSION) -> PreparedKeys:
        """A page of a table's keys, whose table is found.

        TableNotFound, TableRefused or VersionNotFound. `run` raises what `find_keys` does.
        """
        table = self._tables.get(name, version)
        is_long = query.scanned_max > KEYS_SHORT or not table.is_populated
        return PreparedKeys(lambda: find_keys(table, query), is_long)

    def prepare_scan(self, name: str, query: ScanQuery) -> PreparedScan:
        """A page of a table's rows, whose table is found.

        TableNotFound, TableRefused or VersionNotFound; InvalidArgument for a cursor that isn't one.
        `run` raises what `ScanPage.of` does.
        """
        slots = None
        try:
            if query.with_slots:
                table, slots = self._tables.take_with_slots(name, query.answering)
            else:
                table = self._tables.get(name, query.answering)
        except VersionNotFound as error:
            raise version_is_gone(error) if query.cursor else error from None
        if query.answering != LIVE_VERSION and self.view().live_version(name) != table.version:
            self.note_superseded(name, table.version, 1)
        bytes_max = min(PAGE_BYTES_MAX, self.limits.reply_bytes_max)
        page_bytes = query.row_count_max * table.dim * query.dtype.itemsize
        is_long = bool(query.prefix) or page_bytes > SHORT_BYTES or not table.is_populated
        return PreparedScan(
            lambda: ScanPage.of(table, query, slots, bytes_max), is_long or query.with_slots
        )

    def key_kind(self, name: str) -> str:
        """The kind of a table's keys, as in TableInfo. TableNotFound or TableRefused."""
        keys = self._tables.get(name).keys
        return keys.kind.value if keys is not None else ""

    def push(self, push: Push) -> "Future[PushResult]":
        """Hand a push to the writer; the future ends when it is durable and visible, or refused.

        Raises at once, with nothing changed, when the push is wrong in itself: LimitExceeded,
        InvalidArgument, NonfiniteValues; TableReadOnly for a table that is served from a file. The
        future can raise TableNotFound, TableRefused, TableReadOnly, NoOptimizer, VersionMismatch,
        InvalidArgument for shapes, IdOutOfRange, KeyNotFound, NonfiniteValues for a row's new
        values, RequestIdReused, RequestIdStale, Overloaded, Unavailable, DiskFull or
        UpdatesStopped.
        """
        check_push(push, self.limits)
        for update in push.updates:
            # The writer has none of the files; without a writer there are only files.
            if self._link is None or self._tables.is_file(update.table):
                raise served_file(self._tables.get(update.table).name)
        request = trail.current()
        if self._telemetry.spans is not None and request is not None and request.traceparent:
            push = replace(push, traceparent=request.traceparent)
        return self._writer().push(push)

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """Hand a change of the catalog to the writer; the future ends when all readers see it.

        It raises TableNotFound, AlreadyExists, VersionNotFound, VersionMismatch, InvalidArgument,
        BadFile, DiskFull, Unavailable or UpdatesStopped; FailedPrecondition without a data dir.
        """
        return self._writer().change(change)

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """Have the writer copy the data dir, under `name` ("" for a name of time and LSN).

        The future raises FailedPrecondition when the server has no folder for snapshots,
        AlreadyExists, DiskFull, Unavailable or UpdatesStopped.
        """
        return self._writer().snapshot(name)

    def snapshots(self) -> "Future[SnapshotList]":
        """Have the writer list the snapshots in the server's folder, oldest first.

        The future raises FailedPrecondition when the server has no such folder, Unavailable or
        UpdatesStopped.
        """
        return self._writer().snapshots()

    def delete_snapshot(self, name: str) -> "Future[None]":
        """Have the writer delete the snapshot `name`; the future ends when that is durable.

        It raises NotFound, InvalidArgument for an impossible name, and FailedPrecondition for what
        isn't a snapshot, for one that is being copied or restored, and without a folder for them.
        """
        return self._writer().delete_snapshot(name)

    def server(self) -> ServerInfo:
        """What answers. The first call may take a while: in a checkout it starts git."""
        build = this_build()
        return ServerInfo(build.version, build.commit, self.is_ready, self.updates_state())

    def updates_state(self) -> UpdatesState:
        """Whether updates are taken at present, and if not, why."""
        if self._link is None:
            return UpdatesState.NONE
        state = self._link.state()
        if state is UpdatesState.RUNNING and self._tables.writer_has_failed:
            return UpdatesState.STOPPED
        return state

    def _writer(self) -> Link:
        if self._link is None:
            raise FailedPrecondition(
                "this server has no data dir, so nothing can be changed; start it with --data-dir"
            )
        return self._link

    def prepare_version(self, table: str, version: int) -> None:
        """Map and preload a version that is about to become live, so that the switch costs nothing.

        GatherdError when it can't be served: then it mustn't become live. Takes as long as reading
        the version's files. It is released at the next change if it isn't live by then.
        """
        self._tables.prepare_version(table, version)

    def table(self, name: str) -> TableInfo:
        """A description of `name`. TableNotFound when it isn't there."""
        return self._tables.info(name)

    def table_states(self) -> dict[str, str]:
        """Every table's name, in order, and why it is refused, or "" when it is served."""
        return self._tables.states()

    def tables(self) -> list[TableInfo]:
        """Every table, by name, the refused ones too. Asks the kernel how much is resident."""
        return self._tables.infos()
