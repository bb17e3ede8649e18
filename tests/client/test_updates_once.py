"""Exactly once: connections that break at every point of a push, forks, and processes that end."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.clients import WORDS
from client.fake_updates import UpdatedService, ids_of
from client.fakes import connect_server, grpc_server
from client.scripted import ScriptedServer, ok, read_request
from gatherd import AsyncClient, Client, RetryableError, Unavailable

DELTA = np.ones((1, 8), np.float32)
Script = Callable[[socket.socket], None]


@pytest.fixture
def service() -> UpdatedService:
    return UpdatedService({"words": WORDS.copy()})


def path_of(head: bytes) -> str:
    return head.split(b" ", 2)[1].decode()


def answers(service: UpdatedService, count: int = 1) -> Script:
    """A connection that answers `count` requests."""

    def script(connection: socket.socket) -> None:
        for _ in range(count):
            head, body = read_request(connection)
            connection.sendall(ok(service.handle(path_of(head), body)))

    return script


def loses(service: UpdatedService, sent: int) -> Script:
    """A connection that does its request, and breaks after `sent` bytes of the answer."""

    def script(connection: socket.socket) -> None:
        head, body = read_request(connection)
        answer = ok(service.handle(path_of(head), body))
        assert sent < len(answer)
        connection.sendall(answer[:sent])

    return script


def breaks(received: int) -> Script:
    """A connection that breaks after `received` bytes of the request."""

    def script(connection: socket.socket) -> None:
        left = received
        while left:
            left -= len(connection.recv(left))

    return script


@pytest.mark.parametrize("sent", [0, 1, 20, 60])
def test_a_push_whose_answer_is_lost_is_done_once(
    make: Any, service: UpdatedService, sent: int
) -> None:
    with ScriptedServer(loses(service, sent), answers(service)) as url, make(url) as client:
        assert client.scatter_add("words", [3], DELTA).lsn == 101
    assert len(service.bodies) == 2
    assert service.bodies[0] == service.bodies[1]
    np.testing.assert_array_equal(service.tables["words"][3], WORDS[3] + 1)


@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize("received", [0, 1, 200])
def test_a_push_whose_request_is_lost_is_done_once(
    make: Any, service: UpdatedService, rows: int, received: int
) -> None:
    ids, deltas = np.full(rows, 3), np.ones((rows, 8), np.float32)
    with ScriptedServer(breaks(received), answers(service)) as url, make(url) as client:
        client.scatter_add("words", ids, deltas)
    assert len(service.bodies) == 1
    np.testing.assert_allclose(service.tables["words"][3], WORDS[3] + rows, rtol=1e-4)


def test_without_retries_a_lost_answer_is_told(make: Any, service: UpdatedService) -> None:
    with (
        ScriptedServer(loses(service, 0)) as url,
        make(url, retries=0) as client,
        pytest.raises(Unavailable, match="isn't known whether the push was done") as caught,
    ):
        client.scatter_add("words", [3], DELTA)
    assert caught.value.metadata["outcome"] == "unknown"


@pytest.mark.parametrize("sent", [0, 20])
def test_a_change_whose_answer_is_lost_is_not_sent_again(
    make: Any, service: UpdatedService, sent: int
) -> None:
    server = ScriptedServer(loses(service, sent), answers(service))
    with server as url, make(url) as client:
        with pytest.raises(Unavailable, match="known whether the table was made"):
            client.create_table("new", 5, 8)
    assert len(service.changes) == 1


def test_a_change_is_tried_again_while_nobody_listens(
    make: Any, service: UpdatedService, tmp_path: Path
) -> None:
    path = tmp_path / "s.sock"
    listening = threading.Event()

    def start() -> None:
        with connect_server(service, path):
            listening.set()
            finished.wait(10)

    finished = threading.Event()
    thread = threading.Thread(target=start)
    with make(f"unix://{path}", retries=100, timeout=20) as client:
        with pytest.raises(Unavailable, match="can't connect"):
            client.publish("words", timeout=0.01)
        thread.start()
        try:
            client.publish("words")
        finally:
            finished.set()
            thread.join()
    assert len(service.changes) == 1


def idle_until(closed: threading.Event, service: UpdatedService) -> Script:
    """A connection that answers once and is closed while it is idle."""

    def script(connection: socket.socket) -> None:
        answers(service)(connection)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    return script


@pytest.mark.parametrize("call", ["push", "change"])
def test_a_connection_that_was_closed_while_idle_costs_no_try(
    service: UpdatedService, call: str
) -> None:
    closed = threading.Event()
    with (
        ScriptedServer(idle_until(closed, service), answers(service)) as url,
        Client(url, retries=0) as client,
    ):
        client.scatter_add("words", [3], DELTA)
        assert closed.wait(10)
        if call == "push":
            client.scatter_add("words", [3], DELTA)
        else:
            client.publish("words")


@pytest.mark.parametrize("call", ["push", "change"])
def test_a_connection_that_was_closed_while_the_loop_was_busy_costs_no_try(
    service: UpdatedService, call: str
) -> None:
    closed = threading.Event()

    async def main(url: str) -> None:
        async with AsyncClient(url, retries=0) as client:
            await client.scatter_add("words", [3], DELTA)
            assert closed.wait(10)  # the loop has no turn meanwhile, so it hasn't noticed
            if call == "push":
                await client.scatter_add("words", [3], DELTA)
            else:
                await client.publish("words")

    with ScriptedServer(idle_until(closed, service), answers(service)) as url:
        asyncio.run(main(url))


def test_a_connection_that_breaks_under_a_push_is_a_try(make: Any, service: UpdatedService) -> None:
    """The transport doesn't send it a second time by itself, as it does a lookup."""

    def one_and_a_half(connection: socket.socket) -> None:
        answers(service)(connection)
        read_request(connection)

    def run(retries: int) -> None:
        server = ScriptedServer(one_and_a_half, answers(service))
        with server as url, make(url, retries=retries) as client:
            client.scatter_add("words", [3], DELTA)
            client.scatter_add("words", [3], DELTA)

    with pytest.raises(RetryableError, match="isn't known"):
        run(0)
    run(1)
    assert len(service.bodies) == 3


