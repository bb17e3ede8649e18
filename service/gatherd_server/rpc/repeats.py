"""Lookups that differ from earlier ones in nothing but their ids, answered with little Python.

A call over gRPC wakes several threads, one after the other, and finds no line of Python in the
caches: so each line costs some twenty times what it does in a loop.
"""

import weakref
from dataclasses import dataclass
from typing import Final

import numpy as np

from gatherd.errors import GatherdError
from gatherd.store.query import ByKey, Missing
from gatherd.store.table import Table
from gatherd_server.access.callers import Caller
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.repeated import Repeated
from gatherd_server.types import Lookup
from gatherd_server.wire import lookups

# Larger ones are looked at for their deadline, and what is done once costs less beside them.
REPLY_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    lookup: Repeated
    table: "weakref.ref[Table]"
    head: bytes
    nbytes: int


class Repeats:
    """What was seen, by the length of its request. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[int, _Known] = {}

    def answer(self, body: bytes, caller: Caller) -> bytes | None:
        """The reply to a LookupRequest, unless more than the ids of an earlier one is other.

        Who asked the earlier one may have been another caller, so this one is held against the
        table anew.
        """
        known = self._known.get(len(body))
        if known is None or not caller.reads(known.name):
            return None
        try:
            found = known.lookup.read(body)
            if found is None or known.table() is not found[0]:
                return None
            table, ids = found
            begin = len(known.head)
            reply = np.empty(begin + known.nbytes, np.uint8)
            if not table.read_rows(ids, reply, begin):
                return None
        except GatherdError:
            return None
        reply.data[:begin] = known.head
        self._engine.gathered(known.name, ids.size, known.nbytes)
        return reply.tobytes()

    def learn(self, body: bytes, lookup: Lookup) -> None:
        """Take from a request that was answered what the next one may be like."""
        if lookup.missing is not Missing.ERROR or isinstance(lookup.asked, ByKey):
            return
        table = self._engine.mapped((lookup.table, lookup.version))
        if table is None or lookup.dtype is not table.dtype:
            return
        nbytes = lookup.asked.size * table.row_bytes
        seen = lookups.seen_lookup(body, lookup) if nbytes <= REPLY_BYTES_MAX else None
        if seen is None:
            return
        shape = (*lookup.asked.shape, table.dim)
        head = lookups.lookup_head(table.version, table.dtype, shape, nbytes)
        repeated = Repeated(self._engine, lookup, seen.before, seen.after)
        if len(self._known) >= lookups.SEEN_MAX:
            self._known.clear()
        self._known[len(body)] = _Known(lookup.table, repeated, weakref.ref(table), head, nbytes)
