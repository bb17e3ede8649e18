"""A process' compiled answers: one directory of what is served now, and answers for each thread.

A thread has `ThreadAnswers` of its own. The directory is made anew at the first request, or at the
metrics' next pulse, after tables have changed. Only this one and answers under way hold it, so that
no thread that has nothing to do keeps a replaced version mapped.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import GatherdError
from gatherd.store.live import View
from gatherd_server.access.callers import Caller
from gatherd_server.engine.engine import Engine
from gatherd_server.observe.metrics.telemetry import MISSED_IDS, MISSED_KEYS, Telemetry
from gatherd_server.wire.compiled import kernels
from gatherd_server.wire.compiled.answers import NOT_MINE, Answers, Pieces
from gatherd_server.wire.compiled.directory import Counts, Directory


class CompiledAnswers:
    """What the threads of a process answer from. Safe to use from many threads."""

    def __init__(self, engine: Engine, telemetry: Telemetry | None = None) -> None:
        """Compiles or loads the kernels. Lookups are counted in `telemetry`, or for nobody."""
        kernels.warm()
        self.limits = engine.limits
        self._engine = engine
        self._telemetry = telemetry or Telemetry()
        self._telemetry.pulse.before(self._beat)
        self._directory: Directory | None = None
        self._building = threading.Lock()
        self._counts: set[Counts] = set()
        self._counting = threading.Lock()

    def directory(self) -> Directory | None:
        """That of the tables as they are now; None when the data dir can't be read."""
        try:
            view = self._engine.view()
        except GatherdError:
            return None
        directory = self._directory
        if directory is not None and directory.is_of(view):
            return directory
        return self._built(view)

    def _built(self, view: View) -> Directory:
        with self._building:
            directory = self._directory
            if directory is None or not directory.is_of(view):
                self._directory = directory = Directory(view, directory)
            return directory

    def _beat(self) -> None:
        """Take in what was found out of tables since, and tell what was counted."""
        directory = self.directory()
        if directory is not None:
            directory.look()
        # Last: requests are published right after, under which these were counted.
        with self._counting:
            for counts in self._counts:
                self._tell(counts)

    def replace(self, before: Counts | None, now: Counts) -> None:
        """Count in `now` what was counted in `before`."""
        with self._counting:
            if before is not None:
                self._counts.remove(before)
                self._tell(before)
            self._counts.add(now)

    def _tell(self, counts: Counts) -> None:
        for one in counts.since():
            self._telemetry.gathered(one.name, one.rows, one.byte_count, one.lookups)
            self._telemetry.missed(one.name, MISSED_IDS, one.missing_ids)
            self._telemetry.missed(one.name, MISSED_KEYS, one.missing_keys)
            if not one.is_live:
                self._engine.note_superseded(one.name, one.version, one.lookups)


class ThreadAnswers:
    """Answers to lookups of any caller, for one thread at a time."""

    __slots__ = ("_answers", "_counts", "_shared")

    def __init__(
        self,
        shared: CompiledAnswers,
        *,
        work_bytes_max: int | None = None,
        keys_max: int | None = None,
        takes_far: bool = False,
    ) -> None:
        """What one turn is bounded by, None for nothing, and `takes_far`, as Answers has them."""
        self._shared = shared
        self._answers = Answers(
            shared.limits, work_bytes_max=work_bytes_max, keys_max=keys_max, takes_far=takes_far
        )
        self._counts: Counts | None = None

    def write_to(self, out: NDArray[np.uint8]) -> None:
        """As Answers has it."""
        self._answers.write_to(out)

    def limit_work(self, work_bytes_max: int) -> None:
        """As Answers has it."""
        self._answers.limit_work(work_bytes_max)

    @property
    def work_bytes(self) -> int:
        """As Answers has it."""
        return self._answers.work_bytes

    def answer(self, message: int, request: bytes, caller: Caller) -> int:
        """As Answers has it, for `caller`."""
        directory = self._shared.directory()
        if directory is None or not caller.is_reader:
            return NOT_MINE
        answers = self._answers
        if not answers.uses(directory):
            counts = answers.use(directory)
            self._shared.replace(self._counts, counts)
            self._counts = counts
        answers.allow(caller.reads_of(directory.reached))
        return answers.answer(message, request)

    @property
    def has_open(self) -> bool:
        """As Answers has it."""
        return self._answers.has_open

    @property
    def asked(self) -> tuple[int, int]:
        """As Answers has it."""
        return self._answers.asked

    def begin(self, message: int, request: bytes, work_bytes: int) -> Pieces | None:
        """As Answers has it, right after `answer`."""
        return self._answers.begin(message, request, work_bytes)
