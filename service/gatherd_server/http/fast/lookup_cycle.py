"""One lookup of the fast path: by the compiled answer, whole or in pieces, or the general way.

Of a long reply a piece is made when the one before was written, with the loop's other work in
between. No more of it is held than the peer has room for.
"""

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from gatherd.errors import GatherdError, Unavailable
from gatherd.store.stripes import WAIT_SECONDS
from gatherd_server.http.fast.answers import TOO_LONG, LongReply
from gatherd_server.http.fast.cycle import FastCycle
from gatherd_server.http.fast.routes import JsonRoute, LookupRoute, PendingAnswer
from gatherd_server.wire.codes import code_of

# Between two looks at a row that stays torn.
TORN_SECONDS: Final = 0.001
# What is left of a turn that isn't worth another piece.
LEFT_BYTES_MIN: Final = 32 << 10
# Read and written for a piece that a thread makes.
SLOW_BYTES: Final = 8 << 20

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
    """One lookup and its reply, by the compiled answer, whole or in pieces, or the general way."""

    __slots__ = ("begun",)
    route: LookupRoute

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.begun: LongReply | None = None
        """The reply, if somebody asked for it before."""

    def _answer_body(self, body: bytes) -> None:
        compiled, route, caller = self._connection.compiled, self.route, self.caller
        begin, end = self._around()
        reply = self.begun or compiled.reply(route, body, caller, begin, end)
        self.begun = None
        if isinstance(reply, memoryview):
            self._check_time()
            # Before the write: who has read the reply may ask at once, and finds the place free.
            self._let_go()
            self._connection.write_now(reply)
            if not compiled.is_patient:
                compiled.answered_at = time.monotonic()
            self._complete()
        elif isinstance(reply, LongReply):
            self._answer_long(reply)
        elif reply == TOO_LONG:
            self._track(
                self._elsewhere(
                    lambda: compiled.long_reply(route, body, caller),
                    lambda found: self._take_long(found, body),
                )
            )
        else:
            self._answer_in_general(body)

    def _answer_in_general(self, body: bytes) -> None:
        self._work(self.route.begin(body, self.caller))

    def _take_long(self, reply: LongReply | None, body: bytes) -> None:
        if reply is None:
            self._answer_in_general(body)
        else:
            self._answer_long(reply)

    def _answer_long(self, reply: LongReply) -> None:
        self._check_time()
        piece = reply.first(*self._around())
        if self._write_turn(reply, piece):
            self._connection.busy_loop.answered(self._connection.loop)
        else:
            self._track(self._write_turns(reply))

    def _write_turn(self, reply: LongReply, piece: memoryview) -> bool:
        """Write `piece`, the last that was made, and more as long as a turn is; whether all is.

        No more is held than one piece that the peer doesn't take.
        """
        connection = self._connection
        work_bytes = connection.compiled.turn_bytes() - reply.worked
        while piece:
            connection.write(piece)
            if connection.transport.get_write_buffer_size():
                return False
            if reply.is_done:
                self._complete()
                return True
            if work_bytes < LEFT_BYTES_MIN or reply.is_slow or self._is_gone:
                return False
            piece = reply.next(work_bytes)
            work_bytes -= reply.worked
        return False

    async def _write_turns(self, reply: LongReply) -> None:
        """Write the rest; others have their turn between two of this one's."""
        connection = self._connection
        compiled, flow = connection.compiled, connection.flow
        torn_until = math.inf
        compiled.long_count += 1
        try:
            while True:
                # Let the write go out and other tasks run.
                await asyncio.sleep(0 if torn_until == math.inf else TORN_SECONDS)
                if flow.write_paused:
                    await flow.drain()
                if self._is_gone:
                    return
                if reply.is_done:
                    self._complete()
                    return
                if reply.is_slow:
                    piece = await connection.offload.run(partial(reply.next, SLOW_BYTES), True)
                else:
                    piece = reply.next(compiled.turn_bytes())
                now = time.monotonic()
                if piece:
                    torn_until = math.inf
                    if self._write_turn(reply, piece):
                        return
                elif torn_until == math.inf:
                    torn_until = now + WAIT_SECONDS
                elif now > torn_until:
                    self._break_off()
                    return
        finally:
            compiled.long_count -= 1

    def _break_off(self) -> None:
        """A row stays torn. The client sees that its reply is incomplete."""
        error = Unavailable("a row's writer died while it wrote it, and part of the reply is sent")
        self._code = code_of(error)
        self._connection.admission.telemetry.failures.note(error)
        self._connection.transport.abort()
