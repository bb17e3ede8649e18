"""Merges the lookups of an event loop's tasks; rules.py says which and how."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gatherd._batching.rules import (
    Batching,
    LookupKind,
    LookupKinds,
    Member,
    grouped,
    is_of_all,
    merged_deadline,
    merged_ids,
    own_error,
    parts,
    take,
    too_late,
    too_many,
)
from gatherd._plans.effects import Deadline
from gatherd._requests.lookups import Answer
from gatherd.errors import GatherdError

Asking: TypeAlias = Member[asyncio.Future[Answer]]
Ask: TypeAlias = Callable[
    [Sequence[tuple[LookupKind, NDArray[Any]]], Deadline], Awaitable[list[Answer]]
]


class AsyncBatcher:
    """Sends one request at a time, made of the waiting lookups. Belongs to one event loop."""

    def __init__(self, batching: Batching, ask: Ask) -> None:
        """`ask` answers lookups of several kinds in one request."""
        self.kinds = LookupKinds(batching)
        self._batching = batching
        self._ask = ask
        self._waiting: deque[Asking] = deque()
        self._sent: Sequence[Asking] = ()
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def lookup(
        self, kind: LookupKind, ids: NDArray[Any], out: NDArray[Any] | None, deadline: Deadline
    ) -> asyncio.Future[Answer]:
        """The answer to one lookup, with the next request. Overloaded when too many wait."""
        if len(self._waiting) >= self._batching.waiting_max:
            raise too_many(self._batching)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(Member(kind, ids, out, deadline, future))
        if self._sender is None:
            self._sender = loop.create_task(self._send_all())
        if self._timer is None or deadline.at < self._timer_at:
            self._set_timer(loop, deadline.at)
        return future

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                members = take(self._waiting, self._batching.ids_max)
                self._sent = [member for member in members if not member.future.done()]
                if self._sent:
                    await self._send_or_fail(self._sent)
        finally:
            self._sender, self._sent = None, ()

    async def _send_or_fail(self, members: Sequence[Asking]) -> None:
        """As `_send`; whatever goes wrong, each of `members` gets a result or an error."""
        try:
            await self._send(members)
        except Exception as error:  # noqa: BLE001 - given to the waiting callers
            for member in members:
                if not member.future.done():
                    member.future.set_exception(error)
        except BaseException:  # the loop ends, or is interrupted
            for member in (*members, *self._waiting):
                member.future.cancel()
            self._waiting.clear()
            raise

    async def _send(self, members: Sequence[Asking]) -> None:
        groups = grouped(members)
        lookups = [(kind, merged_ids(some)) for kind, some in groups]
        try:
            answers = await self._ask(lookups, merged_deadline(members))
        except GatherdError as error:
            await self._fail(members, error)
            return
        for (_, some), answer in zip(groups, answers, strict=True):
            found = parts(some, answer.vectors, answer.status)
            for member, part in zip(some, found, strict=True):
                _settle(member, part)

    async def _fail(self, members: Sequence[Asking], error: GatherdError) -> None:
        """Send halves apart until the wrong lookup is alone, so that no other fails with it."""
        if len(members) == 1 or is_of_all(error):
            for member in members:
                _settle(member, own_error(error))
            return
        half = len(members) // 2
        for some in (members[:half], members[half:]):
            left = [member for member in some if not member.future.done()]
            if left:
                await self._send(left)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, ends_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = ends_at
        self._timer = loop.call_later(max(0.0, ends_at - time.monotonic()), self._ring)

    def _ring(self) -> None:
        """The earliest deadline has come: fail the late members, and set the timer to the next."""
        self._timer = None
        now, ends_at = time.monotonic(), 0.0
        for member in (*self._sent, *self._waiting):
            if member.future.done():
                continue
            if member.deadline.at <= now:
                member.future.set_exception(too_late(member.deadline))
            elif not ends_at or member.deadline.at < ends_at:
                ends_at = member.deadline.at
        if ends_at:
            self._set_timer(asyncio.get_running_loop(), ends_at)

    async def aclose(self) -> None:
        """Wait for the waiting lookups to end: the client is closed, so with ClientClosed."""
        if self._sender is not None:
            await asyncio.wait([self._sender])
        if self._timer is not None:
            self._timer.cancel()


def _settle(member: Asking, part: Answer | GatherdError) -> None:
    if member.future.done():
        return  # cancelled, or late
    if isinstance(part, GatherdError):
        member.future.set_exception(part)
    else:
        member.future.set_result(part)
