"""Every way to ask for a lookup, behind one method, so that one set of cases judges them all.

`Surface.lookup` takes ids as a case has them, right or wrong, and puts them on its wire as they
are; it returns vectors in the dtype asked for (bfloat16 as float32) and a status per id, or raises
the gatherd error that came over the wire.
"""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gatherd import AsyncClient, Batching, Client, Neighbors, RowBatch, UpdateResult
from gatherd.errors import IdOutOfRange, TableNotFound, by_reason
from gatherd.store.dtypes import DType, bfloat16_to_float32

Answer = tuple[NDArray[Any], NDArray[np.uint8]]
Page = tuple[list[Any], list[int], int | None]
"""Keys, str (surrogateescape) or int, their ids, and where the next page begins."""


@dataclass(frozen=True, eq=False)
class Bags:
    """Flat ids or keys with offsets, and how they are pooled."""

    rows: Any
    offsets: Any
    mode: str = "sum"
    weights: Any = None
    padding_id: int | None = None
    missing: str = "error"
    by_keys: bool = False

    def options(self) -> dict[str, Any]:
        """The SDK's arguments beside the table."""
        return {
            "keys" if self.by_keys else "ids": self.rows,
            "offsets": self.offsets,
            "mode": self.mode,
            "weights": self.weights,
            "padding_id": self.padding_id,
            "missing": self.missing,
        }


@dataclass(frozen=True)
class Form:
    """The form of a reply's vectors."""

    dims: int | None = None
    normalize: bool = False
    dtype: str = "float32"
    missing: str = "error"

    def options(self) -> dict[str, Any]:
        """The SDK's arguments, and REST's members."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Search:
    """Ids, string keys or vectors, and how their neighbors are found."""

    query: Any
    kind: str
    """ids, keys or vectors."""
    k: int = 10
    metric: str = "cosine"
    include_self: bool = False

    def options(self) -> dict[str, Any]:
        """The SDK's arguments beside the table."""
        return {
            "keys" if self.kind == "keys" else "query": self.query,
            "k": self.k,
            "metric": self.metric,
            "include_self": self.include_self,
        }


@dataclass(frozen=True, eq=False)
class Near:
    """The answer to a search; keys nested as str (surrogateescape) or int, None without keys."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    keys: Any


@dataclass(frozen=True, eq=False)
class Scan:
    """Which rows of a table are read, and how; `cursor` is raw bytes, as messages have it."""

    limit: int = 1000
    prefix: str = ""
    dtype: str = "float32"
    slots: bool = False
    version: int = 0
    cursor: bytes = b""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a page; keys as str (surrogateescape) or int, None without keys."""

    ids: list[int]
    keys: list[Any] | None
    vectors: NDArray[Any]
    slots: dict[str, NDArray[Any]]
    version: int
    cursor: bytes = b""


@dataclass(frozen=True, eq=False)
class Update:
    """Ids or keys of one table with their values, as a case has them, right or wrong.

    `values` are None for rows that are deleted.
    """

    rows: Any
    values: Any
    by_keys: bool = False
    lr: float | None = None
    if_version: int = 0
    create: bool = False


@dataclass(frozen=True)
class Updated:
    """The answer to an update; of open tables, by name, what isn't 0."""

    lsn: int
    versions: dict[str, int]
    created: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    not_admitted: dict[str, int] = field(default_factory=dict)


