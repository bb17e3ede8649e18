"""Merges the lookups of a process's threads; _batching.py says which and how.

Whoever finds nobody sending leads: it sends what waits, its own lookup too, until that is answered,
and then lets the first of those who wait by now lead. So there is no thread of its own, which would
be lost in a fork and would cost two switches a lookup.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gatherd._batching import (
    Batching,
    Kind,
    Kinds,
    Member,
    grouped,
    is_of_all,
    merged_ids,
    own_error,
    parts,
    take,
    too_late,
    too_many,
)
from gatherd._effects import Deadline
from gatherd._lookup import Answer
from gatherd.errors import DeadlineExceeded, GatherdError


class _Slot:
    """Where a thread waits. `gate` is locked until there is an answer, or the thread leads."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.answer: Answer | GatherdError | None = None
        self.leads = False
        self.left = False  # whether its thread has gone


Asking: TypeAlias = Member[_Slot]
Ask: TypeAlias = Callable[[Sequence[tuple[Kind, NDArray[Any]]], Deadline], list[Answer]]


class Batcher:
    """One request at a time, made of what waits. Safe to use from many threads."""

    def __init__(self, batching: Batching, ask: Ask) -> None:
        """`ask` answers lookups of some kinds, all in one request.

        A forked child needs another one: locks may have been held at the fork.
        """
        self.kinds = Kinds(batching)
        self.pid = os.getpid()
        self._batching = batching
        self._ask = ask
        self._lock = threading.Lock()
        self._waiting: deque[Asking] = deque()
        self._is_led = False

    def lookup(
        self, kind: Kind, ids: NDArray[Any], out: NDArray[Any] | None, deadline: Deadline
    ) -> Answer:
        """The answer to one lookup, with the next request. Overloaded when too many wait."""
        slot = _Slot()
        member = Member(kind, ids, out, deadline, slot)
        with self._lock:
            if len(self._waiting) >= self._batching.waiting_max:
                raise too_many(self._batching)
            self._waiting.append(member)
            slot.leads = not self._is_led
            self._is_led = True
        try:
            if not slot.leads:
                self._wait(member)
            if slot.leads:
                self._lead(member)
        except BaseException:
            self._leave(member)
            raise
        answer = slot.answer
        if answer is None:
            self._leave(member)
            raise too_late(deadline)
        if isinstance(answer, GatherdError):
            raise answer
        return answer

    def _wait(self, member: Asking) -> None:
        left = member.deadline.at - time.monotonic()
        member.future.gate.acquire(timeout=max(0.0, left))

    def _lead(self, own: Asking) -> None:
        while own.future.answer is None:
            with self._lock:
                members = take(self._waiting, self._batching.ids_max)
            try:
                # Until its own deadline: a thread doesn't stay longer for the others' sake.
                self._send([one for one in members if not one.future.left], own.deadline)
            finally:
                again = [one for one in members if one.future.answer is None]
                if again:  # it was interrupted, or has no more time: somebody else will lead them
                    with self._lock:
                        self._waiting.extendleft(reversed(again))
        self._hand_on(own.future)

    def _leave(self, member: Asking) -> None:
        """The thread doesn't wait any more: for its time is up, or it was interrupted."""
        slot = member.future
        with self._lock:
            slot.left = True
            if member in self._waiting:
                self._waiting.remove(member)
        self._hand_on(slot)

    def _hand_on(self, slot: _Slot) -> None:
        with self._lock:
            if not slot.leads:
                return
            slot.leads = False
            self._is_led = bool(self._waiting)
            if self._waiting:
                first = self._waiting[0].future
                first.leads = True
                first.gate.release()

    def _send(self, members: Sequence[Asking], deadline: Deadline) -> None:
        groups = grouped(members)
        if not groups:
            return
        lookups = [(kind, merged_ids(some)) for kind, some in groups]
        try:
            answers = self._ask(lookups, deadline)
        except GatherdError as error:
            self._fail(members, error, deadline)
            return
        for (_, some), answer in zip(groups, answers, strict=True):
            found = parts(some, answer.vectors, answer.status)
            for member, part in zip(some, found, strict=True):
                _settle(member, part)

    def _fail(self, members: Sequence[Asking], error: GatherdError, deadline: Deadline) -> None:
        """Nobody fails for another's mistake: halves are sent apart, until it is alone."""
        if isinstance(error, DeadlineExceeded):
            # Those who have more time are sent again.
            members = [member for member in members if member.deadline.at <= deadline.at]
        if len(members) == 1 or is_of_all(error):
            for member in members:
                _settle(member, own_error(error))
            return
        half = len(members) // 2
        self._send(members[:half], deadline)
        self._send(members[half:], deadline)


def _settle(member: Asking, part: Answer | GatherdError) -> None:
    slot = member.future
    slot.answer = part
    if not slot.leads:
        slot.gate.release()