FORK = """
import os, sys
import numpy as np
from gatherd import Client
client = Client(sys.argv[1])
delta = np.ones((1, 8), np.float32)
for _ in range(3):
    client.scatter_add("words", [3], delta)
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for _ in range(3):
                client.scatter_add("words", [3], delta)
            status = 0
        finally:
            os._exit(status)
    children.append(pid)
for _ in range(3):
    client.scatter_add("words", [3], delta)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@pytest.mark.parametrize("wire", ["http", "unix", "local"])
def test_a_forked_child_has_a_session_of_its_own(
    service: UpdatedService, tmp_path: Path, wire: str
) -> None:
    path = None if wire == "http" else tmp_path / "server.sock"
    with connect_server(service, path) as url:
        target = f"local:{tmp_path}" if wire == "local" else url
        done = subprocess.run(
            [sys.executable, "-c", FORK, target], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stdout + done.stderr
    pushed: dict[bytes, list[int]] = {}
    for session, number in ids_of(service):
        pushed.setdefault(session, []).append(number)
    assert sorted(pushed.values()) == [[1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5, 6]]
    expected = WORDS[3].copy()
    for _ in range(12):
        expected += 1
    np.testing.assert_array_equal(service.tables["words"][3], expected)


def test_a_child_of_a_fork_while_a_thread_pushes_is_not_stuck(service: UpdatedService) -> None:
    code = """
import os, sys, threading
import numpy as np
from gatherd import Client
client = Client(sys.argv[1])
delta = np.ones((1, 8), np.float32)
stop = threading.Event()
def push():
    while not stop.is_set():
        client.scatter_add("words", [3], delta)
threads = [threading.Thread(target=push) for _ in range(3)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        client.scatter_add("words", [4], delta)
        os._exit(0)
    statuses.append(os.waitpid(pid, 0)[1])
stop.set()
for thread in threads:
    thread.join()
sys.exit(any(statuses))
"""
    with connect_server(service) as url:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, url],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ids = ids_of(service)
    assert len(set(ids)) == len(ids)
    assert len({session for session, _ in ids}) == 21


def test_a_grpc_server_that_is_not_there_yet_is_waited_for(service: UpdatedService) -> None:
    """Without a connection nothing was sent, so a change too may be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Client(f"grpc://127.0.0.1:{port}", retries=0) as client:
        with pytest.raises(Unavailable) as caught:
            client.publish("words")
    assert caught.value.metadata["outcome"] == "not sent"
    assert "isn't known" not in caught.value.message


def test_pushes_to_a_data_dir_hold_no_descriptor_of_it(
    service: UpdatedService, tmp_path: Path
) -> None:
    def held() -> list[Path]:
        # One no longer exists: the descriptor of the listing itself.
        entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
        return [link for entry in entries if (link := entry.resolve()) == tmp_path]

    with connect_server(service, tmp_path / "server.sock"), Client(f"local:{tmp_path}") as client:
        client.scatter_add("words", [3], DELTA)
        assert held() == []


def test_a_stopped_grpc_server_leaves_a_push_undecided(service: UpdatedService) -> None:
    arrived, released = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        arrived.set()
        released.wait(10)

    service.before = hold
    failures: list[Any] = []
    with grpc_server(service) as url:
        client = Client(url, retries=0)

        def push() -> None:
            try:
                client.scatter_add("words", [3], DELTA)
            except Unavailable as error:
                failures.append(error)

        thread = threading.Thread(target=push)
        thread.start()
        assert arrived.wait(10)
    thread.join()
    released.set()
    client.close()
    assert failures[0].metadata["outcome"] == "unknown"
