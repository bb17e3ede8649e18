"""One request of many tables' bags: pooled by the server, in process, by torch, or unpooled.

26 tables × 1,024 bags × 20 ids, dim 128, sum: what a recommender's inference asks for. Kernel and
torch run on one thread, over the same mapped rows.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.counting_proxy import CountingProxy
from bench.harness import SKEWS, IdSource, Mark, Plan, Report, Table, number
from gatherd import Client, tune_allocator
from gatherd.store.bags import pool
from gatherd.store.kernels import compiled
from gatherd.store.query import Pooling
from support.server import RunningServer

TABLES, BAGS, IDS, DIM = 26, 1024, 20, 128
ROWS_MAX = 100_000
ROUNDS = 9
KERNEL, REMOTE, UNPOOLED = "kernel, in process", "gatherd http://, pooled", "gatherd http://, rows"
GRPC, TORCH = "gatherd grpc://, pooled", "torch embedding_bag, 1 thread"

Given = Mapping[str, NDArray[np.int64]]
Call = Callable[[Given], object]


def write_tables(folder: Path, rows: int) -> dict[str, Path]:
    """The tables as .npy files, by name."""
    rng = np.random.default_rng(3)
    paths = {f"t{k}": folder / f"pooled-{k}.npy" for k in range(TABLES)}
    for path in paths.values():
        np.save(path, rng.standard_normal((rows, DIM), np.float32))
    return paths


def run(plan: Plan) -> Report:
    """Milliseconds and bytes of each way, and the marks."""
    report = Report(
        "Pooling on the server",
        f"One request of {TABLES} tables × {BAGS:,} bags × {IDS} ids, dim {DIM}, sum.",
    )
    tune_allocator()
    compiled.warm()
    rows = min(plan.rows, ROWS_MAX)
    paths = write_tables(plan.folder, rows)
    mapped = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
    specs = [f"{name}={path}" for name, path in paths.items()]
    try:
        with RunningServer(*specs, log_path=plan.folder / "pooled.log") as server:
            _measure(report, server, mapped, IdSource(rows, seed=4))
    finally:
        for path in paths.values():
            path.unlink()
    return report


def _measure(
    report: Report,
    server: RunningServer,
    mapped: Mapping[str, NDArray[np.float32]],
    source: IdSource,
) -> None:
    offsets = np.arange(BAGS) * IDS
    with Client(server.http, timeout=60) as http, Client(server.grpc, timeout=60) as grpc:

        def remote(client: Client) -> Call:
            return lambda ids: client.lookup_bags_many(
                {name: (one, offsets) for name, one in ids.items()}, mode="sum"
            )

        calls: dict[str, Call] = {
            KERNEL: _kernel(mapped, offsets),
            REMOTE: remote(http),
            GRPC: remote(grpc),
            UNPOOLED: http.lookup_many,
        }
        torch_call = _torch(mapped, offsets)
        if torch_call is None:
            report.skipped.append("torch embedding_bag: torch isn't installed (use make bench)")
        else:
            calls[TORCH] = torch_call
        _check(calls, {name: source.draw("uniform", BAGS * IDS) for name in mapped})
        medians: dict[str, dict[str, float]] = {name: {} for name in calls}
        for skew in SKEWS:
            taken: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS):
                ids = {name: source.draw(skew, BAGS * IDS) for name in mapped}
                for name, call in calls.items():
                    begin = time.perf_counter()
                    call(ids)
                    taken[name].append((time.perf_counter() - begin) * 1e3)
            for name in calls:
                medians[name][skew] = statistics.median(taken[name])
            report.marks += _marks(skew, {name: medians[name][skew] for name in calls})
    wire = _bytes(server.http, source, offsets)
    header = ("", *(f"{skew}, ms" for skew in SKEWS), "MB sent", "MB received")
    rows = tuple(
        (name, *(number(by_skew[skew]) for skew in SKEWS), *wire.get(name, ("", "")))
        for name, by_skew in medians.items()
    )
    report.tables.append(Table("One request, medians", header, rows))


def _kernel(mapped: Mapping[str, NDArray[np.float32]], offsets: NDArray[np.int64]) -> Call:
    out = {name: np.empty((BAGS, DIM), np.float32) for name in mapped}
    filler = np.zeros(DIM, np.float32)

    def call(ids: Given) -> dict[str, NDArray[np.float32]]:
        for name, rows in mapped.items():
            pool(rows, ids[name], offsets, None, Pooling.SUM, filler, out[name])
        return out

    return call


def _torch(mapped: Mapping[str, NDArray[np.float32]], offsets: NDArray[np.int64]) -> Call | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import warnings

    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # The mapped rows aren't writable, and nothing here writes to them.
        warnings.simplefilter("ignore", UserWarning)
        tensors: dict[str, Any] = {name: torch.from_numpy(rows) for name, rows in mapped.items()}
    begins = torch.from_numpy(offsets)
    bag = torch.nn.functional.embedding_bag

    def call(ids: Given) -> dict[str, Any]:
        return {
            name: bag(torch.from_numpy(ids[name]), rows, begins, mode="sum")
            for name, rows in tensors.items()
        }

    return call


def _check(calls: Mapping[str, Call], ids: Given) -> None:
    """All of them say the same, to what summing in another order may change."""
    expected: Any = calls[KERNEL](ids)
    for name, call in calls.items():
        answer: Any = call(ids)
        for table, rows in expected.items():
            there = np.asarray(answer[table])
            if name == UNPOOLED:
                there = there.reshape(BAGS, IDS, DIM).sum(axis=1)
            if not np.allclose(there, rows, rtol=1e-4, atol=1e-4):
                raise AssertionError(f"{name} pools {table} to other vectors")


def _bytes(url: str, source: IdSource, offsets: NDArray[np.int64]) -> dict[str, tuple[str, str]]:
    """By name, MB that one request takes on the wire, sent and received."""
    ids = {f"t{k}": source.draw("uniform", BAGS * IDS) for k in range(TABLES)}
    bags = {name: (one, offsets) for name, one in ids.items()}
    counted = {}
    with CountingProxy(url.removeprefix("http://")) as proxy:
        with Client(f"http://{proxy.address}", timeout=60) as client:
            client.tables()
            calls: dict[str, Callable[[], object]] = {
                REMOTE: lambda: client.lookup_bags_many(bags, mode="sum"),
                UNPOOLED: lambda: client.lookup_many(ids),
            }
            for name, call in calls.items():
                proxy.reset()
                call()
                counted[name] = (number(proxy.sent / 1e6), number(proxy.received / 1e6))
    return counted


def _marks(skew: str, medians: Mapping[str, float]) -> list[Mark]:
    kernel, remote = medians[KERNEL], medians[REMOTE]
    rest = f"{number(remote - kernel)} ms beside the kernel: the wire, and cores shared with it"
    marks = []
    if TORCH in medians:
        why = "the counters and checks of rows, or instructions; docs/performance.md has both"
        ratio = kernel / medians[TORCH]
        marks.append(Mark(f"kernel beside torch, {skew}", ratio, 1.2, True, limited_by=why))
    marks.append(
        Mark(f"remote beside the kernel, {skew}", remote / kernel, 1.35, True, limited_by=rest)
    )
    less = medians[UNPOOLED] / remote
    marks.append(Mark(f"pooled beside unpooled, {skew}", less, 8.0, limited_by=rest))
    return marks
