"""The bound on threads: one for everything that the HTTP port answers."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import httpx
import pytest
from google.protobuf import json_format

from gatherd.store.live import LiveTables, View
from gatherd_server.engine.engine import Engine, PreparedLookup
from gatherd_server.http.offload import Offload
from gatherd_server.types import Lookup, TableInfo, UpdatesState
from support.server import wait_until
from support.small_engine import SmallEngine, lookup_request
from support.web_server import web_server

THREADS = 2
SECONDS = 20.0
LOOKUP = "/gatherd.v1.EmbeddingService/Lookup"

T = TypeVar("T")


class LongWork(Engine):
    """Another engine, all of whose work is long and waits until it is let go."""

    def __init__(self, inner: Engine) -> None:
        self.limits = inner.limits
        self._inner = inner
        self._lock = threading.Lock()
        self._go_on = threading.Semaphore(0)
        self.under_way = self.most_under_way = 0

    def let_go(self) -> None:
        """Let one work end."""
        self._go_on.release()

    def _long(self, work: Callable[[], T]) -> T:
        with self._lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            assert self._go_on.acquire(timeout=SECONDS)
            return work()
        finally:
            with self._lock:
                self.under_way -= 1

    def view(self) -> View:
        return LiveTables(None).current()  # nothing is mapped: the general way has to answer

    def prepare(self, lookups: Sequence[Lookup]) -> PreparedLookup:
        prepared = self._inner.prepare(lookups)
        return PreparedLookup(lambda: self._long(prepared.run), True, prepared.tables)

    def tables(self) -> list[TableInfo]:
        return self._long(self._inner.tables)

    def key_kind(self, name: str) -> str:
        return self._inner.key_kind(name)

    def updates_state(self) -> UpdatesState:
        return self._inner.updates_state()


def rest(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/tables/words:lookup", json={"ids": [1, 2]})


def connect(client: httpx.Client) -> httpx.Response:
    body = lookup_request("words", [1, 2]).SerializeToString()
    return client.post(LOOKUP, content=body, headers={"Content-Type": "application/proto"})


def connect_json(client: httpx.Client) -> httpx.Response:
    body = json_format.MessageToJson(lookup_request("words", [1, 2]))
    return client.post(LOOKUP, content=body, headers={"Content-Type": "application/json"})


def metrics(client: httpx.Client) -> httpx.Response:
    return client.get("/metrics")


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast path", "asgi"])
def test_no_more_long_work_than_the_bound_runs_at_once(small: SmallEngine, is_fast: bool) -> None:
    engine = LongWork(small.engine)
    served = replace(small, engine=engine, offload=Offload(THREADS))
    asks = 3 * [rest, connect, connect_json, metrics]
    with (
        web_server(served, is_fast=is_fast) as url,
        httpx.Client(base_url=url, timeout=SECONDS) as client,
        ThreadPoolExecutor(len(asks)) as pool,
    ):
        answers: list[Future[httpx.Response]] = [pool.submit(ask, client) for ask in asks]
        wait_until(lambda: engine.under_way >= THREADS, "the bound is reached")
        # Lookups hold a place from before they wait for a thread.
        places = sum(ask is not metrics for ask in asks)
        wait_until(lambda: small.admission.in_flight == places, "all lookups are there")
        assert client.get("/healthz").status_code == 200
        for _ in asks:
            engine.let_go()
        assert [answer.result().status_code for answer in answers] == [200] * len(asks)
    assert engine.most_under_way == THREADS