class Surface(ABC):
    """One way to ask."""

    name: str

    def can_tell(self, shape: tuple[int, ...]) -> bool:
        """Whether this surface can carry ids of `shape`."""
        return True

    @abstractmethod
    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer: ...

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        raise NotImplementedError

    def lookup_keys(self, table: str, keys: Any, *, missing: str = "error") -> Answer:
        raise NotImplementedError

    def keys_of(self, table: str, ids: Any) -> Any:
        """Keys nested as the ids are: str (surrogateescape) or int."""
        raise NotImplementedError

    def ids_of(self, table: str, keys: Any, *, allow_missing: bool = False) -> Any:
        """Ids nested as the keys are."""
        raise NotImplementedError

    def keys(self, table: str, prefix: str = "", limit: int = 1000, start: int = 0) -> Page:
        raise NotImplementedError

    def scan(self, table: str, scan: Scan) -> list[Rows]:
        """A whole table, page by page; of the SDK the pages are batches, without their version."""
        pages = [self.scan_page(table, scan)]
        while pages[-1].cursor:
            pages.append(self.scan_page(table, replace(scan, cursor=pages[-1].cursor)))
        return pages

    def scan_page(self, table: str, scan: Scan) -> Rows:
        """A page; the SDK has no such call."""
        raise NotImplementedError

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        raise NotImplementedError

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        raise NotImplementedError

    def formed(self, table: str, ids: Any, form: Form) -> Answer:
        raise NotImplementedError

    def formed_bags(self, table: str, bags: Bags, form: Form) -> Answer:
        """`bags` have their own `missing`."""
        raise NotImplementedError

    def informed(self, table: str, ids: Any) -> tuple[NDArray[Any], int, int]:
        """Vectors with the version and the LSN."""
        raise NotImplementedError

    def neighbors(self, table: str, search: Search) -> Near:
        raise NotImplementedError

    def update(self, op: str, updates: dict[str, Update], request_id: str | None = None) -> Updated:
        """`op` is the SDK's method; `request_id` an idempotency key."""
        raise NotImplementedError

    @property
    def updates_many(self) -> bool:
        """Whether one update can have several tables here."""
        return True

    def has(self, method: str) -> bool:
        """Whether this surface has the operation `method`."""
        return getattr(type(self), method) is not getattr(Surface, method)

    @property
    def answers_many(self) -> bool:
        """Whether this surface has a lookup of many tables."""
        return type(self).lookup_many is not Surface.lookup_many

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


def raise_wire_error(reason: str, message: str, metadata: dict[str, str]) -> NoReturn:
    cls = by_reason(reason)
    assert cls is not None, f"unknown reason {reason!r} with message {message!r}"
    raise cls(message, metadata)


def decode_vectors(data: bytes, shape: tuple[int, ...], dtype: DType) -> NDArray[Any]:
    stored = np.frombuffer(data, dtype.storage).reshape(shape)
    if dtype is not DType.BFLOAT16:
        return stored
    wide = np.empty(shape, np.float32)
    bfloat16_to_float32(stored, wide)
    return wide


def sdk_scan(scan: Scan) -> dict[str, Any]:
    """The SDK's arguments beside the table."""
    return {
        "batch": scan.limit,
        "prefix": scan.prefix or None,
        "dtype": scan.dtype,
        "slots": scan.slots,
        "version": scan.version or None,
    }


def sdk_rows(batch: RowBatch) -> Rows:
    keys = None if batch.keys is None else batch.keys.tolist()
    return Rows(batch.ids.tolist(), keys, batch.vectors, dict(batch.slots), 0)


