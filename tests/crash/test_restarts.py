"""What clients see while the writer or a worker is killed: the SDK's retries, and nothing else."""

import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from gatherd.store.control import CONTROL_NAME, GENERATION_OFFSET, ControlPage
from support.server import RunningServer, wait_until
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 200, 16
KILLS = 3


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("restarts") / "data"
    make_data_dir(path, drawn_table("items", ROWS, DIM))
    return path


@pytest.fixture(scope="module")
def log(data_dir: Path) -> Path:
    return data_dir.with_name("server.log")


@pytest.fixture(scope="module")
def server(data_dir: Path, log: Path) -> Iterator[RunningServer]:
    with RunningServer("--data-dir", data_dir, "--workers", "2", log_path=log) as running:
        yield running


class Loop:
    """Calls something again and again on a thread, until it is stopped or the call raises."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.count = 0
        self.failure: BaseException | None = None
        self._call = call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._call()
                self.count += 1
        except BaseException as error:  # noqa: BLE001 - raised by stop
            self.failure = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure


@contextmanager
def looping(*calls: Callable[[], None]) -> Iterator[list[Loop]]:
    loops = [Loop(call) for call in calls]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.stop()


def more(loops: list[Loop], count: int) -> Callable[[], bool]:
    """Whether each loop has gone around `count` times more than now, or has failed."""
    goals = [loop.count + count for loop in loops]
    return lambda: all(
        loop.count >= goal or loop.failure is not None
        for loop, goal in zip(loops, goals, strict=True)
    )


def looking(client: Client) -> Callable[[], None]:
    ids = np.arange(ROWS)

    def look() -> None:
        rows = client.lookup("items", ids)
        assert (rows == rows[:, :1]).all()

    return look


def adding(client: Client, row: int) -> Callable[[], None]:
    ones = np.ones((1, DIM), np.float32)

    def add() -> None:
        client.scatter_add("items", [row], ones)

    return add


def workers_are_ready(log: Path, times: int) -> bool:
    """Whether workers became ready that often since the server was started."""
    return len(re.findall(r"worker-\d is ready", log.read_text())) == times


def rows_of(url: str, rows: list[int]) -> list[float]:
    with Client(url) as client:
        found: list[float] = client.lookup("items", rows)[:, 0].tolist()
        return found


@pytest.mark.timeout(180)
def test_a_push_while_the_writer_is_restarted_is_done_once_by_a_client_as_it_is(
    server: RunningServer, data_dir: Path
) -> None:
    row, count = 8, 0
    for url in (server.http, server.grpc, f"local:{data_dir}"):
        # The tries are the client's own; the time is that of a loaded machine.
        with Client(url, timeout=60) as client:
            wait_until(lambda: bool(server.writer_pids()), "there is a writer")
            os.kill(server.writer_pids()[0], signal.SIGKILL)
            lsn = client.scatter_add("items", [row], np.ones((1, DIM))).lsn
            count += 1
            assert client.table("items").lsn >= lsn
            assert rows_of(url, [row]) == [count]


@pytest.mark.timeout(180)
def test_while_the_writer_is_killed_pushes_are_done_once_and_lookups_go_on(
    server: RunningServer, data_dir: Path
) -> None:
    rows = [0, 1, 2]
    urls = [server.http, server.grpc, f"local:{data_dir}"]
    before = rows_of(server.http, rows)
    with ExitStack() as stack:
        # The default number of tries is for a writer that comes back; its pauses grow with kills.
        pushers = [stack.enter_context(Client(url, retries=30, timeout=60)) for url in urls]
        # No retries at all: a lookup needs no writer.
        readers = [stack.enter_context(Client(url, retries=0)) for url in urls]
        pushing = stack.enter_context(looping(*map(adding, pushers, rows)))
        looked = stack.enter_context(looping(*map(looking, readers)))
        for _ in range(KILLS):
            wait_until(more(pushing, 5), "pushes go on", 60)
            wait_until(lambda: bool(server.writer_pids()), "there is a writer")
            os.kill(server.writer_pids()[0], signal.SIGKILL)
            wait_until(more(looked, 20), "lookups go on")
        wait_until(more(pushing, 5), "pushes go on", 60)
    assert rows_of(server.grpc, rows) == [
        start + loop.count for start, loop in zip(before, pushing, strict=True)
    ]


@pytest.mark.timeout(180)
def test_while_a_worker_is_killed_the_sdk_retries_and_no_caller_sees_it(
    server: RunningServer, log: Path
) -> None:
    rows = [3, 4]
    urls = [server.http, server.grpc]
    before = rows_of(server.http, rows)
    with ExitStack() as stack:
        pushers = [stack.enter_context(Client(url, retries=10, timeout=60)) for url in urls]
        readers = [stack.enter_context(Client(url)) for url in urls]
        pushing = stack.enter_context(looping(*map(adding, pushers, rows)))
        looked = stack.enter_context(looping(*map(looking, readers)))
        for turn in range(KILLS):
            # Never both: nobody would listen for gRPC then, for longer than a reader's few tries.
            wait_until(partial(workers_are_ready, log, 2 + turn), "both workers are ready", 60)
            wait_until(more([*pushing, *looked], 5), "calls go on", 60)
            os.kill(random.choice(server.worker_pids()), signal.SIGKILL)
        wait_until(more([*pushing, *looked], 5), "calls go on", 60)
    assert rows_of(server.http, rows) == [
        start + loop.count for start, loop in zip(before, pushing, strict=True)
    ]


@pytest.mark.timeout(120)
def test_an_acknowledged_update_is_seen_through_every_other_connection_at_once(
    server: RunningServer, data_dir: Path
) -> None:
    local = f"local:{data_dir}"
    # Several connections a wire: the two workers share them out between them.
    urls = [server.http] * 4 + [server.grpc] * 4 + [local] * 2
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(url)) for url in urls]
        expected = clients[0].lookup("items", [9])
        for turn in range(60):
            pusher = clients[turn % len(clients)]
            pusher.scatter_add("items", [9], np.ones((1, DIM)))
            expected += 1
            for client in clients:
                found = client.lookup("items", [9])
                assert (found == expected).all(), (turn, client)
                pooled = client.lookup_bags("items", [9, 9], [0], mode="sum")
                assert (pooled == 2 * expected).all(), (turn, client)


def test_a_publish_whose_writer_died_before_it_told_readers_is_seen_after_the_restart(
    tmp_path: Path,
) -> None:
    make_data_dir(tmp_path, drawn_table("items", 3, DIM))
    with Client(f"local:{tmp_path}") as local:
        with RunningServer("--data-dir", tmp_path) as server, Client(server.http) as client:
            assert local.table("items").version == 1
            told = ControlPage(tmp_path).generation
            assert client.publish("items").version == 2
            server.kill()
        with open(tmp_path / CONTROL_NAME, "r+b") as control:
            control.seek(GENERATION_OFFSET)
            control.write(told.to_bytes(8, "little"))
        assert local.table("items").version == 1
        with RunningServer("--data-dir", tmp_path) as server, Client(server.http) as client:
            assert client.scatter_add("items", [1], np.ones((1, DIM))).versions == {"items": 2}
            assert local.table("items").version == 2
            np.testing.assert_array_equal(local.lookup("items", [1]), np.ones((1, DIM)))
