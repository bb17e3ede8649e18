"""How the engine reaches the writer: in its own process, over a Unix socket, or not at all.

The socket's ends are `worker_end.py` and `writer_end.py`; `messages.py` has their messages.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Protocol

from gatherd.errors import GatherdError
from gatherd_server.data_dir.changes import Changes
from gatherd_server.link.heartbeat import HUNG_SECONDS, Heartbeat, lost
from gatherd_server.types import (
    ChangeResult,
    Push,
    PushResult,
    SnapshotList,
    SnapshotResult,
    TableChange,
    UpdatesState,
)
from gatherd_server.writer.commit import Submitted
from gatherd_server.writer.writer import Writer

AboutVersion = Callable[[str, int], None]
"""The answer to a question about a version of a table: a GatherdError, or nothing.

Either to map it before it becomes live, or whether it can be deleted because no lookup names it.
"""


class Link(Protocol):
    """Takes the engine's updates and changes to the writer."""

    def check(self) -> None:
        """Raise what a change would get at once."""

    def push(self, push: Push) -> "Future[PushResult]":
        """See Engine.push."""

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """See Engine.change."""

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """See Engine.snapshot."""

    def snapshots(self) -> "Future[SnapshotList]":
        """See Engine.snapshots."""

    def delete_snapshot(self, name: str) -> "Future[None]":
        """See Engine.delete_snapshot."""

    def state(self) -> UpdatesState:
        """The state of updates, as far as this process knows it."""


class DirectLink:
    """The link to the writer in this process."""

    def __init__(
        self, writer: Writer, changes: Changes, hung_seconds: float = HUNG_SECONDS
    ) -> None:
        """A hung writer is noticed only after `watch`."""
        self._writer = writer
        self._changes = changes
        self._heartbeat = Heartbeat(hung_seconds)
        self._watching: asyncio.Task[None] | None = None
        self._pushes: set[Future[PushResult]] = set()

    def watch(self) -> None:
        """Watch the writer's signs of life, on the event loop that this is called on."""
        heartbeat, writer = self._heartbeat, self._writer
        self._watching = asyncio.get_running_loop().create_task(
            heartbeat.watch(lambda: heartbeat.heard(writer.step), self._give_up)
        )

    async def close(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()

    def check(self) -> None:
        """See Link."""
        self._heartbeat.check()

    def push(self, push: Push) -> "Future[PushResult]":
        """See Link."""
        self._heartbeat.check()
        submitted = Submitted.of(push)
        future: Future[PushResult] = Future()
        self._pushes.add(future)
        future.add_done_callback(self._pushes.discard)
        try:
            self._writer.submit(push, submitted.digest, future)
        except BaseException:
            self._pushes.discard(future)
            raise
        return future

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """See Link."""
        self._heartbeat.check()
        return self._changes.change(change)

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """See Link."""
        self._heartbeat.check()
        return self._changes.snapshot(name)

    def snapshots(self) -> "Future[SnapshotList]":
        """See Link."""
        self._heartbeat.check()
        return self._changes.snapshots()

    def delete_snapshot(self, name: str) -> "Future[None]":
        """See Link."""
        self._heartbeat.check()
        return self._changes.delete_snapshot(name)

    def state(self) -> UpdatesState:
        """See Link."""
        if self._writer.stopped:
            return UpdatesState.STOPPED
        if self._heartbeat.is_hung:
            return UpdatesState.HUNG
        return UpdatesState.DISK_FULL if self._writer.is_full else UpdatesState.RUNNING

    def _give_up(self) -> None:
        for future in tuple(self._pushes):
            with suppress(InvalidStateError):  # it was answered just now
                future.set_exception(lost())


class RefusingLink:
    """The link to no writer: it failed to restart, or the data dir is read-only. Lookups go on."""

    def __init__(self, why: GatherdError, state: UpdatesState) -> None:
        self._why = why
        self._state = state

    def check(self) -> None:
        """See Link."""
        raise self._why

    def push(self, push: Push) -> "Future[PushResult]":  # noqa: ARG002 - Link's signature
        """See Link."""
        raise self._why

    def change(self, change: TableChange) -> "Future[ChangeResult]":  # noqa: ARG002 - Link's signature
        """See Link."""
        raise self._why

    def snapshot(self, name: str) -> "Future[SnapshotResult]":  # noqa: ARG002 - Link's signature
        """See Link."""
        raise self._why

    def snapshots(self) -> "Future[SnapshotList]":
        """See Link."""
        raise self._why

    def delete_snapshot(self, name: str) -> "Future[None]":  # noqa: ARG002 - Link's signature
        """See Link."""
        raise self._why

    def state(self) -> UpdatesState:
        """See Link."""
        return self._state


def in_process(answer: AboutVersion) -> Callable[[str, int], "list[Future[None]]"]:
    """A question of Changes to readers, if the only reader is in the writer's process."""

    def ask_here(table: str, version: int) -> "list[Future[None]]":
        answer(table, version)
        return []

    return ask_here