class SyncSdk(Surface):
    def __init__(self, name: str, url: str, *, dedup: bool = False) -> None:
        self.name = name
        self._client = Client(url)
        self._dedup = dedup

    def lookup(
        self, table: str, ids: Any, *, dtype: Any = "float32", missing: Any = "error"
    ) -> Answer:
        return self._client.lookup(
            table, ids, dtype=dtype, missing=missing, return_status=True, dedup=self._dedup
        )

    def lookup_many(self, requests: dict[str, Any], *, missing: Any = "error") -> dict[str, Any]:
        return self._client.lookup_many(requests, missing=missing, dedup=self._dedup)

    def lookup_keys(self, table: str, keys: Any, *, missing: Any = "error") -> Answer:
        return self._client.lookup(
            table, keys=keys, missing=missing, return_status=True, dedup=self._dedup
        )

    def keys_of(self, table: str, ids: Any) -> Any:
        return self._client.keys_of(table, ids).tolist()

    def ids_of(self, table: str, keys: Any, *, allow_missing: bool = False) -> Any:
        return self._client.ids_of(table, keys, allow_missing=allow_missing).tolist()

    def keys(self, table: str, prefix: str = "", limit: int = 1000, start: int = 0) -> Page:
        page = self._client.keys(table, prefix=prefix, limit=limit, start=start)
        return page.keys.tolist(), page.ids.tolist(), page.next

    def scan(self, table: str, scan: Scan) -> list[Rows]:
        return [sdk_rows(batch) for batch in self._client.rows(table, **sdk_scan(scan))]

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        return self._client.lookup_bags(table, **bags.options(), return_status=True)

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        return self._client.lookup_bags_many(**sdk_bags_many(bags))

    def formed(self, table: str, ids: Any, form: Form) -> Answer:
        options = form.options()
        return self._client.lookup(table, ids, return_status=True, dedup=self._dedup, **options)

    def formed_bags(self, table: str, bags: Bags, form: Form) -> Answer:
        options = form.options() | bags.options()
        return self._client.lookup_bags(table, return_status=True, **options)

    def informed(self, table: str, ids: Any) -> tuple[NDArray[Any], int, int]:
        vectors, info = self._client.lookup(table, ids, return_info=True, dedup=self._dedup)
        assert not info.status.any()
        return vectors, info.version, info.lsn

    def neighbors(self, table: str, search: Search) -> Near:
        return sdk_near(self._client.neighbors(table, **search.options()))

    def update(self, op: str, updates: dict[str, Update], request_id: str | None = None) -> Updated:
        name, arguments = sdk_update(op, updates, request_id)
        done = getattr(self._client, name)(**arguments)
        return sdk_updated(done)

    def close(self) -> None:
        self._client.close()


class AsyncSdk(Surface):
    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(url))

    @staticmethod
    async def _make(url: str) -> AsyncClient:
        return AsyncClient(url)

    def lookup(
        self, table: str, ids: Any, *, dtype: Any = "float32", missing: Any = "error"
    ) -> Answer:
        return self._runner.run(
            self._client.lookup(table, ids, dtype=dtype, missing=missing, return_status=True)
        )

    def lookup_many(self, requests: dict[str, Any], *, missing: Any = "error") -> dict[str, Any]:
        return self._runner.run(self._client.lookup_many(requests, missing=missing))

    def lookup_keys(self, table: str, keys: Any, *, missing: Any = "error") -> Answer:
        return self._runner.run(
            self._client.lookup(table, keys=keys, missing=missing, return_status=True)
        )

    def keys_of(self, table: str, ids: Any) -> Any:
        return self._runner.run(self._client.keys_of(table, ids)).tolist()

    def ids_of(self, table: str, keys: Any, *, allow_missing: bool = False) -> Any:
        asked = self._client.ids_of(table, keys, allow_missing=allow_missing)
        return self._runner.run(asked).tolist()

    def keys(self, table: str, prefix: str = "", limit: int = 1000, start: int = 0) -> Page:
        page = self._runner.run(self._client.keys(table, prefix=prefix, limit=limit, start=start))
        return page.keys.tolist(), page.ids.tolist(), page.next

    def scan(self, table: str, scan: Scan) -> list[Rows]:
        async def whole() -> list[Rows]:
            found = self._client.rows(table, **sdk_scan(scan))
            return [sdk_rows(batch) async for batch in found]

        return self._runner.run(whole())

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        return self._runner.run(
            self._client.lookup_bags(table, **bags.options(), return_status=True)
        )

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        return self._runner.run(self._client.lookup_bags_many(**sdk_bags_many(bags)))

    def formed(self, table: str, ids: Any, form: Form) -> Answer:
        options = form.options()
        return self._runner.run(self._client.lookup(table, ids, return_status=True, **options))

    def formed_bags(self, table: str, bags: Bags, form: Form) -> Answer:
        options = form.options() | bags.options()
        return self._runner.run(self._client.lookup_bags(table, return_status=True, **options))

    def informed(self, table: str, ids: Any) -> tuple[NDArray[Any], int, int]:
        found = self._runner.run(self._client.lookup_many({table: ids}, return_info=True))
        vectors, info = found[table]
        return vectors, info.version, info.lsn

    def neighbors(self, table: str, search: Search) -> Near:
        return sdk_near(self._runner.run(self._client.neighbors(table, **search.options())))

    def update(self, op: str, updates: dict[str, Update], request_id: str | None = None) -> Updated:
        name, arguments = sdk_update(op, updates, request_id)
        done = self._runner.run(getattr(self._client, name)(**arguments))
        return sdk_updated(done)

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


