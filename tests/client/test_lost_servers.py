"""Servers that go away, and flows that a NAT or a balancer forgets: default clients go on."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from client.clients import ITEMS, WORDS
from client.fake_updates import UpdatedService
from client.fakes import connect_server, grpc_server
from client.scripted import ScriptedServer, read_request
from gatherd import Client, DeadlineExceeded, FailedPrecondition, Unavailable


class Forgetful:
    """A TCP proxy that can forget its flows: it swallows bytes sent on them, and new ones work."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._known = 0  # flows before this one are forgotten
        self._flows: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)

    def forget(self) -> None:
        self._known = len(self._flows)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for flow in (self._listener, *self._flows):
            with contextlib.suppress(OSError):
                flow.shutdown(socket.SHUT_RDWR)
            flow.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._flows += [near, far]
            number = len(self._flows)
            for source, target in ((near, far), (far, near)):
                threading.Thread(
                    target=self._carry, args=(source, target, number), daemon=True
                ).start()

    def _carry(self, source: socket.socket, target: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if number > self._known:
                    target.sendall(data)
            if number > self._known:
                target.shutdown(socket.SHUT_WR)


@pytest.fixture
def updated() -> UpdatedService:
    return UpdatedService({"words": WORDS.copy(), "items": ITEMS.copy()})


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_forgotten_flow_is_left_after_one_deadline(
    make: Any, wire: str, updated: UpdatedService
) -> None:
    serving = connect_server(updated) if wire == "http" else grpc_server(updated)
    with serving as url, Forgetful(int(url.rpartition(":")[2])) as proxy:
        with make(f"{wire}://127.0.0.1:{proxy.port}", timeout=1.1) as client:
            client.lookup("words", [1])
            proxy.forget()
            with contextlib.suppress(DeadlineExceeded, Unavailable):
                client.lookup("words", [1])
            for row in range(5):
                np.testing.assert_array_equal(client.lookup("words", [row]), WORDS[[row]])


def test_a_grpc_call_with_the_usual_timeout_outlives_a_forgotten_flow(
    updated: UpdatedService,
) -> None:
    with grpc_server(updated) as url, Forgetful(int(url.rpartition(":")[2])) as proxy:
        with Client(f"grpc://127.0.0.1:{proxy.port}") as client:
            client.lookup("words", [1])
            proxy.forget()
            client.scatter_add("words", [1], np.ones((1, 8), np.float32))
            np.testing.assert_array_equal(client.lookup("words", [1]), WORDS[[1]] + 1)


@contextlib.contextmanager
def started_late(wire: str, service: UpdatedService, folder: Path) -> Iterator[str]:
    """The URL of a server that listens a second from now: until then connections are refused."""
    path = folder / "late.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ends = threading.Event()

    def serve() -> None:
        time.sleep(1)
        if wire == "unix":
            with connect_server(service, path):
                ends.wait(30)
        else:
            with grpc_server(service) as url, socket.create_server(("127.0.0.1", port)) as back:
                back.settimeout(30)
                near, _ = back.accept()
                far = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, target), daemon=True).start()
                ends.wait(30)
                near.close()
                far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"unix://{path}" if wire == "unix" else f"grpc://127.0.0.1:{port}"
    finally:
        ends.set()
        thread.join(40)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@pytest.mark.parametrize("wire", ["unix", "grpc"])
def test_a_default_client_waits_for_a_server_that_isnt_there_yet(
    make: Any, wire: str, updated: UpdatedService, tmp_path: Path
) -> None:
    with started_late(wire, updated, tmp_path) as url, make(url) as client:
        client.scatter_add("words", [1], np.ones((1, 8), np.float32))
        np.testing.assert_array_equal(client.lookup("words", [1]), WORDS[[1]] + 1)
    assert len(updated.pushes) == 1


def test_with_no_server_the_timeout_is_used_up_and_no_more(make: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for wire in ("http", "grpc"):
        with make(f"{wire}://127.0.0.1:{port}", timeout=1.0) as client:
            begin = time.monotonic()
            with pytest.raises(Unavailable):
                client.lookup("words", [1])
            assert 0.7 < time.monotonic() - begin < 2


PROXY_STATUSES = (400, 408, 499, 500, 502, 503, 504, 520, 524)


@pytest.mark.parametrize("status", PROXY_STATUSES)
def test_what_a_proxy_answers_to_a_push_is_an_outcome_that_nobody_knows(status: int) -> None:
    bodies: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        bodies.append(read_request(connection)[1])
        page = b"<html>"
        connection.sendall(
            b"HTTP/1.1 %d Proxy\r\nContent-Type: text/html\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%b" % (status, len(page), page)
        )

    with ScriptedServer(answer, answer, answer) as url, Client(url, retries=2) as client:
        with pytest.raises(Unavailable, match="isn't known whether the push was done"):
            client.scatter_add("words", [1], np.ones((1, 8), np.float32))
    assert len(bodies) == 3
    assert len(set(bodies)) == 1  # the same bytes, by the same request id
    with ScriptedServer(answer) as url, Client(url) as client:
        # A change has no id, so it isn't sent again.
        with pytest.raises((Unavailable, FailedPrecondition), match="isn't known whether"):
            client.create_table("new", 4, 4)


def test_a_proxys_hint_is_waited_for(updated: UpdatedService) -> None:
    def busy(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(
            b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )

    with ScriptedServer(busy, busy) as url, Client(url, timeout=3, retries=1) as client:
        begin = time.monotonic()
        with pytest.raises(Unavailable):
            client.lookup("words", [1])
        assert time.monotonic() - begin >= 1
