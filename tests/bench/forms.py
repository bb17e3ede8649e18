"""Lookups of a part of each vector, and of vectors of length 1, beside plain ones.

`PYTHONPATH=tests python -m bench.forms`, half a minute and 1 GB. All are called in turns, over
http:// and from the files: a table of 300,000 x 768 float32, and one that holds its first 128
dims.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gatherd import Client
from support.server import RunningServer, run_cli

ROWS, DIM, DIMS, BATCHES, TURNS = 300_000, 768, 128, (1, 64, 1024, 16_384), 60


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data_dir, file = Path(folder) / "data", Path(folder) / "rows.npy"
        rows = rng.standard_normal((ROWS, DIM), dtype=np.float32)
        for name, part in (("whole", rows), ("small", rows[:, :DIMS])):
            np.save(file, part)
            run_cli("import", name, file, "--data-dir", data_dir)
        with RunningServer("--data-dir", data_dir) as server:
            for url in (server.http, f"local:{data_dir}"):
                with Client(url, timeout=60) as client:
                    print(url.partition(":")[0])
                    for batch in BATCHES:
                        measure(client, rng.integers(0, ROWS, batch))


def measure(client: Client, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """Print the median of each kind of lookup."""
    calls: dict[str, Callable[[], object]] = {
        "whole": lambda: client.lookup("whole", ids),
        "whole, normalized": lambda: client.lookup("whole", ids, normalize=True),
        f"dims={DIMS}": lambda: client.lookup("whole", ids, dims=DIMS),
        f"dims={DIMS}, normalized": lambda: client.lookup("whole", ids, dims=DIMS, normalize=True),
        f"a table of {DIMS}": lambda: client.lookup("small", ids),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS + 3):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - begin)
    print(f"  {len(ids):6} ids: " + "  ".join(
        f"{name} {statistics.median(found) * 1e6:.0f}" for name, found in seconds.items()
    ) + " us")  # fmt: skip


if __name__ == "__main__":
    main()
