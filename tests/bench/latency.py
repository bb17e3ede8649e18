"""Latency of one blocking client by batch size: the SDK, what people pick instead, and the floor.

gatherd is asked twice: as it is, both ends waiting awake for what comes soon, and with neither
doing so, as all the others do. Everybody is asked in turns from one process, over the same ids;
once as a process is, and once after `gatherd.tune_allocator()`, which helps whoever receives large
replies, peers included.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

from bench import peers
from bench.harness import (
    BATCHES,
    SKEWS,
    TABLE,
    Call,
    Chart,
    IdSource,
    Mark,
    Plan,
    Report,
    Timing,
    check,
    costs,
    interleave,
    process_tree,
    timing_table,
)
from bench.peers import FLOOR, GRPCIO, PEERS
from gatherd import Client, tune_allocator
from gatherd.busy_poll import BUSY_POLL_US

HTTP, GRPC = "gatherd http://", "gatherd grpc://"
ASLEEP = "gatherd http://, busy_poll_us=0"
Cells = dict[str, dict[int, dict[str, Timing]]]


def measure(
    plan: Plan, urls: Mapping[str, str], ports: Mapping[str, int], pids: Mapping[str, list[int]]
) -> Cells:
    """By skew and batch, everybody's timing. In a process of its own."""
    with ExitStack() as stack:
        calls: dict[str, Call] = {}
        for name, url in urls.items():
            microseconds = 0 if name == ASLEEP else BUSY_POLL_US
            client = stack.enter_context(Client(url, busy_poll_us=microseconds))
            calls[name] = lambda ids, client=client: client.lookup(TABLE, ids)  # type: ignore[misc]  # a default binds the loop's client
        calls |= peers.calls(ports, plan.dim, stack)
        source = IdSource(plan.rows)
        check(calls, plan.rows_array(), source.draw("uniform", 1024))
        served = {name: pids[peers.kind_of(name)] for name in calls}
        return {
            skew: {
                size: interleave(calls, source.batches(skew, size), plan, served)
                for size in BATCHES
            }
            for skew in SKEWS
        }


def measure_tuned(
    plan: Plan, urls: Mapping[str, str], ports: Mapping[str, int], pids: Mapping[str, list[int]]
) -> Cells:
    """As `measure`, with the allocator tuned before anything else."""
    tune_allocator()
    return measure(plan, urls, ports, pids)


def run(plan: Plan) -> Report:
    """Latency of everybody, and the marks."""
    report = Report(
        "Latency of one blocking client",
        "p50 (p99) in µs by ids in a lookup, until the caller has a NumPy array.",
    )
    with (
        plan.serve() as server,
        plan.serve_file("--busy-poll-us", "0") as asleep,
        peers.all_serving(plan) as (running, reasons),
    ):
        report.skipped += reasons
        urls = {HTTP: server.http, ASLEEP: asleep.http, GRPC: server.grpc}
        ports = {kind: peer.port for kind, peer in running.items()}
        pids = {kind: [peer.pid] for kind, peer in running.items()}
        pids |= {name: process_tree(server.process.pid) for name in urls}
        pids[ASLEEP] = process_tree(asleep.process.pid)
        for setting, function in (("malloc as it is", measure), ("malloc tuned", measure_tuned)):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                cells = pool.submit(function, plan, urls, ports, pids).result()
            for skew, by_size in cells.items():
                report.tables.append(timing_table(f"{skew} ids, {setting}", "ids", by_size))
                report.marks += _marks(f"{skew}, {setting}", by_size)
            slug = setting.replace(" ", "-")
            report.charts.append(_chart(f"latency-{slug}", setting, cells["uniform"]))
    return report


def _chart(name: str, setting: str, by_size: Mapping[int, Mapping[str, Timing]]) -> Chart:
    names = next(iter(by_size.values()))
    series = {one: tuple(by_size[size][one].p50 for size in by_size) for one in names}
    title = f"Latency of one blocking client, uniform ids, {setting}"
    return Chart(name, title, "p50, µs", tuple(map(float, by_size)), series)


def _marks(where: str, by_size: Mapping[int, Mapping[str, Timing]]) -> list[Mark]:
    marks = []
    for size, timings in by_size.items():
        ours, grpc, floor = timings[HTTP], timings[GRPC], timings[FLOOR]
        at = f"{size:,} ids, {where}"
        why = costs(ours, floor)
        by_floor = ours.p50 / floor.p50
        rivals = {name: timings[name].p50 for name in PEERS if name in timings}
        best = min(rivals, key=rivals.__getitem__)
        ahead = rivals[best] / ours.p50
        faster = f"http:// faster than {peers.short(best)}, {at}"
        if size < 16_384:
            marks.append(Mark(faster, ahead, 1.5, limited_by=why))
        elif ahead < 1.3 and by_floor <= 1.15:
            what = f"http:// beside the floor, instead of 1.3 × {peers.short(best)}, {at}"
            marks.append(Mark(what, by_floor, 1.15, at_most=True, limited_by=why))
        else:
            marks.append(Mark(faster, ahead, 1.3, limited_by=why))
        marks.append(Mark(f"http:// beside the floor, {at}", by_floor, 1.3, True, limited_by=why))
        plain = timings[GRPCIO]
        bound = 1.5 if size >= 1024 else 1.0
        gained, why = plain.p50 / grpc.p50, costs(grpc, plain, "plain grpcio's")
        what = f"grpc:// faster than plain grpcio, {at}"
        marks.append(Mark(what, gained, bound, limited_by=why))
    return marks
