"""Callers and their permissions, and the engine that checks them.

A wire gets its engine from the caller (`Caller.guard`), so that the caller's permission for a table
is checked before the table is used. Scopes are separate: `update` doesn't imply `read`, nor `admin`
the others, because a trainer that only pushes needs no more than `update`.

Limits hold in one process. Left out on purpose: counting over all workers, which would cost every
request a shared counter; and groups or roles, which a list of tokens doesn't need.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import Overloaded, PermissionDenied, TableNotFound
from gatherd.store.catalog import table_not_found
from gatherd.store.keys import Keys
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import KeyQuery, NeighborsQuery
from gatherd.store.scans import ScanQuery
from gatherd.store.table import Gathered
from gatherd_server.access.uploads import GuardedUploads
from gatherd_server.engine.engine import Engine, PreparedKeys, PreparedLookup, PreparedScan
from gatherd_server.engine.searching import PreparedSearch
from gatherd_server.types import (
    ChangeResult,
    CloneTable,
    DeleteTable,
    Limits,
    Lookup,
    Push,
    PushResult,
    ReplaceTable,
    ServerInfo,
    SnapshotList,
    SnapshotResult,
    TableChange,
    TableInfo,
    UpdatesState,
    VersionChange,
    named_tables,
    owned_by,
)

# Tables whose match with a caller's patterns is kept; requests name them, so bounded.
KNOWN_TABLES_MAX: Final = 1024
# Characters of a table's name; see gatherd.store.catalog.
TABLE_CHARS_MAX: Final = 128
CONCURRENCY_RETRY_SECONDS: Final = 1.0


class Scope(Enum):
    """A kind of permission that a token can have."""

    READ = "read"
    """Look rows and keys up."""
    UPDATE = "update"
    """Change rows."""
    ADMIN = "admin"
    """Create, remove, publish and roll back tables; with the pattern *, all about snapshots."""
    METRICS = "metrics"
    """Read /metrics, which covers every table. Nothing else."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The permissions of one token.

    `tables` are patterns, in which * matches any characters and ? matches one. `rate` is in
    requests a second, `concurrency` in requests under way; None for no limit.
    """

    name: str
    scopes: frozenset[Scope]
    tables: tuple[str, ...]
    rate: float | None = None
    concurrency: int | None = None


class Limiter:
    """Bounds one token's requests. Thread-safe.

    `rate` is a bucket that holds a second's worth, and at least one request.
    """

    def __init__(self, grant: Grant, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = grant.name
        self._rate = grant.rate
        self._concurrency = grant.concurrency
        self._clock = clock
        self._room = self._tokens = max(1.0, grant.rate or 1.0)
        self._filled_at = clock()
        self._under_way = 0
        self._lock = threading.Lock()

    def count(self) -> None:
        """Count a request. Overloaded, with the time to retry after, when it is one too many."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            grown = (now - self._filled_at) * self._rate
            self._tokens = min(self._room, self._tokens + grown)
            self._filled_at = now
            if self._tokens >= 1:
                self._tokens -= 1
                return
            seconds = (1 - self._tokens) / self._rate
        raise Overloaded(
            f"token {self._name!r} is for {self._rate:g} requests a second, and that was one more; "
            f"try again in {seconds:.3g} s",
            {"limit": "rate", "max": f"{self._rate:g}"},
            retry_after_seconds=seconds,
        )

    def enter(self) -> None:
        """Take a place for a request under way; `leave` gives it back. Overloaded when full."""
        if self._concurrency is None:
            return
        with self._lock:
            if self._under_way < self._concurrency:
                self._under_way += 1
                return
        raise Overloaded(
            f"token {self._name!r} has {self._concurrency} requests under way, as many as it is "
            "for; try again when one is answered",
            {"limit": "concurrency", "max": str(self._concurrency)},
            retry_after_seconds=CONCURRENCY_RETRY_SECONDS,
        )

    def leave(self) -> None:
        """Give a place back."""
        if self._concurrency is not None:
            with self._lock:
                self._under_way -= 1


