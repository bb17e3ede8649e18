"""Throughput of one server core: each server pinned to a core, a native load generator on another.

gatherd, over Connect and over octet-stream REST, is asked by wrk with bodies prepared beforehand
(wrk_bodies.lua); Redis by redis-benchmark; both with CONNECTIONS connections, one request at a time
on each. The floor is a uvloop protocol that doesn't read HTTP, asked by wrk. For gRPC there is no
such generator in Debian: it is asked by grpcio from threads with requests prepared, whose process
takes about the server's CPU itself, so its figure is a lower bound.
"""

import json
import shutil
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import peers
from bench.harness import (
    BATCHES,
    TABLE,
    Chart,
    Ids,
    IdSource,
    Mark,
    Plan,
    Report,
    Table,
    cores,
    number,
    pinned,
)
from gatherd_proto.v1 import embedding_pb2, tensor_pb2

CONNECT, REST, GRPC = "gatherd Connect", "gatherd REST, octets", "gatherd gRPC (grpcio threads)"
GET, MGET, FLOOR = "Redis GET", "Redis MGET", "floor: uvloop, HTTP unread"
CONNECTIONS = 32
# Fewer of 16,384 ids: they are 128 KiB each.
BODIES_MAX, BODIES_MIN, BODY_IDS = 256, 32, 1 << 18
GRPC_THREADS = 8
# A cell is this many rounds of the plan's round, wrk having no shorter unit than a second.
ROUNDS_MAX = 3
# About what Redis answers in a second: redis-benchmark takes a number of requests, and no time.
REDIS_RATES = {1: 80_000, 64: 12_000, 1024: 700, 16_384: 40}

Load = Callable[[int], float]
"""A batch size to requests a second."""


def message(ids: Ids) -> bytes:
    """A LookupRequest."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_INT64, shape=[ids.size], data=ids.tobytes())
    request = embedding_pb2.LookupRequest(table=TABLE, ids=tensor)
    return request.SerializeToString()


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second of a load, and the latencies of one, in µs."""

    requests: float
    p50: float
    p99: float


class WrkLoad:
    """Asks one address with bodies of one kind.

    `bodies` has them for a size; `kind` is their name, for they are written to files once. `core`
    is where wrk runs, None for anywhere.
    """

    def __init__(
        self,
        plan: Plan,
        core: int | None,
        url: str,
        path: str,
        headers: tuple[str, ...],
        bodies: Callable[[int], Iterable[bytes]],
        kind: str,
        connections: int = CONNECTIONS,
    ) -> None:
        pinned_to = () if core is None else ("taskset", "-c", str(core))
        self._command = (*pinned_to, "wrk", "-t1", f"-c{connections}")
        self._url, self._path, self._headers = url, path, headers
        self._plan, self._bodies, self._kind = plan, bodies, kind

    def __call__(self, size: int) -> float:
        """Requests a second; AssertionError when one wasn't answered with 200."""
        return self.rate(size).requests

    def rate(self, size: int) -> Rate:
        """As a call, with latencies."""
        seconds = max(1, round(self._plan.round_seconds * 10))
        script = Path(__file__).with_name("wrk_bodies.lua")
        done = subprocess.run(
            [
                *self._command,
                f"-d{seconds}s",
                *("-s", script, self._url, "--", self._written(size), self._path),
                *self._headers,
            ],
            capture_output=True,
            text=True,
            timeout=seconds + 30,
        )
        if done.returncode:
            raise AssertionError(f"wrk: {done.stderr}{done.stdout}")
        counted = json.loads(done.stdout.splitlines()[-1])
        if counted["errors"] or not counted["requests"]:
            raise AssertionError(f"{self._url}{self._path} didn't answer all: {done.stdout}")
        return Rate(counted["requests"] / counted["seconds"], counted["p50"], counted["p99"])

    def _written(self, size: int) -> Path:
        path = self._plan.folder / f"bodies-{self._kind}-{size}"
        if not path.exists():
            with open(path, "wb") as file:
                file.writelines(struct.pack("<I", len(body)) + body for body in self._bodies(size))
        return path


