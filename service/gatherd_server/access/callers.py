"""Who asks, and what they may do: the engine as one caller has it.

A wire gets its engine from the caller (`Caller.guard`), so that nothing is asked of a table before
the caller was held against it. Scopes are apart: `update` doesn't imply `read`, nor `admin` the
others, because a trainer that only pushes needs no more than that.

Limits hold in one process. Left out on purpose: counting over all workers, which would cost every
request a shared counter; and groups or roles, of which a list of tokens needs none.
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
from gatherd.store.table import Gathered
from gatherd_server.engine.engine import Engine, PreparedLookup
from gatherd_server.engine.rows import Rows
from gatherd_server.types import (
    ChangeResult,
    Limits,
    Lookup,
    Push,
    PushResult,
    SnapshotResult,
    TableChange,
    TableInfo,
    UpdatesState,
    owned_by,
)

# Tables that a caller's patterns were held against; requests name them, so they are bounded.
KNOWN_TABLES_MAX: Final = 1024
# Of a table's name; see gatherd.store.catalog.
TABLE_CHARS_MAX: Final = 128
CONCURRENCY_RETRY_SECONDS: Final = 1.0


class Scope(Enum):
    """What a token can be for."""

    READ = "read"
    """Look rows and keys up."""
    UPDATE = "update"
    """Change rows."""
    ADMIN = "admin"
    """Make, remove, publish and roll back tables; with the pattern *, take snapshots."""
    METRICS = "metrics"
    """Read /metrics, which tells of every table. Nothing else."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one token is for.

    `tables` are patterns, in which * stands for any characters and ? for one. `rate` is in requests
    a second, `concurrency` in requests under way; None for no limit.
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
        """Count a request. Overloaded, telling when to come again, when it is one too many."""
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
    """Who asks: the holder of a token; or, without a grant, anybody, who may do everything."""

    __slots__ = ("_guarded", "_known", "_pattern", "_reads", "grant", "is_revoked", "limiter")

    def __init__(self, grant: Grant | None) -> None:
        self.grant = grant
        self.is_revoked = False
        """Whether the token is no longer good: who kept this caller has to ask anew."""
        has_limits = grant is not None and (grant.rate or grant.concurrency)
        self.limiter = Limiter(grant) if grant is not None and has_limits else None
        self._known: dict[str, bool] = {}
        self._guarded: GuardedEngine | None = None
        self._pattern = _compiled(grant.tables) if grant is not None else None
        # Asked once, for an enum's hash takes longer than all the rest of a check.
        self._reads = grant is None or Scope.READ in grant.scopes

    def guard(self, engine: Engine) -> "AnyEngine":
        """`engine`, as this caller may use it."""
        grant = self.grant
        if grant is None:
            return engine
        guarded = self._guarded
        if guarded is None or not guarded.is_of(engine):
            guarded = self._guarded = GuardedEngine(engine, self, grant)
        return guarded

    def reaches(self, table: str) -> bool:
        """Whether the caller's patterns have `table`."""
        pattern = self._pattern
        if pattern is None:
            return True
        if len(table) > TABLE_CHARS_MAX:
            # No table's name. Neither kept nor matched, which takes the square of its length.
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
        return self._reads and self.reaches(table)

    def check(self, scope: Scope, tables: Iterable[str] = ()) -> None:
        """PermissionDenied unless the caller may do what `scope` is for, to all of `tables`.

        Transports ask it before they read a request's body.
        """
        grant = self.grant
        if grant is None or (scope is Scope.READ and self._reads and not tables):
            return
        if scope not in grant.scopes:
            raise _no_scope(grant, scope)
        _check_tables(self, grant, tables)

    @property
    def reaches_all(self) -> bool:
        """Whether there is no table, now or ever, that the caller's patterns don't have."""
        return self.grant is None or "*" in self.grant.tables

    def check_metrics(self) -> None:
        """PermissionDenied unless the caller may read what is counted of every table."""
        grant = self.grant
        if grant is not None and Scope.METRICS not in grant.scopes:
            raise _no_scope(grant, Scope.METRICS)

    def check_table(self, table: str) -> None:
        """PermissionDenied unless the caller may know of `table`, whether it is there or not."""
        grant = self.grant
        if grant is not None:
            if not grant.scopes & _OF_TABLES:
                raise _no_scope(grant, Scope.READ)
            _check_tables(self, grant, (table,))


