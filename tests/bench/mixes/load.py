"""What one server core takes of many tables, and what large requests do to small ones beside them.

The server, or Redis, has one core and the load generator, wrk or redis-benchmark, the other; bodies
of LookupManyRequest are prepared. Then two workers, unpinned, as a machine with two cores would
have them. Then p99 of a 1-id lookup by itself, and while four clients of another process ask the
same worker for 16,384 ids each.
"""

import functools
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any, Final

import numpy as np

from bench import peers
from bench.harness import Table, cores, number, pinned, timed
from bench.latency import HTTP
from bench.mixes.asks import EVERYTHING
from bench.mixes.lookups import many_batches
from bench.mixes.scene import LOADED, NAMES, TABLE_COUNT, Scene
from bench.peers import redis_keys
from bench.throughput import CONNECTIONS, Rate, RedisLoad, WrkLoad
from gatherd import Client
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from support.server import RunningServer

PATH: Final = "/gatherd.v1.EmbeddingService/LookupMany"
SIZES: Final = (1, 16)
# About what redis-benchmark gets in a second, by keys in a MGET.
REDIS_RATES: Final = {TABLE_COUNT: 20_000, TABLE_COUNT * 16: 1_600}
CROWD: Final = 64
WORKERS, WORKER_CONNECTIONS, WORKER_IDS = 2, 16, 32
NEIGHBOURS, NEIGHBOUR_IDS = 4, 16_384
GATHERD, MGET = "gatherd Connect", "Redis MGET"
ONE_CORE: Final = "one core"
TWO_WORKERS: Final = f"{WORKERS} workers"
ROUNDS_MAX: Final = 3

Key = tuple[str, str, int, int]
"""Who, with what, ids a table, and connections."""


@dataclass(frozen=True, slots=True)
class Beside:
    """p50 and p99 of 1-id lookups in µs, alone and beside large ones."""

    alone: tuple[float, float]
    beside: tuple[float, float]


def bodies(scene: Scene, size: int) -> Iterator[bytes]:
    """LookupManyRequests."""
    for batch in many_batches(scene, size):
        lookups = [
            embedding_pb2.LookupRequest(
                table=name,
                ids=tensor_pb2.Tensor(
                    dtype=tensor_pb2.DTYPE_INT64, shape=[size], data=batch.tables[name].tobytes()
                ),
            )
            for name in NAMES
        ]
        yield embedding_pb2.LookupManyRequest(lookups=lookups).SerializeToString()


def _wrk(scene: Scene, core: int | None, url: str, connections: int) -> WrkLoad:
    headers = ("Content-Type=application/proto",)
    made = functools.partial(bodies, scene)
    return WrkLoad(scene.plan, core, url, PATH, headers, made, "many", connections)


def rates(scene: Scene) -> dict[Key, Rate]:
    """Medians of a few rounds, in turns. Empty without two cores or without wrk."""
    pair = cores()
    if pair is None or shutil.which("wrk") is None:
        scene.skipped.append("one-core load: it takes two cores and wrk (apt-get install wrk)")
        return {}
    with ExitStack() as stack:
        data_dir, log = scene.tables.linked(LOADED), scene.plan.folder / "mixes.log"
        with pinned(pair[0]):
            server = stack.enter_context(
                RunningServer("--data-dir", data_dir, log_path=log),
            )
            redis = _redis(scene, stack)
        loads: dict[Key, Callable[[], Rate]] = {}
        for size, connections in (*((size, CONNECTIONS) for size in SIZES), (1, CROWD)):
            asked = _wrk(scene, pair[1], server.http, connections)
            loads[GATHERD, ONE_CORE, size, connections] = functools.partial(asked.rate, size)
            if redis is not None:
                count = scene.tables.row_count
                other = RedisLoad(scene.plan, pair[1], redis.port, "MGET", count, REDIS_RATES)
                loads[MGET, ONE_CORE, size, connections] = functools.partial(
                    other.rate, TABLE_COUNT * size, connections
                )
        measured = _medians(scene, loads)
    with RunningServer(
        *("--data-dir", scene.tables.linked(LOADED), "--workers", str(WORKERS)), log_path=log
    ) as server:
        asked = _wrk(scene, None, server.http, WORKER_CONNECTIONS)
        key = GATHERD, TWO_WORKERS, WORKER_IDS, WORKER_CONNECTIONS
        return measured | _medians(scene, {key: functools.partial(asked.rate, WORKER_IDS)})


def _redis(scene: Scene, stack: ExitStack) -> peers.Peer | None:
    """A Redis with the rows, on the core of whoever starts it."""
    if scene.redis is None:
        return None
    peer = stack.enter_context(peers.redis(scene.plan.folder, "--appendonly", "no"))
    peers.load_rows(peer.port, scene.tables.everything)
    return peer