def batches(plan: Plan, size: int) -> list[Ids]:
    """The ids that wrk asks for."""
    count = max(BODIES_MIN, min(BODIES_MAX, BODY_IDS // size))
    return IdSource(plan.rows, seed=2).batches("uniform", size, count)


class RedisLoad:
    """redis-benchmark with one command, its keys drawn anew for each request from `rows`."""

    def __init__(
        self, plan: Plan, core: int, port: int, command: str, rows: int, rates: Mapping[int, int]
    ) -> None:
        self._start = ("taskset", "-c", str(core), "redis-benchmark", "-p", str(port))
        self._plan, self._command, self._rows, self._rates = plan, command, rows, rates

    def __call__(self, size: int) -> float:
        """Requests a second."""
        return self.rate(size).requests

    def rate(self, size: int, connections: int = CONNECTIONS) -> Rate:
        """As a call, with latencies."""
        seconds = max(0.5, self._plan.round_seconds * 10)
        count = max(connections, int(self._rates[size] * seconds))
        options = ("-c", str(connections), "-n", str(count), "-r", str(self._rows), "--csv")
        keys = ["__rand_int__"] * size
        done = subprocess.run(
            [*self._start, *options, self._command, *keys],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        # "test","rps","avg_latency_ms","min_…","p50_…","p95_…","p99_…","max_…": the test's name is
        # the whole command.
        rps, _, _, p50, _, p99, _ = done.stdout.splitlines()[-1].strip('"').split('","')[1:]
        return Rate(float(rps), float(p50) * 1e3, float(p99) * 1e3)


def grpc_rate(address: str, core: int, rows: int, size: int, seconds: float) -> float:
    """Requests a second of GRPC_THREADS threads of one process, this one, on one core."""
    import grpc

    bodies = [message(ids) for ids in IdSource(rows, seed=2).batches("uniform", size)]
    counts = [0] * GRPC_THREADS
    with pinned(core), ExitStack() as stack:
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = stack.enter_context(grpc.insecure_channel(address, options=limits))
        method: Any = channel.unary_unary("/gatherd.v1.EmbeddingService/Lookup")
        method(bodies[0], wait_for_ready=True, timeout=20)
        end = time.perf_counter() + seconds

        def ask(number: int) -> None:
            while time.perf_counter() < end:
                method(bodies[counts[number] % len(bodies)])
                counts[number] += 1

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(GRPC_THREADS)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - begin)


class GrpcLoad:
    """`grpc_rate` in a process of its own."""

    def __init__(self, plan: Plan, core: int, url: str) -> None:
        self._plan, self._core, self._address = plan, core, url.removeprefix("grpc://")

    def __call__(self, size: int) -> float:
        """Requests a second."""
        seconds = max(0.5, self._plan.round_seconds * 10)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            asked = (self._address, self._core, self._plan.rows, size, seconds)
            return pool.submit(grpc_rate, *asked).result()


def run(plan: Plan) -> Report:
    """Requests and rows a second, and the marks."""
    report = Report(
        "Throughput of one server core",
        f"The server on one core, the load generator on the other; {CONNECTIONS} connections, "
        "prepared bodies, uniform ids. The gRPC figures are a lower bound, because the threads of "
        "the load generator's grpcio need as much CPU as the server.",
    )
    pair = cores()
    if pair is None:
        report.skipped.append("throughput: it takes two cores")
        return report
    if shutil.which("wrk") is None:
        report.skipped.append("throughput: no wrk here (apt-get install wrk)")
        return report
    server_core, client_core = pair
    with ExitStack() as stack:
        with pinned(server_core):
            server = stack.enter_context(plan.serve())
            floor = stack.enter_context(peers.serving("floor-http", plan.weights))
            if "redis" in peers.missing():
                report.skipped.append(peers.missing()["redis"])
                redis = None
            else:
                redis = stack.enter_context(peers.loaded_redis(plan))
        octets = "application/octet-stream"

        def raw(size: int) -> Iterator[bytes]:
            return (ids.tobytes() for ids in batches(plan, size))

        loads: dict[str, Load] = {
            CONNECT: WrkLoad(
                plan,
                client_core,
                server.http,
                "/gatherd.v1.EmbeddingService/Lookup",
                ("Content-Type=application/proto",),
                lambda size: map(message, batches(plan, size)),
                "proto",
            ),
            REST: WrkLoad(
                plan,
                client_core,
                server.http,
                f"/v1/tables/{TABLE}:lookup",
                (f"Content-Type={octets}", f"Accept={octets}"),
                raw,
                "raw",
            ),
            FLOOR: WrkLoad(
                plan, client_core, f"http://127.0.0.1:{floor.port}", "/", (), raw, "raw"
            ),
            GRPC: GrpcLoad(plan, client_core, server.grpc),
        }
        if redis is not None:
            asked = plan, client_core, redis.port
            loads[MGET] = RedisLoad(*asked, "MGET", plan.rows, REDIS_RATES)
            loads[GET] = RedisLoad(*asked, "GET", plan.rows, REDIS_RATES)
        rates = _measure(loads, min(plan.rounds, ROUNDS_MAX))
    report.tables += _tables(rates)
    report.marks += _marks(rates)
    rows = {
        name: tuple(by_size[size] * size for size in BATCHES)
        for name, by_size in rates.items()
        if len(by_size) == len(BATCHES)
    }
    title = "Throughput of one server core, uniform ids"
    report.charts.append(
        Chart("throughput", title, "rows a second", tuple(map(float, BATCHES)), rows)
    )
    return report


def _measure(loads: Mapping[str, Load], rounds: int) -> dict[str, dict[int, float]]:
    """By name and batch size, the median requests a second; in turns."""
    rates: dict[str, dict[int, float]] = {name: {} for name in loads}
    for size in BATCHES:
        names = [name for name in loads if size == 1 or name != GET]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                taken[name].append(loads[name](size))
        for name in names:
            rates[name][size] = statistics.median(taken[name])
    return rates


def _tables(rates: Mapping[str, Mapping[int, float]]) -> list[Table]:
    header = ("ids", *(f"{size:,}" for size in BATCHES))
    requests, rows = [], []
    for name, by_size in rates.items():
        there = [by_size.get(size) for size in BATCHES]
        requests.append((name, *("" if x is None else number(x) for x in there)))
        millions = [
            None if x is None else x * size / 1e6 for x, size in zip(there, BATCHES, strict=True)
        ]
        rows.append((name, *("" if x is None else number(x) for x in millions)))
    return [
        Table("Requests a second", header, tuple(requests)),
        Table("Million rows a second", header, tuple(rows)),
    ]


def _marks(rates: Mapping[str, Mapping[int, float]]) -> list[Mark]:
    if MGET not in rates:
        return []
    marks = []
    for name in (CONNECT, REST):
        for size, rival, bound in ((1, GET, 0.75), (64, MGET, 2.5), (1024, MGET, 6.0)):
            floor = rates[FLOOR][size] / rates[name][size]
            micros = 1e6 / rates[name][size], 1e6 / rates[FLOOR][size]
            why = (
                f"{number(micros[0])} µs of the core a request, the floor's {number(micros[1])}: "
                f"with no HTTP to read it would be {number(floor)} times as many"
            )
            ahead = rates[name][size] / rates[rival][size]
            marks.append(Mark(f"{name} beside {rival}, {size:,} ids", ahead, bound, limited_by=why))
    return marks
