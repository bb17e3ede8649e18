"""The compiled answers of gRPC's calls, as the bytes that a handler returns.

A call has a thread of its own, which may take as long as it likes and wait for a disk.
"""

import ctypes
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gatherd_server.access.callers import Caller
from gatherd_server.engine.engine import SHORT_BYTES
from gatherd_server.wire.compiled.answers import NOT_MINE, room_of
from gatherd_server.wire.compiled.serving import CompiledAnswers, ThreadAnswers

# Rows that don't take long, and what a reply has beside them.
SHORT_REPLY_BYTES: Final = SHORT_BYTES + (16 << 10)

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
_new_bytes.restype = ctypes.py_object


class CallAnswers:
    """Answers calls by the compiled answer. Safe to use from many threads."""

    def __init__(self, shared: CompiledAnswers) -> None:
        self._shared = shared
        # Not one a thread: there is a thread for every call that waits for its message, and few of
        # them answer at a time. The last one that answered has its buffer in the caches.
        self._idle: list[_Buffered] = []

    def short(self, message: int, request: bytes, caller: Caller) -> bytes | None:
        """The reply to `request`, if it is short; None otherwise, and as `reply` gives None."""
        return self._reply(message, request, caller, is_short=True)

    def reply(self, message: int, request: bytes, caller: Caller) -> bytes | None:
        """The reply to `request`; None for what the general way has to answer or refuse."""
        return self._reply(message, request, caller, is_short=False)

    def _reply(
        self, message: int, request: bytes, caller: Caller, *, is_short: bool
    ) -> bytes | None:
        try:
            answers = self._idle.pop()
        except IndexError:
            answers = _Buffered(self._shared)
        try:
            length = answers.answer(message, request, caller)
            if length >= 0:
                return bytes(answers.view[:length])
            if is_short or length == NOT_MINE:
                return None
            return answers.long_reply(room_of(length), message, request, caller)
        finally:
            self._idle.append(answers)


class _Buffered:
    """Answers for one thread at a time, which has to take a short one out of the buffer."""

    __slots__ = ("_answers", "_buffer", "answer", "view")

    def __init__(self, shared: CompiledAnswers) -> None:
        self._buffer: NDArray[np.uint8] = np.empty(SHORT_REPLY_BYTES, np.uint8)
        self.view = memoryview(self._buffer.data)
        self._answers = ThreadAnswers(shared, takes_far=True)
        self._answers.write_to(self._buffer)
        self.answer = self._answers.answer

    def long_reply(self, room: int, message: int, request: bytes, caller: Caller) -> bytes | None:
        # Nobody else has these bytes yet, so they may still change. A copy of a long reply takes
        # longer than its gather.
        reply: bytes = _new_bytes(None, room)
        self._answers.write_to(np.frombuffer(reply, np.uint8))
        try:
            length = self.answer(message, request, caller)
        finally:
            self._answers.write_to(self._buffer)
        # Tables may have changed since the room was asked for.
        if length < 0:
            return None
        return reply if length == room else reply[:length]
