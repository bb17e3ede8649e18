"""The blocking client's tables: listed, described, and as handles that have a table's calls.

Client and AsyncClient inherit `AllCalls`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gatherd._calls.described import Described, Tables, like, mean_query, named_scores, terms
from gatherd._calls.keys import KeyCalls
from gatherd._calls.lookups import LookupCalls
from gatherd._calls.options import (
    BagsOptions,
    LookupOptions,
    PushOptions,
    StepOptions,
    UpsertOptions,
)
from gatherd._calls.scans import ScanCalls
from gatherd._calls.short import short
from gatherd._calls.tables import TableCalls
from gatherd._calls.updates import UpdateCalls
from gatherd._requests.keys import KeyPage
from gatherd._requests.lookups import LookupInfo, TableInfo
from gatherd._requests.names import Bags, Ids, Keys, Query, ReplyDType, Status, Values, Vectors
from gatherd._requests.neighbors import Neighbors
from gatherd._requests.scans import BATCH_DEFAULT, RowBatch
from gatherd._requests.updates import UpdateResult
from gatherd.errors import InvalidArgument


class AllCalls(LookupCalls, KeyCalls, ScanCalls, UpdateCalls, TableCalls):
    """Every call, and tables as handles."""

    def __getitem__(self, table: str) -> "TableHandle":
        return TableHandle(self, table)

    @short
    def tables(self, *, timeout: float | None = None) -> Tables:
        """Every table that is served, also those that can't be looked up; see `refused`."""
        return Tables(self._run(self._answering.tables(self._answering.deadline(timeout))))

    @short
    def table(self, name: str, *, timeout: float | None = None) -> "TableHandle":
        """The table called `name`: its description as it is now, and its calls.

        `client[name]` is the same handle without a request: its description is asked for when a
        part of it is first read. TableNotFound when there is none.
        """
        info = self._run(self._answering.table(name, self._answering.deadline(timeout)))
        return TableHandle(self, name, info)


