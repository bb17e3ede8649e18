"""The compiled answers of one event loop: whole replies, put together where they are written from.

What takes longer than a turn is answered in pieces. What takes long to be found, before its first
piece, is found on a thread; what has an open table, whose rows come and go, is made there whole.
What the compiled answer doesn't take, errors among it, is the general way's: routes.py has both.
"""

import math
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gatherd_server.access.callers import Caller
from gatherd_server.engine.engine import KEYS_SHORT, SHORT_BYTES
from gatherd_server.http.fast.routes import LookupRoute
from gatherd_server.wire.compiled.answers import NO_LIMIT, NOT_MINE, Pieces, room_of
from gatherd_server.wire.compiled.serving import CompiledAnswers, ThreadAnswers

# Room for a reply's head, before its body.
HEAD_BYTES_MAX: Final = 4 << 10
# Room for what is in a body beside rows; what has more is answered in pieces.
NESTED_BYTES_MAX: Final = 64 << 10
# Bytes of rows read, or answered, for a whole reply while nobody else waits; SHORT_BYTES, 40 µs,
# while short requests come too.
WHOLE_BYTES: Final = 512 << 10
# What is gathered and then written at once: it stays in a core's cache in between.
PIECE_BYTES: Final = 256 << 10
# Bytes read and written in one turn of the event loop by all long replies together, 250 µs.
TURN_BYTES: Final = 1280 << 10
# By each of them, while short requests come too. Beside four clients of 4 MB replies, a lookup of
# 1 id took 95 µs (median) instead of 350. Where no such requests come, a reply of 4 MB would take
# a tenth longer.
SHARED_TURN_BYTES: Final = 128 << 10
# So long after a short one.
SHARED_SECONDS: Final = 0.02
# Ids whose rows are found within a turn.
IDS_SHORT: Final = 64 << 10
TOO_LONG: Final = NOT_MINE - 1
"""Of a request whose rows take longer to find than the loop's turn."""


_NOWHERE: Final = np.empty(0, np.uint8)


