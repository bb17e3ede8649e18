"""What each kind of request has to reach beside its peer of the same run.

Those of latencies are told twice: as both ends are by default, and with neither waiting awake. A
mark whose figures weren't measured isn't told.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from bench.harness import BATCHES, Mark, Timing, costs, number
from bench.latency import ASLEEP, GRPC, HTTP
from bench.mixes import load, pushes
from bench.mixes.asks import STRINGS
from bench.mixes.load import CROWD, GATHERD, MGET, ONE_CORE, TWO_WORKERS, Beside, Key
from bench.mixes.lookups import (
    BFLOAT16,
    FLOAT16,
    JSON,
    KEY_SIZES,
    MANY_BAGS,
    MANY_SIZES,
    ONE_TABLE,
    STATUSES,
    json_name,
    keys_name,
    many_bags_name,
    many_name,
    rows_name,
)
from bench.mixes.mix import BEFORE, side
from bench.peers import REDIS
from bench.throughput import CONNECTIONS, Rate
from bench.updates import REDIS_DURABLE

Measured = Mapping[str, Mapping[str, Timing]]
"""Timings, by request and by who was asked."""

WAITING: Final = {HTTP: "awake", ASLEEP: "busy_poll_us=0"}
# Issue 13's: requests a second that two workers gave before, and how many times as many they shall.
WORKERS_BEFORE, WORKERS_TIMES = 5_253, 5
MICRO: Final = "µs"


def of_lookups(measured: Measured) -> Iterator[Mark]:
    """Of all requests that look up, as far as they were measured."""
    for wire in WAITING:
        for sizes, name, bounds in (
            (MANY_SIZES, many_name, (1.0, 5.0, 10.0)),
            (MANY_BAGS, many_bags_name, (10.0, 10.0, 10.0)),
            (KEY_SIZES, _string_keys, (1.0, 1.5)),
        ):
            for size, bound in zip(sizes, bounds, strict=True):
                yield from _ahead(measured, name(size), wire, REDIS, bound)
        for size in BATCHES:
            yield from _half(measured, rows_name(size), wire, 1.0 if size >= 1024 else 1.1)
        for size in MANY_SIZES:
            yield from _half(measured, many_name(size), wire, 1.1)
        for request in (*map(rows_name, BATCHES), *map(many_name, MANY_SIZES)):
            yield from _times(measured, request, side(wire, STATUSES), wire, 1.15)
        # The bound is a share of the old time, and rates are as good as times.
        for size in BATCHES:
            yield from _before(measured, rows_name(size), wire)
    for size in MANY_SIZES:
        yield from _times(measured, many_name(size), GRPC, side(GRPC, ONE_TABLE), 1.25)
    timings = measured.get(json_name(1), {})
    if JSON in timings:
        one = timings[JSON]
        why = costs(one, timings[HTTP], "the SDK's")
        yield Mark("REST JSON, 1 id", one.p50, 150, True, MICRO, why)


def _string_keys(size: int) -> str:
    return keys_name(size, STRINGS)


def _ahead(measured: Measured, name: str, ours: str, rival: str, bound: float) -> Iterator[Mark]:
    """`ours` is so many times as fast as `rival`."""
    timings = measured.get(name, {})
    if ours in timings and rival in timings:
        mine, other = timings[ours], timings[rival]
        what = f"{name}, {_told(ours)}, beside {rival.partition(', redis-py')[0]}"
        yield Mark(what, other.p50 / mine.p50, bound, limited_by=costs(mine, other, "the other's"))


def _times(measured: Measured, name: str, ours: str, other: str, bound: float) -> Iterator[Mark]:
    """`ours` takes at most so many times what `other` does."""
    timings = measured.get(name, {})
    if ours in timings and other in timings:
        mine, beside = timings[ours], timings[other]
        what = f"{name}, {_told(ours)}, beside {_told(other)}"
        why = costs(mine, beside, "the other's")
        yield Mark(what, mine.p50 / beside.p50, bound, True, limited_by=why)


def _half(measured: Measured, name: str, wire: str, bound: float) -> Iterator[Mark]:
    for dtype in (FLOAT16, BFLOAT16):
        yield from _times(measured, name, side(wire, dtype), wire, bound)


def _before(measured: Measured, name: str, wire: str) -> Iterator[Mark]:
    if wire == HTTP:
        yield from _ahead(measured, name, HTTP, BEFORE, 0.95)


def _told(who: str) -> str:
    """A side's name with how it waits."""
    for wire in (ASLEEP, HTTP):
        if who == wire or who.startswith(f"{wire}, "):
            return f"http:// {WAITING[wire]}{who.removeprefix(wire)}"
    return who.removeprefix("gatherd ")


