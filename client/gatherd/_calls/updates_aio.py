# Written by client/generate_async.py from _calls/updates.py: change that, then `make calls`.
"""The awaited client's calls that change something: updates of rows, and changes of tables.

Client and AsyncClient inherit them; they stand apart for length alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import overload

from numpy.typing import ArrayLike, DTypeLike

from gatherd._plans.effects import Plan, T
from gatherd._plans.pushes import Pushes
from gatherd._requests import tables
from gatherd._requests.lookups import Ids, KeysGiven
from gatherd._requests.tables import ChangeResult, OptimizerGiven, SnapshotResult
from gatherd._requests.updates import RowsGiven, UpdateOp, UpdateResult


class AsyncChangeCalls(ABC):
    """The calls; who inherits them runs the plans."""

    _pushes: Pushes

    @abstractmethod
    async def _run(self, plan: Plan[T]) -> T: ...

    @overload
    async def scatter_add(
        self,
        table: str,
        ids: Ids,
        deltas: ArrayLike,
        *,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult: ...

    @overload
    async def scatter_add(
        self,
        table: str,
        ids: None = None,
        deltas: ArrayLike | None = None,
        *,
        keys: KeysGiven,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult: ...

    async def scatter_add(
        self,
        table: str,
        ids: Ids | None = None,
        deltas: ArrayLike | None = None,
        *,
        keys: KeysGiven | None = None,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """table[ids] += deltas, in which every duplicate counts; durable when it returns.

        ids: integers of any dtype and shape S, or `keys`, as for `lookup`.
        deltas: of shape S + (dim,), finite. float32, float16 and bfloat16 (of ml_dtypes) are sent
        as they are; float64 and integers are rounded to float32. Sums are made in float32 and
        rounded to the table's dtype once. Rows of the table's padding id stay as they are.
        if_version: the version that has to be live, else VersionMismatch.
        timeout: seconds, instead of the client's.

        It is done once, however often it has to be sent: each push has an id, which the server
        remembers. That id is this client object's; `idempotency_key`, 1 to 255 visible ASCII
        characters, is one of yours instead, by which another process can send the push again.
        When an error's metadata has "outcome": "unknown", the push may have been done or not, as
        after DeadlineExceeded. So it may after an awaited call was cancelled.

        Either all of it is done or nothing: TableReadOnly for a table without an optimizer,
        NonfiniteValues for NaN and infinity in `deltas` or in a row that would come of them,
        IdOutOfRange, KeyNotFound, RequestIdStale when too much was pushed since the first try to
        tell whether it was done. A push isn't split: one that is over the server's limits is
        LimitExceeded.

        Arrays of a dtype and layout that can be sent are not copied before that: don't write to
        them until the call has ended. Over HTTP the kernel copies large ones from where they lie;
        small ones are copied once before, and over gRPC all are copied twice.
        """
        return await self._run(
            self._pushes.push(
                UpdateOp.SCATTER_ADD,
                table,
                ids,
                keys,
                deltas,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    async def scatter_add_many(
        self,
        updates: Mapping[str, RowsGiven] | None = None,
        *,
        keys: Mapping[str, RowsGiven] | None = None,
        if_version: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Several tables in one push, all or nothing: {table: (ids, deltas)}.

        keys: {table: (keys, deltas)}, for tables updated by key; a table has ids or keys.
        if_version: {table: version}, for some or all. The rest: as for `scatter_add`.
        """
        return await self._run(
            self._pushes.push_many(
                UpdateOp.SCATTER_ADD,
                updates,
                keys,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @overload
    async def apply_gradients(
        self,
        table: str,
        ids: Ids,
        grads: ArrayLike,
        *,
        lr: float | None = None,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult: ...

    @overload
    async def apply_gradients(
        self,
        table: str,
        ids: None = None,
        grads: ArrayLike | None = None,
        *,
        keys: KeysGiven,
        lr: float | None = None,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult: ...

    async def apply_gradients(
        self,
        table: str,
        ids: Ids | None = None,
        grads: ArrayLike | None = None,
        *,
        keys: KeysGiven | None = None,
        lr: float | None = None,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """One step of the table's optimizer; the gradients of duplicates are summed first.

        grads: of shape S + (dim,), as `scatter_add` takes deltas.
        lr: instead of the table's learning rate, for this step.
        ids, keys, the other arguments, the errors and what is done once: as for `scatter_add`.
        """
        return await self._run(
            self._pushes.push(
                UpdateOp.APPLY_GRADIENTS,
                table,
                ids,
                keys,
                grads,
                lr=lr,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    async def apply_gradients_many(
        self,
        updates: Mapping[str, RowsGiven] | None = None,
        *,
        keys: Mapping[str, RowsGiven] | None = None,
        lr: float | Mapping[str, float] | None = None,
        if_version: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Several tables in one push, all or nothing: {table: (ids, grads)}.

        keys: {table: (keys, grads)}. lr: one for all, or {table: lr} for some or all.
        if_version: {table: version}, for some or all. The rest: as for `apply_gradients`.
        """
        return await self._run(
            self._pushes.push_many(
                UpdateOp.APPLY_GRADIENTS,
                updates,
                keys,
                lr=lr,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    @overload
    async def assign(
        self,
        table: str,
        ids: Ids,
        rows: ArrayLike,
        *,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult: ...

    @overload
    async def assign(
        self,
        table: str,
        ids: None = None,
        rows: ArrayLike | None = None,
        *,
        keys: KeysGiven,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult: ...

    async def assign(
        self,
        table: str,
        ids: Ids | None = None,
        rows: ArrayLike | None = None,
        *,
        keys: KeysGiven | None = None,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """table[ids] = rows; of duplicates the last one counts.

        rows: of shape S + (dim,), as `scatter_add` takes deltas; they are rounded to the table's
        dtype.
        ids, keys, the other arguments, the errors and what is done once: as for `scatter_add`.
        """
        return await self._run(
            self._pushes.push(
                UpdateOp.ASSIGN,
                table,
                ids,
                keys,
                rows,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    async def assign_many(
        self,
        updates: Mapping[str, RowsGiven] | None = None,
        *,
        keys: Mapping[str, RowsGiven] | None = None,
        if_version: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Several tables in one push, all or nothing: {table: (ids, rows)}.

        keys: {table: (keys, rows)}. if_version: {table: version}, for some or all. The rest: as for
        `assign`.
        """
        return await self._run(
            self._pushes.push_many(
                UpdateOp.ASSIGN,
                updates,
                keys,
                if_version=if_version,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    async def create_table(
        self,
        name: str,
        rows: int,
        dim: int,
        *,
        dtype: DTypeLike = "float32",
        init: str = "uniform",
        seed: int | None = None,
        optimizer: OptimizerGiven | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Make a table of `rows` drawn rows of `dim` elements. AlreadyExists when there is one.

        dtype: what the rows are stored in, "float32", "float16", "bfloat16" or "float64".
        init: "zeros", "uniform", "normal" or "glorot"; the same `seed`, the same rows.
        optimizer: by which it takes updates: a name such as "sgd", or {"name": "adam",
        "lr": 0.001}. Without one it is read-only.

        This and the other changes of tables are durable, and seen by every reader, when they
        return. They aren't sent again once they may have been made: when an error's metadata has
        "outcome": "unknown", nobody knows whether they were.
        """
        request = tables.create_table(
            name, rows, dim, dtype=dtype, init=init, seed=seed, optimizer=optimizer
        )
        return await self._run(self._pushes.change(request, timeout))

    async def add_staged_table(
        self, name: str, staged: str, *, timeout: float | None = None
    ) -> ChangeResult:
        """Make a table of files on the server's machine; as `create_table` otherwise.

        staged: a folder in the data dir's staging, which then is the table's. This is how the
        command line hands a server what it imported.
        """
        request = tables.add_staged(name, staged)
        return await self._run(self._pushes.change(request, timeout))

    async def delete_table(self, name: str, *, timeout: float | None = None) -> ChangeResult:
        """Remove a table with all its versions. TableNotFound when there is none."""
        request = tables.delete_table(name)
        return await self._run(self._pushes.change(request, timeout))

    async def publish(
        self,
        name: str,
        *,
        staged: str = "",
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """Keep the live version as it is now, and make a copy of it, a new version, live.

        The result's `version` is that copy: updates go on changing it, so it is no checkpoint. What
        is kept is the version that was live before, one of `table(name).versions`; `rollback`
        without a version goes back to it.

        staged: a folder in the data dir's staging, to publish its files instead.
        if_version: the version that has to be live, else VersionMismatch.
        """
        request = tables.publish(name, staged=staged, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

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

        version: which; None for the newest of those before the live one. VersionNotFound when it
        isn't kept. if_version: the version that has to be live, else VersionMismatch.
        """
        request = tables.rollback(name, version, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

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
        request = tables.set_optimizer(name, optimizer, options, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    async def snapshot(self, name: str = "", *, timeout: float | None = None) -> SnapshotResult:
        """Copy the data dir, as it is at one LSN, to a folder of the server's; updates go on.

        name: the folder's, made of the time and the LSN when empty. AlreadyExists when it is there.
        """
        return await self._run(self._pushes.snapshot(name, timeout))
