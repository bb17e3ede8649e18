"""A worker's end of the socket to the writer: a protocol on the worker's event loop.

It reconnects by itself after the writer was restarted. Its pending requests then get Unavailable,
because nobody knows whether they were done; the caller's retry, by the same request id, finds out.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from gatherd.errors import GatherdError, Overloaded, Unavailable
from gatherd_server.errors import unexpected
from gatherd_server.link import messages
from gatherd_server.link.heartbeat import HUNG_SECONDS, OUTCOME_UNKNOWN, Heartbeat, lost
from gatherd_server.link.link import AboutVersion
from gatherd_server.link.messages import MessageKind, MessageReader
from gatherd_server.storage.records import pack
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
from gatherd_server.writer.writer import RETRY_AFTER_SECONDS

RECONNECT_SECONDS = 0.05
# At most this much may wait to be sent to the writer: more is refused.
UNSENT_BYTES_MAX = 64 << 20


class SocketLink(asyncio.Protocol):
    """The link to the writer process. Made on the event loop; any thread may call its methods."""

    def __init__(
        self,
        path: Path,
        prepare: AboutVersion,
        check_unused: AboutVersion,
        hung_seconds: float = HUNG_SECONDS,
    ) -> None:
        """Nothing is connected yet; call `connect`, and then `watch`."""
        self._path = path
        self._answers = {MessageKind.PREPARE: prepare, MessageKind.UNUSED: check_unused}
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._reader = MessageReader()
        self._waiting: dict[int, tuple[MessageKind, Future[Any]]] = {}
        self._next_number = 0
        self._closed = False
        # Answers the writer's questions about versions, one by one, off the event loop.
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
        """Connect, however long that takes; after a loss this happens by itself."""
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

    def check(self) -> None:
        """See Link."""
        if self._heartbeat.is_hung and self._has_heard:
            self._heartbeat.check()
        elif self._heartbeat.is_hung:
            raise _restarting()

    def push(self, push: Push) -> "Future[PushResult]":
        """See Link."""
        self.check()
        return self._ask(MessageKind.PUSH, messages.pack_push(Submitted.of(push)))

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """See Link."""
        self.check()
        return self._ask(MessageKind.CHANGE, messages.pack_change(change))

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """See Link."""
        self.check()
        return self._ask(MessageKind.SNAPSHOT, pack({"name": name}, []))

    def snapshots(self) -> "Future[SnapshotList]":
        """See Link."""
        self.check()
        return self._ask(MessageKind.LIST_SNAPSHOTS, pack({}, []))

    def delete_snapshot(self, name: str) -> "Future[None]":
        """See Link."""
        self.check()
        return self._ask(MessageKind.DELETE_SNAPSHOT, pack({"name": name}, []))

    def state(self) -> UpdatesState:
        """See Link."""
        if self._transport is None:
            return UpdatesState.UNREACHABLE
        if self._heartbeat.is_hung:
            # A writer that was never heard is still recovering the data dir.
            return UpdatesState.HUNG if self._has_heard else UpdatesState.UNREACHABLE
        return UpdatesState.DISK_FULL if self._is_full else UpdatesState.RUNNING

    def _ask_for_sign(self) -> None:
        if self._transport is None:
            # This is another state, which `state` knows already.
            self._heartbeat.heard(None)
        elif not self._is_asked:
            self._is_asked = True
            self._transport.writelines(messages.message_parts(MessageKind.PING, 0, pack({}, [])))

    def _give_up(self) -> None:
        """Answer the pushes that the writer has. Changes may take long, so they wait on."""
        error = lost() if self._has_heard else _restarting(OUTCOME_UNKNOWN)
        for number, (kind, future) in tuple(self._waiting.items()):
            if kind is MessageKind.PUSH:
                del self._waiting[number]
                future.set_exception(error)

    def _ask(self, kind: MessageKind, parts: list[bytes | memoryview]) -> "Future[Any]":
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

    def _send(
        self, kind: MessageKind, parts: list[bytes | memoryview], future: "Future[Any]"
    ) -> None:
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
        transport.writelines(messages.message_parts(kind, self._next_number, parts))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.WriteTransport", transport)
        self._reader = MessageReader()
        self._has_heard = self._is_asked = False

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        for kind, number, record in self._reader.feed(data):
            if kind in self._answers:
                self._preparer.submit(self._on_question, kind, number, record.directory)
                continue
            if kind is MessageKind.PING:
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
        """See asyncio.Protocol."""
        self._transport = None
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            future.set_exception(_restarting(OUTCOME_UNKNOWN))
        if not self._closed:
            self._connecting = self._loop.create_task(self.connect())

    def _on_question(self, kind: MessageKind, number: int, directory: dict[str, Any]) -> None:
        try:
            self._answers[kind](directory["table"], directory["version"])
            answer = messages.pack_result(None)
        except GatherdError as error:
            answer = messages.pack_error(error)
        except Exception as error:  # noqa: BLE001 - logged, and answered to the writer
            answer = messages.pack_error(unexpected(error))
        with suppress(RuntimeError):  # the loop has ended: the writer sees the connection close
            self._loop.call_soon_threadsafe(self._answer, number, answer)

    def _answer(self, number: int, parts: list[bytes | memoryview]) -> None:
        if self._transport is not None:
            self._transport.writelines(messages.message_parts(MessageKind.ANSWER, number, parts))


def _restarting(metadata: Mapping[str, str] | None = None) -> Unavailable:
    return Unavailable(
        "the process that writes updates is being restarted; send the update again",
        metadata,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
