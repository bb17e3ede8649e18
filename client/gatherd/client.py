"""The blocking client: runs the plans of _session.py and waits."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gatherd._effects import Effect, Plan, Send, Sleep, T, Transport
from gatherd._lookup import Ids, TableInfo
from gatherd._session import RemoteSession, Session
from gatherd._target import parse_target
from gatherd.errors import ClientClosed, GatherdError

Status = NDArray[np.uint8]


class Client:
    """Looks up vectors in embedding tables. Safe to use from many threads.

    Every call raises a `gatherd.GatherdError`: `TableNotFound`, `IdOutOfRange`,
    `InvalidArgument`, `Unavailable` once the retries are used up, `DeadlineExceeded`, ….

    After a fork, a client of an http://, https:// or unix:// URL connects anew in the child, a
    local: one goes on, and a grpc:// one raises `ForkedClient`.
    """

    def __init__(self, url: str, *, timeout: float = 10.0, retries: int = 3) -> None:
        """Nothing is connected yet; the first call does that.

        url: http://host:8000, https://…, grpc://host:8001, grpcs://…, unix:///run/gatherd.sock
        (Connect over a Unix socket), or local:/data (reads a data dir's files itself).
        timeout: seconds for each whole call, its retries included.
        retries: how often a request is sent again, after growing pauses, when the server can't be
        reached or has no room. Requests to local: have nothing to retry.
        """
        target = parse_target(url)
        self._transport: Transport | None = None
        self._session: Session
        self._closed = False
        if target.scheme == "local":
            from gatherd.transports.local import LocalSession

            self._session = LocalSession(target.path, timeout=timeout, retries=retries)
            return
        self._session = RemoteSession(timeout=timeout, retries=retries)
        # Imported when needed: grpc takes longer to import than all the rest.
        if target.scheme in ("grpc", "grpcs"):
            from gatherd.transports.grpc import GrpcTransport

            self._transport = GrpcTransport(target)
        else:
            from gatherd.transports.http import HttpTransport

            self._transport = HttpTransport(target)

    @overload
    def lookup(
        self,
        table: str,
        ids: Ids,
        *,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: Literal[False] = False,
        timeout: float | None = None,
    ) -> NDArray[Any]: ...

    @overload
    def lookup(
        self,
        table: str,
        ids: Ids,
        *,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: Literal[True],
        timeout: float | None = None,
    ) -> tuple[NDArray[Any], Status]: ...

    def lookup(
        self,
        table: str,
        ids: Ids,
        *,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        out: NDArray[Any] | None = None,
        return_status: bool = False,
        timeout: float | None = None,
    ) -> NDArray[Any] | tuple[NDArray[Any], Status]:
        """The rows of `ids`, integers of any dtype and shape S: an array of shape S + (dim,).

        dtype: "float32", "float16" or "bfloat16", or the NumPy dtypes. "bfloat16" is sent as such
        and widened to a float32 array; `ml_dtypes.bfloat16` itself gives an array of that dtype.
        missing: what to do with an id that has no row: "error" raises IdOutOfRange, "zero" and
        "default" (the table's default vector) fill its place.
        out: an array to fill and return: C-contiguous, writable, of the result's shape and dtype.
        What it holds after an error is unspecified.
        return_status: return (vectors, status) with status uint8 of shape S, 0 found, 1 missing.
        timeout: seconds, instead of the client's.

        A lookup that is over the server's limits is sent in several requests, all answered by
        one version of the table.
        """
        result: NDArray[Any] | tuple[NDArray[Any], Status] = self._run(
            self._session.lookup(
                table,
                ids,
                dtype=dtype,
                missing=missing,
                out=out,
                return_status=return_status,
                timeout=timeout,
            )
        )
        return result

    @overload
    def lookup_many(
        self,
        ids: Mapping[str, Ids],
        *,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: Literal[False] = False,
        timeout: float | None = None,
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    def lookup_many(
        self,
        ids: Mapping[str, Ids],
        *,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: Literal[True],
        timeout: float | None = None,
    ) -> dict[str, tuple[NDArray[Any], Status]]: ...

    def lookup_many(
        self,
        ids: Mapping[str, Ids],
        *,
        dtype: DTypeLike = "float32",
        missing: str = "error",
        return_status: bool = False,
        timeout: float | None = None,
    ) -> dict[str, NDArray[Any]] | dict[str, tuple[NDArray[Any], Status]]:
        """Several tables in one round trip: {table: ids} → {table: vectors}, as `lookup` has them.

        With return_status, {table: (vectors, status)}. All or nothing: one bad id fails the call.
        What is over the server's limits is sent in several requests; each table is then answered
        by one version of it.
        """
        result: dict[str, Any] = self._run(
            self._session.lookup_many(
                ids, dtype=dtype, missing=missing, return_status=return_status, timeout=timeout
            )
        )
        return result

    def tables(self, *, timeout: float | None = None) -> list[TableInfo]:
        """Every table that is served, also those that can't be looked up; see `refused`."""
        return self._run(self._session.tables(self._session.deadline(timeout)))

    def table(self, name: str, *, timeout: float | None = None) -> TableInfo:
        """The table called `name`. TableNotFound when there is none."""
        return self._run(self._session.table(name, self._session.deadline(timeout)))

    def close(self) -> None:
        """Close the connections; later calls raise ClientClosed. Closing twice is fine."""
        self._closed = True
        self._session.close()
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, plan: Plan[T]) -> T:
        if self._closed:
            raise ClientClosed("the client was closed")
        try:
            effect = next(plan)
            while True:
                try:
                    result = self._perform(effect)
                except GatherdError as error:
                    effect = plan.throw(error)
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            assert self._transport is not None  # only a RemoteSession sends
            return self._transport.call(effect)
        if isinstance(effect, Sleep):
            return time.sleep(effect.seconds)
        return effect.run()