class MergedSdk(AsyncSdk):
    """An AsyncClient that merges lookups, and never one alone: among good and bad neighbours."""

    @staticmethod
    async def _make(url: str) -> AsyncClient:
        return AsyncClient(url, batching=Batching())

    def lookup(
        self, table: str, ids: Any, *, dtype: Any = "float32", missing: Any = "error"
    ) -> Answer:
        return self._runner.run(self._among_others(table, ids, dtype, missing))

    async def _among_others(self, table: str, ids: Any, dtype: Any, missing: Any) -> Answer:
        look_up = self._client.lookup
        before, own, *after = await asyncio.gather(
            look_up("float32", [7, 3]),
            look_up(table, ids, dtype=dtype, missing=missing, return_status=True),
            look_up("float32", [300]),
            look_up("float32", 299),
            look_up("no-such-table", 0),
            look_up("float16", [[1]], dtype="float16"),
            return_exceptions=True,
        )
        assert not isinstance(before, BaseException)
        assert before.shape == (2, 24)
        assert isinstance(after[0], IdOutOfRange)
        assert getattr(after[1], "shape", None) == (24,)
        assert isinstance(after[2], TableNotFound)
        assert getattr(after[3], "dtype", None) == np.float16
        if isinstance(own, BaseException):
            raise own
        vectors, status = own
        return vectors, status


def sdk_bags_many(bags: dict[str, Bags]) -> dict[str, Any]:
    """The arguments of lookup_bags_many; the cases give every table the same options."""
    one = next(iter(bags.values()))
    by_id = {table: (b.rows, b.offsets) for table, b in bags.items() if not b.by_keys}
    by_key = {table: (b.rows, b.offsets) for table, b in bags.items() if b.by_keys}
    weights = {table: b.weights for table, b in bags.items() if b.weights is not None}
    return {
        "ids": by_id,
        "keys": by_key or None,
        "weights": weights or None,
        "mode": one.mode,
        "missing": one.missing,
    }


def sdk_near(found: Neighbors) -> Near:
    return Near(found.ids, found.scores, None if found.keys is None else found.keys.tolist())


def sdk_updated(done: UpdateResult) -> Updated:
    counts = (dict(one) for one in (done.created, done.removed, done.not_admitted))
    return Updated(done.lsn, done.versions, *counts)


_VALUES_NAME = {"scatter_add": "deltas", "apply_gradients": "grads", "assign": "rows"}


def sdk_update(
    op: str, updates: dict[str, Update], request_id: str | None
) -> tuple[str, dict[str, Any]]:
    """The SDK's method for an update, and its arguments."""
    arguments: dict[str, Any] = {"idempotency_key": request_id}
    if op == "delete_rows":
        arguments["keys"] = {table: one.rows for table, one in updates.items()}
        return "delete_rows_many", arguments
    if len(updates) == 1:
        ((table, one),) = updates.items()
        arguments |= {"table": table, _VALUES_NAME[op]: one.values}
        arguments["keys" if one.by_keys else "ids"] = one.rows
        if one.create:
            arguments["create"] = True
        if one.lr is not None:
            arguments["lr"] = one.lr
        if one.if_version:
            arguments["if_version"] = one.if_version
        return op, arguments
    arguments |= {
        "updates": {t: (u.rows, u.values) for t, u in updates.items() if not u.by_keys} or None,
        "keys": {t: (u.rows, u.values) for t, u in updates.items() if u.by_keys} or None,
        "if_version": {t: u.if_version for t, u in updates.items() if u.if_version} or None,
    }
    creates = {t: True for t, u in updates.items() if u.create}
    if creates:
        arguments["create"] = creates
    rates = {t: u.lr for t, u in updates.items() if u.lr is not None}
    if rates:
        arguments["lr"] = rates
    return f"{op}_many", arguments


def as_bytes(key: Any) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogateescape")
