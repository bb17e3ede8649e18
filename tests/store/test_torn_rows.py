"""A row is read whole or not at all, whoever writes it meanwhile."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gatherd
from gatherd.errors import BadFile, Unavailable
from gatherd.store.bags import pool
from gatherd.store.catalog import open_table, version_dir
from gatherd.store.dtypes import DType, convert
from gatherd.store.format import open_readonly, read_layout
from gatherd.store.query import BagsQuery, Pooling
from gatherd.store.stripes import (
    SEQ_NAME,
    STRIPES_MAX,
    WAIT_SECONDS,
    RowReader,
    seq_bytes,
    stripe_count,
)
from gatherd.store.table import Table
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion
from gatherd_server.storage.table_writer import Block, TableFiles
from gatherd_server.training.optimizer import Optimizer

WRITER = Path(__file__).parents[1] / "support/row_writer.py"
NAME = "t"
ROWS, DIM = 5000, 128
BATCH = 4096
DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
# So many for the case with the most to be torn, about 20 s with the others; a few elsewhere.
ROWS_READ_MOST = 6_000_000
ROWS_READ = 250_000

Read = Callable[[NDArray[np.int64]], NDArray[Any]]


def make_table(data_dir: Path, dtype: DType, row_count: int = ROWS, dim: int = DIM) -> Path:
    """A trainable table of zeros in a new data dir; its version's folder."""
    zeros = np.zeros((row_count, dim), dtype.storage)
    sgd = Optimizer.parse("sgd", {})
    files = TableFiles(NAME, dtype, row_count, dim, [Block(zeros)], {}, optimizer=sgd)
    with own_data_dir(data_dir, create=True) as owned:
        owned.add_table(files)
    return version_dir(data_dir, NAME, 1)


def open_unchecked(folder: Path) -> Table:
    """The same rows without their counters: what a reader is that doesn't look at them."""
    fd = open_readonly(folder / "weights.npy")
    try:
        return Table.map(NAME, 1, fd, read_layout(fd, "weights"))
    finally:
        os.close(fd)