class TableHandle(Described):
    """A table of a client: the client's calls without the name, and the table's description.

        words = client["words"]
        words.lookup(keys=["king", "queen"])

    Every call asks the server, as the client's does, and raises the same errors. The description
    (`rows`, `dim`, `version`, … of TableInfo, `vector_size`, `len()`) is that of when it was first
    needed; `info()` asks anew. A handle is cheap, and can be pickled with its client.
    """

    __slots__ = ()

    _client: AllCalls

    @overload
    def lookup(
        self,
        ids: Ids | None = None,
        *,
        return_status: Literal[False] = False,
        return_info: Literal[False] = False,
        **options: Unpack[LookupOptions],
    ) -> Vectors: ...

    @overload
    def lookup(
        self,
        ids: Ids | None = None,
        *,
        return_status: Literal[True],
        **options: Unpack[LookupOptions],
    ) -> tuple[Vectors, Status]: ...

    @overload
    def lookup(
        self,
        ids: Ids | None = None,
        *,
        return_info: Literal[True],
        **options: Unpack[LookupOptions],
    ) -> tuple[Vectors, LookupInfo]: ...

    @like(LookupCalls.lookup)
    @short
    def lookup(self, *args: Any, **options: Any) -> Any:
        """As `Client.lookup` of this table."""
        return self._client.lookup(self.name, *args, **options)

    @overload
    def lookup_bags(
        self,
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
        ids: Bags | None = None,
        offsets: Ids | None = None,
        *,
        return_status: Literal[True],
        **options: Unpack[BagsOptions],
    ) -> tuple[Vectors, Status]: ...

    @overload
    def lookup_bags(
        self,
        ids: Bags | None = None,
        offsets: Ids | None = None,
        *,
        return_info: Literal[True],
        **options: Unpack[BagsOptions],
    ) -> tuple[Vectors, LookupInfo]: ...

    @like(LookupCalls.lookup_bags)
    @short
    def lookup_bags(self, *args: Any, **options: Any) -> Any:
        """As `Client.lookup_bags` of this table."""
        return self._client.lookup_bags(self.name, *args, **options)

    @like(LookupCalls.neighbors)
    @short
    def neighbors(self, *args: Any, **options: Any) -> Neighbors:
        """As `Client.neighbors` of this table."""
        return self._client.neighbors(self.name, *args, **options)

    @short
    def most_similar(
        self,
        positive: Query | Sequence[Any] | None = None,
        negative: Query | Sequence[Any] | None = None,
        topn: int = 10,
        *,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[tuple[Any, float]]:
        """The keys whose vectors are most like those of `positive`, and least like `negative`.

        As gensim's: [(key, cosine), …], `topn` of them, the nearest first, without the given ones;
        ids in place of keys for a table that has none. positive, negative: a key or a vector, or a
        list of them; a key's vector counts at length 1, a given one as it is. In a table without
        string keys integers are keys, or else ids. Every row is compared, as by `Client.neighbors`,
        with the same limits and errors. timeout: seconds for each of its requests.
        """
        plus, minus = terms(positive, "positive"), terms(negative, "negative")
        if not plus and not minus:
            raise InvalidArgument("most_similar takes keys, ids or vectors; none were given")
        given = [one for one in (*plus, *minus) if not isinstance(one, np.ndarray)]
        rows: Any = ()
        if given:
            by_key = isinstance(given[0], str | bytes)
            if not by_key:
                known = self._known if self._known is not None else self.info(timeout=timeout)
                by_key = known.key_kind in ("int64", "uint64")
            ids, keys = (None, given) if by_key else (given, None)
            rows = self._client.lookup(self.name, ids, keys=keys, version=version, timeout=timeout)
        query = mean_query(plus, minus, rows)
        k = topn + len(given)
        near = self._client.neighbors(self.name, query, k=k, version=version, timeout=timeout)
        return named_scores(near, given, topn)

    @short
    def info(self, *, timeout: float | None = None) -> TableInfo:
        """The table's description as it is now; the handle has it from then on."""
        found = self._client.table(self.name, timeout=timeout)
        self._learn(found)
        return found

    @short
    def contains(self, key: Any, *, timeout: float | None = None) -> bool:
        """Whether `key` has a row. NoKeys for a table without keys."""
        _, status = self._client.lookup(
            self.name, keys=[key], missing="zero", return_status=True, timeout=timeout
        )
        return not status.any()

    @short
    def keys_of(
        self, ids: Ids, *, version: int | None = None, timeout: float | None = None
    ) -> Vectors:
        """As `Client.keys_of` of this table."""
        return self._client.keys_of(self.name, ids, version=version, timeout=timeout)

    @short
    def ids_of(
        self,
        keys: Keys,
        *,
        allow_missing: bool = False,
        version: int | None = None,
        timeout: float | None = None,
    ) -> NDArray[np.int64]:
        """As `Client.ids_of` of this table."""
        return self._client.ids_of(
            self.name, keys, allow_missing=allow_missing, version=version, timeout=timeout
        )

    @like(KeyCalls.keys)
    @short
    def keys(self, **options: Any) -> KeyPage:
        """As `Client.keys` of this table."""
        return self._client.keys(self.name, **options)

    def scan(
        self,
        *,
        batch: int = BATCH_DEFAULT,
        slots: bool = False,
        prefix: str | bytes | None = None,
        dtype: ReplyDType = "float32",
        version: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[RowBatch]:
        """As `Client.rows` of this table; `rows` of a handle is how many there are."""
        given = {"batch": batch, "slots": slots, "prefix": prefix, "dtype": dtype}
        options: dict[str, Any] = {**given, "version": version, "timeout": timeout}
        yield from self._client.rows(self.name, **options)

    @overload
    def scatter_add(
        self, ids: Ids, deltas: Values, **options: Unpack[PushOptions]
    ) -> UpdateResult: ...

    @overload
    def scatter_add(
        self,
        ids: None = None,
        deltas: Values | None = None,
        *,
        keys: Keys,
        **options: Unpack[PushOptions],
    ) -> UpdateResult: ...

    @like(UpdateCalls.scatter_add)
    @short
    def scatter_add(self, *args: Any, **options: Any) -> UpdateResult:
        """As `Client.scatter_add` to this table."""
        return self._client.scatter_add(self.name, *args, **options)

    @overload
    def apply_gradients(
        self, ids: Ids, grads: Values, **options: Unpack[StepOptions]
    ) -> UpdateResult: ...

    @overload
    def apply_gradients(
        self,
        ids: None = None,
        grads: Values | None = None,
        *,
        keys: Keys,
        **options: Unpack[StepOptions],
    ) -> UpdateResult: ...

    @like(UpdateCalls.apply_gradients)
    @short
    def apply_gradients(self, *args: Any, **options: Any) -> UpdateResult:
        """As `Client.apply_gradients` to this table."""
        return self._client.apply_gradients(self.name, *args, **options)

    @overload
    def assign(self, ids: Ids, rows: Values, **options: Unpack[PushOptions]) -> UpdateResult: ...

    @overload
    def assign(
        self,
        ids: None = None,
        rows: Values | None = None,
        *,
        keys: Keys,
        **options: Unpack[PushOptions],
    ) -> UpdateResult: ...

    @like(UpdateCalls.assign)
    @short
    def assign(self, *args: Any, **options: Any) -> UpdateResult:
        """As `Client.assign` to this table."""
        return self._client.assign(self.name, *args, **options)

    @like(UpdateCalls.upsert)
    @short
    def upsert(self, keys: Keys, rows: Values, **options: Unpack[UpsertOptions]) -> UpdateResult:
        """As `Client.upsert` to this table."""
        return self._client.upsert(self.name, keys, rows, **options)

    @like(UpdateCalls.delete_rows)
    @short
    def delete_rows(self, keys: Keys, **options: Unpack[UpsertOptions]) -> UpdateResult:
        """As `Client.delete_rows` of this table."""
        return self._client.delete_rows(self.name, keys, **options)

    # The blocking handle's alone: what Python's operators ask for can't be awaited.

    def _description(self) -> TableInfo:
        if self._known is None:
            self.info()
        return super()._description()

    def __contains__(self, key: object) -> bool:
        return self.contains(key)

    @short
    def __getitem__(self, which: Any) -> Vectors:
        """The vectors of a key or keys, or of ids if the table has no integer keys."""
        first = which
        while isinstance(first, list | tuple) and first:
            first = first[0]
        is_key = isinstance(first, str | bytes) or self.key_kind in ("int64", "uint64")
        return self.lookup(keys=which) if is_key else self.lookup(which)
