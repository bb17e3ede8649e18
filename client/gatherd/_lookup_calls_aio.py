"""The awaited client's lookups: of rows, of bags, and of rows' keys.

See _lookup_calls.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from gatherd._bags import BagsGiven
from gatherd._batcher_aio import AsyncBatcher
from gatherd._effects import Plan, T
from gatherd._lookup import Answer, Ids, KeysGiven
from gatherd._session import Session

Status = NDArray[np.uint8]


class AsyncLookupCalls(ABC):
    """The calls; who inherits them runs the plans."""

    _session: Session
    _batcher: AsyncBatcher | None

    @abstractmethod
    async def _run(self, plan: Plan[T]) -> T: ...

    @abstractmethod
    async def _batched(
        self, table: str, ids: Any, dtype: Any, missing: Any, out: Any, version: Any, timeout: Any
    ) -> Answer | None:
        """The answer to a lookup that was merged with others, or None to send it alone."""

    @abstractmethod
    async def _quick(
        self, table: str, ids: Any, dtype: Any, out: Any, version: Any, timeout: Any
    ) -> NDArray[Any] | None:
        """The answer to a lookup in which no id may be missing, or None to make a plan of it."""

    @overload
    async def lookup(
        self,
        table: str,
        ids: Ids | None = None,
        *,
        keys: KeysGiven | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: Literal[False] = False,
        version: int | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> NDArray[Any]: ...

    @overload
    async def lookup(
        self,
        table: str,
        ids: Ids | None = None,
        *,
        keys: KeysGiven | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: Literal[True],
        version: int | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> tuple[NDArray[Any], Status]: ...

    async def lookup(
        self,
        table: str,
        ids: Ids | None = None,
        *,
        keys: KeysGiven | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: bool = False,
        version: int | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> NDArray[Any] | tuple[NDArray[Any], Status]:
        """As Client.lookup: ids or keys of shape S → an array of shape S + (dim,)."""
        if self._batcher is not None and keys is None and not dedup:
            answer = await self._batched(table, ids, dtype, missing, out, version, timeout)
            if answer is not None:
                return answer.with_status() if return_status else answer.vectors
        if keys is None and missing.__class__ is str and missing == "error" and dedup is False:
            vectors = await self._quick(table, ids, dtype, out, version, timeout)
            if vectors is not None:
                return Answer(vectors, None).with_status() if return_status else vectors
        result: NDArray[Any] | tuple[NDArray[Any], Status] = await self._run(
            self._session.lookup(
                table,
                ids,
                keys=keys,
                dtype=dtype,
                missing=missing,
                out=out,
                return_status=return_status,
                version=version,
                dedup=dedup,
                timeout=timeout,
            )
        )
        return result

    @overload
    async def lookup_many(
        self,
        ids: Mapping[str, Ids] | None = None,
        *,
        keys: Mapping[str, KeysGiven] | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: Literal[False] = False,
        version: Mapping[str, int] | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    async def lookup_many(
        self,
        ids: Mapping[str, Ids] | None = None,
        *,
        keys: Mapping[str, KeysGiven] | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: Literal[True],
        version: Mapping[str, int] | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> dict[str, tuple[NDArray[Any], Status]]: ...

    async def lookup_many(
        self,
        ids: Mapping[str, Ids] | None = None,
        *,
        keys: Mapping[str, KeysGiven] | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: bool = False,
        version: Mapping[str, int] | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> dict[str, NDArray[Any]] | dict[str, tuple[NDArray[Any], Status]]:
        """As Client.lookup_many: {table: ids} → {table: vectors}."""
        result: dict[str, Any] = await self._run(
            self._session.lookup_many(
                ids,
                keys=keys,
                dtype=dtype,
                missing=missing,
                return_status=return_status,
                version=version,
                dedup=dedup,
                timeout=timeout,
            )
        )
        return result

    @overload
    async def lookup_bags(
        self,
        table: str,
        ids: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        *,
        keys: ArrayLike | None = None,
        mode: str = "mean",
        weights: ArrayLike | None = None,
        padding_id: int | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: Literal[False] = False,
        version: int | None = None,
        timeout: float | None = None,
    ) -> NDArray[Any]: ...

    @overload
    async def lookup_bags(
        self,
        table: str,
        ids: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        *,
        keys: ArrayLike | None = None,
        mode: str = "mean",
        weights: ArrayLike | None = None,
        padding_id: int | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: Literal[True],
        version: int | None = None,
        timeout: float | None = None,
    ) -> tuple[NDArray[Any], Status]: ...

    async def lookup_bags(
        self,
        table: str,
        ids: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        *,
        keys: ArrayLike | None = None,
        mode: str = "mean",
        weights: ArrayLike | None = None,
        padding_id: int | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: bool = False,
        version: int | None = None,
        timeout: float | None = None,
    ) -> NDArray[Any] | tuple[NDArray[Any], Status]:
        """As Client.lookup_bags: bags of ids or keys → an array (bags, dim)."""
        result: NDArray[Any] | tuple[NDArray[Any], Status] = await self._run(
            self._session.lookup_bags(
                table,
                ids,
                offsets,
                keys=keys,
                mode=mode,
                weights=weights,
                padding_id=padding_id,
                dtype=dtype,
                missing=missing,
                out=out,
                return_status=return_status,
                version=version,
                timeout=timeout,
            )
        )
        return result

    @overload
    async def lookup_bags_many(
        self,
        ids: Mapping[str, BagsGiven] | None = None,
        *,
        keys: Mapping[str, BagsGiven] | None = None,
        mode: str = "mean",
        weights: Mapping[str, ArrayLike] | None = None,
        padding_id: int | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: Literal[False] = False,
        version: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    async def lookup_bags_many(
        self,
        ids: Mapping[str, BagsGiven] | None = None,
        *,
        keys: Mapping[str, BagsGiven] | None = None,
        mode: str = "mean",
        weights: Mapping[str, ArrayLike] | None = None,
        padding_id: int | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: Literal[True],
        version: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> dict[str, tuple[NDArray[Any], Status]]: ...

    async def lookup_bags_many(
        self,
        ids: Mapping[str, BagsGiven] | None = None,
        *,
        keys: Mapping[str, BagsGiven] | None = None,
        mode: str = "mean",
        weights: Mapping[str, ArrayLike] | None = None,
        padding_id: int | None = None,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: bool = False,
        version: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> dict[str, NDArray[Any]] | dict[str, tuple[NDArray[Any], Status]]:
        """As Client.lookup_bags_many: {table: bags} → {table: (bags, dim) array}."""
        result: dict[str, Any] = await self._run(
            self._session.lookup_bags_many(
                ids,
                keys=keys,
                mode=mode,
                weights=weights,
                padding_id=padding_id,
                dtype=dtype,
                missing=missing,
                return_status=return_status,
                version=version,
                timeout=timeout,
            )
        )
        return result

    async def keys_of(
        self, table: str, ids: Ids, *, version: int | None = None, timeout: float | None = None
    ) -> NDArray[Any]:
        """As Client.keys_of: ids of shape S → an array of their keys, of shape S."""
        return await self._run(self._session.keys_of(table, ids, version=version, timeout=timeout))