@contextmanager
def writing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that stores into the version's rows for the length of a `with` block."""
    process = subprocess.Popen(
        [sys.executable, WRITER, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "storing\n"
        yield process
        assert process.poll() is None
        process.stdin.close()
        assert int(process.stdout.readline()) >= ROWS
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def one_row_bags(table: Table, mode: Pooling) -> Read:
    offsets = np.arange(BATCH)
    query = BagsQuery(offsets, mode)
    return lambda ids: table.lookup_bags(ids, query).vectors


def large_bags(table: Table) -> Read:
    # Of rows that are each of one value, so is the mean.
    query = BagsQuery(np.arange(0, BATCH, 16), Pooling.MEAN)
    return lambda ids: table.lookup_bags(ids, query).vectors


def torn_among(read: Read, row_count: int, until: int | None = None) -> int:
    """How many of `row_count` rows and bags weren't of one value; stops early at `until`."""
    rng = np.random.default_rng(1)
    torn = 0
    for _ in range(-(-row_count // BATCH)):
        vectors = read(rng.integers(0, ROWS, BATCH))
        torn += int(np.count_nonzero((vectors != vectors[:, :1]).any(axis=1)))
        if until is not None and torn >= until:
            break
    return torn


def readers(table: Table) -> dict[str, Read]:
    """Every way in which a table is read."""
    return {
        "lookup": lambda ids: table.lookup(ids, table.dtype).vectors,
        "converted": lambda ids: (
            table.lookup(
                ids, DType.FLOAT16 if table.dtype is DType.FLOAT32 else DType.FLOAT32
            ).vectors
        ),
        "stored rows": lambda ids: table.stored_rows(int(ids[0]), int(ids[0]) + BATCH),
        "sum": one_row_bags(table, Pooling.SUM),
        "max": one_row_bags(table, Pooling.MAX),
        "mean of several": large_bags(table),
    }


def test_the_most_rows_of_the_suite_and_none_torn(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32)
    table = open_table(tmp_path, NAME, 1)
    with writing(folder):
        assert torn_among(readers(table)["lookup"], ROWS_READ_MOST) == 0
        assert torn_among(readers(table)["sum"], 10_000_000 - ROWS_READ_MOST) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_way_of_reading_sees_a_torn_row(tmp_path: Path, dtype: DType) -> None:
    folder = make_table(tmp_path, dtype)
    table = open_table(tmp_path, NAME, 1)
    with writing(folder):
        found = {name: torn_among(read, ROWS_READ) for name, read in readers(table).items()}
    assert found == dict.fromkeys(found, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_of_reading_sees_torn_rows_without_the_counters(
    tmp_path: Path, dtype: DType
) -> None:
    folder = make_table(tmp_path, dtype)
    with writing(folder):
        for name, read in readers(open_unchecked(folder)).items():
            assert torn_among(read, 100 * ROWS_READ, until=1), name
        plain = np.load(folder / "weights.npy", mmap_mode="r").view(dtype.storage)
        assert torn_among(lambda ids: plain.take(ids, axis=0), 100 * ROWS_READ, until=1)


def test_one_row_at_a_time_is_whole(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32)
    table, plain = open_table(tmp_path, NAME, 1), open_unchecked(folder)
    with writing(folder):
        for row in range(20_000):
            vector = table.lookup(np.array([row % ROWS])).vectors
            assert (vector == vector[0, 0]).all()

        def one(ids: NDArray[np.int64]) -> NDArray[Any]:
            return np.concatenate([plain.lookup(ids[k : k + 1]).vectors for k in range(BATCH)])

        assert torn_among(one, 100 * ROWS_READ, until=1)


def test_the_client_on_a_data_dir_sees_none(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32)
    offsets = np.arange(0, BATCH, 4)
    with gatherd.Client(f"local:{tmp_path}") as client, writing(folder):
        assert torn_among(lambda ids: client.lookup(NAME, ids), ROWS_READ) == 0
        assert torn_among(lambda ids: client.lookup_bags(NAME, ids, offsets), ROWS_READ) == 0


def kill_inside_a_row(folder: Path) -> int:
    """Kill writers until one of them leaves a row odd; which."""
    for _ in range(20):
        with suppress(AssertionError), writing(folder) as process:
            process.kill()
            process.wait()
        odd = np.flatnonzero(np.fromfile(folder / SEQ_NAME, "<u4") & 1)
        if odd.size:
            return int(odd[0])
    raise AssertionError("no writer died inside a row")


def test_a_row_whose_writer_died_is_unavailable_until_it_is_made_even(tmp_path: Path) -> None:
    # Rows of a megabyte: a writer is nearly always inside of one.
    folder = make_table(tmp_path, DType.FLOAT32, row_count=2, dim=1 << 18)
    table = open_table(tmp_path, NAME, 1)
    row = kill_inside_a_row(folder)
    bag = BagsQuery(np.zeros(1, np.int64))
    for read in (
        lambda: open_table(tmp_path, NAME, 1).lookup(np.array([row])),
        lambda: open_table(tmp_path, NAME, 1).lookup(np.array([1 - row, row])),
        lambda: open_table(tmp_path, NAME, 1).stored_rows(0, 2),
        lambda: table.lookup_bags(np.array([1 - row, row]), bag),
    ):
        begin = time.monotonic()
        with pytest.raises(Unavailable, match=rf"table 't': row {row} .* writer"):
            read()
        assert WAIT_SECONDS <= time.monotonic() - begin < WAIT_SECONDS + 10
    # What was waited for in vain isn't waited for again.
    begin = time.monotonic()
    with pytest.raises(Unavailable):
        table.lookup(np.array([row]))
    assert time.monotonic() - begin < WAIT_SECONDS / 2
    table.lookup(np.array([1 - row]))

    version = MappedVersion.open(Files(), folder)
    assert version.make_even() == 1
    assert version.make_even() == 0
    assert table.lookup(np.arange(2)).vectors.shape == (2, 1 << 18)
    assert table.lookup_bags(np.array([0, 1]), bag).vectors.shape == (1, 1 << 18)


def test_a_row_that_a_crash_left_odd_is_whole_once_it_was_stored_again(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32, row_count=3)
    np.array([0, 7, 0, 0], "<u4").tofile(folder / SEQ_NAME)
    version = MappedVersion.open(Files(), folder)
    new = np.arange(DIM, dtype=np.float32)
    version.store(np.array([1]), new[None].view(np.uint8), {}, {})
    table = open_table(tmp_path, NAME, 1)
    np.testing.assert_array_equal(table.lookup(np.array([1])).vectors[0], new)
    assert version.make_even() == 0


def test_only_torn_rows_are_copied_again() -> None:
    counters = np.zeros(8, np.uint32)
    reader = RowReader(NAME, counters)
    asked = []

    def copy(index: NDArray[np.intp], out: NDArray[Any]) -> None:
        asked.append(index.tolist())
        out[...] = 100 * len(asked) + index
        if len(asked) == 1:
            counters[3] += 2

    out = np.empty(5, np.int64)
    reader.read(np.array([1, 3, 2, 11, 4]), out, copy)
    assert asked[0] == [1, 3, 2, 11, 4]
    assert sorted(chain.from_iterable(asked[1:])) == [3, 11]
    assert out[[0, 2, 4]].tolist() == [101, 102, 104]
    assert (out[[1, 3]] > 200).all()


@pytest.mark.parametrize("mode", list(Pooling))
@pytest.mark.parametrize("dtype", DTYPES)
def test_bags_are_the_same_with_counters_as_without(mode: Pooling, dtype: DType) -> None:
    rng = np.random.default_rng(3)
    wide = rng.normal(size=(300, 75)).astype(np.float32)
    rows = np.empty(wide.shape, dtype.storage)
    convert(wide, DType.FLOAT32, rows, dtype)
    index, offsets = rng.integers(-2, 300, 900), np.sort(rng.integers(0, 900, 60))
    offsets[0] = 0
    weights = None if mode is Pooling.MAX else rng.random(900, np.float32)
    filler = rng.normal(size=75).astype(np.float32)
    plain, checked = np.empty((60, 75), np.float32), np.empty((60, 75), np.float32)
    reader = RowReader(NAME, np.full(stripe_count(300), 8, np.uint32))
    pool(rows, index, offsets, weights, mode, filler, plain)
    pool(rows, index, offsets, weights, mode, filler, checked, reader)
    np.testing.assert_array_equal(plain, checked)


def test_there_is_a_stripe_for_each_row_up_to_a_bound() -> None:
    counts = [(0, 1), (1, 1), (2, 2), (3, 4), (5000, 8192), (65_536, 65_536), (10**9, STRIPES_MAX)]
    assert [(rows, stripe_count(rows)) for rows, _ in counts] == counts
    assert seq_bytes(3) == 16


def test_a_table_that_never_changes_has_no_counters(tmp_path: Path) -> None:
    zeros = np.zeros((3, 2), np.float32)
    with own_data_dir(tmp_path, create=True) as owned:
        owned.add_table(TableFiles(NAME, DType.FLOAT32, 3, 2, [Block(zeros)], {}))
    assert not (version_dir(tmp_path, NAME, 1) / SEQ_NAME).exists()
    assert open_table(tmp_path, NAME, 1).lookup(np.arange(3)).vectors.shape == (3, 2)


def test_counters_that_are_not_those_of_the_rows_are_refused(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32, row_count=3)
    (folder / SEQ_NAME).write_bytes(bytes(12))
    with pytest.raises(BadFile, match=r"seq has 12 bytes; the counters of 3 rows have 16"):
        open_table(tmp_path, NAME, 1)
    with pytest.raises(BadFile, match="seq has 12 bytes"):
        MappedVersion.open(Files(), folder)
    (folder / SEQ_NAME).unlink()
    with pytest.raises(BadFile, match="seq"):
        open_table(tmp_path, NAME, 1)
