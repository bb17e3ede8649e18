"""A worker's end and the writer's, over a Unix socket in one process; behind them is a double."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatherd.errors import (
    DiskFull,
    FailedPrecondition,
    GatherdError,
    InternalError,
    NonfiniteValues,
    Overloaded,
    TableNotFound,
    TableRefused,
    Unavailable,
    UpdatesStopped,
)
from gatherd_server.link import worker_end
from gatherd_server.link.messages import (
    MessageKind,
    MessageReader,
    message_parts,
    pack_push,
    pack_result,
)
from gatherd_server.link.worker_end import SocketLink
from gatherd_server.link.writer_end import LinkServer
from gatherd_server.types import (
    ChangeResult,
    DeleteTable,
    Push,
    PushResult,
    SnapshotInfo,
    SnapshotList,
    SnapshotResult,
    TableChange,
    TableUpdate,
    UpdateOp,
    UpdatesState,
)
from gatherd_server.writer.commit import Submitted
from gatherd_server.writer.window import push_digest

WAIT_SECONDS = 30
LISTED = SnapshotList(
    (
        SnapshotInfo("broken", "/snapshots/broken", damaged="it has no snapshot.json"),
        SnapshotInfo("monday", "/snapshots/monday", 17, 1_790_000_000, 2048),
    )
)
OUTCOME_UNKNOWN = {"outcome": "unknown"}


@dataclass
class Behind:
    """In place of writer and changes: keeps what it is asked, and is answered by the test."""

    pushes: "list[tuple[Push, bytes, Future[PushResult]]]" = field(default_factory=list)
    changes: list[TableChange] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    refuses: Exception | None = None
    step: int | None = None
    is_full: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, push: Push, digest: bytes) -> "Future[PushResult]":
        if self.refuses is not None:
            raise self.refuses
        future: Future[PushResult] = Future()
        self.pushes.append((push, digest, future))
        self.asked.set()
        return future

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        self.changes.append(change)
        return ended(ChangeResult(2, 17))

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        self.names.append(name)
        return ended(SnapshotResult("folder", 18))

    def snapshots(self) -> "Future[SnapshotList]":
        return ended(LISTED)

    def delete_snapshot(self, name: str) -> "Future[None]":
        self.names.append(name)
        return ended(None)

    async def has(self, count: int) -> None:
        """Wait until so many pushes have come."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.pushes) < count:
                self.asked.clear()
                await self.asked.wait()


