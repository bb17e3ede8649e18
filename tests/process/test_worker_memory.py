"""What a worker costs in memory of its own, beside the tables that all of them share."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from support.server import RunningServer, private_bytes
from support.tables import drawn_table, make_data_dir

DIM = 8
PROCESS_BYTES_MAX = 135 << 20


@pytest.mark.timeout(180)
def test_another_worker_costs_little_memory_of_its_own(tmp_path: Path) -> None:
    rows = 400_000
    make_data_dir(tmp_path, drawn_table("items", rows, DIM, optimizer="adagrad"))
    private: dict[int, list[int]] = {}
    writer: dict[int, list[int]] = {}
    for workers in (1, 3):
        with RunningServer("--data-dir", tmp_path, "--workers", str(workers)) as server:
            _work(server, rows)
            private[workers] = [private_bytes(pid) for pid in server.worker_pids()]
            writer[workers] = [private_bytes(pid) for pid in server.writer_pids()]
    told = {
        workers: ([byte_count >> 20 for byte_count in private[workers]],
                  [byte_count >> 20 for byte_count in writer[workers]])
        for workers in private
    }  # fmt: skip
    print(f"\nprivate MB of each worker, and of the writer, by number of workers: {told}")
    # With one worker the writer is part of it.
    assert max(private[3] + writer[3]) <= PROCESS_BYTES_MAX
    assert sum(private[1]) <= 2 * PROCESS_BYTES_MAX


def _work(server: RunningServer, rows: int) -> None:
    """Lookups, bags and pushes, from several connections a wire."""
    rng = np.random.default_rng(1)

    def run(url: str) -> None:
        with Client(url) as client:
            for _ in range(10):
                ids = rng.integers(0, rows, 4_000)
                client.lookup("items", ids)
                client.lookup_bags("items", ids, np.arange(0, 4_000, 20))
                client.apply_gradients("items", ids, np.ones((4_000, DIM)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, [server.http, server.grpc] * 4))