_OF_TABLES: Final = frozenset((Scope.READ, Scope.UPDATE, Scope.ADMIN))


class GuardedEngine:
    """An engine that does what one caller may have done. PermissionDenied for everything else.

    What the methods do and raise beside that is Engine's.
    """

    __slots__ = ("_caller", "_engine", "_grant", "limits")

    def __init__(self, engine: Engine, caller: Caller, grant: Grant) -> None:
        self._engine = engine
        self._caller = caller
        self._grant = grant
        self.limits: Limits = engine.limits

    def is_of(self, engine: Engine) -> bool:
        """Whether it is `engine` that is guarded."""
        return self._engine is engine

    def prepare(self, lookups: Sequence[Lookup]) -> PreparedLookup:
        """As Engine's, for `read`."""
        self._caller.check(Scope.READ, [lookup.table for lookup in lookups])
        try:
            return self._engine.prepare(lookups)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def rows_of(self, lookup: Lookup) -> Rows | None:
        """As Engine's, for `read`."""
        if not self._caller.reads(lookup.table):
            self._caller.check(Scope.READ, (lookup.table,))
        try:
            return self._engine.rows_of(lookup)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def lookup_many(self, lookups: Sequence[Lookup]) -> list[Gathered]:
        """As Engine's, for `read`."""
        return self.prepare(lookups).run()

    def lookup(self, lookup: Lookup) -> Gathered:
        """As Engine's, for `read`."""
        return self.lookup_many([lookup])[0]

    def keys_of(
        self, name: str, ids: NDArray[np.integer[Any]], version: int = LIVE_VERSION
    ) -> tuple[Keys, int]:
        """As Engine's, for `read`."""
        self._caller.check(Scope.READ, (name,))
        try:
            return self._engine.keys_of(name, ids, version)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def push(self, push: Push) -> "Future[PushResult]":
        """As Engine's, for `update`."""
        self._caller.check(Scope.UPDATE, [update.table for update in push.updates])
        # Another token's ids are others, whatever they are.
        request_id = owned_by(self._grant.name, push.request_id)
        return self._told(self._engine.push, replace(push, request_id=request_id))

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """As Engine's, for `admin`."""
        self._caller.check(Scope.ADMIN, (change.table,))
        return self._told(self._engine.change, change)

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """As Engine's, for `admin` of every table."""
        self._caller.check(Scope.ADMIN, ())
        if not self._caller.reaches_all:
            raise PermissionDenied(
                f"a snapshot is of every table, and token {self._grant.name!r} is for "
                f"{' '.join(self._grant.tables)}; it takes one for '*'"
            )
        return self._engine.snapshot(name)

    def table(self, name: str) -> TableInfo:
        """As Engine's, for any scope that is for tables."""
        self._caller.check_table(name)
        try:
            return self._engine.table(name)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def key_kind(self, name: str) -> str:
        """As Engine's, for any scope that is for tables."""
        self._caller.check_table(name)
        try:
            return self._engine.key_kind(name)
        except TableNotFound as error:
            raise self._discreet(error) from None

    def table_states(self) -> dict[str, str]:
        """As Engine's, but of the caller's tables."""
        states = self._engine.table_states()
        return {name: state for name, state in states.items() if self._sees(name)}

    def updates_state(self) -> UpdatesState:
        """As Engine's, for everybody: it tells of no table."""
        return self._engine.updates_state()

    def tables(self) -> list[TableInfo]:
        """As Engine's, but the caller's tables, for any scope that is for tables."""
        if not self._grant.scopes & _OF_TABLES:
            raise _no_scope(self._grant, Scope.READ)
        return [info for info in self._engine.tables() if self._sees(info.name)]

    def _sees(self, table: str) -> bool:
        return bool(self._grant.scopes & _OF_TABLES) and self._caller.reaches(table)

    def _told(self, ask: Callable[[Any], "Future[Any]"], asked: Any) -> "Future[Any]":
        """What `ask` gives, with errors that name no table but the caller's, now or later."""
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
        """`error`, which names tables that are there, without those that aren't the caller's."""
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
"""Asks a server without tokens, or over a Unix socket."""
NOBODY: Final = Caller(Grant("", frozenset(), ()))
"""Asks without a token where one is needed, and may know no more than that the server is there."""
