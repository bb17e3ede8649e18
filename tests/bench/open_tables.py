"""Open tables: what creating rows costs a push, and what growth does to lookups meanwhile.

`PYTHONPATH=tests python tests/bench/open_tables.py pushes` compares, alternating in one run, a push
of 1,024 new keys with the same push to rows that exist; the mark is at most twice the time.

`PYTHONPATH=tests python tests/bench/open_tables.py growth [ROWS]` has a server of two workers, a
client that pushes new string keys until there are ROWS (1,000,000 unless given), and another that
looks up known keys one request after the other. It prints rows a second, the lookups' p50, p99,
p99.9 and longest, memory, and the bytes of the index for a key. A pause of more than 5 ms at p99.9
is a fault. The lookups' times on the same server before the growth are the other side.
"""

import multiprocessing
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd import Client
from gatherd.store.catalog import version_dir
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import StringKeys
from gatherd.store.memory import tune_allocator
from gatherd.store.open_files import map_index
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import ByKey
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.storage.files import Files
from gatherd_server.types import (
    CreateTable,
    OptimizerSpec,
    Push,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.writer import Writer
from support.server import RunningServer, run_cli

DIM, KEYS, ROUNDS = 64, 1_024, 61
PUSHED_KEYS, LOOKED_UP, QUIET_SECONDS = 10_000, 64, 5.0
TABLE = "items"


def keys_from(first: int, count: int) -> StringKeys:
    """Keys of 15 bytes."""
    data = b"".join(b"user-%010d" % number for number in range(first, first + count))
    offsets = np.arange(count + 1, dtype=np.int64) * 15
    return StringKeys(np.frombuffer(data, np.uint8), offsets, (count,))


# ----------------------------------------------------------------------------------- pushes


def pushes() -> None:
    """A push of new keys beside one to rows that exist, of each operation."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        with own_data_dir(data_dir, create=True):
            pass
        limits = WriterLimits(segment_bytes=256 << 20)
        writer = Writer(data_dir, Files(), limits)
        changes = Changes(writer, limits)
        spec = OpenSpec(KeyKind.BYTES, 100_000_000, 7, Initializer.parse("normal"), True)
        made = OptimizerSpec("adagrad", {})
        change = CreateTable(TABLE, 0, DIM, DType.FLOAT32, spec.init, 7, made, spec)
        changes.change(change).result()
        for op in (UpdateOp.SCATTER_ADD, UpdateOp.APPLY_GRADIENTS, UpdateOp.ASSIGN):
            creating, existing = beside(writer, op)
            print(
                f"{op.value}: {KEYS:,} new keys {creating:.2f} ms, rows that exist "
                f"{existing:.2f} ms: {creating / existing:.2f} times"
            )
        changes.close()
        writer.close()


def beside(writer: Writer, op: UpdateOp) -> tuple[float, float]:
    """Medians of a creating push, and of the same push again, milliseconds."""
    begin = {UpdateOp.SCATTER_ADD: 0, UpdateOp.APPLY_GRADIENTS: 1, UpdateOp.ASSIGN: 2}[op] * 10**6
    values = np.random.default_rng(1).normal(size=(KEYS, DIM)).astype(np.float32)
    creating: list[float] = []
    existing: list[float] = []
    for number in range(ROUNDS):
        update = TableUpdate(TABLE, ByKey(keys_from(begin + number * KEYS, KEYS)), values)
        for times in (creating, existing):
            started = time.perf_counter()
            writer.submit(Push(op, (update,)), b"").result()
            times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(creating)), float(np.median(existing))


# ----------------------------------------------------------------------------------- growth


def look_up(
    url: str, known: int, begun: Event, stop: Event, results: "multiprocessing.Queue[object]"
) -> None:
    """Look up known keys until told to stop; the times of all lookups, milliseconds."""
    client = Client(url)
    rng = np.random.default_rng(2)
    batches = [
        [f"user-{number:010d}" for number in rng.integers(0, known, LOOKED_UP)] for _ in range(256)
    ]
    times = []
    client.lookup(TABLE, keys=batches[0])
    begun.set()
    while not stop.is_set():
        for keys in batches:
            started = time.perf_counter()
            client.lookup(TABLE, keys=keys)
            times.append((time.perf_counter() - started) * 1e3)
    results.put(np.array(times))


def told(what: str, times: NDArray[np.float64]) -> None:
    """Print the quantiles."""
    p50, p99, p999 = np.quantile(times, (0.5, 0.99, 0.999))
    print(
        f"{what}: {times.size:,} lookups of {LOOKED_UP} keys; p50 {p50:.3f} ms, p99 {p99:.3f}, "
        f"p99.9 {p999:.3f}, longest {times.max():.1f}"
    )


def measured(url: str, known: int, seconds: float | None = None) -> "Reader":
    """Lookups in a process of their own."""
    reader = Reader(url, known)
    if seconds is not None:
        time.sleep(seconds)
    return reader


class Reader:
    """A process that looks up."""

    def __init__(self, url: str, known: int) -> None:
        context = multiprocessing.get_context("spawn")
        begun, self._stop = context.Event(), context.Event()
        self._results: multiprocessing.Queue[NDArray[np.float64]] = context.Queue()
        self._process = context.Process(
            target=look_up, args=(url, known, begun, self._stop, self._results)
        )
        self._process.start()
        begun.wait()

    def times(self) -> NDArray[np.float64]:
        """Stop it; what it measured."""
        self._stop.set()
        found = self._results.get()
        self._process.join()
        return found


def growth(rows: int) -> None:
    """Push new keys while keys are looked up."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        run_cli(
            "create", TABLE, "--keys", "string", "--dim", str(DIM), "--init", "normal",
            "--optimizer", "adagrad", "--data-dir", data_dir,
        )  # fmt: skip
        log = Path(folder) / "log"
        with RunningServer("--data-dir", data_dir, "--workers", "2", log_path=log) as server:
            client = Client(server.http, timeout=120)
            values = np.ones((PUSHED_KEYS, DIM), np.float32)
            first = [f"user-{number:010d}" for number in range(PUSHED_KEYS)]
            client.assign(TABLE, keys=first, rows=values, create=True)
            told("before", measured(server.http, PUSHED_KEYS, QUIET_SECONDS).times())
            reader = measured(server.http, PUSHED_KEYS)
            began = time.perf_counter()
            slowest = 0.0
            for begin in range(PUSHED_KEYS, rows, PUSHED_KEYS):
                keys = [f"user-{number:010d}" for number in range(begin, begin + PUSHED_KEYS)]
                started = time.perf_counter()
                client.assign(TABLE, keys=keys, rows=values, create=True)
                slowest = max(slowest, time.perf_counter() - started)
            seconds = time.perf_counter() - began
            told("meanwhile", reader.times())
            pids = [server.process.pid, *server.worker_pids(), *server.writer_pids()]
            print(
                f"{rows:,} rows in {seconds:.1f} s: {(rows - PUSHED_KEYS) / seconds:,.0f} "
                f"rows/s by one client, {PUSHED_KEYS:,} a push; the slowest push took "
                f"{slowest * 1e3:.0f} ms; private memory of all processes "
                f"{sum(map(private_bytes, pids)) >> 20} MiB"
            )
            index = map_index(version_dir(data_dir, TABLE, 1), KeyKind.BYTES)
            byte_count = index.header.byte_count + 8 * rows + 16 * rows
            print(
                f"index {index.header.byte_count / rows:.1f} bytes a key, with its entry and its "
                f"place in the heap {byte_count / rows:.1f}"
            )


def private_bytes(pid: int) -> int:
    """Anonymous memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def main(arguments: list[str]) -> None:
    tune_allocator()
    if arguments[:1] == ["pushes"]:
        pushes()
    elif arguments[:1] == ["growth"]:
        growth(int(arguments[1].replace("_", "")) if len(arguments) > 1 else 1_000_000)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
