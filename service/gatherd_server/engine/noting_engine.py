"""The engine of a server with an access log: it notes the tables that each request asks for."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from numpy.typing import NDArray

from gatherd.store.keys import Keys
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import KeyQuery
from gatherd_server.engine.engine import Engine, PreparedKeys, PreparedLookup
from gatherd_server.observe.access_log import note_tables
from gatherd_server.types import (
    ChangeResult,
    Lookup,
    Push,
    PushResult,
    TableChange,
    TableInfo,
    named_tables,
)


class NotingEngine(Engine):
    """Does what Engine does."""

    def prepare(self, lookups: Sequence[Lookup]) -> PreparedLookup:
        """As Engine's."""
        note_tables(lookup.table for lookup in lookups)
        return super().prepare(lookups)

    def keys_of(
        self, name: str, ids: NDArray[Any], version: int = LIVE_VERSION
    ) -> tuple[Keys, int]:
        """As Engine's."""
        note_tables((name,))
        return super().keys_of(name, ids, version)

    def prepare_keys(self, name: str, query: KeyQuery, version: int = LIVE_VERSION) -> PreparedKeys:
        """As Engine's."""
        note_tables((name,))
        return super().prepare_keys(name, query, version)

    def push(self, push: Push) -> "Future[PushResult]":
        """As Engine's."""
        note_tables(update.table for update in push.updates)
        return super().push(push)

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """As Engine's."""
        note_tables(named_tables(change))
        return super().change(change)

    def table(self, name: str) -> TableInfo:
        """As Engine's."""
        note_tables((name,))
        return super().table(name)
