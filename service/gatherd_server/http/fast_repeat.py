"""A connection's next lookup, when it is its last one with other ids.

Most requests of a client are: of the same table, dtype and number of ids, under the same headers.
What the last one was found to mean still holds then, and its reply begins as that one's did. So
nothing is left to do but to compare the bytes, gather the rows and write them. Such a request is no
cycle of its own, and takes no place among those in flight: it would give it back before anybody
could see it. It was found already that its caller may ask this of this table; a token whose line
changes has other callers from then on.

Whenever anything is otherwise (an id without a row, another version, a torn row) nothing was
written, and the request goes the way that its forerunner went, which also knows how to refuse it.
"""

import weakref
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import GatherdError
from gatherd.store.ids import all_in_range
from gatherd.store.table import Table
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.rows import Rows
from gatherd_server.http.errors import kind_of
from gatherd_server.metrics.recorder import RequestSeries
from gatherd_server.metrics.telemetry import RepeatSeries, now_ns
from gatherd_server.types import LookupPlan

# Gathered and written at a time, so that it stays in a core's cache in between.
PIECE_BYTES: Final = 256 << 10
# What has more rows leaves others their turn in between; see FastCycle.
ROWS_BYTES_MAX: Final = 1 << 20
# Room for a reply's head, before rows that begin at a cache line.
HEAD_BYTES_MAX: Final = 4 << 10

_INT64: Final = np.dtype(np.int64)


class Connection(Protocol):
    """What is needed of the connection that asks."""

    scratch: "Scratch"

    def reply_head(self, rows: Rows) -> bytes:
        """Everything before a reply's rows."""

    def reply_changes(self) -> object:
        """Another object when heads have changed, by the second that they tell."""

    def write_now(self, data: memoryview) -> None:
        """Write; `data` can be changed afterwards."""

    def abort(self) -> None:
        """End the connection in the middle of a reply."""


class Scratch:
    """Where an event loop puts replies together, each to be written before the next."""

    def __init__(self) -> None:
        self.buffer: NDArray[np.uint8] = np.zeros(HEAD_BYTES_MAX + PIECE_BYTES, np.uint8)
        self.view = memoryview(self.buffer.data)


class Repeat:
    """What a connection's last request was, but for its ids."""

    __slots__ = (
        "_after",
        "_before",
        "_changes",
        "_counted",
        "_engine",
        "_head",
        "_key",
        "_plan",
        "_requests",
        "_row_bytes",
        "_start",
        "_stop",
        "_table",
    )

    def __init__(
        self,
        engine: Engine,
        plan: LookupPlan,
        before: bytes,
        after: bytes,
        requests: RequestSeries,
    ) -> None:
        """Of a plan with int64 ids, whose request had `before` and `after` around them.

        Counted under `requests`.
        """
        assert isinstance(plan.asked, np.ndarray)
        self._engine = engine
        self._plan = plan
        self._key = (plan.table, plan.version)
        self._before, self._after = before, after
        self._start = len(before)
        self._stop = len(before) + plan.asked.nbytes
        # Weak: an idle connection mustn't keep a version mapped that was replaced.
        self._table: weakref.ref[Table] | None = None
        self._changes: object = None
        self._head = b""
        self._row_bytes = 0
        self._requests = requests
        self._counted: RepeatSeries | None = None

    def answer(self, connection: Connection, request: bytes) -> bool:
        """Answer a request as long as the one before, unless more than the ids is other."""
        begun_ns = now_ns()
        if not (request.startswith(self._before) and request.endswith(self._after)):
            return False
        try:
            table = self._engine.mapped(self._key)
            if table is None:
                return False
            ids = np.frombuffer(request[self._start : self._stop], _INT64)
            if (
                self._table is None
                or self._table() is not table
                or self._changes is not connection.reply_changes()
            ) and not self._prepare(connection, table, ids):
                return False
            if ids.size * self._row_bytes > PIECE_BYTES:
                return self._write_pieces(connection, table, ids, begun_ns)
            scratch = connection.scratch
            if not table.read_rows(ids, scratch.buffer, HEAD_BYTES_MAX):
                return False
        except GatherdError:
            return False
        begin = HEAD_BYTES_MAX - len(self._head)
        view = scratch.view
        view[begin:HEAD_BYTES_MAX] = self._head
        connection.write_now(view[begin : HEAD_BYTES_MAX + ids.size * self._row_bytes])
        assert self._counted is not None
        self._counted.done(now_ns() - begun_ns)
        return True

    def _prepare(self, connection: Connection, table: Table, ids: NDArray[np.int64]) -> bool:
        """Find what the reply begins with; whether it is one to be answered from here."""
        assert isinstance(self._plan.asked, np.ndarray)
        plan = self._plan._replace(asked=ids.reshape(self._plan.asked.shape))
        rows = self._engine.rows_of(plan)
        if rows.nbytes > ROWS_BYTES_MAX or rows.dtype is not table.dtype or not rows.is_in_memory:
            return False
        head = connection.reply_head(rows)
        if len(head) > HEAD_BYTES_MAX:
            return False
        self._table, self._changes = weakref.ref(table), connection.reply_changes()
        self._head, self._row_bytes = head, rows.row_bytes
        self._counted = RepeatSeries(self._requests, rows.counted, rows.count, rows.nbytes)
        return True

    def _write_pieces(
        self, connection: Connection, table: Table, ids: NDArray[np.int64], begun_ns: int
    ) -> bool:
        if not all_in_range(ids, table.row_count):
            return False
        scratch, row_bytes = connection.scratch, self._row_bytes
        step = max(1, PIECE_BYTES // row_bytes)
        view, head = scratch.view, self._head
        for start in range(0, ids.size, step):
            piece = ids[start : start + step]
            try:
                table.read_rows(piece, scratch.buffer, HEAD_BYTES_MAX)
            except GatherdError as error:
                if start:
                    connection.abort()  # the client sees that the reply isn't whole
                    self._requests.done(kind_of(error).code, now_ns() - begun_ns)
                return bool(start)
            begin = HEAD_BYTES_MAX - len(head)
            view[begin:HEAD_BYTES_MAX] = head
            connection.write_now(view[begin : HEAD_BYTES_MAX + piece.size * row_bytes])
            head = b""
        assert self._counted is not None
        self._counted.done(now_ns() - begun_ns)
        return True
