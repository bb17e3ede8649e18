"""What it costs that rows are never torn: tables with counters beside the same without, in one run.

`python tests/bench/torn_bench.py [ROWS]`. The sides alternate; medians. In the last
part a process on another core stores into every row of a smaller table as fast as it can meanwhile.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.catalog import open_table, version_dir
from gatherd.store.dtypes import DType
from gatherd.store.format import open_readonly, read_layout
from gatherd.store.initializer import Initializer
from gatherd.store.kernels import compiled
from gatherd.store.query import BagsQuery, Pooling
from gatherd.store.table import Preload, Table
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.loaders.initializers import initial_blocks
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion, warm
from gatherd_server.storage.table_writer import Block, TableFiles
from gatherd_server.training.optimizer import Optimizer

DIM = 128
BAGS, IDS = 1024, 20
SECONDS = 2.0
WRITTEN_ROWS = 20_000
WRITER = Path(__file__).parents[1] / "support/row_writer.py"

Call = Callable[[NDArray[np.int64]], Any]


def compare(name: str, row_count: int, id_count: int, plain: Call, checked: Call) -> None:
    """Print the medians of both calls, in µs, over SECONDS of random ids."""
    rng = np.random.default_rng(0)
    spent: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    number = 0
    while time.perf_counter() < end:
        ids = rng.integers(0, row_count, id_count)
        for k in (0, 1) if number % 2 else (1, 0):
            begin = time.perf_counter()
            (plain, checked)[k](ids)
            spent[k].append(time.perf_counter() - begin)
        number += 1
    a, b = np.median(spent[0]) * 1e6, np.median(spent[1]) * 1e6
    print(f"{name:34}  plain {a:9.1f} µs  counters {b:9.1f} µs  {b / a:5.2f} times", flush=True)


def both(plain: Table, checked: Table, row_count: int) -> None:
    """Print a line for each way of reading."""
    for id_count in (1, 64, 1024, 16_384):
        compare(f"lookup, {id_count} ids", row_count, id_count, plain.lookup, checked.lookup)
    offsets = np.arange(BAGS) * IDS
    for mode in (Pooling.SUM, Pooling.MEAN, Pooling.MAX):
        name = f"{BAGS} bags × {IDS} ids, {mode.value}"
        calls = [
            partial(table.lookup_bags, query=BagsQuery(offsets, mode)) for table in (plain, checked)
        ]
        compare(name, row_count, BAGS * IDS, calls[0], calls[1])


def time_stores(folder: Path, row_count: int) -> None:
    """Print what a store of 1,024 rows takes, and its sync isn't in it."""
    version = MappedVersion.open(Files(), folder)
    rng = np.random.default_rng(0)
    images = np.zeros((1024, DIM * 4), np.uint8)
    spent = []
    for _ in range(300):
        rows = rng.choice(row_count, 1024, replace=False)
        begin = time.perf_counter()
        version.store(rows, images, {}, {})
        spent.append(time.perf_counter() - begin)
    print(f"store of 1024 rows: {np.median(spent) * 1e6:.1f} µs")


def made(data_dir: Path, row_count: int) -> tuple[Path, Table, Table]:
    """A new table's version, and it opened without and with its counters."""
    blocks = initial_blocks(Initializer.parse("uniform"), row_count, DIM, DType.FLOAT32, 7)
    sgd = Optimizer.parse("sgd", {})
    files = TableFiles("t", DType.FLOAT32, row_count, DIM, map(Block, blocks), {}, optimizer=sgd)
    with own_data_dir(data_dir, create=True) as owned:
        owned.add_table(files)
    folder = version_dir(data_dir, "t", 1)
    checked = open_table(data_dir, "t", 1)
    fd = open_readonly(folder / "weights.npy")
    plain = Table.map("t", 1, fd, read_layout(fd, "weights"))
    os.close(fd)
    for table in (plain, checked):
        table.preload(Preload.POPULATE)
    return folder, plain, checked


def while_written(data_dir: Path) -> None:
    """Print the lines of a table that another process stores into without pause."""
    folder, plain, checked = made(data_dir, WRITTEN_ROWS)
    writer = subprocess.Popen(
        [sys.executable, WRITER, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    os.sched_setaffinity(writer.pid, set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0))
    writer.stdout.readline()
    begin = time.perf_counter()
    both(plain, checked, WRITTEN_ROWS)
    seconds = time.perf_counter() - begin
    writer.stdin.close()
    print(f"{int(writer.stdout.readline()) / seconds / 1e6:.1f} million rows/s were stored")
    writer.wait()


def main() -> None:
    """Print the figures of docs/durability.md."""
    row_count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    # One core for the readers; the storing process gets the others.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    compiled.warm()
    warm()
    with tempfile.TemporaryDirectory() as name:
        folder, plain, checked = made(Path(name, "rest"), row_count)
        print(f"{row_count} rows × {DIM} float32, at rest")
        both(plain, checked, row_count)
        time_stores(folder, row_count)
        print(f"{WRITTEN_ROWS} rows, while a process stores without pause (plain reads are torn)")
        while_written(Path(name, "written"))


if __name__ == "__main__":
    main()
