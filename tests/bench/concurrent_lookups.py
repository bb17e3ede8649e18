"""Small lookups at once: AsyncClient with 64 in flight, 16 threads of the sync client, the batcher.

The batcher is `batching=Batching()`, which merges what is asked at the same time into one request.
"""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.harness import TABLE, Chart, Ids, IdSource, Mark, Plan, Report, Table, number
from gatherd import AsyncClient, Batching, Client, tune_allocator

SIZES = (1, 8, 64, 1024)
IN_FLIGHT, THREADS = 64, 16
# A round here is this many of the plan's: asyncio and threads take a while to get going.
LONGER = 6.0
ASYNC, SYNC = f"AsyncClient, {IN_FLIGHT} in flight", f"Client, {THREADS} threads"
BATCHED, SYNC_BATCHED = f"{ASYNC}, merged", f"{SYNC}, merged"


async def _in_flight(url: str, batches: Sequence[Ids], seconds: float, **options: Any) -> float:
    """Lookups a second of IN_FLIGHT tasks."""
    counts = [0] * IN_FLIGHT
    async with AsyncClient(url, **options) as client:
        await client.lookup(TABLE, batches[0])
        end = time.perf_counter() + seconds

        async def ask(number: int) -> None:
            while time.perf_counter() < end:
                await client.lookup(TABLE, batches[(number + counts[number]) % len(batches)])
                counts[number] += 1

        begin = time.perf_counter()
        await asyncio.gather(*map(ask, range(IN_FLIGHT)))
        return sum(counts) / (time.perf_counter() - begin)


def in_flight(url: str, batches: Sequence[Ids], seconds: float, **options: Any) -> float:
    """As `_in_flight`, in an event loop of its own."""
    return asyncio.run(_in_flight(url, batches, seconds, **options))


def in_threads(url: str, batches: Sequence[Ids], seconds: float, **options: Any) -> float:
    """Lookups a second of THREADS threads with one client."""
    counts = [0] * THREADS
    with Client(url, **options) as client:
        client.lookup(TABLE, batches[0])
        end = time.perf_counter() + seconds

        def ask(number: int) -> None:
            while time.perf_counter() < end:
                client.lookup(TABLE, batches[(number + counts[number]) % len(batches)])
                counts[number] += 1

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(THREADS)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - begin)


def run(plan: Plan) -> Report:
    """Lookups a second, and the marks."""
    report = Report(
        "Many lookups at once",
        "Lookups a second of one client process over http://, uniform ids; malloc tuned.",
    )
    tune_allocator()
    ways: dict[str, Callable[[str, Sequence[Ids], float], float]] = {
        ASYNC: in_flight,
        SYNC: in_threads,
        BATCHED: partial(in_flight, batching=Batching()),
        SYNC_BATCHED: partial(in_threads, batching=Batching()),
    }
    source = IdSource(plan.rows)
    rates: dict[str, dict[int, float]] = {name: {} for name in ways}
    with plan.serve() as server:
        for size in SIZES:
            batches = source.batches("uniform", size)
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(min(plan.rounds, 3)):
                for name, way in ways.items():
                    taken[name].append(way(server.http, batches, plan.round_seconds * LONGER))
            for name in ways:
                rates[name][size] = statistics.median(taken[name])
    rows = tuple((name, *(number(x) for x in by_size.values())) for name, by_size in rates.items())
    header = ("ids", *(f"{size:,}" for size in SIZES))
    report.tables.append(Table("Lookups a second", header, rows))
    lines = {name: tuple(by_size.values()) for name, by_size in rates.items()}
    title = "Many lookups at once, one client process"
    report.charts.append(
        Chart("concurrent", title, "lookups a second", tuple(map(float, SIZES)), lines)
    )
    _marks(report, rates)
    return report


def _marks(report: Report, rates: dict[str, dict[int, float]]) -> None:
    for size in SIZES:
        micros = 1e6 / rates[ASYNC][size]
        why = f"{number(micros)} µs a lookup, on the event loop's thread or the server's core"
        ratio = rates[ASYNC][size] / rates[SYNC][size]
        report.marks.append(
            Mark(f"AsyncClient beside threads, {size:,} ids", ratio, 1.0, limited_by=why)
        )
        if size <= 8:
            micros = 1e6 / rates[BATCHED][size]
            why = f"{number(micros)} µs a lookup, of asyncio and of splitting the reply"
            ratio = rates[BATCHED][size] / rates[ASYNC][size]
            report.marks.append(
                Mark(f"merged beside not merged, {size:,} ids", ratio, 3.0, limited_by=why)
            )
