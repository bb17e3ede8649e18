"""One lookup of the fast path: by the compiled answer, here or on a thread, or the general way.

Long replies are written piece by piece, with the loop's other work between two pieces. Of one that
is nothing but stored rows, no more is held than the peer has room for.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np

from gatherd.errors import GatherdError
from gatherd_server.engine.rows import Rows
from gatherd_server.http.fast.answers import TOO_LONG, framed
from gatherd_server.http.fast.cycle import FastCycle
from gatherd_server.http.fast.routes import JsonRoute, LookupRoute, PendingAnswer
from gatherd_server.wire.codes import code_of
from gatherd_server.wire.compiled.answers import LOOKUP

# What is gathered or written at a time: small enough to stay in a core's cache in between and not
# to keep others waiting, about 40 µs.
PIECE_BYTES: Final = 256 << 10
# While short requests come too. Beside four clients of 4 MB replies, a lookup of 1 id took 95 µs
# (median) instead of 350. Where no such requests come, a reply of 4 MB would take a tenth longer.
SHARED_PIECE_BYTES: Final = 64 << 10
# So long after a short one.
SHARED_SECONDS: Final = 0.02
# Where a reply's rows begin in their buffer.
ALIGN_BYTES: Final = 64

T = TypeVar("T")


class LookupCycle(FastCycle):
    """One lookup and its reply; a subclass has `_answer_body`, which raises a GatherdError."""

    __slots__ = ()

    def _answer(self) -> None:
        try:
            self._answer_body(self._whole_body())
        except GatherdError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - logged, and answered as the wire wants it
            self._fail_unexpected(error)

    def _answer_body(self, body: bytes) -> None:
        raise NotImplementedError

    def _work(self, work: PendingAnswer) -> None:
        if work.is_long:
            self._track(self._elsewhere(work.run, self._respond))
            return
        response = work.run()
        self._check_time()
        self._respond(response)

    async def _elsewhere(self, work: Callable[[], T], take: Callable[[T], None]) -> None:
        """Have a thread do `work`, and `take` what it gives."""
        try:
            async with asyncio.timeout(self.seconds and self._deadline - time.monotonic()):
                given = await self._connection.offload.run(work, is_long=True)
            self._check_time()
            if not self._is_gone:
                take(given)
        except GatherdError as error:
            self._fail(error)
        except TimeoutError:
            self._fail(self._too_late())
        except Exception as error:  # noqa: BLE001 - logged, and answered as the wire wants it
            self._fail_unexpected(error)


class JsonCycle(LookupCycle):
    """One lookup in JSON, by the general way."""

    __slots__ = ()
    route: JsonRoute

    def _answer_body(self, body: bytes) -> None:
        self._work(self.route.begin(body, self.caller))


class CompiledCycle(LookupCycle):
    """One lookup and its reply, by the compiled answer, here or on a thread, or the general way."""

    __slots__ = ()
    route: LookupRoute

    def _answer_body(self, body: bytes) -> None:
        """Answer by the compiled answer, here or on a thread, or else the general way."""
        begin, end = self._around()
        reply = self._connection.compiled.reply(self.route, body, self.caller, begin, end)
        if isinstance(reply, memoryview):
            self._check_time()
            # Before the write: who has read the reply may ask at once, and finds the place free.
            self._let_go()
            self._connection.write_now(reply)
            self._connection.compiled.answered_at = self._connection.loop.time()
            self._complete()
        elif reply == TOO_LONG:
            self._answer_long(body)
        else:
            self._answer_in_general(body)

    def _answer_long(self, body: bytes) -> None:
        """Piece by piece what is nothing but rows as they are stored; else from a thread.

        Of rows no more is held than the peer has room for, and they take a fifth less of the
        processors than by way of a thread.
        """
        compiled, route, caller = self._connection.compiled, self.route, self.caller
        if route.message == LOOKUP:
            found = route.begin(body, caller)
            if isinstance(found, Rows) and found.is_as_stored:
                self._answer_rows(found)
                return
        self._track(
            self._elsewhere(
                lambda: compiled.long_reply(route, body, caller),
                lambda reply: self._take_long(reply, body),
            )
        )

    def _take_long(self, reply: memoryview | None, body: bytes) -> None:
        if reply is None:
            self._answer_in_general(body)
            return
        begin, end = self._around()
        self._track(self._write_pieces(framed(self.route, reply, len(reply), begin, end)))

    async def _write_pieces(self, reply: memoryview) -> None:
        """Write a long reply; others have their turn between two pieces."""
        connection = self._connection
        start = 0
        while start < len(reply):
            stop = start + self._piece_bytes()
            connection.write(reply[start:stop])
            start = stop
            await asyncio.sleep(0)
            if connection.flow.write_paused:
                await connection.flow.drain()
            if self._is_gone:
                return
        if not connection.transport.get_write_buffer_size():
            connection.compiled.give_back(reply)
        self._complete()

    def _answer_in_general(self, body: bytes) -> None:
        found = self.route.begin(body, self.caller)
        if isinstance(found, Rows):
            self._answer_rows(found)
        else:
            self._work(found)

    def _answer_rows(self, rows: Rows) -> None:
        if rows.nbytes <= PIECE_BYTES:
            self._write_whole(rows)
            return
        rows.check()
        self._check_time()
        self._track(self._stream(rows))

    def _write_whole(self, rows: Rows) -> None:
        """Answer with one buffer: the head, and the rows gathered behind it."""
        head = self._head(rows)
        buffer, begin = _buffer_for(head, rows.nbytes)
        rows.read(0, rows.count, buffer, begin)
        self._check_time()
        # Before the write: a client that has the reply may ask at once, and finds the place free.
        self._let_go()
        self._connection.write(buffer.data[begin - len(head) :])
        self._complete()

    async def _stream(self, rows: Rows) -> None:
        """Answer piece by piece; all ids are known to have rows."""
        connection = self._connection
        head = self._head(rows)
        start = 0
        while start < rows.count:
            step = max(1, self._piece_bytes() // max(1, rows.row_bytes))
            stop = min(start + step, rows.count)
            buffer, begin = _buffer_for(head, (stop - start) * rows.row_bytes)
            try:
                rows.read(start, stop, buffer, begin)
            except GatherdError as error:
                if start == 0:
                    self._fail(error)
                else:
                    # Too late for another answer: the client sees that this one is incomplete.
                    self._code = code_of(error)
                    connection.admission.telemetry.failures.note(error)
                    connection.transport.abort()
                return
            connection.write(buffer.data[begin - len(head) :])
            head, start = b"", stop
            # Let the write go out and other tasks run.
            await asyncio.sleep(0)
            if connection.flow.write_paused:
                await connection.flow.drain()
            if self._is_gone:
                return
        self._complete()

    def _piece_bytes(self) -> int:
        connection = self._connection
        is_shared = connection.loop.time() - connection.compiled.answered_at < SHARED_SECONDS
        return SHARED_PIECE_BYTES if is_shared else PIECE_BYTES

    def _head(self, rows: Rows) -> bytes:
        """What comes before a reply's rows."""
        begin, end = self._around()
        lines, rows_head = self.route.head(rows)
        length = len(rows_head) + rows.nbytes
        return b"%b%bcontent-length: %d\r\n%b%b" % (begin, lines, length, end, rows_head)


def _buffer_for(head: bytes, nbytes: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """A buffer with `head` and room for `nbytes` behind it; also the offset of that room."""
    begin = len(head) + -len(head) % ALIGN_BYTES
    buffer = np.empty(begin + nbytes, np.uint8)
    buffer.data[begin - len(head) : begin] = head
    return buffer, begin
