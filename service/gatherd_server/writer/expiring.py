"""Rows of open tables whose TTL is over are removed, by pushes of the server's own.

The housekeeper asks now and then; between two batches a bounded part of each table is looked at,
and the old rows in it are deleted by a push without a request id. It is a frame of the log like any
other.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import numpy as np

from gatherd.errors import GatherdError
from gatherd.store.catalog import Catalog
from gatherd.store.query import ByKey
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.types import Push, PushResult, TableUpdate, UpdateOp
from gatherd_server.writer.commit import Submitted
from gatherd_server.writer.measures import Measures
from gatherd_server.writer.policy import Key
from gatherd_server.writer.versions import Versions

EXPIRED_MAX: Final = 4_096
"""Rows of a table that go at once: a few milliseconds between two batches."""


class Owner(Protocol):
    """What of the writer is needed here."""

    measures: Measures

    def versions(self) -> Versions:
        """Its versions."""

    def between(self, job: Callable[[], None]) -> None:
        """Run a job between two batches."""


class Expiring:
    """Removes a writer's old rows. The housekeeper calls it."""

    def __init__(
        self,
        owner: Owner,
        commit: Callable[[list[Submitted]], list[PushResult | GatherdError]],
    ) -> None:
        """`commit` is the committer's own, to be called on it."""
        self._owner = owner
        self._commit = commit
        self._seen: Catalog | None = None
        self._tables: list[tuple[str, Key]] = []

    def step(self) -> None:
        """Look at the next part of each table that has a TTL. GatherdError when that fails."""
        catalog = self._owner.versions().catalog
        if catalog is not self._seen:
            self._owner.between(lambda: self._find(catalog))
        if self._tables:
            self._owner.between(self._expire)

    def _find(self, catalog: Catalog) -> None:
        """Find out which tables have a TTL."""
        self._tables = [
            (name, (entry.uid, entry.live))
            for name, entry in catalog.tables.items()
            if (version := self._mapped((entry.uid, entry.live))) and version.spec.ttl_seconds
        ]
        self._seen = catalog

    def _mapped(self, key: Key) -> OpenVersion | None:
        found = self._owner.versions().mapped_already(key)
        return found if isinstance(found, OpenVersion) else None

    def _expire(self) -> None:
        for name, push in self._pushes():
            # Without room on the disk the rows stay, and are found again.
            (outcome,) = self._commit([Submitted.of(push)])
            if isinstance(outcome, PushResult):
                self._owner.measures.expired(name, sum(outcome.removed))

    def _pushes(self) -> Iterator[tuple[str, Push]]:
        now_us = time.time_ns() // 1000
        for name, key in self._tables:
            version = self._mapped(key)
            if version is None or version.index is None:
                continue
            expiry = self._owner.versions().policies.of(key, version).expiry
            if expiry is None:
                continue
            rows = expiry.step(now_us, version.space.used_rows, EXPIRED_MAX)
            if rows.size:
                values = np.empty((rows.size, 0), np.float32)
                update = TableUpdate(name, ByKey(version.keys_of(rows)), values)
                yield name, Push(UpdateOp.DELETE_ROWS, (update,))