class Caller:
    """The holder of a token; or, without a grant, anybody, with every permission."""

    __slots__ = (
        *("_guarded", "_known", "_pattern", "_read_bits"),
        *("grant", "is_reader", "is_revoked", "limiter"),
    )

    def __init__(self, grant: Grant | None) -> None:
        self.grant = grant
        self.is_revoked = False
        """Whether the token is revoked: then a kept caller must be found anew."""
        has_limits = grant is not None and (grant.rate or grant.concurrency)
        self.limiter = Limiter(grant) if grant is not None and has_limits else None
        self._known: dict[str, bool] = {}
        # The tables are those of a directory, which may be empty: no tuple is the first one's.
        self._read_bits: tuple[object, NDArray[np.uint8]] = (None, np.empty(0, np.uint8))
        self._guarded: GuardedEngine | None = None
        self._pattern = _compiled(grant.tables) if grant is not None else None
        # Found once, because hashing an enum takes longer than all the rest of a check.
        self.is_reader = grant is None or Scope.READ in grant.scopes
        """Whether the token is for looking rows up, of whichever tables."""

    def guard(self, engine: Engine) -> "AnyEngine":
        """`engine`, restricted to this caller's permissions."""
        grant = self.grant
        if grant is None:
            return engine
        guarded = self._guarded
        if guarded is None or not guarded.is_of(engine):
            guarded = self._guarded = GuardedEngine(engine, self, grant)
        return guarded

    def reaches(self, table: str) -> bool:
        """Whether the caller's patterns match `table`."""
        pattern = self._pattern
        if pattern is None:
            return True
        if len(table) > TABLE_CHARS_MAX:
            # No table's name. Matching would take the square of its length, so it isn't matched.
            return self.reaches_all
        known = self._known.get(table)
        if known is None:
            known = pattern.fullmatch(table) is not None
            if len(self._known) >= KNOWN_TABLES_MAX:
                self._known.clear()
            self._known[table] = known
        return known

    def reads(self, table: str) -> bool:
        """Whether the caller may look up rows of `table`."""
        return self.is_reader and self.reaches(table)

    def reads_of(self, tables: tuple[tuple[str, ...], ...]) -> NDArray[np.uint8] | None:
        """A bit for each of `tables`, whether the caller may look up its rows; None for all.

        A table comes with all the names that the caller needs to be for. Kept for the next call,
        which most often has the same `tables`.
        """
        if self.grant is None:
            return None
        known, bits = self._read_bits
        if known is not tables:
            reads = (all(map(self.reads, names)) for names in tables)
            is_read = np.fromiter(reads, np.bool_, len(tables))
            bits = np.packbits(is_read, bitorder="little")
            self._read_bits = (tables, bits)
        return bits

    def check(self, scope: Scope, tables: Iterable[str] = ()) -> None:
        """PermissionDenied unless the caller has `scope`, and for all of `tables`.

        Transports ask it before they read a request's body.
        """
        grant = self.grant
        if grant is None or (scope is Scope.READ and self.is_reader and not tables):
            return
        if scope not in grant.scopes:
            raise _no_scope(grant, scope)
        _check_tables(self, grant, tables)

    @property
    def reaches_all(self) -> bool:
        """Whether the caller's patterns match every possible table."""
        return self.grant is None or "*" in self.grant.tables

    def check_metrics(self) -> None:
        """PermissionDenied unless the caller may read the counts of every table."""
        grant = self.grant
        if grant is not None and Scope.METRICS not in grant.scopes:
            raise _no_scope(grant, Scope.METRICS)

    def check_table(self, table: str) -> None:
        """PermissionDenied unless the caller may know of `table`, whether it exists or not."""
        grant = self.grant
        if grant is not None:
            if not grant.scopes & _OF_TABLES:
                raise _no_scope(grant, Scope.READ)
            _check_tables(self, grant, (table,))


_OF_TABLES: Final = frozenset((Scope.READ, Scope.UPDATE, Scope.ADMIN))


