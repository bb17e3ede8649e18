"""How the engine reaches the writer: in its own process, or over a Unix socket.

Both ends of the socket are protocols on their process's event loop. The writer's end answers in
the order in which things are done. A worker's end connects again by itself when the writer was
restarted; what it had under way then gets Unavailable, for nobody knows whether it was done: the
caller's retry, by the same request id, finds out.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from gatherd.errors import BadFile, GatherdError, Overloaded, Unavailable
from gatherd_server.data_dir.changes import Changes
from gatherd_server.errors import unexpected
from gatherd_server.link import messages
from gatherd_server.link.heartbeat import HUNG_SECONDS, OUTCOME_UNKNOWN, Heartbeat, lost
from gatherd_server.link.messages import Kind, Unframer
from gatherd_server.storage.records import Record, pack
from gatherd_server.types import (
    ChangeResult,
    Push,
    PushResult,
    SnapshotResult,
    TableChange,
    UpdatesState,
)
from gatherd_server.writer.commit import Submitted
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import RETRY_AFTER_SECONDS, Writer

logger = logging.getLogger("gatherd.writer")

RECONNECT_SECONDS = 0.05
# What may wait to be sent to the writer: more is refused.
UNSENT_BYTES_MAX = 64 << 20

Prepare = Callable[[str, int], None]
"""Map a version of a table that is about to be live; raises a GatherdError when it can't be."""


class Link(Protocol):
    """What the engine hands updates and changes to."""

    def push(self, push: Push) -> "Future[PushResult]":
        """See Engine.push."""

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """See Engine.change."""

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """See Engine.snapshot."""

    def state(self) -> UpdatesState:
        """As far as this process knows by itself."""


class DirectLink:
    """To the writer in this very process."""

    def __init__(
        self, writer: Writer, changes: Changes, hung_seconds: float = HUNG_SECONDS
    ) -> None:
        """Whether the writer hangs is only known from `watch` on."""
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
        """Watch no longer."""
        if self._watching is not None:
            self._watching.cancel()

    def push(self, push: Push) -> "Future[PushResult]":
        """See Link."""
        self._heartbeat.check()
        digest = push_digest(push) if push.request_id is not None else b""
        # Of this caller alone: the writer's own is shared, and is done later if the writer hangs.
        future: Future[PushResult] = Future()
        self._pushes.add(future)
        try:
            submitted = self._writer.submit(push, digest)
        except BaseException:
            self._pushes.discard(future)
            raise
        submitted.add_done_callback(partial(self._on_done, future))
        return future

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """See Link."""
        self._heartbeat.check()
        return self._changes.change(change)

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """See Link."""
        self._heartbeat.check()
        return self._changes.snapshot(name)

    def state(self) -> UpdatesState:
        """See Link."""
        if self._writer.stopped:
            return UpdatesState.STOPPED
        if self._heartbeat.is_hung:
            return UpdatesState.HUNG
        return UpdatesState.DISK_FULL if self._writer.is_full else UpdatesState.RUNNING

    def _on_done(self, future: "Future[PushResult]", done: "Future[PushResult]") -> None:
        if not _taken(self._pushes, future):
            return
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        else:
            future.set_exception(error)

    def _give_up(self) -> None:
        for future in tuple(self._pushes):
            if _taken(self._pushes, future):
                future.set_exception(lost())


def _taken(futures: "set[Future[PushResult]]", future: "Future[PushResult]") -> bool:
    """Take `future` out; False when another thread did, whose answer it gets."""
    try:
        futures.remove(future)
    except KeyError:
        return False
    return True


class RefusingLink:
    """To no writer: it couldn't be started again, or the data dir is read-only. Lookups go on."""

    def __init__(self, why: GatherdError, state: UpdatesState) -> None:
        self._why = why
        self._state = state

    def push(self, push: Push) -> "Future[PushResult]":  # noqa: ARG002 - Link's signature
        """See Link."""
        raise self._why

    def change(self, change: TableChange) -> "Future[ChangeResult]":  # noqa: ARG002 - Link's signature
        """See Link."""
        raise self._why

    def snapshot(self, name: str) -> "Future[SnapshotResult]":  # noqa: ARG002 - Link's signature
        """See Link."""
        raise self._why

    def state(self) -> UpdatesState:
        """See Link."""
        return self._state


def in_process(prepare: Prepare) -> Callable[[str, int], "list[Future[None]]"]:
    """What `Changes.prepare` has to be where the only reader is in the writer's process."""

    def prepare_here(table: str, version: int) -> "list[Future[None]]":
        prepare(table, version)
        return []

    return prepare_here


