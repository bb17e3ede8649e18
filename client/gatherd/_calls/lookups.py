"""The blocking client's lookups: of rows and of bags.

Client and AsyncClient inherit them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack, overload

from gatherd._batching.threads import Batcher
from gatherd._calls.options import (
    BagsManyOptions,
    BagsOptions,
    LookupManyOptions,
    LookupOptions,
)
from gatherd._calls.short import short, trimmed
from gatherd._plans.answering import Answering
from gatherd._plans.effects import Deadline, Plan, T
from gatherd._plans.foreseen_calls import Asking, ForeseenCalls
from gatherd._requests.lookups import Answer, LookupInfo, Returned
from gatherd._requests.names import (
    Bags,
    Ids,
    Keys,
    MetricName,
    MissingOfBag,
    MissingRow,
    Mode,
    Query,
    ReplyDType,
    Status,
    Values,
    Vectors,
)
from gatherd._requests.neighbors import Neighbors
from gatherd.errors import GatherdError


class LookupCalls(ABC):
    """The calls; the class that inherits them runs the plans."""

    _answering: Answering
    _batcher: Batcher | None

    @abstractmethod
    def _run(self, plan: Plan[T]) -> T: ...

    @abstractmethod
    def _batched(
        self, table: str, ids: Any, dtype: Any, missing: Any, out: Any, version: Any, timeout: Any
    ) -> Answer | None:
        """The answer to a lookup that was merged with others, or None to send it alone."""

    @abstractmethod
    def _quick(
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
        """The result of a lookup by id, or None to make a plan of it."""

    @abstractmethod
    def _carried(
        self,
        find: Callable[[ForeseenCalls], Asking | None],
        plan: Callable[[float | Deadline | None], Plan[Any]],
        return_status: object,
        timeout: float | None,
    ) -> Any:
        """The result of a call that may be foreseen, or else of its plan, given its timeout."""

    @overload
    def lookup(
        self,
        table: str,
        ids: Ids | None = None,
        *,
        return_status: Literal[False] = False,
        return_info: Literal[False] = False,
        **options: Unpack[LookupOptions],
    ) -> Vectors: ...

    @overload
    def lookup(
        self,
        table: str,
        ids: Ids | None = None,
        *,
        return_status: Literal[True],
        **options: Unpack[LookupOptions],
    ) -> tuple[Vectors, Status]: ...

    @overload
    def lookup(
        self,
        table: str,
        ids: Ids | None = None,
        *,
        return_info: Literal[True],
        **options: Unpack[LookupOptions],
    ) -> tuple[Vectors, LookupInfo]: ...

    def lookup(
        self,
        table: str,
        ids: Ids | None = None,
        *,
        keys: Keys | None = None,
        dtype: ReplyDType = "float32",
        missing: MissingRow = "error",
        out: Vectors | None = None,
        normalize: bool = False,
        dims: int | None = None,
        return_status: bool = False,
        return_info: bool = False,
        version: int | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> Vectors | tuple[Vectors, Status] | tuple[Vectors, LookupInfo]:
        """The rows of `ids`, integers of any dtype and shape S, or of `keys`: shape S + (dim,).

        keys: instead of ids, for a table that has keys: str, bytes or integers of any shape S; see
        `TableInfo.key_kind`. A string is its UTF-8 bytes.
        dtype: "float32", "float16" or "bfloat16", or the NumPy dtypes. "bfloat16" is sent as such
        and widened to a float32 array; `ml_dtypes.bfloat16` itself gives an array of that dtype.
        missing: what to do with an id or key that has no row: "error" raises IdOutOfRange or
        KeyNotFound, "zero" and "default" (the table's default vector) fill its place.
        out: an array to fill and return: C-contiguous, writable, of the result's shape and dtype.
        What it holds after an error is unspecified.
        normalize: divide each vector by its length (L2), in float32; zeros stay zeros. dims: only
        the first so many elements of each vector, cut before they are normalized. The server does
        both, also of default vectors. InvalidArgument unless 1 ≤ dims ≤ the table's dim.
        return_status: return (vectors, status) with status uint8 of shape S, 0 found, 1 missing.
        return_info: instead, return (vectors, info), a LookupInfo of version, LSN and status.
        version: the version that must answer, VersionNotFound when it isn't there; None for the
        live one.
        dedup: send every id or key once, and copy its row to all its places here. The result is the
        same; it pays when many ids repeat and the network is the bottleneck, see
        docs/performance.md. Such a lookup isn't merged with others.
        timeout: seconds, instead of the client's.

        NoKeys for keys of a table that has none, InvalidArgument for keys of another kind. A lookup
        that is over the server's limits is sent in several requests, all answered by one version of
        the table.
        """
        try:
            is_plain = dims is None and normalize is False and return_info is False
            if self._batcher is not None and keys is None and not dedup and is_plain:
                answer = self._batched(table, ids, dtype, missing, out, version, timeout)
                if answer is not None:
                    return answer.with_status() if return_status else answer.vectors
            policy: Any = missing  # to mypy, no Literal's class is str
            is_quick = is_plain and keys is None and dedup is False
            if is_quick and policy.__class__ is str:
                found: Vectors | tuple[Vectors, Status] | None = self._quick(
                    table, ids, dtype, policy, out, version, timeout, return_status
                )
                if found is not None:
                    return found

            def plan(timeout: float | Deadline | None) -> Plan[Any]:
                return self._answering.lookup(
                    table,
                    ids,
                    keys=keys,
                    dtype=dtype,
                    missing=missing,
                    out=out,
                    returned=Returned.checked(return_status, return_info, dims, normalize),
                    version=version,
                    dedup=dedup,
                    timeout=timeout,
                )

            def find(foreseen: ForeseenCalls) -> Asking | None:
                if dedup is not False or not is_plain:
                    return None
                return foreseen.rows(table, ids, keys, dtype, missing, version, out)

            result: Vectors | tuple[Vectors, Status] = self._carried(
                find, plan, return_status, timeout
            )
            return result
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error

    @overload
    def lookup_many(
        self,
        ids: Mapping[str, Ids] | None = None,
        *,
        return_status: Literal[False] = False,
        return_info: Literal[False] = False,
        **options: Unpack[LookupManyOptions],
    ) -> dict[str, Vectors]: ...

    @overload
    def lookup_many(
        self,
        ids: Mapping[str, Ids] | None = None,
        *,
        return_status: Literal[True],
        **options: Unpack[LookupManyOptions],
    ) -> dict[str, tuple[Vectors, Status]]: ...

    @overload
    def lookup_many(
        self,
        ids: Mapping[str, Ids] | None = None,
        *,
        return_info: Literal[True],
        **options: Unpack[LookupManyOptions],
    ) -> dict[str, tuple[Vectors, LookupInfo]]: ...

    def lookup_many(
        self,
        ids: Mapping[str, Ids] | None = None,
        *,
        keys: Mapping[str, Keys] | None = None,
        dtype: ReplyDType = "float32",
        missing: MissingRow = "error",
        normalize: bool = False,
        dims: int | None = None,
        return_status: bool = False,
        return_info: bool = False,
        version: Mapping[str, int] | None = None,
        dedup: bool = False,
        timeout: float | None = None,
    ) -> (
        dict[str, Vectors]
        | dict[str, tuple[Vectors, Status]]
        | dict[str, tuple[Vectors, LookupInfo]]
    ):
        """Several tables in one round trip: {table: ids} → {table: vectors}, as `lookup` has them.

        keys: {table: keys}, for tables looked up by key; a table has ids or keys, not both. The
        result has the tables of `ids` first, then those of `keys`.
        version: {table: version}, for some or all.
        normalize, dims: as for `lookup`, for every table.
        dedup: as for `lookup`, for each table by itself.
        With return_status, {table: (vectors, status)}, with return_info {table: (vectors, info)}.
        All or nothing: one bad id fails the call.
        What is over the server's limits is sent in several requests; each table is then answered
        by one version of it.
        """
        try:
            is_plain = dims is None and normalize is False and return_info is False

            def plan(timeout: float | Deadline | None) -> Plan[Any]:
                return self._answering.lookup_many(
                    ids,
                    keys=keys,
                    dtype=dtype,
                    missing=missing,
                    returned=Returned.checked(return_status, return_info, dims, normalize),
                    version=version,
                    dedup=dedup,
                    timeout=timeout,
                )

            def find(foreseen: ForeseenCalls) -> Asking | None:
                if dedup is not False or not is_plain:
                    return None
                return foreseen.many(ids, keys, dtype, missing, version)

            result: dict[str, Any] = self._carried(find, plan, return_status, timeout)
            return result
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error

    @overload
    def lookup_bags(
        self,
        table: str,
        ids: Bags | None = None,
        offsets: Ids | None = None,
        *,
        return_status: Literal[False] = False,
        return_info: Literal[False] = False,
        **options: Unpack[BagsOptions],
    ) -> Vectors: ...

    @overload
    def lookup_bags(
        self,
        table: str,
        ids: Bags | None = None,
        offsets: Ids | None = None,
        *,
        return_status: Literal[True],
        **options: Unpack[BagsOptions],
    ) -> tuple[Vectors, Status]: ...

    @overload
    def lookup_bags(
        self,
        table: str,
        ids: Bags | None = None,
        offsets: Ids | None = None,
        *,
        return_info: Literal[True],
        **options: Unpack[BagsOptions],
    ) -> tuple[Vectors, LookupInfo]: ...

    def lookup_bags(
        self,
        table: str,
        ids: Bags | None = None,
        offsets: Ids | None = None,
        *,
        keys: Bags | None = None,
        mode: Mode = "mean",
        weights: Values | None = None,
        padding_id: int | None = None,
        dtype: ReplyDType = "float32",
        missing: MissingOfBag = "error",
        out: Vectors | None = None,
        normalize: bool = False,
        dims: int | None = None,
        return_status: bool = False,
        return_info: bool = False,
        version: int | None = None,
        timeout: float | None = None,
    ) -> Vectors | tuple[Vectors, Status] | tuple[Vectors, LookupInfo]:
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
        missing: as for `lookup`, or "skip": an id without a row doesn't take part.
        normalize, dims: as for `lookup`, of the pooled vectors.
        dtype, out (of shape (bags, dim)), version, return_info, timeout: as for `lookup`.
        return_status: return (vectors, status) with status uint8, one an id, of shape (n,).

        InvalidArgument for offsets that don't begin with 0, decrease or go past the end, weights
        of another length, an unknown mode. Errors count ids as if they were flat. Bags that are
        over the server's limits are sent in several requests, all answered by one version; a
        single bag that is over them is LimitExceeded.
        """
        try:
            is_plain = dims is None and normalize is False and return_info is False

            def plan(timeout: float | Deadline | None) -> Plan[Any]:
                return self._answering.lookup_bags(
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
                    returned=Returned.checked(return_status, return_info, dims, normalize),
                    version=version,
                    timeout=timeout,
                )

            def find(foreseen: ForeseenCalls) -> Asking | None:
                if not is_plain:
                    return None
                pooled = (mode, weights, padding_id)
                return foreseen.bags(
                    table, (ids, offsets), keys, pooled, dtype, missing, version, out
                )

            result: Vectors | tuple[Vectors, Status] = self._carried(
                find, plan, return_status, timeout
            )
            return result
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error

    @overload
    def lookup_bags_many(
        self,
        ids: Mapping[str, Bags] | None = None,
        *,
        return_status: Literal[False] = False,
        return_info: Literal[False] = False,
        **options: Unpack[BagsManyOptions],
    ) -> dict[str, Vectors]: ...

    @overload
    def lookup_bags_many(
        self,
        ids: Mapping[str, Bags] | None = None,
        *,
        return_status: Literal[True],
        **options: Unpack[BagsManyOptions],
    ) -> dict[str, tuple[Vectors, Status]]: ...

    @overload
    def lookup_bags_many(
        self,
        ids: Mapping[str, Bags] | None = None,
        *,
        return_info: Literal[True],
        **options: Unpack[BagsManyOptions],
    ) -> dict[str, tuple[Vectors, LookupInfo]]: ...

    def lookup_bags_many(
        self,
        ids: Mapping[str, Bags] | None = None,
        *,
        keys: Mapping[str, Bags] | None = None,
        mode: Mode = "mean",
        weights: Mapping[str, Values] | None = None,
        padding_id: int | None = None,
        dtype: ReplyDType = "float32",
        missing: MissingOfBag = "error",
        normalize: bool = False,
        dims: int | None = None,
        return_status: bool = False,
        return_info: bool = False,
        version: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> (
        dict[str, Vectors]
        | dict[str, tuple[Vectors, Status]]
        | dict[str, tuple[Vectors, LookupInfo]]
    ):
        """Bags of several tables in one round trip: {table: bags} → {table: (bags, dim) array}.

        ids: a value is a tuple (ids, offsets), or a list of lists of ids; see `lookup_bags`.
        keys: the same with keys in place of ids; a table has one of them. The result has the
        tables of `ids` first, then those of `keys`.
        weights, version: {table: weights} and {table: version}, for some or all.
        The other arguments hold for every table. With return_status, {table: (vectors, status)},
        with return_info {table: (vectors, info)}. All or nothing, as `lookup_many`.
        """
        try:
            is_plain = dims is None and normalize is False and return_info is False

            def plan(timeout: float | Deadline | None) -> Plan[Any]:
                return self._answering.lookup_bags_many(
                    ids,
                    keys=keys,
                    mode=mode,
                    weights=weights,
                    padding_id=padding_id,
                    dtype=dtype,
                    missing=missing,
                    returned=Returned.checked(return_status, return_info, dims, normalize),
                    version=version,
                    timeout=timeout,
                )

            def find(foreseen: ForeseenCalls) -> Asking | None:
                if not is_plain:
                    return None
                pooled = (mode, weights, padding_id)
                return foreseen.bags_many(ids, keys, pooled, dtype, missing, version)

            result: dict[str, Any] = self._carried(find, plan, return_status, timeout)
            return result
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error

    @short
    def neighbors(
        self,
        table: str,
        query: Query | None = None,
        *,
        keys: Keys | None = None,
        k: int = 10,
        metric: MetricName = "cosine",
        include_self: bool = False,
        version: int | None = None,
        timeout: float | None = None,
    ) -> Neighbors:
        """The `k` nearest rows of each query, by comparing it with every row: for exploration.

        query: strings are keys, integers ids, floats vectors of the table's dim; one, or an array
        of any shape S of them. keys: instead of it, for a table whose keys are integers.
        metric: "cosine" (0 with a vector of zeros) and "dot", of which higher is nearer, or "l2",
        the Euclidean distance, of which lower is.
        include_self: whether a query by id or key may be its own neighbor. For vectors no row is
        left out.
        version: as for `lookup`.

        The result is exact, for rows and queries taken as float32. Of equal scores the lower id
        comes first; rows whose score is NaN come last. Each row is compared as it was at one moment
        of the search. InvalidArgument for a query with NaN or infinity; LimitExceeded, Overloaded
        or FailedPrecondition by the server's settings neighbors_…. It takes as long as reading the
        whole table; docs/neighbors.md says what to use instead for more than a look.
        """
        return self._run(
            self._answering.neighbors(
                table,
                query,
                keys=keys,
                k=k,
                metric=metric,
                include_self=include_self,
                version=version,
                timeout=timeout,
            )
        )
