"""The compiled answers of one event loop: whole replies, put together where they are written from.

What takes longer than a turn is answered on a thread, into a buffer of its own size. What the
compiled answer doesn't take, errors among it, is the general way's: routes.py has both.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gatherd_server.access.callers import Caller
from gatherd_server.engine.engine import KEYS_SHORT, SHORT_BYTES
from gatherd_server.http.fast.routes import LookupRoute
from gatherd_server.wire.compiled.answers import NOT_MINE, room_of
from gatherd_server.wire.compiled.serving import CompiledAnswers, ThreadAnswers

# Room for a reply's head, before its body.
HEAD_BYTES_MAX: Final = 4 << 10
# Room for what is in a body beside rows; what has more is answered on a thread.
NESTED_BYTES_MAX: Final = 64 << 10
# Of long replies, so many buffers are kept, of so many bytes at most.
KEPT_MAX: Final = 4
KEPT_BYTES_MAX: Final = 4 << 20
TOO_LONG: Final = NOT_MINE - 1
"""Of a request that would take longer than the loop's turn."""

_NOWHERE: Final = np.empty(0, np.uint8)


class LoopAnswers:
    """Answers for the routes of one worker's HTTP port. For the loop's thread, unless said."""

    def __init__(self, shared: CompiledAnswers) -> None:
        self._shared = shared
        self._buffer: NDArray[np.uint8] = np.zeros(
            HEAD_BYTES_MAX + SHORT_BYTES + NESTED_BYTES_MAX, np.uint8
        )
        self._view = memoryview(self._buffer.data)
        answers = ThreadAnswers(shared, work_bytes_max=SHORT_BYTES, keys_max=KEYS_SHORT)
        answers.write_to(self._buffer[HEAD_BYTES_MAX:])
        self._answer = answers.answer
        self.answered_at = -math.inf
        """When a reply was last given within a turn, by the loop's clock."""
        self._idle: list[ThreadAnswers] = []
        self._buffers: list[NDArray[np.uint8]] = []

    def reply(
        self, route: LookupRoute, body: bytes, caller: Caller, begin: bytes, end: bytes
    ) -> memoryview | int:
        """A reply, to be written before the next one is asked for; TOO_LONG or NOT_MINE.

        Its head has `begin`, the route's own lines, and `end`.
        """
        if len(body) > SHORT_BYTES:
            return TOO_LONG
        message = route.message_of(body)
        if message is None:
            return NOT_MINE
        length = self._answer(route.message, message, caller)
        if length < 0:
            return NOT_MINE if length == NOT_MINE else TOO_LONG
        return framed(route, self._view, HEAD_BYTES_MAX + length, begin, end)

    def long_reply(self, route: LookupRoute, body: bytes, caller: Caller) -> memoryview | None:
        """A reply of whatever length, to be `framed`; None for the general way. On any thread."""
        message = route.message_of(body)
        if message is None:
            return None
        try:
            answers = self._idle.pop()
        except IndexError:
            answers = ThreadAnswers(self._shared, takes_far=True)
        try:
            return self._long_reply(answers, route, message, caller)
        finally:
            answers.write_to(_NOWHERE)
            self._idle.append(answers)

    def _long_reply(
        self, answers: ThreadAnswers, route: LookupRoute, message: bytes, caller: Caller
    ) -> memoryview | None:
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = np.empty(HEAD_BYTES_MAX, np.uint8)
        answers.write_to(buffer[HEAD_BYTES_MAX:])
        length = answers.answer(route.message, message, caller)
        if length < NOT_MINE:
            buffer = np.empty(HEAD_BYTES_MAX + room_of(length), np.uint8)
            answers.write_to(buffer[HEAD_BYTES_MAX:])
            length = answers.answer(route.message, message, caller)
        return buffer.data[: HEAD_BYTES_MAX + length] if length >= 0 else None

    def give_back(self, reply: memoryview) -> None:
        """Keep the buffer of a long reply that was sent, for another: new pages take long."""
        buffer = reply.obj
        assert isinstance(buffer, np.ndarray)
        if buffer.nbytes <= KEPT_BYTES_MAX and len(self._buffers) < KEPT_MAX:
            self._buffers.append(buffer)


def framed(
    route: LookupRoute, buffer: memoryview, stop: int, begin: bytes, end: bytes
) -> memoryview:
    """The reply whose body is in `buffer` up to `stop`, with its head put before."""
    lines, start = route.head_of(buffer, HEAD_BYTES_MAX, stop)
    head = b"%b%bcontent-length: %d\r\n%b" % (begin, lines, stop - start, end)
    buffer[start - len(head) : start] = head
    return buffer[start - len(head) : stop]
