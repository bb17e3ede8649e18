"""The client without the functions that only POSIX, or only Linux, has: as on Windows."""

import subprocess
import sys

import pytest

from client.clients import ITEMS, WORDS
from client.fake_updates import UpdatedService
from client.fakes import connect_server, grpc_server

WITHOUT = """
import functools, mmap, os, select, signal, socket, sys
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["pwd"] = sys.modules["grp"] = None
names = {
    socket: ["AF_UNIX", "MSG_DONTWAIT", "TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL",
             "TCP_KEEPCNT", "SO_REUSEPORT", "fromfd", "send_fds", "recv_fds"],
    os: ["register_at_fork", "fork", "sched_getaffinity", "pread", "pwrite", "preadv", "O_PATH",
         "O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK", "posix_fadvise", "sysconf", "getuid"],
    select: ["poll", "epoll"],
    signal: ["SIGKILL", "setitimer", "SIGALRM", "pthread_sigmask"],
    mmap: [name for name in dir(mmap) if name.startswith(("MAP_", "PROT_", "MADV_"))],
}
import asyncio, logging, multiprocessing, tempfile, threading  # of Python: what they need they have
import grpc.aio, numpy
socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # for asyncio itself
for module, gone in names.items():
    for name in gone:
        if hasattr(module, name):
            delattr(module, name)
class Meta(type):
    def __getattribute__(cls, name):
        if name in ("recvmsg_into", "recvmsg", "sendmsg"):
            raise AttributeError(name)
        return super().__getattribute__(name)
class Socket(socket.socket, metaclass=Meta):
    __slots__ = ()
socket.socket = Socket
"""

USE = """
import numpy as np
import gatherd
from gatherd import AsyncClient, Batching, Client, InvalidArgument
import gatherd.transports.connect, gatherd.transports.http, gatherd.transports.http_aio
import gatherd.transports.grpc, gatherd.busy_poll
for url in sys.argv[1:]:
    for batching in (None, Batching()):
        with Client(url, batching=batching) as client:
            for _ in range(3):
                before = client.lookup("words", np.arange(4))
            client.lookup_many({"words": [1], "items": [2]}, missing="zero")
            client.scatter_add("words", [0], np.ones((1, 8), np.float32))
            after = client.lookup("words", [0, 1, 2, 3])
            assert (after[0] == before[0] + 1).all() and (after[1:] == before[1:]).all()
        async def awaited():
            async with AsyncClient(url, batching=batching) as client:
                for _ in range(3):
                    assert (await client.lookup("words", np.arange(4)) == after).all()
        asyncio.run(awaited())
for url in ("unix:///tmp/x.sock", "local:/tmp/data"):
    for make in (Client, AsyncClient):
        try:
            make(url)
        except InvalidArgument as error:
            print(error)
        else:
            raise SystemExit(f"{url} was taken")
"""


def test_without_the_names_of_posix_http_and_grpc_work_and_the_rest_says_why_not() -> None:
    service = UpdatedService({"words": WORDS.copy(), "items": ITEMS.copy()})
    with connect_server(service) as http, grpc_server(service) as grpc:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT + USE, http, grpc],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no Unix sockets on this system") == 2
    assert done.stdout.count("can be read on Linux alone") == 2


@pytest.mark.parametrize(
    "module", ["gatherd", "gatherd.client", "gatherd.aio", "gatherd.store.memory"]
)
def test_nothing_that_is_imported_needs_them(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{WITHOUT}\nimport {module}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
