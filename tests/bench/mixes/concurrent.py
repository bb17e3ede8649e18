"""The main mixes by many callers at once: 16 threads, or 16 calls awaited at the same time.

gatherd's clients in this process beside redis-py's, each as it is meant to be used: one client for
all, with a pool of connections in it.
"""

import asyncio
import functools
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.harness import Table, cpu_seconds, number
from bench.latency import HTTP
from bench.mixes import lookups
from bench.mixes.asks import STRINGS
from bench.mixes.mix import Mix
from bench.mixes.scene import Scene
from gatherd import AsyncClient, Client

CALLERS: Final = 16
# Threads and event loops take a while to get going: a round is so many of the plan's.
LONGER: Final = 4.0
ROUNDS_MAX: Final = 3

AsyncCall = Callable[[Any], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Load:
    """Requests a second of all callers, a request's latency and CPU at both ends, in µs."""

    rate: float
    p50: float
    p99: float
    client_cpu: float
    server_cpu: float


Way = Callable[[Sequence[Any], float], list[float]]
"""Batches and seconds to the µs that each request took."""


def in_threads(
    call: Callable[[Any], object], batches: Sequence[Any], seconds: float
) -> list[float]:
    """µs of each request of CALLERS threads."""
    taken: list[list[float]] = [[] for _ in range(CALLERS)]
    end = time.perf_counter() + seconds

    def ask(number: int) -> None:
        own = taken[number]
        while (begin := time.perf_counter()) < end:
            call(batches[(number + len(own)) % len(batches)])
            own.append((time.perf_counter() - begin) * 1e6)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for own in taken for one in own]


def in_flight(
    opened: Callable[[], AbstractAsyncContextManager[AsyncCall]],
    batches: Sequence[Any],
    seconds: float,
) -> list[float]:
    """µs of each request of CALLERS tasks, in an event loop of their own."""
    taken: list[float] = []

    async def run() -> None:
        async with opened() as call:
            await asyncio.gather(*(call(batches[0]) for _ in range(CALLERS)))
            end = time.perf_counter() + seconds

            async def ask(number: int) -> None:
                while (begin := time.perf_counter()) < end:
                    await call(batches[number % len(batches)])
                    taken.append((time.perf_counter() - begin) * 1e6)
                    number += 1

            await asyncio.gather(*map(ask, range(CALLERS)))

    asyncio.run(run())
    return taken


def measure(scene: Scene) -> Iterator[tuple[str, dict[str, Load]]]:
    """Each main mix's name and everybody's load."""
    for mix in (
        lookups.many_mix(scene, 1),
        lookups.many_mix(scene, 16),
        lookups.keys_mix(scene, STRINGS, 64),
        lookups.bags_mix(scene),
    ):
        yield mix.name, _measure(scene, mix)


def _measure(scene: Scene, mix: Mix) -> dict[str, Load]:
    call = mix.asks[""].call
    url = scene.servers[HTTP].http
    server = scene.served_by(HTTP)
    ways: dict[str, tuple[Way, list[int]]] = {}
    with Client(url, timeout=60) as client:
        threads = functools.partial(in_threads, functools.partial(call, client))
        ways[f"gatherd, {CALLERS} threads"] = threads, server
        ways[f"gatherd, AsyncClient, {CALLERS} in flight"] = (
            functools.partial(in_flight, functools.partial(_Awaited, url, call)),
            server,
        )
        if scene.redis is not None:
            import redis

            pids = scene.served_by("Redis")
            shared: Any = redis.Redis(port=scene.redis_port)
            threads = functools.partial(in_threads, mix.mget.of(shared))
            ways[f"Redis MGET, {CALLERS} threads"] = threads, pids
            ways[f"Redis MGET, asyncio, {CALLERS} in flight"] = (
                functools.partial(in_flight, functools.partial(_AwaitedRedis, scene, mix)),
                pids,
            )
        seconds = scene.plan.round_seconds * LONGER
        loads: dict[str, list[Load]] = {name: [] for name in ways}
        for _ in range(min(ROUNDS_MAX, scene.plan.rounds)):
            for name, (way, pids) in ways.items():
                loads[name].append(_load(way, mix.batches, seconds, pids))
    return {name: _median(each) for name, each in loads.items()}


def _load(way: Way, batches: Sequence[Any], seconds: float, pids: list[int]) -> Load:
    server, client = cpu_seconds(pids), time.process_time()
    taken = way(batches, seconds)
    server, client = cpu_seconds(pids) - server, time.process_time() - client
    count = len(taken)
    p50, p99 = (float(x) for x in np.percentile(taken, (50, 99)))
    # By Little's law: what opening connections takes isn't part of it.
    rate = CALLERS * count * 1e6 / sum(taken)
    return Load(rate, p50, p99, client * 1e6 / count, server * 1e6 / count)


def _median(loads: list[Load]) -> Load:
    return Load(
        *(
            statistics.median(getattr(one, name) for one in loads)
            for name in ("rate", "p50", "p99", "client_cpu", "server_cpu")
        )
    )


class _Awaited:
    """An AsyncClient, opened in the event loop that uses it."""

    def __init__(self, url: str, call: Callable[[Any, Any], object]) -> None:
        self._url, self._ask = url, call
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> AsyncCall:
        client = await self._stack.enter_async_context(AsyncClient(self._url, timeout=60))

        async def call(batch: Any) -> object:
            # The blocking client's method by the same name, which is awaited here.
            awaited: Any = self._ask(client, batch)
            return await awaited

        return call

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class _AwaitedRedis:
    """redis-py's asyncio client, with a connection for each caller."""

    def __init__(self, scene: Scene, mix: Mix) -> None:
        import redis.asyncio

        self._mget = mix.mget
        self._client: Any = redis.asyncio.Redis(port=scene.redis_port, max_connections=CALLERS)

    async def __aenter__(self) -> AsyncCall:
        async def call(batch: Any) -> object:
            return self._mget.answer(await self._client.mget(self._mget.keys(batch)))

        return call

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()


def table(measured: dict[str, dict[str, Load]]) -> Table:
    """A row for each way of asking each mix."""
    header = ("request", "asked", "requests/s", "p50, µs", "p99, µs", "CPU here", "CPU served")
    rows = tuple(
        (
            *(mix, name, number(one.rate), number(one.p50), number(one.p99)),
            *(number(one.client_cpu), number(one.server_cpu)),
        )
        for mix, loads in measured.items()
        for name, one in loads.items()
    )
    return Table(f"{CALLERS} callers in one process, CPU in µs a request", header, rows, labels=2)
