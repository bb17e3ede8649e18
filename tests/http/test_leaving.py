"""A search is ended when its client leaves, or its time is up, on every wire."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from gatherd import AsyncClient, Client
from gatherd.errors import DeadlineExceeded
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import NeighborsQuery
from gatherd_proto.procedures import NEIGHBORS
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.searching import Found, PreparedSearch
from gatherd_server.rpc.server import RpcServer
from support.small_engine import LIMITS, SmallEngine, lookup_request, small_engine
from support.web_server import web_server

SECONDS = 20.0


class Endless(Engine):
    """An engine whose searches end only when they are stopped."""

    def __init__(self, inner: Engine) -> None:
        self.limits = inner.limits
        self._inner = inner
        self.begun, self.ended = threading.Event(), threading.Event()

    def table_states(self) -> dict[str, str]:
        return self._inner.table_states()

    def prepare_neighbors(
        self, name: str, query: NeighborsQuery, version: int = LIVE_VERSION
    ) -> PreparedSearch:
        prepared = self._inner.prepare_neighbors(name, query, version)

        def run() -> Found:
            self.begun.set()
            give_up = time.monotonic() + SECONDS
            try:
                while time.monotonic() < give_up:
                    prepared.stopping.check()
                    time.sleep(0.001)
            finally:
                if time.monotonic() < give_up:
                    self.ended.set()
            return prepared.run()

        return PreparedSearch(run, prepared.stopping)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


@pytest.fixture
def endless(small: SmallEngine) -> Endless:
    return Endless(small.engine)


@pytest.fixture
def address(small: SmallEngine, endless: Endless) -> Iterator[str]:
    with web_server(replace(small, engine=endless)) as url:
        yield url


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tables/words:neighbors", b'{"ids": [1]}'),
        (NEIGHBORS.path, b'{"table": "words", "ids": {"dtype": 9, "data": "AQ=="}}'),
    ],
)
def test_a_client_that_leaves_ends_its_search(
    endless: Endless, address: str, path: str, body: bytes
) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert endless.begun.wait(SECONDS)
    assert endless.ended.wait(SECONDS)


def test_a_deadline_over_connect_ends_the_search(endless: Endless, address: str) -> None:
    with Client(address, timeout=0.5) as client, pytest.raises(DeadlineExceeded):
        client.neighbors("words", 1)
    assert endless.begun.is_set()
    assert endless.ended.wait(SECONDS)


@pytest.fixture
def rpc(small: SmallEngine, endless: Endless) -> Iterator[grpc.Channel]:
    server = RpcServer(
        endless,
        small.admission,
        address="127.0.0.1:0",
        threads=4,
        streams_max=2,
        reflection=False,
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        yield channel
    server.stop(1)


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_grpc_call_that_ends_ends_its_search(
    endless: Endless, rpc: grpc.Channel, how: str
) -> None:
    ids = lookup_request("words", 1).ids
    request = embedding_pb2.NeighborsRequest(table="words", ids=ids).SerializeToString()
    ask: Any = rpc.unary_unary(NEIGHBORS.path)
    call = ask.future(request, timeout=0.5 if how == "deadline" else 60)
    assert endless.begun.wait(SECONDS)
    if how == "cancel":
        call.cancel()
    assert endless.ended.wait(SECONDS)


def test_an_awaited_call_that_is_cancelled_ends_its_search(endless: Endless, address: str) -> None:
    async def leave() -> None:
        async with AsyncClient(address) as client:
            call = asyncio.ensure_future(client.neighbors("words", np.ones(64)))
            await asyncio.to_thread(endless.begun.wait, SECONDS)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(leave())
    assert endless.ended.wait(SECONDS)


def test_the_places_of_ended_searches_are_free_again(small: SmallEngine) -> None:
    assert LIMITS.neighbors.in_flight_max == 2
    for _ in range(3):
        prepared = small.engine.prepare_neighbors("words", NeighborsQuery(np.array(1), None))
        prepared.stopping.stop()
        with pytest.raises(DeadlineExceeded):
            prepared.run()
    prepared = small.engine.prepare_neighbors("words", NeighborsQuery(np.array(1), None))
    assert prepared.run().nearest.ids.shape == (10,)
