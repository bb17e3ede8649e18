"""The façade that every transport calls. It knows tables and arrays, and no wire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gatherd.store.table import Gathered
from gatherd_server.engine.lookup import gather, needs_mean, reply_bytes, resolve
from gatherd_server.engine.tables import LiveTables
from gatherd_server.types import Limits, LookupPlan, TableInfo

# Up to this size a gather is done sooner than a hop to another thread and back (about 60 µs).
SHORT_REPLY_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class PreparedLookup:
    """A lookup whose tables are found and whose size is known, but that hasn't touched a row."""

    run: Callable[[], list[Gathered]]
    is_long: bool
    """Whether an event loop should let another thread run it."""


class Engine:
    """Answers lookups from the live tables. Safe to use from many threads."""

    def __init__(self, tables: LiveTables, limits: Limits) -> None:
        self.limits = limits
        self._tables = tables

    def prepare(self, plans: Sequence[LookupPlan]) -> PreparedLookup:
        """Check a request's tables, versions and size.

        TableNotFound, TableRefused, VersionNotFound or LimitExceeded when it can't be answered.
        """
        tables = resolve(plans, self._tables, self.limits)
        is_long = reply_bytes(plans, tables) > SHORT_REPLY_BYTES or needs_mean(plans, tables)
        return PreparedLookup(lambda: gather(plans, tables), is_long)

    def lookup_many(self, plans: Sequence[LookupPlan]) -> list[Gathered]:
        """Answer `plans` in order, all or nothing.

        Raises what `prepare` does, and IdOutOfRange when an id has no row and its plan's
        `missing` is ERROR.
        """
        return self.prepare(plans).run()

    def lookup(self, plan: LookupPlan) -> Gathered:
        """Answer one plan; see `lookup_many`."""
        return self.lookup_many([plan])[0]

    def table(self, name: str) -> TableInfo:
        """What is told about `name`. TableNotFound when it isn't there."""
        return self._tables.info(name)

    def tables(self) -> list[TableInfo]:
        """Every table, by name, the refused ones too."""
        return self._tables.infos()
