"""`make bench`: starts, memory and latency of a served 2 GB table, beside NumPy on the same rows.

Prints its tables and changes nothing else. Runs in about two minutes. The machine is noisy: read
the ratios, and run it twice before you believe a small one.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd import Client
from support.server import RunningServer, pss_bytes, run_cli

ROW_COUNT = 4_000_000
DIM = 128
BATCHES = (1, 64, 1024, 16_384)
SECONDS_PER_CELL = 2.0
CALLS_MAX = 5_000
MB = 1e6


def write_table(path: Path) -> None:
    """A 2 GB .npy file, left in the page cache."""
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (ROW_COUNT, DIM))
    rng = np.random.default_rng(0)
    for start in range(0, ROW_COUNT, 100_000):
        rows[start : start + 100_000] = rng.random((100_000, DIM), np.float32)
    rows.flush()


def starts(path: Path) -> None:
    """Time from the command to the ready line, and what the workers hold of the table."""
    print("\nStart and memory, 2 GB table in the page cache")
    print("workers   ready s   table PSS MB, by worker   sum MB   other memory MB, by worker")
    for workers in (1, 2, 4):
        begin = time.perf_counter()
        with RunningServer(f"t={path}", "--workers", str(workers)) as server:
            seconds = time.perf_counter() - begin
            pids = server.worker_pids()
            shares = [pss_bytes(pid, path.name) / MB for pid in pids]
            others = [pss_bytes(pid) / MB - share for pid, share in zip(pids, shares, strict=True)]
        listed = " ".join(f"{share:.0f}" for share in shares)
        rest = " ".join(f"{other:.0f}" for other in others)
        print(f"{workers:7}   {seconds:7.2f}   {listed:23}   {sum(shares):6.0f}   {rest}")


def timed(call: Callable[[NDArray[np.int64]], object], batches: list[NDArray[np.int64]]) -> str:
    """p50 and p99 of `call` in µs, over different ids each time."""
    for ids in batches[:20]:
        call(ids)
    taken: list[float] = []
    end = time.perf_counter() + SECONDS_PER_CELL
    while len(taken) < CALLS_MAX and time.perf_counter() < end:
        ids = batches[len(taken) % len(batches)]
        begin = time.perf_counter()
        call(ids)
        taken.append((time.perf_counter() - begin) * 1e6)
    p50, p99 = np.percentile(taken, (50, 99))
    return f"{p50:8.0f} ({p99:6.0f})"


def latency(path: Path, folder: Path) -> None:
    """One blocking client, uniform ids; NumPy gathers from the mapped file in this process."""
    rng = np.random.default_rng(1)
    mapped = np.load(path, mmap_mode="r")
    run_cli("import", "t", path, "--data-dir", folder / "data")
    socket = folder / "s"
    arguments = ("--data-dir", folder / "data", "--unix", socket)
    with RunningServer(*arguments) as server:
        urls = {
            "http": server.http,
            "unix": f"unix://{socket}",
            "grpc": server.grpc,
            "local": f"local:{folder}/data",
        }
        print("\nLatency of one client, p50 (p99) in µs; uniform ids")
        print("   ids   " + "   ".join(f"{name:>17}" for name in ("np.take", *urls)))
        clients = {name: Client(url) for name, url in urls.items()}
        for size in BATCHES:
            batches = [rng.integers(0, ROW_COUNT, size) for _ in range(200)]
            cells = [timed(lambda ids: np.take(mapped, ids, axis=0), batches)]
            cells += [
                timed(lambda ids, client=client: client.lookup("t", ids), batches)  # type: ignore[misc]  # a default binds the loop's client
                for client in clients.values()
            ]
            print(f"{size:6}   " + "   ".join(cells))
        for client in clients.values():
            client.close()


def main() -> None:
    """Run everything in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "table.npy"
        print(f"writing {ROW_COUNT} × {DIM} float32", file=sys.stderr)
        write_table(path)
        starts(path)
        latency(path, folder)


if __name__ == "__main__":
    main()