def _medians(scene: Scene, loads: dict[Key, Callable[[], Rate]]) -> dict[Key, Rate]:
    taken: dict[Key, list[Rate]] = {key: [] for key in loads}
    for _ in range(min(ROUNDS_MAX, scene.plan.rounds)):
        for key, load in loads.items():
            taken[key].append(load())
    return {
        key: Rate(
            statistics.median(one.requests for one in each),
            statistics.median(one.p50 for one in each),
            statistics.median(one.p99 for one in each),
        )
        for key, each in taken.items()
    }


def beside(scene: Scene) -> dict[str, Beside]:
    """Small lookups alone and beside large ones, of gatherd and of Redis."""
    url = scene.servers[HTTP].http
    rng = np.random.default_rng(6)
    batches = list(rng.integers(0, scene.tables.row_count, (256, 1)))
    with Client(url, timeout=60) as client:
        ways: dict[str, tuple[Callable[[Any], object], str, int]] = {
            GATHERD: (lambda ids: client.lookup(EVERYTHING, ids), url, 0)
        }
        redis = scene.redis
        if redis is not None:
            ways[MGET] = (lambda ids: redis.mget(redis_keys(ids))), "", scene.redis_port
        # A p99 wants many calls, and large ones take a while.
        seconds = scene.plan.round_seconds * 8
        found = {}
        for name, (call, where, port) in ways.items():
            alone: list[float] = []
            accompanied: list[float] = []
            for _ in range(min(ROUNDS_MAX, scene.plan.rounds)):
                alone += timed(call, batches, seconds)
                with _neighbours(where, port, scene.tables.row_count):
                    accompanied += timed(call, batches, seconds)
            found[name] = Beside(_percentiles(alone), _percentiles(accompanied))
    return found


def _percentiles(taken: list[float]) -> tuple[float, float]:
    p50, p99 = (float(x) for x in np.percentile(taken, (50, 99)))
    return p50, p99


@contextmanager
def _neighbours(url: str, port: int, rows: int) -> Iterator[None]:
    """NEIGHBOURS clients of another process that ask for many ids, without a pause."""
    context = get_context("spawn")
    begun, ended = context.Event(), context.Event()
    process = context.Process(target=neighbours, args=(url, port, rows, begun, ended))
    process.start()
    try:
        if not begun.wait(60):
            raise AssertionError("the clients of large requests didn't begin")
        yield
    finally:
        ended.set()
        process.join(60)


def neighbours(url: str, port: int, rows: int, begun: Event, ended: Event) -> None:
    """Ask gatherd at `url`, or Redis at `port`, until told to end."""
    ids = list(np.random.default_rng(7).integers(0, rows, (8, NEIGHBOUR_IDS)))
    ready = threading.Barrier(NEIGHBOURS + 1)

    def ask() -> None:
        with ExitStack() as stack:
            call: Callable[[Any], object]
            if url:
                client = stack.enter_context(Client(url, timeout=60))
                call = functools.partial(client.lookup, EVERYTHING)
            else:
                redis = peers.redis_client(port, stack)

                def call(batch: Any) -> object:
                    return redis.mget(redis_keys(batch))

            call(ids[0])
            ready.wait()
            number = 0
            while not ended.is_set():
                call(ids[number % len(ids)])
                number += 1

    threads = [threading.Thread(target=ask) for _ in range(NEIGHBOURS)]
    for thread in threads:
        thread.start()
    ready.wait()
    # As long as a request takes, until all four are under way.
    time.sleep(0.05)
    begun.set()
    for thread in threads:
        thread.join()


def rate_table(measured: dict[Key, Rate]) -> Table:
    """Requests a second and latencies."""
    header = ("asked", "with", f"ids × {TABLE_COUNT} tables", "connections", "requests/s")
    rows = tuple(
        (
            *(who, what, str(size), str(connections)),
            *(number(x) for x in (one.requests, one.p50, one.p99)),
        )
        for (who, what, size, connections), one in measured.items()
    )
    return Table("Load of many tables", (*header, "p50, µs", "p99, µs"), rows, labels=2)


def beside_table(measured: dict[str, Beside]) -> Table:
    """Small lookups alone and beside large ones."""
    header = ("1-id lookups", "alone", f"beside {NEIGHBOURS} clients of {NEIGHBOUR_IDS:,} ids")
    rows = tuple(
        (name, *(f"{number(p50)} ({number(p99)})" for p50, p99 in (one.alone, one.beside)))
        for name, one in measured.items()
    )
    return Table("p50 (p99) in µs", header, rows)
