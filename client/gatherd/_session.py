"""The logic of every call, once for the blocking and the awaited client.

`Session` checks arguments and shapes results; `RemoteSession` asks a server, in as many requests
as its limits demand; transports/local.py has the session that reads the files itself.
"""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gatherd import _chunks, _codec
from gatherd._assemble import Assembler
from gatherd._chunks import Cost, Limits, Piece
from gatherd._effects import (
    GET_TABLE,
    LIST_TABLES,
    LOOKUP,
    LOOKUP_MANY,
    Deadline,
    Plan,
    Send,
    Sleep,
)
from gatherd._lookup import (
    Answer,
    Ids,
    LookupSpec,
    TableInfo,
    parse_reply_type,
    prepare,
)
from gatherd._retry import check_retries, check_timeout, deadline_after, pause_seconds
from gatherd.errors import (
    IdOutOfRange,
    InvalidArgument,
    LimitExceeded,
    RetryableError,
    VersionNotFound,
)
from gatherd.store.ids import out_of_range_error
from gatherd.store.table import Missing

# Up to here a lookup is sent as it is, without asking for the limits first.
IDS_UNASKED_MAX = 65_536
TABLES_UNASKED_MAX = 64
# How many tables' dims a client remembers.
DIMS_MAX = 4_096
# How often a lookup in several requests begins again when its version is dropped under it.
RESTARTS_MAX = 3

LookupResult = NDArray[Any] | tuple[NDArray[Any], NDArray[np.uint8]]


