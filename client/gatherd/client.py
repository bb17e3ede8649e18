"""The blocking client: runs the plans of _session.py and waits."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from gatherd._bags import BagsGiven
from gatherd._change_calls import ChangeCalls
from gatherd._effects import Effect, Plan, Send, Sleep, T, Transport
from gatherd._lookup import Ids, KeysGiven, TableInfo
from gatherd._pushes import Pushes
from gatherd._remote import RemoteSession
from gatherd._session import Session
from gatherd._target import parse_target
from gatherd.errors import ClientClosed, GatherdError

Status = NDArray[np.uint8]


class Client(ChangeCalls):
    """Looks up and updates vectors in embedding tables. Safe to use from many threads.

    Every call raises a `gatherd.GatherdError`: `TableNotFound`, `IdOutOfRange`,
    `KeyNotFound`, `InvalidArgument`, `Unavailable` once the retries are used up, ….

    After a fork, a client of an http://, https:// or unix:// URL connects anew in the child, a
    local: one goes on, and a grpc:// one raises `ForkedClient`.
    """

    def __init__(self, url: str, *, timeout: float = 10.0, retries: int = 3) -> None:
        """Nothing is connected yet; the first call does that.

        url: http://host:8000, https://…, grpc://host:8001, grpcs://…, unix:///run/gatherd.sock
        (Connect over a Unix socket), or local:/data (reads a data dir's files itself, and sends
        updates and changes to the server that runs on it).
        timeout: seconds for each whole call, its retries included.
        retries: how often a request is sent again, after growing pauses, when the server can't be
        reached or has no room. Reading local: files has nothing to retry.
        """
        target = parse_target(url)
        self._transport: Transport
        self._session: Session
        self._pushes = Pushes(timeout=timeout, retries=retries)
        self._closed = False
        if target.scheme == "local":
            from gatherd.transports.local import LocalSession

            self._session = LocalSession(target.path, timeout=timeout, retries=retries)
        else:
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
    def lookup(
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

    def lookup(
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
        """The rows of `ids`, integers of any dtype and shape S, or of `keys`: shape S + (dim,).

        keys: instead of ids, for a table that has keys: str, bytes or integers of any shape S; see
        `TableInfo.key_kind`. A string is its UTF-8 bytes.
        dtype: "float32", "float16" or "bfloat16", or the NumPy dtypes. "bfloat16" is sent as such
        and widened to a float32 array; `ml_dtypes.bfloat16` itself gives an array of that dtype.
        missing: what to do with an id or key that has no row: "error" raises IdOutOfRange or
        KeyNotFound, "zero" and "default" (the table's default vector) fill its place.
        out: an array to fill and return: C-contiguous, writable, of the result's shape and dtype.
        What it holds after an error is unspecified.
        return_status: return (vectors, status) with status uint8 of shape S, 0 found, 1 missing.
        version: the version that must answer, VersionNotFound when it isn't there; None for the
        live one.
        timeout: seconds, instead of the client's.

        NoKeys when keys are asked of a table without, InvalidArgument for keys of another kind. A
        lookup that is over the server's limits is sent in several requests, all answered by one
        version of the table.
        """
        result: NDArray[Any] | tuple[NDArray[Any], Status] = self._run(
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
    def lookup_many(
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
    def lookup_many(
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

    def lookup_many(
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
        """Several tables in one round trip: {table: ids} → {table: vectors}, as `lookup` has them.

        keys: {table: keys}, for tables looked up by key; a table has ids or keys, not both. The
        result has the tables of `ids` first, then those of `keys`.
        version: {table: version}, for some or all.
        With return_status, {table: (vectors, status)}. All or nothing: one bad id fails the call.
        What is over the server's limits is sent in several requests; each table is then answered
        by one version of it.
        """
        result: dict[str, Any] = self._run(
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
    def lookup_bags(
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
    def lookup_bags(
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

    def lookup_bags(
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
        """Bags of rows, each pooled into one vector where the table is: an array (bags, dim).

        ids: flat, (n,), with `offsets`, (bags,): bag i is ids[offsets[i]:offsets[i + 1]], the last
        one runs to the end, as in torch's `embedding_bag`. Without offsets, a list of lists such
        as [[1, 2], [], [3]], or a 2-D array. keys: instead of ids, in the same forms.
        mode, with x a bag's rows and w their weights (1 without):
          "sum"    Σ w·x
          "mean"   Σ w·x / Σ w
          "sqrtn"  Σ w·x / sqrt(Σ w²)
          "max"    elementwise; takes no weights
        An empty bag is zeros. Sums are accumulated in float32 and rounded to `dtype` at the end.
        weights: a number an id, (n,), or as jagged as the ids; taken as float32.
        padding_id: an id (also with keys: the row) that never takes part.
        missing: as for `lookup`, or "skip": what has no row doesn't take part.
        dtype, out (of shape (bags, dim)), version, timeout: as for `lookup`.
        return_status: return (vectors, status) with status uint8, one an id, of shape (n,).

        InvalidArgument for offsets that don't begin with 0, decrease or go past the end, weights
        of another length, an unknown mode. Errors count ids as if they were flat. Bags that are
        over the server's limits are sent in several requests, all answered by one version; a
        single bag that is over them is LimitExceeded.
        """
        result: NDArray[Any] | tuple[NDArray[Any], Status] = self._run(
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
    def lookup_bags_many(
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
    def lookup_bags_many(
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

    def lookup_bags_many(
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
        """Bags of several tables in one round trip: {table: bags} → {table: (bags, dim) array}.

        ids: a value is a tuple (ids, offsets), or a list of lists of ids; see `lookup_bags`.
        keys: the same with keys in place of ids; a table has one of them. The result has the
        tables of `ids` first, then those of `keys`.
        weights, version: {table: weights} and {table: version}, for some or all.
        The other arguments hold for every table. With return_status, {table: (vectors, status)}.
        All or nothing, as `lookup_many`.
        """
        result: dict[str, Any] = self._run(
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

    def keys_of(
        self, table: str, ids: Ids, *, version: int | None = None, timeout: float | None = None
    ) -> NDArray[Any]:
        """The keys of the rows `ids`, integers of any shape S: an array of shape S.

        int64 or uint64 for a table of integer keys; for one of strings, objects of str, in which
        bytes that aren't UTF-8 are lone surrogates (`surrogateescape`) and so can be given as keys
        again. IdOutOfRange for an id without a row, NoKeys for a table without keys.
        """
        return self._run(self._session.keys_of(table, ids, version=version, timeout=timeout))

    def tables(self, *, timeout: float | None = None) -> list[TableInfo]:
        """Every table that is served, also those that can't be looked up; see `refused`."""
        return self._run(self._session.tables(self._session.deadline(timeout)))

    def table(self, name: str, *, timeout: float | None = None) -> TableInfo:
        """The table called `name`. TableNotFound when there is none."""
        return self._run(self._session.table(name, self._session.deadline(timeout)))

    def versions(self, name: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """The versions of a table that can be looked up or rolled back to, ascending."""
        return self._run(self._session.versions(name, self._session.deadline(timeout)))

    def close(self) -> None:
        """Close the connections; later calls raise ClientClosed. Closing twice is fine."""
        self._closed = True
        self._session.close()
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
            return self._transport.call(effect)
        if isinstance(effect, Sleep):
            return time.sleep(effect.seconds)
        return effect.run()