def ended(result: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def a_push(number: int = 0, key: str | None = None, rows: int = 2) -> Push:
    values = np.full((rows, 3), number, np.float32)
    return Push(UpdateOp.SCATTER_ADD, (TableUpdate("items", np.arange(rows), values),), key)


async def answer(future: "Future[Any]") -> Any:
    """Its result, or the error that it ended with."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), WAIT_SECONDS)
    except GatherdError as error:
        return error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def answer_nothing(table: str, version: int) -> None:
    pass


@asynccontextmanager
async def writer_end(path: Path) -> "AsyncIterator[tuple[Behind, LinkServer]]":
    """The writer's end, listening."""
    behind = Behind()
    double: Any = behind
    server = LinkServer(double, double)
    listening = await asyncio.get_running_loop().create_unix_server(server.connection, str(path))
    try:
        yield behind, server
        await until(lambda: not server.connections)
    finally:
        listening.close()


@asynccontextmanager
async def worker(
    path: Path, prepare: Any = answer_nothing, check_unused: Any = answer_nothing, **options: Any
) -> Any:
    """A worker's end, connected."""
    link = SocketLink(path, prepare, check_unused, **options)
    await asyncio.wait_for(link.connect(), WAIT_SECONDS)
    try:
        yield link
    finally:
        await link.close()
        await until(lambda: link.state() is UpdatesState.UNREACHABLE)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "writer.sock"


def test_each_push_gets_its_own_answer_in_whatever_order_they_are_given(path: Path) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as link:
            futures = [link.push(a_push(number, f"key {number}")) for number in range(8)]
            await behind.has(8)
            # They arrive in the order in which they were handed over.
            assert [push.request_id for push, _, _ in behind.pushes] == [
                f"key {number}" for number in range(8)
            ]
            for push, digest, future in reversed(behind.pushes):
                assert digest == push_digest(push)
                future.set_result(PushResult(int(push.updates[0].values[0, 0]), (1,)))
            for number, future in enumerate(futures):
                assert await answer(future) == PushResult(number, (1,))

    run(test())


def test_pushes_of_other_threads_and_changes_and_snapshots_get_there(path: Path) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as link:
            future = await asyncio.to_thread(link.push, a_push())
            await behind.has(1)
            assert behind.pushes[0][1] == b"", "a push without an id needs no digest"
            behind.pushes[0][2].set_result(PushResult(5, (1,)))
            assert await answer(future) == PushResult(5, (1,))
            assert await answer(link.change(DeleteTable("items"))) == ChangeResult(2, 17)
            assert await answer(link.snapshot("monday")) == SnapshotResult("folder", 18)
            assert (behind.changes, behind.names) == ([DeleteTable("items")], ["monday"])

    run(test())


ERRORS: list[GatherdError] = [
    NonfiniteValues("in row 3", {"rows": "3"}),
    DiskFull("no room"),
    UpdatesStopped("the disk failed"),
    Overloaded("too many", {"limit": "queued_pushes_max"}, 0.5),
]


@pytest.mark.parametrize("at_once", [True, False], ids=["refused at once", "later"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.reason)
def test_an_error_has_the_class_that_it_had_at_the_writer(
    path: Path, error: GatherdError, at_once: bool
) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as link:
            behind.refuses = error if at_once else None
            future = link.push(a_push())
            if not at_once:
                await behind.has(1)
                behind.pushes[0][2].set_exception(error)
            told = await answer(future)
            assert type(told) is type(error)
            assert (told.message, told.metadata) == (error.message, error.metadata)
            behind.refuses = None
            link.push(a_push())
            await behind.has(1 if at_once else 2)

    run(test())


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_the_unexpected_is_logged_at_the_writer_and_told_without_its_text(
    path: Path, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as link:
            behind.refuses = ZeroDivisionError("secret") if at_once else None
            future = link.push(a_push())
            if not at_once:
                await behind.has(1)
                behind.pushes[0][2].set_exception(ZeroDivisionError("secret"))
            told = await answer(future)
            assert type(told) is InternalError
            assert "secret" not in told.message

    run(test())
    assert "secret" in caplog.text


def test_every_worker_maps_a_version_before_it_is_live(path: Path) -> None:
    mapped: list[tuple[str, int]] = []

    def prepare(table: str, version: int) -> None:
        mapped.append((table, version))

    def refuse(table: str, version: int) -> None:
        raise TableRefused("its file is truncated", {"table": table})

    async def test() -> None:
        async with (
            writer_end(path) as (_, server),
            worker(path, prepare),
            worker(path, refuse),
        ):
            await until(lambda: len(server.connections) == 2)
            answers = await asyncio.to_thread(server.prepare, "items", 4)
            told = [await answer(one) for one in answers]
            assert sorted(type(one).__name__ for one in told) == ["NoneType", "TableRefused"]
            assert mapped == [("items", 4)]

    run(test())


def test_every_worker_is_asked_whether_it_uses_a_version(path: Path) -> None:
    def is_used(table: str, version: int) -> None:
        raise FailedPrecondition(f"version {version} of table {table!r} is in use")

    async def test() -> None:
        async with (
            writer_end(path) as (_, server),
            worker(path),
            worker(path, check_unused=is_used),
        ):
            await until(lambda: len(server.connections) == 2)
            answers = await asyncio.to_thread(server.check_unused, "items", 4)
            told = sorted([str(await answer(one)) for one in answers])
            assert told == ["None", "version 4 of table 'items' is in use"]

    run(test())


def test_snapshots_are_listed_and_deleted_through_the_socket(path: Path) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as link:
            assert await answer(link.snapshots()) == LISTED
            assert await answer(link.delete_snapshot("monday")) is None
            assert behind.names == ["monday"]

    run(test())


def test_a_worker_that_leaves_is_not_waited_for(path: Path) -> None:
    leaves = threading.Event()

    async def test() -> None:
        async with writer_end(path) as (_, server):
            async with worker(path, lambda table, version: leaves.wait(WAIT_SECONDS)):
                await until(lambda: len(server.connections) == 1)
                (waiting,) = await asyncio.to_thread(server.prepare, "items", 4)
                assert not waiting.done()
            assert await answer(waiting) is None
            await until(lambda: not server.connections)
            assert await asyncio.to_thread(server.prepare, "items", 5) == []
            leaves.set()

    run(test())


class RawWriter:
    """A writer's end that sends whatever bytes the test has, and goes when it wants."""

    def __init__(self) -> None:
        self.received: list[tuple[MessageKind, int]] = []
        self.connections: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        messages = MessageReader()
        while data := await reader.read(1 << 16):
            self.received += [(kind, number) for kind, number, _ in messages.feed(data)]

    async def goes(self) -> None:
        """End the newest connection."""
        self.connections[-1].close()
        await self.connections[-1].wait_closed()


@asynccontextmanager
async def raw_writer(path: Path) -> AsyncIterator[RawWriter]:
    raw = RawWriter()
    listening = await asyncio.start_unix_server(raw.serve, path)
    try:
        yield raw
    finally:
        listening.close()
        for connection in raw.connections:
            connection.close()
            with suppress(OSError):
                await connection.wait_closed()


def test_what_the_writer_had_when_it_went_has_an_unknown_outcome_and_the_next_one_is_found(
    path: Path,
) -> None:
    async def test() -> None:
        async with raw_writer(path) as raw, worker(path) as link:
            futures = [link.push(a_push()), link.change(DeleteTable("items"))]
            await until(lambda: len(raw.received) == 2)
            await raw.goes()
            for future in futures:
                told = await answer(future)
                assert isinstance(told, Unavailable)
                assert told.metadata == OUTCOME_UNKNOWN
                assert told.retry_after_seconds
            await until(lambda: len(raw.connections) == 2)
            await until(lambda: link.state() is UpdatesState.RUNNING)
            again = link.push(a_push())
            await until(lambda: len(raw.received) == 3)
            number = raw.received[-1][1]
            parts = message_parts(MessageKind.ANSWER, number, pack_result(PushResult(3, (1,))))
            raw.connections[-1].writelines(parts)
            assert await answer(again) == PushResult(3, (1,))

    run(test())


def test_an_answer_that_is_cut_at_any_byte_is_no_answer(path: Path) -> None:
    async def test() -> None:
        async with raw_writer(path) as raw, worker(path) as link:
            whole = len(
                b"".join(message_parts(MessageKind.ANSWER, 1, pack_result(PushResult(3, (1,)))))
            )
            for cut in range(whole):
                await until(lambda: link.state() is UpdatesState.RUNNING)
                count = len(raw.received)
                future = link.push(a_push())
                await until(lambda: len(raw.received) > count)  # noqa: B023 - it is awaited here
                number = raw.received[-1][1]
                data = b"".join(
                    message_parts(MessageKind.ANSWER, number, pack_result(PushResult(3, (1,))))
                )
                raw.connections[-1].write(data[:cut])
                await raw.goes()
                told = await answer(future)
                assert isinstance(told, Unavailable), cut
                assert told.metadata == OUTCOME_UNKNOWN

    run(test())


def test_an_update_while_no_writer_is_there_is_refused_as_not_done(path: Path) -> None:
    async def test() -> None:
        async with raw_writer(path) as raw, worker(path) as link:
            await until(lambda: len(raw.connections) == 1)
            path.unlink()
            await raw.goes()
            await until(lambda: link.state() is UpdatesState.UNREACHABLE)
            told = await answer(link.push(a_push()))
            assert isinstance(told, Unavailable)
            assert told.metadata == {}

    run(test())


def test_what_the_writer_does_not_read_is_bounded_and_its_place_is_given_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_end, "UNSENT_BYTES_MAX", 1 << 20)
    large = a_push(rows=50_000)

    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as link:
            # On the event loop, which the other end needs to read any of it.
            futures = [link.push(large) for _ in range(20)]
            refused = [future for future in futures if future.done()]
            taken = len(futures) - len(refused)
            assert 0 < taken < len(futures)
            for future in refused:
                assert isinstance(await answer(future), Overloaded)
            await behind.has(taken)
            assert len(behind.pushes) == taken
            later = link.push(large)
            await behind.has(taken + 1)
            behind.pushes[-1][2].set_result(PushResult(1, (1,)))
            assert await answer(later) == PushResult(1, (1,))

    run(test())


def test_a_push_of_a_worker_that_is_cut_at_any_byte_is_never_begun(path: Path) -> None:
    data = b"".join(message_parts(MessageKind.PUSH, 1, pack_push(Submitted(a_push(), b""))))

    async def test() -> None:
        async with writer_end(path) as (behind, server):
            for cut in range(1, len(data)):
                _, raw = await asyncio.open_unix_connection(str(path))
                raw.write(data[:cut])
                raw.close()
                await raw.wait_closed()
            await until(lambda: not server.connections)
            assert behind.pushes == []
            # Byte by byte it is one push.
            reader, raw = await asyncio.open_unix_connection(str(path))
            for byte in data:
                raw.write(bytes((byte,)))
                await raw.drain()
            await behind.has(1)
            behind.pushes[0][2].set_result(PushResult(1, (1,)))
            expected = b"".join(
                message_parts(MessageKind.ANSWER, 1, pack_result(PushResult(1, (1,))))
            )
            assert await reader.readexactly(len(expected)) == expected
            assert len(behind.pushes) == 1
            raw.close()

    run(test())


NO_MESSAGES = {
    "too large": b"\xff" * 13,
    "too short": bytes(13),
    "no record": b"".join(message_parts(MessageKind.PUSH, 1, [b"\xff" * 8])),
    "no kind": b"\x11\0\0\0\x63" + bytes(16),
}


@pytest.mark.parametrize("data", NO_MESSAGES.values(), ids=list(NO_MESSAGES))
def test_a_worker_that_sends_no_message_is_cut_off_and_the_others_are_served(
    path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as link:
            reader, raw = await asyncio.open_unix_connection(str(path))
            raw.write(data)
            assert await asyncio.wait_for(reader.read(), WAIT_SECONDS) == b""
            raw.close()
            future = link.push(a_push())
            await behind.has(1)
            behind.pushes[0][2].set_result(PushResult(1, (1,)))
            assert await answer(future) == PushResult(1, (1,))

    caplog.set_level(logging.ERROR, "gatherd.writer")
    run(test())
    assert "no message" in caplog.text


def test_an_answer_after_the_worker_has_gone_goes_nowhere(path: Path) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, server):
            async with worker(path) as link:
                future = link.push(a_push())
                await behind.has(1)
            await until(lambda: not server.connections)
            behind.pushes[0][2].set_result(PushResult(1, (1,)))
            told = await answer(future)
            assert isinstance(told, Unavailable)
            assert told.metadata == OUTCOME_UNKNOWN

    run(test())


def test_a_change_of_a_table_that_there_is_not_is_told_to_the_one_who_asked(path: Path) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path) as one, worker(path) as other:
            behind.refuses = TableNotFound("there is no table 'items'")
            refused, change = one.push(a_push()), other.change(DeleteTable("users"))
            assert isinstance(await answer(refused), TableNotFound)
            assert await answer(change) == ChangeResult(2, 17)

    run(test())


def test_the_state_follows_the_writers_signs_of_life(path: Path) -> None:
    async def test() -> None:
        async with writer_end(path) as (behind, _), worker(path, hung_seconds=0.5) as link:
            link.watch()
            behind.is_full = True
            await until(lambda: link.state() is UpdatesState.DISK_FULL)
            behind.is_full = False
            await until(lambda: link.state() is UpdatesState.RUNNING)
            future = link.push(a_push())
            await behind.has(1)
            # It stays at one step.
            behind.step = 7
            await until(lambda: link.state() is UpdatesState.HUNG)
            told = await answer(future)
            assert isinstance(told, Unavailable)
            assert told.metadata == OUTCOME_UNKNOWN
            with pytest.raises(Unavailable) as refused:
                link.push(a_push())
            assert refused.value.metadata == {"outcome": "not sent"}
            # The answer to what was given up comes late, and disturbs nobody.
            behind.pushes[0][2].set_result(PushResult(1, (1,)))
            behind.step = None
            await until(lambda: link.state() is UpdatesState.RUNNING)
            again = link.push(a_push())
            await behind.has(2)
            behind.pushes[1][2].set_result(PushResult(2, (1,)))
            assert await answer(again) == PushResult(2, (1,))

    run(test())
