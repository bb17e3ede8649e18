"""Rows are read whole while they are written: over every wire, in other processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from crash.torn_reader import DIM, ROWS, TABLE
from gatherd import Client
from support.server import RunningServer, clean_environment, run_cli

# How many rows each reader looks at; 10,000,000 together with a check.
SHARES = {
    ("http", "rows"): 1_600_000,
    ("grpc", "rows"): 1_400_000,
    ("http", "bags"): 2_000_000,
    ("local", "rows"): 3_000_000,
    ("local", "bags"): 6_000_000,
    ("local", "unchecked"): 6_000_000,
}
ROWS_MIN = 10**7


def reader(url: str, what: str, rows: int) -> subprocess.Popen[str]:
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "crash.torn_reader", url, what, str(rows)],
        stdout=subprocess.PIPE,
        text=True,
        env={**clean_environment(), "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )


@pytest.mark.timeout(240)
def test_no_reader_sees_half_a_row_unless_it_ignores_the_counters(tmp_path: Path) -> None:
    run_cli(
        "create", TABLE, "--rows", str(ROWS), "--dim", str(DIM), "--init", "zeros",
        "--optimizer", "sgd", "--data-dir", tmp_path,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    every = np.arange(ROWS)
    pushes = 0
    # What is written is looked at, not whether a disk keeps up: without syncs there is more of it.
    with RunningServer("--data-dir", tmp_path, "--durability", "os") as server:
        urls = {"http": server.http, "grpc": server.grpc, "local": f"local:{tmp_path}"}
        readers = {
            (wire, what): reader(urls[wire], what, rows) for (wire, what), rows in SHARES.items()
        }
        began = time.monotonic()
        try:
            with Client(server.http) as client:
                while any(one.poll() is None for one in readers.values()):
                    values = rng.integers(0, 1 << 16, (ROWS, 1)).astype(np.float32)
                    client.assign(TABLE, every, np.repeat(values, DIM, axis=1))
                    pushes += 1
        finally:
            for one in readers.values():
                one.kill()
        seconds = time.monotonic() - began
        found = {which: json.loads(one.communicate()[0]) for which, one in readers.items()}
    print(f"\n{pushes} pushes of {ROWS} rows in {seconds:.0f} s; {found}")
    unchecked = found.pop(("local", "unchecked"))
    assert {which: one["torn"] for which, one in found.items() if one["torn"]} == {}
    assert sum(one["rows"] for one in found.values()) >= ROWS_MIN
    assert all(one["changes"] >= 10 for one in found.values())
    # So there was something to be seen.
    assert unchecked["torn"] > 0