class Session(ABC):
    """The calls of a client, as plans; see _effects.py."""

    def __init__(
        self, *, timeout: float, retries: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._retries = check_retries(retries)
        self._clock = clock

    def lookup(
        self,
        table: str,
        ids: Ids,
        *,
        dtype: DTypeLike,
        missing: str,
        out: NDArray[Any] | None,
        return_status: bool,
        timeout: float | None,
    ) -> Plan[Any]:
        """The plan of Client.lookup."""
        deadline = self.deadline(timeout)
        spec = prepare(table, ids, parse_reply_type(dtype), missing, out)
        answers = yield from self.gather((spec,), deadline)
        return _result(spec, answers[0], return_status)

    def lookup_many(
        self,
        ids: Mapping[str, Ids],
        *,
        dtype: DTypeLike,
        missing: str,
        return_status: bool,
        timeout: float | None,
    ) -> Plan[Any]:
        """The plan of Client.lookup_many."""
        deadline = self.deadline(timeout)
        if not isinstance(ids, Mapping):
            raise InvalidArgument(
                f"lookup_many takes a dict of table to ids, not {type(ids).__name__}"
            )
        reply = parse_reply_type(dtype)
        specs = [prepare(table, table_ids, reply, missing) for table, table_ids in ids.items()]
        if not specs:
            return {}
        answers = yield from self.gather(specs, deadline)
        return {
            spec.table: _result(spec, answer, return_status)
            for spec, answer in zip(specs, answers, strict=True)
        }

    def deadline(self, timeout: float | None) -> Deadline:
        """The deadline of a call that begins now."""
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return deadline_after(seconds, self._clock())

    @abstractmethod
    def gather(self, specs: Sequence[LookupSpec], deadline: Deadline) -> Plan[list[Answer]]:
        """The answers to `specs`, in their order. All or nothing."""

    @abstractmethod
    def tables(self, deadline: Deadline) -> Plan[list[TableInfo]]:
        """Every table there is."""

    @abstractmethod
    def table(self, name: str, deadline: Deadline) -> Plan[TableInfo]:
        """The table called `name`; TableNotFound when there is none."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the session itself holds; transports are closed by the shell."""


class RemoteSession(Session):
    """Asks a server."""

    def __init__(
        self,
        *,
        timeout: float,
        retries: int,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(timeout=timeout, retries=retries, clock=clock)
        self._uniform = uniform
        self._limits: Limits | None = None
        self._dims: dict[str, int] = {}

    def gather(self, specs: Sequence[LookupSpec], deadline: Deadline) -> Plan[list[Answer]]:
        """One request when it fits, several when it doesn't."""
        requests = _whole(specs)
        ids = sum(spec.ids.size for spec in specs)
        if ids > IDS_UNASKED_MAX or len(specs) > TABLES_UNASKED_MAX:
            requests = yield from self._plan_requests(specs, deadline, fresh=False)
        try:
            return (yield from self._ask(specs, requests, deadline))
        except LimitExceeded:
            # Never asked, or asked of a server with other limits, or of a table with another dim.
            smaller = yield from self._plan_requests(specs, deadline, fresh=True)
            if smaller == requests:
                raise
        return (yield from self._ask(specs, smaller, deadline))

    def tables(self, deadline: Deadline) -> Plan[list[TableInfo]]:
        """ListTables, which tells the limits as well."""
        body = yield from self._send(LIST_TABLES, _codec.encode_list_tables(), deadline)
        tables, limits = _codec.decode_list_tables(body)
        self._learn(tables, limits)
        return tables

    def table(self, name: str, deadline: Deadline) -> Plan[TableInfo]:
        """GetTable, which tells the limits as well."""
        if not isinstance(name, str):
            raise InvalidArgument(f"a table's name is a str, not {name!r}")
        try:
            request = _codec.encode_get_table(name)
        except UnicodeEncodeError:
            raise InvalidArgument(f"table {name!r}: the name can't be written as UTF-8") from None
        body = yield from self._send(GET_TABLE, request, deadline)
        table, limits = _codec.decode_get_table(body)
        self._learn([table], limits)
        return table

    def close(self) -> None:
        """Nothing is held."""

    def _learn(self, tables: Sequence[TableInfo], limits: Limits) -> None:
        if len(self._dims) + len(tables) > DIMS_MAX:
            self._dims.clear()
        self._dims.update((table.name, table.dim) for table in tables[:DIMS_MAX])
        self._limits = limits

    def _plan_requests(
        self, specs: Sequence[LookupSpec], deadline: Deadline, *, fresh: bool
    ) -> Plan[list[tuple[Piece, ...]]]:
        """How `specs` are laid into requests, by limits and dims that are `fresh` or remembered."""
        dims: dict[str, int] = {}
        if fresh and len(specs) > 1:
            dims = {table.name: table.dim for table in (yield from self.tables(deadline))}
        for spec in specs:
            dim = dims.get(spec.table) if fresh else self._dims.get(spec.table)
            if dim is None or self._limits is None:
                dim = (yield from self.table(spec.table, deadline)).dim
            dims[spec.table] = dim
        assert self._limits is not None  # there is at least one spec
        return _chunks.plan_requests(
            [_cost(spec, dims[spec.table]) for spec in specs], self._limits
        )

    def _ask(
        self, specs: Sequence[LookupSpec], requests: Sequence[tuple[Piece, ...]], deadline: Deadline
    ) -> Plan[list[Answer]]:
        if len(requests) == 1:
            return (yield from self._ask_once(specs, requests, deadline))
        for _ in range(RESTARTS_MAX):
            try:
                return (yield from self._ask_once(specs, requests, deadline))
            except VersionNotFound:
                continue  # the version that answered the first request was dropped before the last
            except IdOutOfRange as error:
                raise _in_whole(error, specs) from None
        return (yield from self._ask_once(specs, requests, deadline))

    def _ask_once(
        self, specs: Sequence[LookupSpec], requests: Sequence[tuple[Piece, ...]], deadline: Deadline
    ) -> Plan[list[Answer]]:
        assemblers = [Assembler(spec) for spec in specs]
        for pieces in requests:
            parts = [
                (specs[piece.lookup], assembler.ids_of(piece), assembler.version)
                for piece in pieces
                for assembler in (assemblers[piece.lookup],)
            ]
            if len(specs) == 1:
                reply = yield from self._send(LOOKUP, _codec.encode_lookup(*parts[0]), deadline)
                replies = [_codec.decode_lookup(reply)]
            else:
                request = _codec.encode_lookup_many(parts)
                reply = yield from self._send(LOOKUP_MANY, request, deadline)
                replies = _codec.decode_lookup_many(reply)
            if len(replies) != len(pieces):
                raise _codec.unreadable(f"it answers {len(replies)} lookups of {len(pieces)}")
            for piece, lookup_reply in zip(pieces, replies, strict=True):
                assemblers[piece.lookup].add(piece, lookup_reply)
        return [assembler.answer() for assembler in assemblers]

    def _send(self, method: str, body: bytes, deadline: Deadline) -> Plan[memoryview]:
        """One request, tried again while that may help."""
        send = Send(method, body, deadline)
        attempt = 0
        while True:
            try:
                reply: memoryview = yield send
                return reply
            except RetryableError as error:
                remaining = deadline.at - self._clock()
                pause = pause_seconds(attempt, error, remaining, self._uniform)
                if attempt == self._retries or pause is None:
                    raise
            attempt += 1
            yield Sleep(pause)


def _whole(specs: Sequence[LookupSpec]) -> list[tuple[Piece, ...]]:
    return [tuple(Piece(index, 0, spec.ids.size) for index, spec in enumerate(specs))]


def _cost(spec: LookupSpec, dim: int) -> Cost:
    row_bytes = dim * spec.reply.wire.itemsize + (spec.missing is not Missing.ERROR)
    return Cost.of(len(spec.table_bytes), spec.ids.shape, spec.ids.itemsize, row_bytes)


def _in_whole(error: IdOutOfRange, specs: Sequence[LookupSpec]) -> IdOutOfRange:
    """The error for the ids as the caller gave them, instead of the run of them that was sent."""
    rows = error.metadata.get("rows", "")
    for spec in specs:
        if spec.table == error.metadata.get("table") and rows.isdecimal():
            return out_of_range_error(spec.table, spec.ids, int(rows))
    return error


def _result(spec: LookupSpec, answer: Answer, return_status: bool) -> LookupResult:
    if not return_status:
        return answer.vectors
    if answer.status is None:
        return answer.vectors, np.zeros(spec.ids.shape, np.uint8)
    return answer.vectors, answer.status