class GuardedEngine:
    """An engine restricted to one caller's permissions. PermissionDenied for everything else.

    Apart from that the methods do and raise the same as Engine's.
    """

    __slots__ = ("_caller", "_engine", "_grant", "limits")

    def __init__(self, engine: Engine, caller: Caller, grant: Grant) -> None:
        self._engine = engine
        self._caller = caller
        self._grant = grant
        self.limits: Limits = engine.limits

    def is_of(self, engine: Engine) -> bool:
        """Whether this guards `engine`."""
        return self._engine is engine

    def prepare(self, lookups: Sequence[Lookup]) -> PreparedLookup:
        """As Engine's; needs scope `read`."""
        self._caller.check(Scope.READ, [lookup.table for lookup in lookups])
        try:
            prepared = self._engine.prepare(lookups)
        except TableNotFound as error:
            raise self._discreet(error) from None
        for lookup, table in zip(lookups, prepared.tables, strict=True):
            if table.name != lookup.table:
                self._check_target(lookup.table, table.name)
        return prepared

    def lookup_many(self, lookups: Sequence[Lookup]) -> list[Gathered]:
        """As Engine's; needs scope `read`."""
        return self.prepare(lookups).run()

    def lookup(self, lookup: Lookup) -> Gathered:
        """As Engine's; needs scope `read`."""
        return self.lookup_many([lookup])[0]

    def keys_of(
        self, name: str, ids: NDArray[np.integer[Any]], version: int = LIVE_VERSION
    ) -> tuple[Keys, int]:
        """As Engine's; needs scope `read`."""
        name = self._meant(Scope.READ, name)
        try:
            return self._engine.keys_of(name, ids, version)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def ids_of(
        self, name: str, keys: Keys, version: int = LIVE_VERSION, *, allow_missing: bool = False
    ) -> tuple[NDArray[np.int64], int]:
        """As Engine's; needs scope `read`."""
        name = self._meant(Scope.READ, name)
        try:
            return self._engine.ids_of(name, keys, version, allow_missing=allow_missing)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def prepare_keys(self, name: str, query: KeyQuery, version: int = LIVE_VERSION) -> PreparedKeys:
        """As Engine's; needs scope `read`."""
        name = self._meant(Scope.READ, name)
        try:
            return self._engine.prepare_keys(name, query, version)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def prepare_scan(self, name: str, query: ScanQuery) -> PreparedScan:
        """As Engine's; needs scope `read`."""
        self._caller.check(Scope.READ, (name,))
        try:
            return self._engine.prepare_scan(name, query)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def prepare_neighbors(
        self, name: str, query: NeighborsQuery, version: int = LIVE_VERSION
    ) -> PreparedSearch:
        """As Engine's; needs scope `read`."""
        name = self._meant(Scope.READ, name)
        try:
            return self._engine.prepare_neighbors(name, query, version)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def push(self, push: Push) -> "Future[PushResult]":
        """As Engine's; needs scope `update`."""
        self._caller.check(Scope.UPDATE, [update.table for update in push.updates])
        if self._engine.view().aliases:
            updates = [
                replace(update, of=self._meant(Scope.UPDATE, update.table))
                for update in push.updates
            ]
            push = replace(push, updates=tuple(updates))
        # Equal ids of two tokens are different ids.
        request_id = owned_by(self._grant.name, push.request_id)
        return self._told(self._engine.push, replace(push, request_id=request_id))

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """As Engine's; needs scope `admin` for every name that it has.

        An alias needs it for its table too, and a table for the aliases that are to go with it.
        """
        table, *others = [self._meant(Scope.ADMIN, name) for name in named_tables(change)]
        if isinstance(change, DeleteTable) and change.force:
            self._caller.check(Scope.ADMIN, self._engine.view().catalog.aliases_of(change.table))
        elif isinstance(change, VersionChange):
            # It is made to the table that was checked, whatever the alias points to by then.
            change = replace(change, table=table)
        if isinstance(change, CloneTable | ReplaceTable):
            change = replace(change, source=others[0])
        return self._told(self._engine.change, change)

    @property
    def uploads(self) -> GuardedUploads:
        """As Engine's; needs scope `admin`."""
        return GuardedUploads(
            self._engine.uploads,
            lambda table: self._check_meant(Scope.ADMIN, table),
            self._caller.reaches,
            lambda ask: self._told(lambda _: ask(), None),
        )

    def _check_meant(self, scope: Scope, name: str) -> None:
        self._meant(scope, name)

    def _meant(self, scope: Scope, name: str) -> str:
        """The table that `name` means, once the caller is found to be for it, and for the name."""
        self._caller.check(scope, (name,))
        target = self._engine.view().aliases.get(name, name)
        if target != name:
            self._check_target(name, target)
        return target

    def _check_target(self, alias: str, target: str) -> None:
        """PermissionDenied, not naming the alias' target, unless the caller is for that too."""
        if not self._caller.reaches(target):
            raise PermissionDenied(
                f"token {self._grant.name!r} isn't for the table that alias {alias!r} points to; "
                f"it is for {' '.join(self._grant.tables)}",
                {"table": alias},
            )

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """As Engine's; needs scope `admin` for every table."""
        self._check_snapshots()
        return self._engine.snapshot(name)

    def snapshots(self) -> "Future[SnapshotList]":
        """As Engine's; needs scope `admin` for every table."""
        self._check_snapshots()
        return self._engine.snapshots()

    def delete_snapshot(self, name: str) -> "Future[None]":
        """As Engine's; needs scope `admin` for every table."""
        self._check_snapshots()
        return self._engine.delete_snapshot(name)

    def _check_snapshots(self) -> None:
        self._caller.check(Scope.ADMIN, ())
        if not self._caller.reaches_all:
            raise PermissionDenied(
                f"a snapshot is of every table, and token {self._grant.name!r} is for "
                f"{' '.join(self._grant.tables)}; it takes one for '*'"
            )

    def table(self, name: str) -> TableInfo:
        """As Engine's; needs any scope that concerns tables."""
        self._caller.check_table(name)
        try:
            info = self._engine.table(name)
        except TableNotFound as error:
            raise self._discreet(error) from None
        if info.alias_of:
            self._check_target(name, info.alias_of)
        return self._shown(info)

    def key_kind(self, name: str) -> str:
        """As Engine's; needs any scope that concerns tables."""
        self._caller.check_table(name)
        target = self._engine.view().aliases.get(name, name)
        if target != name:
            self._check_target(name, target)
        try:
            return self._engine.key_kind(target)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def table_states(self) -> dict[str, str]:
        """As Engine's, but only the caller's tables."""
        states = self._engine.table_states()
        return {name: state for name, state in states.items() if self._sees(name)}

    def server(self) -> ServerInfo:
        """As Engine's; needs no scope, because it names no table."""
        return self._engine.server()

    def updates_state(self) -> UpdatesState:
        """As Engine's; needs no scope, because it names no table."""
        return self._engine.updates_state()

    def tables(self) -> list[TableInfo]:
        """As Engine's, but only the caller's tables; needs any scope that concerns tables."""
        if not self._grant.scopes & _OF_TABLES:
            raise _no_scope(self._grant, Scope.READ)
        infos = self._engine.tables()
        return [self._shown(info) for info in infos if self._sees(info.name)]

    def _shown(self, info: TableInfo) -> TableInfo:
        """`info` without the aliases that aren't the caller's."""
        if not info.aliases:
            return info
        return replace(info, aliases=tuple(filter(self._sees, info.aliases)))

    def _sees(self, table: str) -> bool:
        return bool(self._grant.scopes & _OF_TABLES) and self._caller.reaches(table)

    def _told(self, ask: Callable[[Any], "Future[Any]"], asked: Any) -> "Future[Any]":
        """The future of `ask(asked)`; errors, now or later, name only the caller's tables."""
        try:
            future = ask(asked)
        except TableNotFound as error:
            raise self._discreet(error) from None
        told: Future[Any] = Future()

        def tell(done: "Future[Any]") -> None:
            error = done.exception()
            if error is None:
                told.set_result(done.result())
            elif isinstance(error, TableNotFound):
                told.set_exception(self._discreet(error))
            else:
                told.set_exception(error)

        future.add_done_callback(tell)
        return told

    def _discreet(self, error: TableNotFound) -> TableNotFound:
        """`error`, which names existing tables, without the tables that aren't the caller's."""
        return table_not_found(error.metadata.get("table", ""), self.table_states())


AnyEngine: TypeAlias = Engine | GuardedEngine


def _check_tables(caller: Caller, grant: Grant, tables: Iterable[str]) -> None:
    for table in tables:
        if not caller.reaches(table):
            raise PermissionDenied(
                f"token {grant.name!r} isn't for table {table[:128]!r}; "
                f"it is for {' '.join(grant.tables)}",
                {"table": table[:128]},
            )


def _no_scope(grant: Grant, scope: Scope) -> PermissionDenied:
    has = ", ".join(sorted(one.value for one in grant.scopes))
    return PermissionDenied(
        f"this takes a token with scope {scope.value}; token {grant.name!r} has {has or 'none'}",
        {"scope": scope.value},
    )


def _compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    parts = (
        "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern)
        for pattern in patterns
    )
    return re.compile("|".join(parts) or "(?!)", re.DOTALL)


ANYBODY: Final = Caller(None)
"""The caller on a server without tokens, or over a Unix socket."""
NOBODY: Final = Caller(Grant("", frozenset(), ()))
"""A caller without a token where one is needed; it may know only that the server exists."""
