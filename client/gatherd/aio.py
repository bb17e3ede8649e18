"""The awaited client: runs the plans of _session.py on an event loop. See client.py."""

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from gatherd._bags import BagsGiven
from gatherd._change_calls_aio import AsyncChangeCalls
from gatherd._effects import AsyncTransport, Effect, Plan, Send, Sleep, T
from gatherd._lookup import Ids, KeysGiven, TableInfo
from gatherd._pushes import Pushes
from gatherd._remote import RemoteSession
from gatherd._session import Session
from gatherd._target import parse_target
from gatherd.errors import ClientClosed, ClientError, ForkedClient, GatherdError

Status = NDArray[np.uint8]

# Up to here a gather from mapped files is shorter than the hop to a thread and back.
INLINE_BYTES_MAX = 256 << 10


class AsyncClient(AsyncChangeCalls):
    """`Client` for asyncio: the same methods, awaited, and the same errors.

    Belongs to the event loop of its first call; another loop raises ClientError, a forked child
    ForkedClient. A call that is cancelled leaves the client usable.
    """

    def __init__(self, url: str, *, timeout: float = 10.0, retries: int = 3) -> None:
        """As Client: url, timeout in seconds for each whole call, retries. Connects later."""
        target = parse_target(url)
        self._transport: AsyncTransport
        self._session: Session
        self._pushes = Pushes(timeout=timeout, retries=retries)
        self._closed = False
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        if target.scheme == "local":
            from gatherd.transports.local import LocalSession

            self._session = LocalSession(target.path, timeout=timeout, retries=retries)
        else:
            self._session = RemoteSession(timeout=timeout, retries=retries)
        # Imported when needed: grpc takes longer to import than all the rest.
        if target.scheme in ("grpc", "grpcs"):
            from gatherd.transports.grpc import AsyncGrpcTransport

            self._transport = AsyncGrpcTransport(target)
        else:
            from gatherd.transports.http_aio import AsyncHttpTransport

            self._transport = AsyncHttpTransport(target)

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
        timeout: float | None = None,
    ) -> NDArray[Any] | tuple[NDArray[Any], Status]:
        """As Client.lookup: ids or keys of shape S → an array of shape S + (dim,)."""
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

    async def tables(self, *, timeout: float | None = None) -> list[TableInfo]:
        """Every table that is served, also those that can't be looked up; see `refused`."""
        return await self._run(self._session.tables(self._session.deadline(timeout)))

    async def table(self, name: str, *, timeout: float | None = None) -> TableInfo:
        """The table called `name`. TableNotFound when there is none."""
        return await self._run(self._session.table(name, self._session.deadline(timeout)))

    async def versions(self, name: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """The versions of a table that can be looked up or rolled back to, ascending."""
        return await self._run(self._session.versions(name, self._session.deadline(timeout)))

    async def aclose(self) -> None:
        """Close the connections; later calls raise ClientClosed. Closing twice is fine."""
        self._closed = True
        self._session.close()
        if self._loop is not None:
            self._check_loop()
            await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if os.getpid() != self._pid:
            raise ForkedClient("this AsyncClient was made before a fork: make one in the child")
        if self._loop is not loop:
            raise ClientError(
                "this AsyncClient belongs to another event loop: make one client for each loop"
            )

    async def _run(self, plan: Plan[T]) -> T:
        if self._closed:
            raise ClientClosed("the client was closed")
        self._check_loop()
        try:
            effect = next(plan)
            while True:
                try:
                    result = await self._perform(effect)
                except GatherdError as error:
                    effect = plan.throw(error)
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            return await self._transport.call(effect)
        if isinstance(effect, Sleep):
            return await asyncio.sleep(effect.seconds)
        if effect.nbytes <= INLINE_BYTES_MAX:
            return effect.run()
        return await asyncio.to_thread(effect.run)
