"""Answers from a server, in as many requests as its limits demand."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd._plans import chunks
from gatherd._plans.answering import Answering
from gatherd._plans.assemble import Assembler
from gatherd._plans.chunks import Cost, Piece
from gatherd._plans.effects import Deadline, Plan, Send, T
from gatherd._plans.positions import in_whole
from gatherd._plans.retry import Tries
from gatherd._requests.keys import KeysSpec
from gatherd._requests.lookups import Answer, KeysOfSpec, Limits, LookupSpec, TableInfo, key_array
from gatherd._requests.neighbors import Neighbors, NeighborsSpec
from gatherd._requests.scans import PageOfRows, ScanSpec
from gatherd._wire import lookups
from gatherd._wire.keys import (
    decode_ids_of,
    decode_list_keys,
    encode_ids_of,
    encode_list_keys,
)
from gatherd._wire.neighbors import decode_neighbors, encode_neighbors
from gatherd._wire.protobuf import unreadable
from gatherd._wire.scans import decode_scan, encode_scan
from gatherd.errors import (
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    VersionNotFound,
)
from gatherd.store.keys import KEY_BYTES_MAX, StringKeys
from gatherd.store.query import ByKey, FoundKeys, Missing
from gatherd_proto.procedures import (
    GET_TABLE,
    IDS_OF,
    KEYS_OF,
    LIST_KEYS,
    LIST_TABLES,
    NEIGHBORS,
    SCAN,
)

# Up to these a lookup is sent as it is, without asking for the limits first.
IDS_UNASKED_MAX = 65_536
TABLES_UNASKED_MAX = 64
# How many tables' infos a client remembers.
INFOS_MAX = 4_096
# How often a lookup in several requests begins again when its version is dropped meanwhile.
RESTARTS_MAX = 3
# The length that precedes a string key.
LENGTH_BYTES = 4
OFFSET_BYTES = 8
WEIGHT_BYTES = 4
INTEGER_KEY_BYTES = 8

Spec: TypeAlias = LookupSpec | KeysOfSpec
Requests: TypeAlias = Sequence[tuple[Piece, ...]]


class RemoteAnswering(Answering):
    """Asks a server."""

    def __init__(self, tries: Tries) -> None:
        super().__init__(tries)
        self._limits: Limits | None = None
        self._infos: dict[str, TableInfo] = {}

    def gather(self, specs: Sequence[LookupSpec], deadline: Deadline) -> Plan[list[Answer]]:
        """One request when it fits, several when it doesn't."""

        def once(requests: Requests) -> Plan[list[Answer]]:
            return self._gather_once(specs, requests, deadline)

        return (yield from self._ask(specs, once, deadline))

    def find_keys(self, spec: KeysOfSpec, deadline: Deadline) -> Plan[NDArray[Any]]:
        """One request when it fits, several when it doesn't."""

        def once(requests: Requests) -> Plan[NDArray[Any]]:
            return self._find_keys_once(spec, requests, deadline)

        return (yield from self._ask((spec,), once, deadline))

    def find_ids(self, spec: LookupSpec, deadline: Deadline) -> Plan[NDArray[np.int64]]:
        """One request when it fits, several when it doesn't."""

        def once(requests: Requests) -> Plan[NDArray[np.int64]]:
            return self._find_ids_once(spec, requests, deadline)

        return (yield from self._ask((spec,), once, deadline))

    def list_keys(self, spec: KeysSpec, deadline: Deadline) -> Plan[FoundKeys]:
        """One request."""
        body = yield from self._send(LIST_KEYS.path, encode_list_keys(spec), deadline)
        return decode_list_keys(body, spec)

    def scan_page(self, spec: ScanSpec, deadline: Deadline) -> Plan[PageOfRows]:
        """One request."""
        body = yield from self._send(SCAN.path, encode_scan(spec), deadline)
        return decode_scan(body, spec)

    def find_neighbors(self, spec: NeighborsSpec, deadline: Deadline) -> Plan[Neighbors]:
        """One request: the server's limits bound a search, and it is never divided."""
        body = yield from self._send(NEIGHBORS.path, encode_neighbors(spec), deadline)
        return decode_neighbors(body, spec)

    def tables(self, deadline: Deadline) -> Plan[list[TableInfo]]:
        """ListTables, whose reply has the limits as well."""
        body = yield from self._send(LIST_TABLES.path, lookups.encode_list_tables(), deadline)
        tables, limits = lookups.decode_list_tables(body)
        self._learn(tables, limits)
        return tables

    def table(self, name: str, deadline: Deadline) -> Plan[TableInfo]:
        """GetTable, whose reply has the limits as well."""
        if not isinstance(name, str):
            raise InvalidArgument(f"a table's name is a str, not {name!r}")
        try:
            request = lookups.encode_get_table(name)
        except UnicodeEncodeError:
            raise InvalidArgument(f"table {name!r}: the name can't be written as UTF-8") from None
        body = yield from self._send(GET_TABLE.path, request, deadline)
        table, limits = lookups.decode_get_table(body)
        self._learn([table], limits)
        return table

    def close(self) -> None:
        """Nothing is held."""

    def _learn(self, tables: Sequence[TableInfo], limits: Limits) -> None:
        if len(self._infos) + len(tables) > INFOS_MAX:
            self._infos.clear()
        self._infos.update((table.name, table) for table in tables[:INFOS_MAX])
        self._limits = limits

    def _ask(
        self, specs: Sequence[Spec], once: Callable[[Requests], Plan[T]], deadline: Deadline
    ) -> Plan[T]:
        """The answer of `once` to the requests that `specs` are packed into."""
        requests = _whole(specs)
        size = sum(max(spec.asked.size, spec.vector_count) for spec in specs)
        if size > IDS_UNASKED_MAX or len(specs) > TABLES_UNASKED_MAX:
            requests = yield from self._plan_requests(specs, deadline, fresh=False)
        try:
            return (yield from _restarted(specs, requests, once))
        except LimitExceeded:
            # The limits weren't known, or those of the server or the dim of a table have changed.
            smaller = yield from self._plan_requests(specs, deadline, fresh=True)
            if smaller == requests:
                raise
        return (yield from _restarted(specs, smaller, once))

    def _plan_requests(
        self, specs: Sequence[Spec], deadline: Deadline, *, fresh: bool
    ) -> Plan[list[tuple[Piece, ...]]]:
        """Pack `specs` into requests, by limits and dims that are `fresh` or remembered."""
        infos: dict[str, TableInfo] = {}
        if fresh and len(specs) > 1:
            infos = {table.name: table for table in (yield from self.tables(deadline))}
        for spec in specs:
            info = infos.get(spec.table) if fresh else self._infos.get(spec.table)
            if info is None or self._limits is None:
                info = yield from self.table(spec.table, deadline)
            infos[spec.table] = info
        assert self._limits is not None  # there is at least one spec
        costs = [_cost(spec, infos[spec.table]) for spec in specs]
        return chunks.plan_requests(costs, self._limits)

    def _gather_once(
        self, specs: Sequence[LookupSpec], requests: Requests, deadline: Deadline
    ) -> Plan[list[Answer]]:
        assemblers = [Assembler(spec) for spec in specs]
        many = len(specs) > 1
        for pieces in requests:
            parts = [assemblers[piece.lookup].cut(piece) for piece in pieces]
            versions = [assemblers[piece.lookup].version for piece in pieces]
            method, body = lookups.encode_lookups(
                list(zip(parts, versions, strict=True)), many=many
            )
            try:
                reply = yield from self._send(method, body, deadline)
            except (IdOutOfRange, KeyNotFound) as error:
                raise in_whole(error, specs, pieces) from None
            replies = lookups.decode_lookups(reply, many=many)
            if len(replies) != len(pieces):
                raise unreadable(f"it answers {len(replies)} lookups of {len(pieces)}")
            for piece, part, lookup_reply in zip(pieces, parts, replies, strict=True):
                assemblers[piece.lookup].add(piece, part, lookup_reply)
        return [assembler.answer() for assembler in assemblers]

    def _find_keys_once(
        self, spec: KeysOfSpec, requests: Requests, deadline: Deadline
    ) -> Plan[NDArray[Any]]:
        found: list[NDArray[Any]] = []
        version = spec.version
        for pieces in requests:
            (piece,) = pieces
            part = spec.cut(piece.start, piece.stop)
            body = lookups.encode_keys_of(part, version)
            try:
                reply = yield from self._send(KEYS_OF.path, body, deadline)
            except IdOutOfRange as error:
                raise in_whole(error, (spec,), pieces) from None
            keys, answered = lookups.decode_keys_of(reply, part.asked.shape)
            if version and answered != version:
                raise unreadable(f"version {answered} answered, {version} was asked")
            version = answered
            found.append(key_array(keys))
        if len({part.dtype for part in found}) > 1:
            raise unreadable(f"table {spec.table!r} changed its kind of keys within one version")
        return found[0] if len(found) == 1 else np.concatenate(found).reshape(spec.asked.shape)

    def _find_ids_once(
        self, spec: LookupSpec, requests: Requests, deadline: Deadline
    ) -> Plan[NDArray[np.int64]]:
        found = np.empty(spec.asked.size, np.int64)
        version = spec.version
        for pieces in requests:
            (piece,) = pieces
            part = spec.cut(piece.start, piece.stop)
            try:
                reply = yield from self._send(IDS_OF.path, encode_ids_of(part, version), deadline)
            except KeyNotFound as error:
                raise in_whole(error, (spec,), pieces) from None
            found[piece.start : piece.stop], answered = decode_ids_of(reply, part)
            if version and answered != version:
                raise unreadable(f"version {answered} answered, {version} was asked")
            version = answered
        return found.reshape(spec.asked.shape)

    def _send(self, method: str, body: bytes, deadline: Deadline) -> Plan[memoryview]:
        return self._tries.send(Send(method, body, deadline))


