"""A connection's next lookup, when it repeats the last one with other ids.

Most requests of a client do: they have the same table, dtype, number of ids and headers. The
meaning found for the last one still holds then, and the reply begins with the same bytes. So the
server only compares the bytes, gathers the rows and writes them. Such a request has no cycle of its
own and takes no place among those in flight: it would give it back before anybody could see it. The
caller's permission was checked on the first request. Changing a token's line creates a new Caller,
so a remembered one never outlives its permissions.

If anything differs (an id without a row, another version, a torn row), nothing was written, and the
request goes the way of the first one, which also knows how to refuse it.
"""

import weakref
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import GatherdError
from gatherd.store.ids import all_in_range
from gatherd.store.table import Table
from gatherd_server.engine.repeated import Repeated
from gatherd_server.engine.rows import Rows
from gatherd_server.observe.metrics.recorder import RequestSeries
from gatherd_server.observe.metrics.telemetry import RepeatSeries, now_ns
from gatherd_server.wire.codes import code_of

# Bytes gathered and written at a time: few enough to stay in a core's cache in between and to delay
# others by only about 40 µs.
PIECE_BYTES: Final = 256 << 10
# Longer replies let other tasks run in between; see FastCycle.
ROWS_BYTES_MAX: Final = 1 << 20
# Room for a reply's head, before rows that begin at a cache line.
HEAD_BYTES_MAX: Final = 4 << 10


def is_repeatable(rows: Rows) -> bool:
    """Whether a repeat of a lookup of such rows can be answered here."""
    return rows.nbytes <= ROWS_BYTES_MAX and rows.is_as_stored and rows.is_in_memory


class AskingConnection(Protocol):
    """The part of a connection that a repeat uses."""

    scratch: "Scratch"

    def reply_head(self, rows: Rows) -> bytes:
        """Everything before a reply's rows."""

    def reply_changes(self) -> object:
        """An object that is replaced when heads change: every second, with the date in them."""

    def write_now(self, data: memoryview) -> None:
        """Write; `data` can be changed afterwards."""

    def abort(self) -> None:
        """End the connection in the middle of a reply."""


class Scratch:
    """An event loop's buffer for replies; each is written before the next is put together."""

    def __init__(self) -> None:
        self.buffer: NDArray[np.uint8] = np.zeros(HEAD_BYTES_MAX + PIECE_BYTES, np.uint8)
        self._view = memoryview(self.buffer.data)

    def after(self, head: bytes, nbytes: int) -> memoryview:
        """`head`, copied in, and behind it the `nbytes` of rows in the buffer."""
        begin = HEAD_BYTES_MAX - len(head)
        self._view[begin:HEAD_BYTES_MAX] = head
        return self._view[begin : HEAD_BYTES_MAX + nbytes]


class Repeat:
    """A connection's last request without its ids, and the start of its reply."""

    __slots__ = (
        *("_changes", "_counted", "_head", "_lookup", "_requests", "_row_bytes", "_table"),
    )

    def __init__(self, lookup: Repeated, requests: RequestSeries) -> None:
        """Has no side effects. Repeats are counted under `requests`."""
        self._lookup = lookup
        # Weak, because an idle connection holds it.
        self._table: weakref.ref[Table] | None = None
        self._changes: object = None
        self._head = b""
        self._row_bytes = 0
        self._requests = requests
        self._counted: RepeatSeries | None = None

    def answer(self, connection: AskingConnection, request: bytes) -> bool:
        """Answer if the request equals the previous one but for its ids; return whether it did."""
        begun_ns = now_ns()
        try:
            found = self._lookup.read(request)
            if found is None:
                return False
            table, ids = found
            if (
                self._table is None
                or self._table() is not table
                or self._changes is not connection.reply_changes()
            ) and not self._prepare(connection, table, ids):
                return False
            nbytes = ids.size * self._row_bytes
            if nbytes > PIECE_BYTES:
                return self._write_pieces(connection, table, ids, begun_ns)
            scratch = connection.scratch
            if not table.read_rows(ids, scratch.buffer, HEAD_BYTES_MAX):
                return False
        except GatherdError:
            return False
        connection.write_now(scratch.after(self._head, nbytes))
        assert self._counted is not None
        self._counted.done(now_ns() - begun_ns)
        return True

    def _prepare(self, connection: AskingConnection, table: Table, ids: NDArray[np.int64]) -> bool:
        """Find the start of the reply; return whether it can be answered here."""
        rows = self._lookup.rows(ids)
        if rows is None or not is_repeatable(rows):
            return False
        head = connection.reply_head(rows)
        if len(head) > HEAD_BYTES_MAX:
            return False
        self._table, self._changes = weakref.ref(table), connection.reply_changes()
        self._head, self._row_bytes = head, rows.row_bytes
        self._counted = RepeatSeries(self._requests, rows.counted, rows.count, rows.nbytes)
        return True

    def _write_pieces(
        self, connection: AskingConnection, table: Table, ids: NDArray[np.int64], begun_ns: int
    ) -> bool:
        if self._row_bytes > PIECE_BYTES or not all_in_range(ids, table.row_count):
            return False
        scratch, row_bytes, head = connection.scratch, self._row_bytes, self._head
        step = PIECE_BYTES // row_bytes
        for start in range(0, ids.size, step):
            piece = ids[start : start + step]
            try:
                table.read_rows(piece, scratch.buffer, HEAD_BYTES_MAX)
            except GatherdError as error:
                if start:
                    connection.abort()  # the client sees an incomplete reply
                    self._requests.done(code_of(error), now_ns() - begun_ns)
                return bool(start)
            connection.write_now(scratch.after(head, piece.size * row_bytes))
            head = b""
        assert self._counted is not None
        self._counted.done(now_ns() - begun_ns)
        return True
