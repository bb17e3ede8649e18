"""A thread's answers: what one thread needs to call the compiled answer, made once.

What it leaves to the general way costs a look, from under a microsecond to a few.
"""

import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gatherd_server.types import Limits
from gatherd_server.wire.compiled import kernels, words
from gatherd_server.wire.compiled.directory import Counts, Directory

LOOKUP, LOOKUP_MANY = words.LOOKUP, words.LOOKUP_MANY
LOOKUP_BAGS, LOOKUP_BAGS_MANY = words.LOOKUP_BAGS, words.LOOKUP_BAGS_MANY
NOT_MINE = words.NOT_MINE
NO_LIMIT = words.NO_LIMIT


class Answers:
    """Answers lookups into a buffer. For one thread at a time; nothing is kept of a request."""

    __slots__ = ("_allowed", "_at", "_call", "_counts", "_directory", "_out")

    def __init__(
        self,
        limits: Limits,
        *,
        work_bytes_max: int | None = None,
        keys_max: int | None = None,
        takes_far: bool = False,
    ) -> None:
        """With the caller's turn: bytes of rows read or answered, and keys that are looked for.

        None for a turn that has no end.
        `takes_far` says that a thread may wait here for rows that have to come from a disk.
        """
        call = self._call = np.zeros(words.CALL_WORDS, np.int64)
        self._at = call.ctypes.data
        self._directory: Callable[[], Directory | None] = _none
        self._counts: Counts | None = None
        self._allowed: NDArray[np.uint8] | None = None
        self._out: NDArray[np.uint8] | None = None
        call[words.CALL_TABLES_MAX] = limits.tables_max
        call[words.CALL_IDS_MAX] = limits.ids_max
        call[words.CALL_REPLY_BYTES_MAX] = limits.reply_bytes_max
        call[words.CALL_WORK_BYTES_MAX] = _limit(work_bytes_max)
        call[words.CALL_KEYS_MAX] = _limit(keys_max)
        call[words.CALL_TAKES_FAR] = takes_far

    def use(self, directory: Directory) -> Counts:
        """Answer from `directory` from now on; what is counted of its tables.

        It has to be kept elsewhere, for a thread with nothing to do would keep old versions mapped.
        """
        call = self._call
        self._directory = weakref.ref(directory)
        self._counts = counts = Counts(directory)
        call[words.CALL_TABLES_AT] = directory.columns.ctypes.data
        call[words.CALL_SLOTS_AT] = directory.slots.ctypes.data
        call[words.CALL_SLOT_COUNT] = directory.slots.size
        call[words.CALL_COUNTED_AT] = counts.cells.ctypes.data
        self._allowed, call[words.CALL_ALLOWED_AT] = None, 0
        return counts

    def uses(self, directory: Directory) -> bool:
        """Whether `directory` is the one that is answered from."""
        return self._directory() is directory

    def allow(self, allowed: NDArray[np.uint8] | None) -> None:
        """Answer of the tables with a bit in `allowed`, in the directory's order; None for all."""
        if allowed is not self._allowed:
            self._allowed = allowed
            self._call[words.CALL_ALLOWED_AT] = 0 if allowed is None else allowed.ctypes.data

    def limit_work(self, work_bytes_max: int) -> None:
        """Bound each answer's work anew."""
        self._call[words.CALL_WORK_BYTES_MAX] = work_bytes_max

    @property
    def work_bytes(self) -> int:
        """Of the last answer, the bytes of rows that were read or answered, whichever are more."""
        call = self._call
        return int(max(call[words.CALL_REPLY_BYTES], call[words.CALL_TOUCHED_BYTES]))

    def write_to(self, out: NDArray[np.uint8]) -> None:
        """Answer into `out`, which stays the caller's."""
        self._out = out
        self._call[words.CALL_OUT_AT] = out.ctypes.data
        self._call[words.CALL_OUT_BYTES] = out.size

    def answer(self, message: int, request: bytes) -> int:
        """Put the reply to `request`, a LOOKUP and so on, into the buffer; its length.

        NOT_MINE for a request that the general way has to answer or refuse, with nothing changed
        that counts. A number below it for an answer that takes longer than the turn or more room:
        `room_of` says how much. The general way, or other Answers on a thread, have to give it.
        """
        directory = self._directory()  # held here until the kernel has returned
        if directory is None:
            return NOT_MINE
        return kernels.answer(request, message, self._at)

    def begin(self, message: int, request: bytes, work_bytes: int) -> "Pieces | None":
        """Begin the reply to `request`, of which `answer` just gave a number below NOT_MINE.

        As much of it as takes `work_bytes` is put into the buffer. None as for NOT_MINE.
        """
        directory = self._directory()
        if directory is None:
            return None
        pieces = Pieces(self._call, directory, request)
        return pieces if pieces.begin(message, work_bytes) else None

    @property
    def has_open(self) -> bool:
        """Whether the last request that could be answered has an open table.

        Its rows may be gone by the next piece, so the answer wants to be in one.
        """
        return bool(self._call[words.CALL_OPEN_COUNT])

    @property
    def asked(self) -> tuple[int, int]:
        """How many ids and keys the last request had that could be answered, and the keys alone."""
        return int(self._call[words.CALL_IDS]), int(self._call[words.CALL_KEYS])


