"""What many tables cost beside one of as many rows: a start, one more table, lookups, /metrics.

`PYTHONPATH=tests python tests/bench/many_tables.py [TABLES]`, three minutes for 1,000. Both data
dirs are used in turns; CPU is that of all processes, which other work on the machine disturbs less.
The marks of issue 13: a start at most twice that of one table, and one more table as soon among
1,000.
"""

import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gatherd import Client
from support.server import RunningServer, children

ROWS, DIM, TURNS, CREATED, LOOKUPS = 1_000, 16, 3, 10, 3_000
OPTIMIZER: Mapping[str, str | float] = {"name": "adagrad", "lr": 0.1}


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def lookup_us(client: Client, names: Sequence[str]) -> float:
    """Median time of a lookup of one id, of one table after the other."""
    ids = np.array([5])
    times = []
    for number in range(LOOKUPS + len(names)):
        begin = time.perf_counter()
        client.lookup(names[number % len(names)], ids)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[len(names) :]) * 1e6


def measured(data_dir: Path, names: Sequence[str], turn: int) -> dict[str, float]:
    """One turn with a data dir that has the tables `names`."""
    begin = time.perf_counter()
    with RunningServer("--data-dir", data_dir, log_path=data_dir.with_suffix(".log")) as server:
        found = {"start, s": time.perf_counter() - begin}
        pids = [server.process.pid, *children(server.process.pid)]
        found["start, CPU s"] = cpu_seconds(pids)
        with Client(server.http, timeout=60) as client:
            fresh = [f"new_{turn}_{number}" for number in range(CREATED)]
            cpu, begin = cpu_seconds(pids), time.perf_counter()
            for name in fresh:
                client.create_table(name, ROWS, DIM)
            found["one more table, ms"] = (time.perf_counter() - begin) / CREATED * 1e3
            found["one more table, CPU ms"] = (cpu_seconds(pids) - cpu) / CREATED * 1e3
            for name in fresh:
                client.delete_table(name)
            found["lookup of the same table, µs"] = lookup_us(client, names[:1])
            found["lookup of one after the other, µs"] = lookup_us(client, names)
            begin = time.perf_counter()
            with urllib.request.urlopen(f"{server.http}/metrics") as reply:
                found["/metrics, KB"] = len(reply.read()) / 1e3
            found["/metrics, ms"] = (time.perf_counter() - begin) * 1e3
    return found


def main() -> None:
    """Print a line for each figure."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            Path(folder, "many"): ([f"table_{number:04d}" for number in range(count)], ROWS),
            Path(folder, "one"): (["big"], ROWS * count),
        }
        for data_dir, (names, rows) in sides.items():
            data_dir.mkdir()
            with RunningServer(
                "--data-dir", data_dir, log_path=data_dir.with_suffix(".log")
            ) as server:
                with Client(server.http, timeout=600) as client:
                    for name in names:
                        client.create_table(name, rows, DIM, optimizer=OPTIMIZER)
        turns = [
            {path.name: measured(path, names, turn) for path, (names, _) in sides.items()}
            for turn in range(TURNS)
        ]
    for figure in turns[0]["many"]:
        many, one = (
            statistics.median(turn[side][figure] for turn in turns) for side in ("many", "one")
        )
        print(f"{figure:36} {count} tables {many:8.2f}   one {one:8.2f}   {many / one:5.2f} ×")


if __name__ == "__main__":
    main()