def _restarted(
    specs: Sequence[Spec], requests: Requests, once: Callable[[Requests], Plan[T]]
) -> Plan[T]:
    """The answer of `once`, begun anew when the version that answered first is dropped."""
    may_change = len(requests) > 1 and not all(spec.version for spec in specs)
    for _ in range(RESTARTS_MAX if may_change else 0):
        try:
            return (yield from once(requests))
        except VersionNotFound:
            continue
    return (yield from once(requests))


def _whole(specs: Sequence[Spec]) -> list[tuple[Piece, ...]]:
    return [tuple(Piece(index, 0, spec.vector_count) for index, spec in enumerate(specs))]


def _cost(spec: Spec, info: TableInfo) -> Cost:
    dimensions = chunks.DIMENSION_BYTES * (len(spec.asked.shape) + 1)
    request = chunks.REQUEST_FRAME_BYTES + len(spec.table_bytes) + dimensions
    reply = chunks.REPLY_FRAME_BYTES + dimensions
    if isinstance(spec, KeysOfSpec):
        strings = info.key_kind not in ("int64", "uint64")
        key_bytes = LENGTH_BYTES + KEY_BYTES_MAX if strings else INTEGER_KEY_BYTES
        return Cost(spec.asked.size, request, 0, spec.asked.itemsize, reply, 0, key_bytes)
    row_bytes = (spec.dims or info.dim) * spec.reply.wire.itemsize
    status_bytes = int(spec.missing is not Missing.ERROR)
    id_bytes = _id_bytes(spec)
    if spec.bags is None:
        return Cost(spec.vector_count, request, 0, id_bytes, reply, row_bytes, status_bytes)
    starts = np.append(spec.bags.offsets, spec.asked.size)
    if spec.bags.weights is not None:
        id_bytes += WEIGHT_BYTES
    request += chunks.BAGS_FRAME_BYTES
    return Cost(
        spec.vector_count, request, OFFSET_BYTES, id_bytes, reply, row_bytes, status_bytes, starts
    )


def _id_bytes(spec: LookupSpec) -> int:
    """The bytes of one id or key in a request; of strings, those of the longest."""
    if not isinstance(spec.asked, ByKey):
        return spec.asked.itemsize
    keys = spec.asked.keys
    if not isinstance(keys, StringKeys):
        return keys.itemsize
    return LENGTH_BYTES + int(np.diff(keys.offsets).max(initial=0))
