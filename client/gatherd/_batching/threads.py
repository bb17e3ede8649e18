"""Merges the lookups of a process's threads; rules.py says which and how.

A thread that finds no other one sending leads: it sends the waiting lookups, its own included,
until its own is answered, and then wakes the first waiting thread to lead. So the batcher needs no
thread of its own, which would be lost in a fork and would cost two switches a lookup.

An exception may be raised at any instant, as by Ctrl-C, in the leader too. So a thread leads only
while it holds a lock of its own by a `with`, which gives it back whatever happens. Everything else
is made up for: a waiting thread looks now and then whether a thread still leads, and has its
lookup, and otherwise queues the lookup again or leads itself.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gatherd._batching.rules import (
    Batching,
    LookupKind,
    LookupKinds,
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
from gatherd._plans.effects import Deadline
from gatherd._requests.lookups import Answer
from gatherd.errors import DeadlineExceeded, GatherdError

# How often a waiting thread looks whether another one still leads.
LOOK_SECONDS = 0.25


class _Slot:
    """A thread's place to wait. `gate` is locked until there is something to look at."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.answer: Answer | GatherdError | None = None
        self.leading = threading.Lock()  # held while the thread leads, or is about to
        self.leader: _Slot | None = None  # the one that took its lookup to send it
        self.left = False  # whether its thread has gone

    def wake(self) -> None:
        """Make its thread look."""
        with suppress(RuntimeError):  # it was woken already
            self.gate.release()


Asking: TypeAlias = Member[_Slot]
Ask: TypeAlias = Callable[[Sequence[tuple[LookupKind, NDArray[Any]]], Deadline], list[Answer]]


class Batcher:
    """Sends one request at a time, made of the waiting lookups. Safe to use from many threads."""

    def __init__(self, batching: Batching, ask: Ask) -> None:
        """`ask` answers lookups of several kinds in one request.

        A forked child needs a new batcher: locks may have been held at the fork.
        """
        self.kinds = LookupKinds(batching)
        self.pid = os.getpid()
        self._batching = batching
        self._ask = ask
        self._lock = threading.Lock()
        self._waiting: deque[Asking] = deque()
        self._leader: _Slot | None = None

    def lookup(
        self, kind: LookupKind, ids: NDArray[Any], out: NDArray[Any] | None, deadline: Deadline
    ) -> Answer:
        """The answer to one lookup, with the next request. Overloaded when too many wait."""
        slot = _Slot()
        member = Member(kind, ids, out, deadline, slot)
        if len(self._waiting) >= self._batching.waiting_max:
            raise too_many(self._batching)
        try:
            self._waiting.append(member)
            is_new = True
            while slot.answer is None:
                left = deadline.at - time.monotonic()
                if left <= 0:
                    raise too_late(deadline)
                with slot.leading:
                    if self._is_to_lead(member, is_new):
                        self._lead(member)
                is_new = False
                if slot.answer is None:
                    slot.gate.acquire(timeout=min(left, LOOK_SECONDS))
        finally:
            self._leave(member)
        answer = slot.answer
        if isinstance(answer, GatherdError):
            raise answer
        return answer

    def _is_to_lead(self, member: Asking, is_new: bool) -> bool:
        """Whether no other thread leads; then this one does from now on."""
        slot = member.future
        with self._lock:
            leader = self._leader
            if leader is slot or (leader is not None and not leader.leading.locked()):
                leader = None
            is_taken = leader is not None and slot.leader is leader
            if not (is_new or is_taken or slot.answer is not None or member in self._waiting):
                self._waiting.append(member)  # its leader was interrupted
            if leader is None:
                self._leader = slot
            return leader is None

    def _lead(self, own: Asking) -> None:
        """Send waiting lookups until the thread's own is answered or its time is up."""
        slot = own.future
        while slot.answer is None and time.monotonic() < own.deadline.at:
            with self._lock:
                members = take(self._waiting, self._batching.ids_max)
                for one in members:
                    one.future.leader = slot
            if not members:
                return
            try:
                # Until its own deadline: a thread doesn't stay longer for the others' sake.
                self._send([one for one in members if not one.future.left], own.deadline)
            finally:
                again = [one for one in members if one.future.answer is None]
                if again:  # interrupted, or out of time: another thread will send them
                    with self._lock:
                        self._waiting.extendleft(reversed(again))

    def _leave(self, member: Asking) -> None:
        """The thread stops waiting: it has an answer, is out of time, or was interrupted."""
        slot = member.future
        slot.left = True
        if slot.answer is not None and self._leader is not slot:
            return
        with self._lock:
            if slot.answer is None and member in self._waiting:
                self._waiting.remove(member)
            if self._leader is slot:
                self._leader = None
            if self._leader is None and self._waiting:
                self._waiting[0].future.wake()

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
        """Send halves apart until the wrong lookup is alone, so that no other fails with it."""
        if isinstance(error, DeadlineExceeded):
            # Members with more time are sent again.
            members = [member for member in members if member.deadline.at <= deadline.at]
        if len(members) == 1 or is_of_all(error):
            for member in members:
                _settle(member, own_error(error))
            return
        half = len(members) // 2
        self._send(members[:half], deadline)
        self._send(members[half:], deadline)


def _settle(member: Asking, part: Answer | GatherdError) -> None:
    member.future.answer = part
    member.future.wake()
