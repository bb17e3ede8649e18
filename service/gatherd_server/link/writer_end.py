"""The writer's end of the socket: one protocol for each worker, on the writer's event loop.

Answers are sent in the order in which the work is done.
"""

import asyncio
import logging
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

from gatherd.errors import BadFile, GatherdError
from gatherd_server.data_dir.changes import Changes
from gatherd_server.errors import unexpected
from gatherd_server.link import messages
from gatherd_server.link.inbox import Inbox
from gatherd_server.link.messages import MessageKind, MessageReader
from gatherd_server.storage.records import Record, pack
from gatherd_server.writer.writer import Writer

logger = logging.getLogger("gatherd.writer")


class LinkServer:
    """The writer's end, with one connection for each. Only its questions run off the event loop."""

    def __init__(self, writer: Writer, changes: Changes) -> None:
        self.writer = writer
        self.changes = changes
        self.loop = asyncio.get_running_loop()
        self.inbox = Inbox()
        self.connections: set[_WorkerConnection] = set()

    def connection(self) -> "_WorkerConnection":
        """A protocol for a worker's new connection."""
        return _WorkerConnection(self)

    def prepare(self, table: str, version: int) -> "list[Future[None]]":
        """Have every worker map a version; one future for each."""
        return self._ask(MessageKind.PREPARE, table, version)

    def check_unused(self, table: str, version: int) -> "list[Future[None]]":
        """Ask every worker whether no lookup names a version; one future for each."""
        return self._ask(MessageKind.UNUSED, table, version)

    def _ask(self, kind: MessageKind, table: str, version: int) -> "list[Future[None]]":
        async def ask_all() -> "list[Future[None]]":
            return [one.ask(kind, table, version) for one in self.connections]

        return asyncio.run_coroutine_threadsafe(ask_all(), self.loop).result()


class _WorkerConnection(asyncio.Protocol):
    """One worker's connection."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._reader = MessageReader()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, Future[None]] = {}
        self._next_number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See asyncio.Protocol. When a lost worker comes back, it maps the live versions."""
        self._transport = None
        self._server.connections.discard(self)
        asked, self._asked = self._asked, {}
        for future in asked.values():
            future.set_result(None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            received = self._reader.feed(data)
        except (ValueError, BadFile) as error:
            logger.error("a worker sent what is no message: %s", error)  # noqa: TRY400 - says it all
            assert self._transport is not None
            self._transport.close()
            return
        for kind, number, record in received:
            if kind is MessageKind.ANSWER:
                self._on_answered(number, record)
                continue
            if kind is MessageKind.PING:
                writer = self._server.writer
                told = {"step": writer.step, "is_full": writer.is_full}
                self._send(MessageKind.PING, number, pack(told, []))
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

    def _begin(self, kind: MessageKind, record: Record) -> "Future[Any]":
        match kind:
            case MessageKind.PUSH:
                submitted = messages.unpack_push(record)
                return self._server.writer.submit(submitted.push, submitted.digest)
            case MessageKind.CHANGE:
                return self._server.changes.change(messages.unpack_change(record))
            case MessageKind.SNAPSHOT:
                return self._server.changes.snapshot(record.directory["name"])
            case MessageKind.LIST_SNAPSHOTS:
                return self._server.changes.snapshots()
            case MessageKind.DELETE_SNAPSHOT:
                return self._server.changes.delete_snapshot(record.directory["name"])
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
        self._server.inbox.put(self._server.loop, self._on_answer, (number, answer))

    def _on_answer(self, answer: tuple[int, list[bytes | memoryview]]) -> None:
        self._answer(*answer)

    def _answer(self, number: int, parts: list[bytes | memoryview]) -> None:
        self._send(MessageKind.ANSWER, number, parts)

    def _send(self, kind: MessageKind, number: int, parts: list[bytes | memoryview]) -> None:
        if self._transport is not None:
            self._transport.writelines(messages.message_parts(kind, number, parts))

    def ask(self, kind: MessageKind, table: str, version: int) -> "Future[None]":
        """Ask this worker about a version: to map it, or whether it isn't used."""
        future: Future[None] = Future()
        self._next_number += 1
        self._asked[self._next_number] = future
        assert self._transport is not None
        parts = pack({"table": table, "version": version}, [])
        self._transport.writelines(messages.message_parts(kind, self._next_number, parts))
        return future

    def _on_answered(self, number: int, record: Record) -> None:
        future = self._asked.pop(number)
        answer = messages.unpack_answer(record)
        if isinstance(answer, GatherdError):
            future.set_exception(answer)
        else:
            future.set_result(None)
