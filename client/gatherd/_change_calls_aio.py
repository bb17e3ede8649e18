"""The awaited client's calls that change something: updates of rows, and changes of tables.

Client and AsyncClient inherit them; they stand apart for length alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import overload

from numpy.typing import ArrayLike, DTypeLike

from gatherd import _changes
from gatherd._changes import ChangeResult, OptimizerGiven, SnapshotResult
from gatherd._effects import Plan, T
from gatherd._lookup import Ids, KeysGiven
from gatherd._pushes import Pushes
from gatherd._updates import RowsGiven, UpdateOp, UpdateResult


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
        """As Client.scatter_add: ids of shape S, deltas of shape S + (dim,).

        Don't write to the arrays until the call has ended. After a cancellation it isn't known
        whether the push was done.
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
        """As Client.scatter_add_many: {table: (ids, deltas)}, all or nothing."""
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
        """As Client.apply_gradients: ids of shape S, grads of shape S + (dim,)."""
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
        """As Client.apply_gradients_many: {table: (ids, grads)}, all or nothing."""
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
        """As Client.assign: ids of shape S, rows of shape S + (dim,)."""
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
        """As Client.assign_many: {table: (ids, rows)}, all or nothing."""
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
        """As Client.create_table."""
        request = _changes.create_table(
            name, rows, dim, dtype=dtype, init=init, seed=seed, optimizer=optimizer
        )
        return await self._run(self._pushes.change(request, timeout))

    async def add_staged_table(
        self, name: str, staged: str, *, timeout: float | None = None
    ) -> ChangeResult:
        """As Client.add_staged_table."""
        request = _changes.add_staged(name, staged)
        return await self._run(self._pushes.change(request, timeout))

    async def delete_table(self, name: str, *, timeout: float | None = None) -> ChangeResult:
        """As Client.delete_table."""
        request = _changes.delete_table(name)
        return await self._run(self._pushes.change(request, timeout))

    async def publish(
        self,
        name: str,
        *,
        staged: str = "",
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """As Client.publish."""
        request = _changes.publish(name, staged=staged, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    async def rollback(
        self,
        name: str,
        version: int | None = None,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> ChangeResult:
        """As Client.rollback."""
        request = _changes.rollback(name, version, if_version=if_version)
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
        """As Client.set_optimizer."""
        request = _changes.set_optimizer(name, optimizer, options, if_version=if_version)
        return await self._run(self._pushes.change(request, timeout))

    async def snapshot(self, name: str = "", *, timeout: float | None = None) -> SnapshotResult:
        """As Client.snapshot."""
        return await self._run(self._pushes.snapshot(name, timeout))
