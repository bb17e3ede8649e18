"""The awaited client: runs the plans of _plans/answering.py on an event loop. See client.py."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd._batching.rules import Batching, LookupKind
from gatherd._batching.tasks import AsyncBatcher
from gatherd._calls.handles_aio import AsyncAllCalls
from gatherd._calls.rebuilt import Rebuilt
from gatherd._calls.short import short
from gatherd._plans.answering import Answering
from gatherd._plans.effects import Deadline, Effect, Plan, Send, Sleep, T
from gatherd._plans.foreseen import Foreseen, Varying
from gatherd._plans.foreseen_calls import Asking, ForeseenCalls, foreseen_plan
from gatherd._plans.pushes import Pushes
from gatherd._plans.remote import RemoteAnswering
from gatherd._plans.retry import Tries
from gatherd._requests.lookups import Answer
from gatherd.errors import (
    ClientClosed,
    ClientError,
    GatherdError,
    InvalidArgument,
    Unauthenticated,
)
from gatherd.hooks import Hook
from gatherd.store.ids import as_id_array
from gatherd.transports.credentials import Credentials
from gatherd.transports.headers import of_block
from gatherd.transports.target import parse_target

if TYPE_CHECKING:
    from gatherd.transports import local
    from gatherd.transports.transport import AsyncTransport

# Up to this size a gather from mapped files takes less time than the hop to a thread and back.
INLINE_BYTES_MAX = 256 << 10


class AsyncClient(Rebuilt, AsyncAllCalls):
    """`Client` for asyncio: the same methods, awaited, and the same errors.

    Belongs to the event loop of its first call. When that loop was closed, as after `asyncio.run`,
    or in a forked child, it belongs to the next one; a second loop beside an open one raises
    ClientError. A call that is cancelled leaves the client usable. It can be pickled and copied
    like Client.
    """

    @short
    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        retries: int | None = None,
        batching: Batching | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        ca: str | os.PathLike[str] | None = None,
        cert: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """As Client. Connects later.

        url, timeout in seconds for each whole call, retries, batching, token, token_file, ca, cert,
        headers, proxy, hooks.
        """
        self._settings = {
            "url": url,
            "timeout": timeout,
            "retries": retries,
            "batching": batching,
            "token": token,
            "token_file": token_file,
            "ca": ca,
            "cert": cert,
            "headers": dict(headers) if isinstance(headers, Mapping) else headers,
            "proxy": proxy,
            "hooks": hooks,
        }
        self._target = target = parse_target(url, proxy)
        self._credentials = Credentials(
            target, token=token, token_file=token_file, ca=ca, cert=cert, headers=headers
        )
        self._answering: Answering
        tries = Tries(timeout=timeout, retries=retries)
        self._pushes = Pushes(tries)
        self._foreseen = ForeseenCalls()
        self._local: local.LocalAnswering | None = None
        self._closed = False
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batching = batching
        if target.scheme == "local":
            if batching is not None:
                raise InvalidArgument("a local: client sends no lookups, so there is no batching")
            from gatherd.transports.local import LocalAnswering

            self._local = LocalAnswering(target.path, tries)
            self._answering = self._local
        else:
            self._answering = RemoteAnswering(tries)
        if hooks:
            from gatherd._calls.observed import checked_hooks, observing

            self._hooks = checked_hooks(hooks)
            self.__class__ = observing(type(self))
        self._begin()

    def _begin(self) -> None:
        """Make the parts that belong to one event loop: the first that will use them."""
        batching = self._batching
        self._batcher = None if batching is None else AsyncBatcher(batching, self._ask_merged)
        self._transport: AsyncTransport
        # Imported when needed: grpc takes longer to import than all the rest.
        if self._target.scheme in ("grpc", "grpcs"):
            from gatherd.transports.grpc import AsyncGrpcTransport

            self._transport = AsyncGrpcTransport(self._target, self._credentials)
        else:
            from gatherd.transports.http_aio import AsyncHttpTransport

            self._transport = AsyncHttpTransport(self._target, self._credentials)

    async def aclose(self) -> None:
        """Close the connections; later calls raise ClientClosed. Closing twice is fine."""
        self._closed = True
        self._answering.close()
        if self._loop is not None:
            self._check_loop()
            await self._transport.aclose()
            if self._batcher is not None:
                await self._batcher.aclose()

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
        if loop is self._loop:
            return  # never in a forked child, where that loop doesn't run
        if self._loop is not None:
            pid = os.getpid()
            if pid == self._pid and not self._loop.is_closed():
                raise ClientError(
                    "this AsyncClient belongs to another event loop, which isn't closed: make one "
                    "client for each loop"
                )
            self._transport.abandon()
            self._begin()
            self._pid = pid
        self._loop = loop

    async def _quick(
        self,
        table: str,
        ids: Any,
        dtype: Any,
        missing: str,
        out: Any,
        version: Any,
        timeout: Any,
        return_status: object,
    ) -> Any:
        if self._closed or of_block():
            return None
        self._check_loop()
        if ids.__class__ is not np.ndarray or not ids.flags.c_contiguous:
            try:
                ids = as_id_array(ids)
            except GatherdError:
                return None
        if self._local is not None:
            if missing != "error":
                return None
            vectors = self._local.quick(table, ids, dtype, out, version, timeout, INLINE_BYTES_MAX)
            if vectors is None or not return_status:
                return vectors
            return Answer(vectors, None).with_status()
        foreseen = self._foreseen.plain(table, ids, dtype, missing, version, out)
        if foreseen is None:
            return None
        deadline = self._answering.deadline(timeout)
        return await self._send_foreseen(foreseen, ids, out, deadline, return_status)

    async def _carried(
        self,
        find: Callable[[ForeseenCalls], Asking | None],
        plan: Callable[[float | Deadline | None], Plan[Any]],
        return_status: object,
        timeout: float | None,
    ) -> Any:
        if self._closed or self._local is not None or of_block():
            return await self._run(plan(timeout))
        self._check_loop()
        asking = find(self._foreseen)
        if asking is None:
            return await self._run(plan(timeout))
        foreseen, deadline = asking.foreseen, self._answering.deadline(timeout)
        reply = await self._ask(foreseen, asking.varying, asking.out, deadline)
        if isinstance(reply, list):
            return asking.result(reply, return_status)
        return await self._go_on(foreseen, plan(deadline), reply)

    async def _send_foreseen(
        self,
        foreseen: Foreseen,
        ids: NDArray[Any],
        out: NDArray[Any] | None,
        deadline: Deadline,
        return_status: object = False,
    ) -> Any:
        reply = await self._ask(foreseen, (ids,), out, deadline)
        if isinstance(reply, list):
            return foreseen.result(reply, out, return_status)
        plan = foreseen_plan(self._answering, foreseen, ids, out, deadline)
        answer = await self._go_on(foreseen, plan, reply)
        return answer.with_status() if return_status else answer.vectors

    async def _ask(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview | GatherdError:
        try:
            return await self._transport.ask_foreseen(foreseen, varying, out, deadline)
        except Unauthenticated as error:
            if self._credentials.renew():
                send = Send(foreseen.method, foreseen.request(varying), deadline)
                return await self._resent(send)
            return error
        except GatherdError as error:
            return error

    async def _go_on(
        self, foreseen: Foreseen, plan: Plan[T], reply: memoryview | GatherdError
    ) -> T:
        """The result of `plan`, whose first request was sent already, and got `reply`."""
        found = await self._run(plan, reply)
        if isinstance(reply, memoryview):
            self._foreseen.learn(foreseen, reply)
        return found

    async def _batched(
        self, table: str, ids: Any, dtype: Any, missing: Any, out: Any, version: Any, timeout: Any
    ) -> Answer | None:
        batcher = self._batcher
        if self._closed or batcher is None or of_block():
            return None
        self._check_loop()
        found = batcher.kinds.find(table, ids, dtype, missing, out, version)
        if found is None:
            return None
        return await batcher.lookup(*found, out, self._answering.deadline(timeout))

    async def _ask_merged(
        self, lookups: Sequence[tuple[LookupKind, NDArray[Any]]], deadline: Deadline
    ) -> list[Answer]:
        if len(lookups) == 1 and lookups[0][0].is_foreseen:
            kind, ids = lookups[0]
            foreseen = self._foreseen.plain(
                kind.like.table, ids, kind.dtype, "error", kind.version, None
            )
            if foreseen is not None and not self._closed:
                return [Answer(await self._send_foreseen(foreseen, ids, None, deadline), None)]
        specs = [kind.spec(ids) for kind, ids in lookups]
        return await self._run(self._answering.gather(specs, deadline))

    async def _resent(self, send: Send) -> memoryview | GatherdError:
        try:
            return await self._transport.call(send)
        except GatherdError as error:
            return error

    async def _run(self, plan: Plan[T], first: memoryview | GatherdError | None = None) -> T:
        """Run `plan`, return its result; `first` is the result of its first effect, if known."""
        if self._closed:
            raise ClientClosed("the client was closed")
        self._check_loop()
        try:
            effect = next(plan)
            if isinstance(first, GatherdError):
                effect = plan.throw(first)
            elif first is not None:
                effect = plan.send(first)
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
            try:
                return await self._transport.call(effect)
            except Unauthenticated:
                # The server did nothing, so sending it again does nothing twice.
                if not self._credentials.renew():
                    raise
                return await self._transport.call(effect)
        if isinstance(effect, Sleep):
            return await asyncio.sleep(effect.seconds)
        if effect.nbytes <= INLINE_BYTES_MAX:
            return effect.run()
        return await asyncio.to_thread(effect.run)
