"""Rows are read whole while they are written: over every wire, in other processes.

`make test-crash` looks at CRASH_ROWS = 10,000,000 of them, `make test` at fewer.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from crash.torn_reader import CHANGES_MIN, DIM, ROWS, TABLE
from gatherd import Client
from support.server import RunningServer, clean_environment
from support.tables import drawn_table, make_data_dir

ROWS_MIN = int(os.environ.get("CRASH_ROWS", "300000"))
# How large a part of them each reader looks at; a little more than 1 in all.
SHARES = {
    ("http", "rows"): 0.16,
    ("grpc", "rows"): 0.14,
    ("http", "bags"): 0.2,
    ("grpc", "bags"): 0.2,
    ("local", "rows"): 0.2,
    ("local", "bags"): 0.2,
}
UNCHECKED = (("http", "rows"), ("grpc", "rows"), ("http", "bags"), ("local", "plain"))
# Without a check one is torn in every few thousand to every few hundred thousand.
ROWS_UNTIL_TORN = 10**8

# Python imports it at every start, so workers have it too, whoever starts them.
WITHOUT_COUNTERS = """
import gatherd.store.catalog
gatherd.store.catalog.map_counters = lambda folder, row_count: None
"""

Readers = Mapping[tuple[str, str], subprocess.Popen[str]]


def reader(url: str, what: str, rows: float, *torn: str) -> subprocess.Popen[str]:
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "crash.torn_reader", url, what, str(round(rows)), *torn],
        stdout=subprocess.PIPE,
        text=True,
        env={**clean_environment(), "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )


@contextmanager
def serving(data_dir: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A server of a table that is to be torn; its URLs."""
    make_data_dir(data_dir, drawn_table(TABLE, ROWS, DIM))
    # What is written is looked at, not whether a disk keeps up: without syncs there is more of it.
    arguments = ("--data-dir", data_dir, "--durability", "os")
    with RunningServer(*arguments, environment=environment) as server:
        yield {"http": server.http, "grpc": server.grpc, "local": f"local:{data_dir}"}


def write_while(readers: Readers, url: str) -> dict[tuple[str, str], dict[str, int]]:
    """Assign all rows, again and again, until every reader has ended; what these have seen."""
    rng = np.random.default_rng(3)
    every = np.arange(ROWS)
    pushes = 0
    began = time.monotonic()
    try:
        with Client(url, timeout=60) as client:
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
    return found


@pytest.mark.timeout(240)
def test_no_reader_sees_half_a_row(tmp_path: Path) -> None:
    with serving(tmp_path, {}) as urls:
        readers = {
            (wire, what): reader(urls[wire], what, share * ROWS_MIN)
            for (wire, what), share in SHARES.items()
        }
        found = write_while(readers, urls["http"])
    assert {which: one["torn"] for which, one in found.items()} == dict.fromkeys(SHARES, 0)
    assert sum(one["rows"] for one in found.values()) >= ROWS_MIN
    assert all(one["changes"] >= CHANGES_MIN for one in found.values())


@pytest.mark.timeout(240)
def test_without_the_counters_the_same_readers_see_torn_rows(tmp_path: Path) -> None:
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(WITHOUT_COUNTERS)
    path = [str(patch), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    with serving(tmp_path / "data", environment) as urls:
        readers = {
            (wire, what): reader(urls[wire], what, ROWS_UNTIL_TORN, "1") for wire, what in UNCHECKED
        }
        found = write_while(readers, urls["http"])
    assert all(one["torn"] for one in found.values())
