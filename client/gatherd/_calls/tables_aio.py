# Written by client/generate_async.py from _calls/tables.py: change that, then `make calls`.
"""The awaited client's calls about tables: listing and changing them.

Client and AsyncClient inherit them.
"""

from abc import ABC, abstractmethod
from datetime import timedelta

from gatherd._calls.short import short
from gatherd._plans.answering import Answering
from gatherd._plans.effects import Plan, T
from gatherd._plans.pushes import Pushes
from gatherd._requests.names import StoredDType
from gatherd._requests.tables import (
    ChangeResult,
    InitGiven,
    OptimizerGiven,
    ServerInfo,
    SnapshotInfo,
    SnapshotResult,
    check_open,
)
from gatherd._wire import changes
from gatherd.store.open_spec import KeyKindName, OnFullName, OnMissingName


class AsyncTableCalls(ABC):
    """The calls; the class that inherits them runs the plans."""

    _answering: Answering
    _pushes: Pushes

    @abstractmethod
    async def _run(self, plan: Plan[T]) -> T: ...

    @short
    async def versions(self, name: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """The versions of a table that can be looked up or rolled back to, ascending."""
        return await self._run(self._answering.versions(name, self._answering.deadline(timeout)))

    @short
    async def create_table(
        self,
        name: str,
        rows: int | None = None,
        dim: int | None = None,
        *,
        keys: KeyKindName | None = None,
        rows_max: int | None = None,
        on_missing: OnMissingName = "error",
        admit_after: int = 1,
        on_full: OnFullName = "error",
        ttl: float | timedelta | None = None,
        touch_on_lookup: bool = False,
        dtype: StoredDType = "float32",
        init: InitGiven = "uniform",
        seed: int | None = None,
        optimizer: OptimizerGiven | None = None,
        frozen: bool = False,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Make a table of drawn rows of `dim` elements, or an open one. AlreadyExists.

        rows: how many rows it has, for good.
        keys: "int64", "uint64" or "string" instead of `rows`: an open table, which has no rows yet
        and grows. Its rows are asked for by such keys.
        rows_max: of an open table, the most rows that it can have; 100,000,000 by default.
        on_missing: "create" has every push create rows for keys that have none.
        admit_after: a key gets its row when it was pushed so often, up to 255 times. The pushes
        before are counted; the result's `not_admitted` tells of them.
        on_full: what a push does that needs a row when there are `rows_max`: "error" refuses it,
        "evict-lru" removes the rows that were pushed least recently, "evict-lfu" least often.
        ttl: seconds, or a timedelta, after which a row is removed that wasn't pushed meanwhile.
        touch_on_lookup: lookups count as pushes do, for `ttl` and "evict-lru"; they are sampled.
        dtype: the dtype that the rows are stored in, "float32", "float16", "bfloat16" or "float64".
        init: how the rows are drawn, as Keras' initializers do: a name such as "glorot_uniform", or
        {"name": "normal", "stddev": 0.1}; the same `seed`, the same rows. In an open table each key
        has one such vector: lookups with missing="init" give it, and the key's row begins with it.
        optimizer: applies gradients: a name such as "sgd", or {"name": "adam", "lr": 0.001}.
        Without one the table takes `scatter_add` and `assign`, but no gradients.
        frozen: makes a table that takes no updates; one of float64 never takes any. An open one
        is never frozen.

        This and the other changes of tables are durable, and seen by every reader, when they
        return. A change isn't sent again once it may have been made: when an error's metadata has
        "outcome": "unknown", it may have been made or not.
        """
        grows = {
            "rows_max": rows_max,
            "on_missing": on_missing,
            "admit_after": admit_after,
            "on_full": on_full,
            "ttl": ttl,
            "touch_on_lookup": touch_on_lookup,
        }
        request = changes.create_table(
            name,
            rows,
            dim,
            dtype=dtype,
            init=init,
            seed=seed,
            optimizer=optimizer,
            frozen=frozen,
            opened=check_open(rows, dim, keys, grows),
        )
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def add_staged_table(
        self, name: str, staged: str, *, timeout: float | None = None
    ) -> ChangeResult:
        """Make a table from files on the server's machine; otherwise as `create_table`.

        staged: a folder in the data dir's staging, which becomes the table's. This is how the
        command line hands a server what it imported.
        """
        request = changes.add_staged(name, staged)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def delete_table(self, name: str, *, timeout: float | None = None) -> ChangeResult:
        """Remove a table with all its versions. TableNotFound when there is none."""
        request = changes.delete_table(name)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def publish(
        self,
        name: str,
        *,
        staged: str = "",
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Keep the live version as it is now, and make a copy of it, a new version, live.

        The result's `version` is that copy: updates go on changing it, so it is no checkpoint. The
        version that was live before is kept, one of `table(name).versions`; `rollback` without a
        version goes back to it.

        staged: a folder in the data dir's staging, to publish its files instead.
        if_version: the version that has to be live, else VersionMismatch.
        """
        request = changes.publish(name, staged=staged, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def rollback(
        self,
        name: str,
        version: int | None = None,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Make an older version live again, with the contents it had when it was superseded.

        It then goes on being changed by updates: `publish` first if it is to be kept.

        version: the one to go back to; None for the newest before the live one. VersionNotFound
        when it isn't kept. if_version: the version that has to be live, else VersionMismatch.
        """
        request = changes.rollback(name, version, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def ping(self, *, timeout: float | None = None) -> ServerInfo:
        """The server's version and state, and how long a round trip to it takes.

        The first of two requests connects; the second is timed. Unavailable when there is none;
        over local: too, if no server has the data dir.
        """
        return await self._run(self._pushes.ping(timeout))

    @short
    async def delete_version(
        self, name: str, version: int, *, timeout: float | None = None
    ) -> ChangeResult:
        """Remove a superseded version, and free its disk space.

        FailedPrecondition for the live version, for the one with the highest number (no number is
        given twice, so it stays until another one is published), and for one that was looked up in
        the last ten seconds. VersionNotFound when there is none. The result has the live version.
        """
        request = changes.delete_version(name, version)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def set_optimizer(
        self,
        name: str,
        optimizer: OptimizerGiven,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
        **options: float,
    ) -> ChangeResult:
        """Publish a copy of the live version that is trained by another optimizer.

        optimizer: a name such as "adam", with its options as keywords, or a dict of both, as
        `TableInfo.optimizer` has it: set_optimizer("items", "adam", lr=0.001). An option that
        isn't given has its default, one that the optimizer doesn't have is InvalidArgument.
        if_version: the version that has to be live, else VersionMismatch.
        """
        request = changes.set_optimizer(name, optimizer, options, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    @short
    async def snapshot(self, name: str = "", *, timeout: float | None = None) -> SnapshotResult:
        """Copy the data dir, as it is at one LSN, to a folder on its machine; updates go on.

        name: the folder's name; empty for one made of the time and the LSN. AlreadyExists when
        there is such a folder.
        """
        return await self._run(self._pushes.snapshot(name, timeout))

    @short
    async def snapshots(self, *, timeout: float | None = None) -> list[SnapshotInfo]:
        """The snapshots in the server's folder, oldest first; damaged ones come before the others.

        FailedPrecondition when the server has no folder for snapshots.
        """
        return await self._run(self._pushes.snapshots(timeout))

    @short
    async def delete_snapshot(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a snapshot, durably.

        NotFound when there is none. FailedPrecondition for one that is being copied or restored,
        and for a folder that isn't a snapshot.
        """
        return await self._run(self._pushes.delete_snapshot(name, timeout))