class SocketLink(asyncio.Protocol):
    """To the writer process. Made on the event loop; its methods may be called on any thread."""

    def __init__(self, path: Path, prepare: Prepare, hung_seconds: float = HUNG_SECONDS) -> None:
        """Nothing is connected yet; see `connect`, and then `watch`."""
        self._path = path
        self._prepare = prepare
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._unframer = Unframer()
        self._waiting: dict[int, tuple[Kind, Future[Any]]] = {}
        self._next_number = 0
        self._closed = False
        # Maps what the writer asks for, one after the other, beside the event loop.
        self._preparer = ThreadPoolExecutor(1, "prepare")
        self._connecting: asyncio.Task[None] | None = None
        self._heartbeat = Heartbeat(hung_seconds)
        self._has_heard = self._is_asked = self._is_full = False
        self._watching: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Watch the writer's signs of life."""
        self._watching = self._loop.create_task(
            self._heartbeat.watch(self._ask_for_sign, self._give_up)
        )

    async def connect(self) -> None:
        """Connect, for as long as that takes; after a loss this happens by itself."""
        while not self._closed:
            try:
                await self._loop.create_unix_connection(lambda: self, str(self._path))
                return
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)

    async def close(self) -> None:
        """Disconnect."""
        self._closed = True
        for task in (self._connecting, self._watching):
            if task is not None:
                task.cancel()
        if self._transport is not None:
            self._transport.close()
        self._preparer.shutdown(wait=False)

    def push(self, push: Push) -> "Future[PushResult]":
        """See Link."""
        self._check()
        digest = push_digest(push) if push.request_id is not None else b""
        return self._ask(Kind.PUSH, messages.pack_push(Submitted(push, digest)))

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """See Link."""
        self._check()
        return self._ask(Kind.CHANGE, messages.pack_change(change))

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """See Link."""
        self._check()
        return self._ask(Kind.SNAPSHOT, pack({"name": name}, []))

    def state(self) -> UpdatesState:
        """See Link."""
        if self._transport is None:
            return UpdatesState.UNREACHABLE
        if self._heartbeat.is_hung:
            # One that was never heard is still recovering the data dir.
            return UpdatesState.HUNG if self._has_heard else UpdatesState.UNREACHABLE
        return UpdatesState.DISK_FULL if self._is_full else UpdatesState.RUNNING

    def _check(self) -> None:
        if self._heartbeat.is_hung and self._has_heard:
            self._heartbeat.check()
        elif self._heartbeat.is_hung:
            raise _restarting()

    def _ask_for_sign(self) -> None:
        if self._transport is None:
            # That is another state, and known already.
            self._heartbeat.heard(None)
        elif not self._is_asked:
            self._is_asked = True
            self._transport.writelines(messages.frame(Kind.PING, 0, pack({}, [])))

    def _give_up(self) -> None:
        """Answer the pushes that the writer has. Changes may take their time: they wait on."""
        error = lost() if self._has_heard else _restarting(OUTCOME_UNKNOWN)
        for number, (kind, future) in tuple(self._waiting.items()):
            if kind is Kind.PUSH:
                del self._waiting[number]
                future.set_exception(error)

    def _ask(self, kind: Kind, parts: list[bytes | memoryview]) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._send(kind, parts, future)
        else:
            self._loop.call_soon_threadsafe(self._send, kind, parts, future)
        return future

    def _send(self, kind: Kind, parts: list[bytes | memoryview], future: "Future[Any]") -> None:
        transport = self._transport
        if transport is None:
            future.set_exception(_restarting())
            return
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            future.set_exception(
                Overloaded("the writer is behind with updates", None, RETRY_AFTER_SECONDS)
            )
            return
        self._next_number += 1
        self._waiting[self._next_number] = kind, future
        transport.writelines(messages.frame(kind, self._next_number, parts))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        self._transport = cast("asyncio.WriteTransport", transport)
        self._unframer = Unframer()
        self._has_heard = self._is_asked = False

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        for kind, number, record in self._unframer.feed(data):
            if kind is Kind.PREPARE:
                self._preparer.submit(self._on_prepare, number, record.directory)
                continue
            if kind is Kind.PING:
                self._has_heard, self._is_asked = True, False
                self._is_full = record.directory["is_full"]
                self._heartbeat.heard(record.directory["step"])
                continue
            waiting = self._waiting.pop(number, None)
            if waiting is None:
                continue  # given up already
            _, future = waiting
            answer = messages.unpack_answer(record)
            if isinstance(answer, GatherdError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Of asyncio."""
        self._transport = None
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            future.set_exception(_restarting(OUTCOME_UNKNOWN))
        if not self._closed:
            self._connecting = self._loop.create_task(self.connect())

    def _on_prepare(self, number: int, directory: dict[str, Any]) -> None:
        try:
            self._prepare(directory["table"], directory["version"])
            answer = messages.pack_result(None)
        except GatherdError as error:
            answer = messages.pack_error(error)
        except Exception as error:  # noqa: BLE001 - logged, and told to the writer
            answer = messages.pack_error(unexpected(error))
        with suppress(RuntimeError):  # the loop has ended: the writer sees the connection close
            self._loop.call_soon_threadsafe(self._answer, number, answer)

    def _answer(self, number: int, parts: list[bytes | memoryview]) -> None:
        if self._transport is not None:
            self._transport.writelines(messages.frame(Kind.ANSWER, number, parts))


class LinkServer:
    """The writer's end: one connection a worker. Everything but `prepare` is on the event loop."""

    def __init__(self, writer: Writer, changes: Changes) -> None:
        self.writer = writer
        self.changes = changes
        self.loop = asyncio.get_running_loop()
        self.connections: set[_Connection] = set()

    def connection(self) -> "_Connection":
        """A protocol for a worker that connects."""
        return _Connection(self)

    def prepare(self, table: str, version: int) -> "list[Future[None]]":
        """Have every worker map a version; one future each."""

        async def ask_all() -> "list[Future[None]]":
            return [one.prepare(table, version) for one in self.connections]

        return asyncio.run_coroutine_threadsafe(ask_all(), self.loop).result()


class _Connection(asyncio.Protocol):
    """One worker's connection."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._unframer = Unframer()
        self._transport: asyncio.Transport | None = None
        self._preparing: dict[int, Future[None]] = {}
        self._next_number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Of asyncio. A worker that is gone maps what is live when it comes back."""
        self._transport = None
        self._server.connections.discard(self)
        preparing, self._preparing = self._preparing, {}
        for future in preparing.values():
            future.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        try:
            received = self._unframer.feed(data)
        except (ValueError, BadFile) as error:
            logger.error("a worker sent what is no message: %s", error)  # noqa: TRY400 - says it all
            assert self._transport is not None
            self._transport.close()
            return
        for kind, number, record in received:
            if kind is Kind.ANSWER:
                self._on_prepared(number, record)
                continue
            if kind is Kind.PING:
                writer = self._server.writer
                told = {"step": writer.step, "is_full": writer.is_full}
                self._send(Kind.PING, number, pack(told, []))
                continue
            try:
                future = self._begin(kind, record)
            except GatherdError as error:
                self._answer(number, messages.pack_error(error))
                continue
            except Exception as error:  # noqa: BLE001 - logged, and answered
                self._answer(number, messages.pack_error(unexpected(error)))
                continue
            future.add_done_callback(partial(self._on_done, number))

    def _begin(self, kind: Kind, record: Record) -> "Future[Any]":
        match kind:
            case Kind.PUSH:
                submitted = messages.unpack_push(record)
                return self._server.writer.submit(submitted.push, submitted.digest)
            case Kind.CHANGE:
                return self._server.changes.change(messages.unpack_change(record))
            case Kind.SNAPSHOT:
                return self._server.changes.snapshot(record.directory["name"])
        raise AssertionError(kind)

    def _on_done(self, number: int, done: "Future[Any]") -> None:
        error = done.exception()
        if error is None:
            answer = messages.pack_result(done.result())
        elif isinstance(error, GatherdError):
            answer = messages.pack_error(error)
        else:
            assert isinstance(error, Exception)
            answer = messages.pack_error(unexpected(error))
        with suppress(RuntimeError):  # the loop has ended, and the workers with it
            self._server.loop.call_soon_threadsafe(self._answer, number, answer)

    def _answer(self, number: int, parts: list[bytes | memoryview]) -> None:
        self._send(Kind.ANSWER, number, parts)

    def _send(self, kind: Kind, number: int, parts: list[bytes | memoryview]) -> None:
        if self._transport is not None:
            self._transport.writelines(messages.frame(kind, number, parts))

    def prepare(self, table: str, version: int) -> "Future[None]":
        """Ask this worker to map a version."""
        future: Future[None] = Future()
        self._next_number += 1
        self._preparing[self._next_number] = future
        assert self._transport is not None
        parts = pack({"table": table, "version": version}, [])
        self._transport.writelines(messages.frame(Kind.PREPARE, self._next_number, parts))
        return future

    def _on_prepared(self, number: int, record: Record) -> None:
        future = self._preparing.pop(number)
        answer = messages.unpack_answer(record)
        if isinstance(answer, GatherdError):
            future.set_exception(answer)
        else:
            future.set_result(None)


def _restarting(metadata: Mapping[str, str] | None = None) -> Unavailable:
    return Unavailable(
        "the process that writes updates is being restarted; send the update again",
        metadata,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