class LoopAnswers:
    """Answers for the routes of one worker's HTTP port. For the loop's thread, unless said."""

    def __init__(self, shared: CompiledAnswers) -> None:
        self._shared = shared
        self._buffer: NDArray[np.uint8] = np.zeros(
            HEAD_BYTES_MAX + SHORT_BYTES + NESTED_BYTES_MAX, np.uint8
        )
        self._view = memoryview(self._buffer.data)
        self._answers = ThreadAnswers(shared, work_bytes_max=SHORT_BYTES, keys_max=KEYS_SHORT)
        self._answers.write_to(self._buffer[HEAD_BYTES_MAX:])
        self._answer = self._answers.answer
        self.answered_at = -math.inf
        """When a short reply was last given, by the monotonic clock, which is the loop's."""
        self.is_patient = False
        """Whether whole replies may be longer than short ones. The last one was, if so."""
        self.long_count = 0
        """Long replies under way."""
        self._idle: list[ThreadAnswers] = []

    def _is_shared(self) -> bool:
        return time.monotonic() - self.answered_at < SHARED_SECONDS

    def _be_patient(self, *, is_patient: bool) -> None:
        self.is_patient = is_patient
        self._answers.limit_work(WHOLE_BYTES if is_patient else SHORT_BYTES)

    def turn_bytes(self) -> int:
        """What one long reply may read and write in its next turn."""
        if self._is_shared():
            return SHARED_TURN_BYTES
        return max(SHARED_TURN_BYTES, TURN_BYTES // max(1, self.long_count))

    def reply(
        self, route: LookupRoute, body: bytes, caller: Caller, begin: bytes, end: bytes
    ) -> "memoryview | LongReply | int":
        """A reply, to be written before the next one is asked for; or its beginning.

        TOO_LONG if `long_reply` has to be asked, NOT_MINE for the general way. The reply's head has
        `begin`, the route's own lines, and `end`.
        """
        if len(body) > SHORT_BYTES:
            return TOO_LONG
        message = route.message_of(body)
        if message is None:
            return NOT_MINE
        length = self._answer(route.message, message, caller)
        if length < NOT_MINE and not (self.is_patient or self.long_count or self._is_shared()):
            self._be_patient(is_patient=True)
            length = self._answer(route.message, message, caller)
        if length >= 0:
            if self.is_patient and self._answers.work_bytes <= SHORT_BYTES:
                self._be_patient(is_patient=False)
            return framed(route, self._view, HEAD_BYTES_MAX + length, length, begin, end)
        if length == NOT_MINE:
            return NOT_MINE
        ids, keys = self._answers.asked
        if ids > IDS_SHORT or keys > KEYS_SHORT or self._answers.has_open:
            return TOO_LONG
        work_bytes = self.turn_bytes()
        try:
            return _begun(self._answers, route, message, work_bytes) or NOT_MINE
        finally:
            self._answers.write_to(self._buffer[HEAD_BYTES_MAX:])

    def long_reply(self, route: LookupRoute, body: bytes, caller: Caller) -> "LongReply | None":
        """A reply's beginning, whatever that takes; None for the general way. On any thread."""
        message = route.message_of(body)
        if message is None:
            return None
        try:
            answers = self._idle.pop()
        except IndexError:
            answers = ThreadAnswers(self._shared, takes_far=True)
            answers.write_to(_NOWHERE)
        try:
            length = answers.answer(route.message, message, caller)
            if length >= NOT_MINE:
                return None
            if answers.has_open:
                return _begun(answers, route, message, NO_LIMIT, room_of(length))
            return _begun(answers, route, message, SHARED_TURN_BYTES)
        finally:
            answers.write_to(_NOWHERE)
            self._idle.append(answers)


class LongReply:
    """A reply in pieces, each made when the one before was written. For one thread at a time."""

    __slots__ = ("_first", "_left", "_pieces", "_route")

    def __init__(self, route: LookupRoute, pieces: Pieces, first: NDArray[np.uint8]) -> None:
        """Of what was begun, with the first piece in `first`, behind room for a head."""
        self._route = route
        self._pieces = pieces
        self._first: NDArray[np.uint8] | None = first
        self._left = pieces.byte_count - pieces.written

    @property
    def is_done(self) -> bool:
        """Whether all pieces were made."""
        return not self._left

    @property
    def worked(self) -> int:
        """What the last piece took: bytes read and written."""
        return self._pieces.worked

    @property
    def is_slow(self) -> bool:
        """Whether a piece can take longer than a turn: that of a large bag, or rows on a disk."""
        return self._pieces.unit_work > TURN_BYTES

    def first(self, begin: bytes, end: bytes) -> memoryview:
        """The head, as LoopAnswers.reply has it, and the first piece."""
        buffer, self._first = self._first, None
        assert buffer is not None
        stop = HEAD_BYTES_MAX + self._pieces.written
        return framed(self._route, buffer.data, stop, self._pieces.byte_count, begin, end)

    def next(self, work_bytes: int) -> memoryview:
        """Another piece, that takes so much work; empty while a row stays torn."""
        room = min(max(min(PIECE_BYTES, work_bytes), self._pieces.unit_bytes), self._left)
        buffer = np.empty(room, np.uint8)
        written = self._pieces.go_on(buffer, work_bytes)
        self._left -= written
        return buffer.data[:written]


def _begun(
    answers: ThreadAnswers,
    route: LookupRoute,
    message: bytes,
    work_bytes: int,
    room: int = PIECE_BYTES,
) -> LongReply | None:
    buffer = np.empty(HEAD_BYTES_MAX + room, np.uint8)
    answers.write_to(buffer[HEAD_BYTES_MAX:])
    pieces = answers.begin(route.message, message, work_bytes)
    return None if pieces is None else LongReply(route, pieces, buffer)


def framed(
    route: LookupRoute, buffer: memoryview, stop: int, body_bytes: int, begin: bytes, end: bytes
) -> memoryview:
    """The reply of `body_bytes` that begins in `buffer`, up to `stop`, with its head before it."""
    lines, start = route.head_of(buffer, HEAD_BYTES_MAX, stop)
    length = body_bytes - (start - HEAD_BYTES_MAX)
    head = b"%b%bcontent-length: %d\r\n%b" % (begin, lines, length, end)
    buffer[start - len(head) : start] = head
    return buffer[start - len(head) : stop]