class Pieces:
    """An answer that is written in pieces, into room that the caller gives. On one thread at once.

    All pieces are of the versions that were live when it began, each row is whole, and every row is
    known to be there. Work is counted in bytes of rows read and of what is written.
    """

    __slots__ = ("_at", "_blocks", "_call", "_directory", "_index", "_request", "byte_count")

    def __init__(self, call: NDArray[np.int64], directory: Directory, request: bytes) -> None:
        """Of a call whose request was read."""
        self._call = call.copy()
        self._at = self._call.ctypes.data
        # What the words refer to.
        self._directory, self._request = directory, request
        count = int(call[words.CALL_COUNT])
        index = kernels.index_words(int(call[words.CALL_INDEX_WORDS]))
        self._blocks: NDArray[np.int64] = np.zeros(count * words.ASKED_WORDS, np.int64)
        self._index: NDArray[np.int64] = np.empty(index, np.int64)
        self.byte_count = 0
        """Of the whole answer."""

    def begin(self, message: int, work_bytes: int) -> bool:
        """Find the rows and write the first piece; whether that was possible."""
        self.byte_count = kernels.begin(
            self._request, message, self._at, self._blocks, self._index, work_bytes
        )
        return self.byte_count >= 0

    def go_on(self, out: NDArray[np.uint8], work_bytes: int) -> int:
        """Put as much as `work_bytes` of work gives into `out`; how many bytes.

        `out` has room for `unit_bytes`. 0 when it is done, or while a row stays torn.
        """
        self._call[words.CALL_OUT_AT] = out.ctypes.data
        self._call[words.CALL_OUT_BYTES] = out.size
        return kernels.go_on(self._at, work_bytes)

    @property
    def written(self) -> int:
        """Bytes of the piece that was written at last."""
        return int(self._call[words.CALL_WRITTEN])

    @property
    def worked(self) -> int:
        """What it took."""
        return int(self._call[words.CALL_WORKED])

    @property
    def unit_bytes(self) -> int:
        """The least room that each piece has to have."""
        return int(self._call[words.CALL_UNIT_BYTES])

    @property
    def unit_work(self) -> int:
        """The most work that a piece may take, however little it is given.

        That of a large bag, or of rows that may have to come from a disk, which is huge.
        """
        return int(self._call[words.CALL_UNIT_WORK])


def _limit(given: int | None) -> int:
    return words.NO_LIMIT if given is None else given


def _none() -> None:
    """In place of a directory that there isn't yet."""


def room_of(answered: int) -> int:
    """The bytes that an answer below NOT_MINE would take."""
    return words.ELSEWHERE - answered