def of_pushes(measured: Measured) -> Iterator[Mark]:
    """Of pushes beside Redis' writes."""
    for wire in WAITING:
        ours = pushes.side(wire, pushes.ADD, "fsync")
        unsynced = pushes.side(wire, pushes.ADD, "os")
        for size, bound in zip(pushes.SIZES, (0.75, 1.0, 1.2), strict=True):
            for mark in _ahead(measured, pushes.name(size), ours, REDIS_DURABLE, bound):
                p50 = number(measured[pushes.name(size)][unsynced].p50)
                why = f"without waiting for the disk a push takes {p50} µs; {mark.limited_by}"
                yield Mark(mark.what, mark.value, mark.bound, limited_by=why)
        timings = measured.get(pushes.name(1), {})
        if unsynced in timings:
            one = timings[unsynced]
            why = f"CPU {number(one.client_cpu)} µs here, {number(one.server_cpu)} in the server"
            what = f"push of 1 row, {_told(unsynced)}"
            yield Mark(what, one.p50, 150, True, MICRO, why)


def of_load(rates: Mapping[Key, Rate], beside: Mapping[str, Beside]) -> Iterator[Mark]:
    """Of one core, of a crowd, of two workers, and of small requests beside large ones."""
    for size, bound in zip(load.SIZES, (0.75, 3.0), strict=True):
        ours = rates.get((GATHERD, ONE_CORE, size, CONNECTIONS))
        other = rates.get((MGET, ONE_CORE, size, CONNECTIONS))
        if ours is not None and other is not None:
            micros = [number(1e6 / one.requests) for one in (ours, other)]
            why = f"{micros[0]} µs of the core a request, Redis' {micros[1]}"
            what = f"requests/s of one core, {many_name(size)}, beside {MGET}"
            yield Mark(what, ours.requests / other.requests, bound, limited_by=why)
    crowd = rates.get((GATHERD, ONE_CORE, 1, CROWD))
    if crowd is not None:
        what = f"p99 beside p50, {many_name(1)}, {CROWD} clients"
        why = f"p99 is {number(crowd.p99)} µs"
        yield Mark(what, crowd.p99 / crowd.p50, 5.0, True, limited_by=why)
    workers = rates.get((GATHERD, TWO_WORKERS, load.WORKER_IDS, load.WORKER_CONNECTIONS))
    if workers is not None:
        yield from _workers(workers)
    small = beside.get(GATHERD)
    if small is not None:
        what = f"p99 of 1-id lookups beside {load.NEIGHBOURS} clients of {load.NEIGHBOUR_IDS:,} ids"
        why = f"p50 {number(small.beside[0])} µs beside them, {number(small.alone[0])} alone"
        if MGET in beside:
            redis = beside[MGET]
            why += f"; Redis' p99 rises {number(redis.beside[1] / redis.alone[1])} times"
        yield Mark(what, small.beside[1] / small.alone[1], 3.0, True, limited_by=why)


def _workers(rate: Rate) -> Iterator[Mark]:
    at = f"{TWO_WORKERS}, {many_name(load.WORKER_IDS)}, {load.WORKER_CONNECTIONS} connections"
    bound = WORKERS_BEFORE * WORKERS_TIMES
    yield Mark(
        f"requests/s, {at}", rate.requests, bound, unit="", limited_by="wrk has the same cores"
    )
    why = f"p99 is {number(rate.p99)} µs"
    yield Mark(f"p99 beside p50, {at}", rate.p99 / rate.p50, 3.0, True, limited_by=why)
