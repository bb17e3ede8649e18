"""A server that is stopped, or killed, and started again: default clients don't see it."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from support.server import wait_until

# For the test to see it; the clients have their default ten seconds.
RESTART_SECONDS = 60


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def _is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_is_outlived_on_every_wire_and_pushes_are_done_once(
    ended_by: signal.Signals, tmp_path: Path
) -> None:
    http, grpc = _free_port(), _free_port()
    command = [
        sys.executable, "-m", "gatherd_server", "serve", "--data-dir", str(tmp_path),
        "--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}",
    ]  # fmt: skip
    urls = [
        f"http://127.0.0.1:{http}",
        f"grpc://127.0.0.1:{grpc}",
        f"unix://{tmp_path}/server.sock",
        f"local:{tmp_path}",
    ]
    done, failures, stop = [0] * len(urls), list[BaseException](), threading.Event()

    def push(place: int) -> None:
        try:
            with Client(urls[place]) as client:
                while not stop.is_set():
                    client.scatter_add("t", [place], np.ones((1, 4), np.float32))
                    done[place] += 1
                    assert client.lookup("t", [place])[0, 0] == done[place]
        except BaseException as error:  # noqa: BLE001 - given to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=push, args=(place,)) for place in range(len(urls))]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with Client(urls[0], timeout=30) as client:
            client.create_table("t", 4, 4, init="zeros", optimizer="sgd")
        for thread in threads:
            thread.start()
        wait_until(lambda: bool(failures) or all(done), "every client pushes")
        server.send_signal(ended_by)
        server.wait(30)
        for port in (http, grpc):  # the killed one's worker ends by itself, soon
            while _is_open(port):
                time.sleep(0.02)
        before = done.copy()
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        ends_at = time.monotonic() + RESTART_SECONDS
        while not failures and any(map(int.__eq__, done, before)) and time.monotonic() < ends_at:
            if server.poll() is not None:  # what was killed still held the port or the data dir
                server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join(RESTART_SECONDS)
        assert not failures
        assert all(now > then > 0 for now, then in zip(done, before, strict=True))
        with Client(urls[0]) as client:
            np.testing.assert_array_equal(client.lookup("t", range(4))[:, 0], done)
    finally:
        stop.set()
        server.terminate()
        server.wait(30)
