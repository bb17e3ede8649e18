"""Updates: latency of a durable push by batch size, beside what Redis offers, and kernels.

A push adds to rows; Redis has no such thing for vectors, so its MSET replaces them, once durable
before it answers, as gatherd's pushes are (`appendonly yes`, `appendfsync always`), and once kept
in memory only. commit_bench.py, update_bench.py and torn_bench.py, which look at the log, at the
kernels and at the counters of rows alone, are run as they are and their words kept.
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench import peers
from bench.harness import (
    Call,
    Chart,
    Ids,
    IdSource,
    Mark,
    Plan,
    Report,
    interleave,
    number,
    timing_table,
)
from gatherd import Client, tune_allocator
from support.server import RunningServer, run_cli

SIZES = (1, 8, 64, 1024, 8192)
ROWS = 200_000
TABLE = "items"
ADD, ASSIGN = "gatherd scatter_add, durable", "gatherd assign, durable"
ADD_OS, ADD_GRPC = "gatherd scatter_add, durability os", "gatherd scatter_add, durable, grpc://"
REDIS_DURABLE, REDIS_MEMORY = "Redis MSET, appendfsync always", "Redis MSET, memory only"
SCRIPT_SECONDS = 150


def run(plan: Plan) -> Report:
    """Latency of updates, and what the other three benchmarks print."""
    report = Report(
        "Updates",
        "p50 (p99) in µs by rows in a push, one blocking client, malloc tuned; float32, "
        f"dim {plan.dim}, {ROWS:,} rows. A durable push is on the disk before it is answered.",
    )
    tune_allocator()
    rows = min(plan.rows, ROWS)
    # On a disk: syncing a file in memory costs nothing.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(dir=plan.disk)))
        calls = _gatherd_calls(folder, rows, plan.dim, stack)
        reason = peers.missing().get("redis")
        if reason is None:
            calls |= _redis_calls(folder, plan.dim, stack)
        else:
            report.skipped.append(reason)
        source = IdSource(rows, seed=7)
        cells = {size: interleave(calls, source.batches("uniform", size), plan) for size in SIZES}
    report.tables.append(timing_table("Uniform ids", "rows", cells))
    series = {name: tuple(cells[size][name].p50 for size in SIZES) for name in calls}
    title = "Latency of an update by rows"
    report.charts.append(Chart("updates", title, "p50, µs", tuple(map(float, SIZES)), series))
    if REDIS_DURABLE in calls:
        for size, timings in cells.items():
            ratio = timings[REDIS_DURABLE].p50 / timings[ASSIGN].p50
            os_p50 = number(timings[ADD_OS].p50)
            why = (
                f"without waiting for the disk a push takes {os_p50} µs; the rest is the log's sync"
            )
            what = f"assign faster than Redis' durable MSET, {size:,} rows"
            report.marks.append(Mark(what, ratio, 1.0, limited_by=why))
    if plan.rows >= ROWS:
        names = ("commit_bench.py", "update_bench.py", "torn_bench.py")
        report.verbatim += [_script(name, plan) for name in names]
    return report


def _gatherd_calls(folder: Path, rows: int, dim: int, stack: ExitStack) -> dict[str, Call]:
    servers = {one: push_server(folder, one, rows, dim, stack) for one in ("fsync", "os")}
    durable = stack.enter_context(Client(servers["fsync"].http, timeout=60))
    grpc = stack.enter_context(Client(servers["fsync"].grpc, timeout=60))
    unsynced = stack.enter_context(Client(servers["os"].http, timeout=60))
    return {
        ADD: push(durable.scatter_add, dim),
        ASSIGN: push(durable.assign, dim),
        ADD_GRPC: push(grpc.scatter_add, dim),
        ADD_OS: push(unsynced.scatter_add, dim),
    }


def push_server(
    folder: Path, durability: str, rows: int, dim: int, stack: ExitStack, *options: str
) -> RunningServer:
    """A server of a trainable table, in a data dir of its own."""
    data_dir = folder / "-".join((durability, *options)).replace("--", "")
    run_cli(
        *("create", TABLE, "--rows", str(rows), "--dim", str(dim)),
        *("--optimizer", "sgd", "--data-dir", data_dir),
    )
    log = data_dir.with_suffix(".log")
    server = RunningServer(
        "--data-dir", data_dir, "--durability", durability, *options, log_path=log
    )
    return stack.enter_context(server)


def push(method: Callable[..., object], dim: int) -> Call:
    """Pushes drawn values to ids by a client's method."""
    values = np.random.default_rng(8).random((max(SIZES), dim), np.float32)
    return lambda ids: method(TABLE, ids, values[: ids.size])


def _redis_calls(folder: Path, dim: int, stack: ExitStack) -> dict[str, Call]:
    return {
        name: redis_set(peers.redis_client(peer.port, stack), dim)
        for name, peer in redis_servers(folder, stack).items()
    }


def redis_servers(folder: Path, stack: ExitStack) -> dict[str, peers.Peer]:
    """One that syncs each write, and one that writes none."""
    started = {}
    for name, options in (
        (REDIS_DURABLE, ("--appendonly", "yes", "--appendfsync", "always")),
        (REDIS_MEMORY, ("--appendonly", "no")),
    ):
        own = folder / name.partition(",")[2].strip().replace(" ", "-")
        own.mkdir()
        started[name] = stack.enter_context(peers.redis(own, *options))
    return started


def redis_set(client: Any, dim: int, pipelined: bool = False) -> Call:
    """Sets drawn values by one MSET, or by a pipeline of SETs."""
    values = np.random.default_rng(8).random((max(SIZES), dim), np.float32)
    raw = [values[i].tobytes() for i in range(len(values))]

    def mset(ids: Ids) -> None:
        client.mset(dict(zip(peers.redis_keys(ids), raw, strict=False)))

    def sets(ids: Ids) -> None:
        pipeline = client.pipeline(transaction=False)
        for key, value in zip(peers.redis_keys(ids), raw, strict=False):
            pipeline.set(key, value)
        pipeline.execute()

    return sets if pipelined else mset


def _script(name: str, plan: Plan) -> str:
    """What one of the other benchmarks prints, or why it prints nothing."""
    script = Path(__file__).with_name(name)
    try:
        done = subprocess.run(
            [sys.executable, script],
            capture_output=True,
            text=True,
            timeout=SCRIPT_SECONDS,
            cwd=plan.disk,  # where commit_bench.py makes its files
        )
    except subprocess.TimeoutExpired:
        return f"{name}: not done after {SCRIPT_SECONDS} s"
    return f"{name}\n{done.stdout if done.returncode == 0 else done.stderr[-2000:]}".rstrip()
