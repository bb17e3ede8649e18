"""The logic of every call, once for the blocking and the awaited client.

`Answering` checks arguments and shapes results. Its subclasses get the answers: remote.py asks a
server, transports/local.py reads the files itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gatherd._plans.effects import Deadline, Plan
from gatherd._plans.retry import Tries
from gatherd._requests.bags import prepare_bags, split_pair
from gatherd._requests.dedup import distinct, expanded
from gatherd._requests.keys import KeyPage, KeysSpec, key_page, prepare_ids_of, prepare_keys
from gatherd._requests.lookups import (
    Answer,
    KeysOfSpec,
    LookupSpec,
    Returned,
    TableInfo,
    parse_reply_type,
    prepare,
    prepare_keys_of,
)
from gatherd._requests.names import Bags, Ids, Keys, Query, Values
from gatherd._requests.neighbors import (
    Neighbors,
    NeighborsSpec,
    prepare_neighbors,
)
from gatherd._requests.scans import PageOfRows, ScanSpec
from gatherd.errors import IdOutOfRange, InvalidArgument, KeyNotFound
from gatherd.store.query import FoundKeys


class Answering(ABC):
    """The calls of a client, as plans; see _plans/effects.py."""

    def __init__(self, tries: Tries) -> None:
        self._tries = tries

    def lookup(
        self,
        table: str,
        ids: Ids | None,
        *,
        keys: Keys | None,
        dtype: DTypeLike,
        missing: str,
        out: NDArray[Any] | None,
        returned: Returned,
        version: int | None = None,
        dedup: bool = False,
        timeout: float | Deadline | None,
    ) -> Plan[Any]:
        """The plan of Client.lookup."""
        deadline = self.deadline(timeout)
        spec = prepare(table, ids, keys, parse_reply_type(dtype), missing, out, version)
        spec = returned.applied_to(spec)
        answers = yield from self._gather((spec,), deadline, dedup)
        return returned.result(spec, answers[0])

    def lookup_many(
        self,
        ids: Mapping[str, Ids] | None,
        *,
        keys: Mapping[str, Keys] | None,
        dtype: DTypeLike,
        missing: str,
        returned: Returned,
        version: Mapping[str, int] | None = None,
        dedup: bool = False,
        timeout: float | Deadline | None,
    ) -> Plan[Any]:
        """The plan of Client.lookup_many."""
        deadline = self.deadline(timeout)
        by_id, by_key = mappings("lookup_many", ids, keys)
        reply = parse_reply_type(dtype)
        versions = extras("lookup_many", "version", version, (by_id, by_key))
        specs = [
            prepare(table, given, None, reply, missing, version=versions.get(table))
            for table, given in by_id.items()
        ]
        specs += [
            prepare(table, None, given, reply, missing, version=versions.get(table))
            for table, given in by_key.items()
        ]
        return (yield from self._gather_many(specs, returned, deadline, dedup=dedup))

    def lookup_bags(
        self,
        table: str,
        ids: Bags | None,
        offsets: Ids | None,
        *,
        keys: Bags | None,
        mode: str,
        weights: Values | None,
        padding_id: int | None,
        dtype: DTypeLike,
        missing: str,
        out: NDArray[Any] | None,
        returned: Returned,
        version: int | None = None,
        timeout: float | Deadline | None,
    ) -> Plan[Any]:
        """The plan of Client.lookup_bags."""
        deadline = self.deadline(timeout)
        spec = prepare_bags(
            table,
            ids,
            offsets,
            keys,
            mode=mode,
            weights=weights,
            padding_id=padding_id,
            reply=parse_reply_type(dtype),
            missing=missing,
            out=out,
            version=version,
        )
        spec = returned.applied_to(spec)
        answers = yield from self.gather((spec,), deadline)
        return returned.result(spec, answers[0])

    def lookup_bags_many(
        self,
        ids: Mapping[str, Bags] | None,
        *,
        keys: Mapping[str, Bags] | None,
        mode: str,
        weights: Mapping[str, Values] | None,
        padding_id: int | None,
        dtype: DTypeLike,
        missing: str,
        returned: Returned,
        version: Mapping[str, int] | None = None,
        timeout: float | Deadline | None,
    ) -> Plan[Any]:
        """The plan of Client.lookup_bags_many."""
        deadline = self.deadline(timeout)
        by_id, by_key = mappings("lookup_bags_many", ids, keys)
        reply = parse_reply_type(dtype)
        weights = extras("lookup_bags_many", "weights", weights, (by_id, by_key))
        versions = extras("lookup_bags_many", "version", version, (by_id, by_key))
        specs = []
        for given, keyed in ((by_id, False), (by_key, True)):
            for table, value in given.items():
                flat, offsets = split_pair(table, value)
                own_ids, own_keys = (None, flat) if keyed else (flat, None)
                spec = prepare_bags(
                    table,
                    own_ids,
                    offsets,
                    own_keys,
                    mode=mode,
                    weights=weights.get(table),
                    padding_id=padding_id,
                    reply=reply,
                    missing=missing,
                    version=versions.get(table),
                )
                specs.append(spec)
        return (yield from self._gather_many(specs, returned, deadline))

    def keys_of(
        self, table: str, ids: Ids, *, version: int | None = None, timeout: float | None
    ) -> Plan[NDArray[Any]]:
        """The plan of Client.keys_of."""
        deadline = self.deadline(timeout)
        return (yield from self.find_keys(prepare_keys_of(table, ids, version), deadline))

    def keys(
        self,
        table: str,
        prefix: str | bytes | None,
        limit: int,
        start: int,
        version: int | None,
        *,
        timeout: float | None,
    ) -> Plan[KeyPage]:
        """The plan of Client.keys: goes on while pages are empty, all of one version."""
        deadline = self.deadline(timeout)
        spec = prepare_keys(table, prefix, limit, start, version)
        while True:
            found = yield from self.list_keys(spec, deadline)
            if found.ids.size or found.next is None:
                return key_page(found)
            query = replace(spec.query, start=found.next)
            spec = replace(spec, query=query, version=found.version)

    def scan(self, spec: ScanSpec, *, timeout: float | None) -> Plan[PageOfRows]:
        """The plan of one page of Client.rows."""
        return (yield from self.scan_page(spec, self.deadline(timeout)))

    def ids_of(
        self,
        table: str,
        keys: Keys,
        *,
        allow_missing: bool,
        version: int | None,
        timeout: float | None,
    ) -> Plan[NDArray[np.int64]]:
        """The plan of Client.ids_of."""
        deadline = self.deadline(timeout)
        spec = prepare_ids_of(table, keys, allow_missing, version)
        return (yield from self.find_ids(spec, deadline))

    def neighbors(
        self,
        table: str,
        query: Query | None,
        *,
        keys: Keys | None,
        k: int,
        metric: str,
        include_self: bool,
        version: int | None,
        timeout: float | None,
    ) -> Plan[Neighbors]:
        """The plan of Client.neighbors."""
        deadline = self.deadline(timeout)
        spec = prepare_neighbors(table, query, keys, k, metric, include_self, version)
        return (yield from self.find_neighbors(spec, deadline))

    def versions(self, name: str, deadline: Deadline) -> Plan[tuple[int, ...]]:
        """The plan of Client.versions."""
        return (yield from self.table(name, deadline)).versions

    def _gather(
        self, specs: Sequence[LookupSpec], deadline: Deadline, dedup: object
    ) -> Plan[list[Answer]]:
        """As `gather`; with `dedup` every id or key is sent once."""
        if dedup is False:
            return (yield from self.gather(specs, deadline))
        if dedup is not True:
            raise InvalidArgument(f"dedup is True or False, not {dedup!r}")
        found = [distinct(spec.asked) for spec in specs]
        few = [
            replace(spec, asked=asked, out=None)
            for spec, (asked, _) in zip(specs, found, strict=True)
        ]
        try:
            answers = yield from self.gather(few, deadline)
        except (IdOutOfRange, KeyNotFound):
            # Asked again in full, the error names an id or key by its place in the caller's array.
            return (yield from self.gather(specs, deadline))
        return [
            expanded(spec, answer, places)
            for spec, answer, (_, places) in zip(specs, answers, found, strict=True)
        ]

    def _gather_many(
        self,
        specs: Sequence[LookupSpec],
        returned: Returned,
        deadline: Deadline,
        *,
        dedup: object = False,
    ) -> Plan[dict[str, Any]]:
        if not specs:
            return {}
        specs = [*map(returned.applied_to, specs)]
        answers = yield from self._gather(specs, deadline, dedup)
        return {
            spec.table: returned.result(spec, answer)
            for spec, answer in zip(specs, answers, strict=True)
        }

    def deadline(self, timeout: float | Deadline | None) -> Deadline:
        """The deadline of a call that begins now; a Deadline is that of one that began already."""
        if isinstance(timeout, Deadline):
            return timeout
        return self._tries.deadline(timeout)

    @abstractmethod
    def gather(self, specs: Sequence[LookupSpec], deadline: Deadline) -> Plan[list[Answer]]:
        """The answers to `specs`, in their order. All or nothing. All are bags, or none is."""

    @abstractmethod
    def find_ids(self, spec: LookupSpec, deadline: Deadline) -> Plan[NDArray[np.int64]]:
        """The ids of the keys, in their shape; −1 for one without a row if `missing` allows it."""

    @abstractmethod
    def find_keys(self, spec: KeysOfSpec, deadline: Deadline) -> Plan[NDArray[Any]]:
        """The keys of the ids, in their shape, as `key_array` returns them."""

    @abstractmethod
    def scan_page(self, spec: ScanSpec, deadline: Deadline) -> Plan[PageOfRows]:
        """A page of rows, which may be empty."""

    @abstractmethod
    def list_keys(self, spec: KeysSpec, deadline: Deadline) -> Plan[FoundKeys]:
        """A page of keys, which may be empty."""

    @abstractmethod
    def find_neighbors(self, spec: NeighborsSpec, deadline: Deadline) -> Plan[Neighbors]:
        """The nearest rows of a table."""

    @abstractmethod
    def tables(self, deadline: Deadline) -> Plan[list[TableInfo]]:
        """Every table."""

    @abstractmethod
    def table(self, name: str, deadline: Deadline) -> Plan[TableInfo]:
        """The table called `name`; TableNotFound when there is none."""

    @abstractmethod
    def close(self) -> None:
        """Release its own resources; the shell closes the transport."""


def mappings(
    call: str, ids: Mapping[str, Any] | None, keys: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The `ids` and the `keys` of a call of many tables, each a dict by table.

    InvalidArgument when one is no dict, or both have the same table.
    """
    by_id, by_key = _mapping(call, "ids", ids), _mapping(call, "keys", keys)
    for table in by_key:
        if table in by_id:
            raise InvalidArgument(f"table {table!r} has ids and keys; {call} takes one of them")
    return by_id, by_key


def extras(
    call: str, name: str, given: object, tables: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The further argument `name`, a dict by table; each table has to be in one of `tables`."""
    found = _mapping(call, name, given)
    for table in found:
        if not any(table in asked for asked in tables):
            raise InvalidArgument(f"{name} has table {table!r}, which {call} isn't asked about")
    return found


def _mapping(call: str, name: str, given: object) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"{call} takes a dict of table to {name}, not {type(given).__name__}")
    return given
