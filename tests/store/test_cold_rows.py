"""Rows that aren't in memory: found out before they are read. Pages are really dropped."""

import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

from gatherd.errors import FailedPrecondition, Unavailable
from gatherd.store import memory
from gatherd.store.mapping import MappedFile
from gatherd.store.query import Missing
from gatherd.store.table import Preload, Table
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.tables import ServedTables
from gatherd_server.types import Limits, Lookup
from support.file_tables import open_file_table

ROWS, DIM = 20_000, 128
LIMITS = Limits(16 << 20, 64 << 20, 1 << 20, 16, 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    return path


def dropped(path: Path) -> None:
    """Have the kernel drop a file's pages, which nobody has mapped, and see that it did."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        mapping = MappedFile(fd, os.fstat(fd).st_size)
        if memory.resident(mapping) > len(mapping) // 10:
            pytest.skip("this file system keeps its pages (tmpfs, or a cache of its own)")
    finally:
        os.close(fd)


def engine_of(table: Table, limits: Limits = LIMITS) -> Engine:
    return Engine(ServedTables({table.name: table}, {}), limits)


def plan(ids: list[int], missing: Missing = Missing.ERROR) -> Lookup:
    return Lookup("t", np.array(ids, np.int64), missing=missing)


def test_a_lookup_of_a_few_cold_rows_leaves_the_event_loop_and_of_warm_ones_does_not(
    path: Path,
) -> None:
    dropped(path)
    table = open_file_table("t", path, None)
    table.preload(Preload.NONE)
    engine = engine_of(table)
    for ids in ([15_000], [3, 15_001]):
        assert table.may_wait(np.array(ids))
        assert engine.prepare([plan(ids)]).is_long
    expected = np.arange(15_000 * DIM, 15_001 * DIM, dtype=np.float32)[None]
    np.testing.assert_array_equal(engine.lookup(plan([15_000])).vectors, expected)
    assert not engine.prepare([plan([15_000])]).is_long
    # Ids without a row are refused as ever.
    assert not table.may_wait(np.array([ROWS, -1]))


def test_a_table_is_found_to_be_in_memory_and_to_have_been_evicted(path: Path) -> None:
    dropped(path)
    table = open_file_table("t", path, None)
    table.look_at_residency()
    populated = [table.is_populated]
    assert engine_of(table).prepare([plan(list(range(50)))]).is_long
    path.read_bytes()
    table.look_at_residency()
    populated.append(table.is_populated)
    assert populated == [False, True]
    assert not engine_of(table).prepare([plan(list(range(50)))]).is_long


@pytest.mark.parametrize("policy", [Preload.NONE, Preload.POPULATE, Preload.AUTO])
def test_a_table_that_outgrows_the_memory_is_read_at_random_whatever_preload_says(
    path: Path, policy: Preload, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped(path)
    monkeypatch.setattr(memory, "available_bytes", lambda: ROWS * DIM * 4 - 1)
    table = open_file_table("t", path, None)
    table.preload(policy)
    assert not table.is_populated
    before = table.resident_bytes()
    for row in range(500, ROWS, 2_000):
        table.lookup(np.array([row]))
    # Without the advice a fault brings in the 64 KiB around it, or 128.
    assert table.resident_bytes() - before <= 10 * 4 * mmap.PAGESIZE
    small = open_file_table("t", path, None)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 * ROWS * DIM * 4)
    small.preload(policy, taken_bytes=9 * ROWS * DIM * 4 + 1)
    assert not small.is_populated


def test_the_mean_of_a_large_table_is_computed_once_beside_the_requests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.engine.means.AT_ONCE_BYTES", 1 << 20)
    table = open_file_table("t", path, None)
    engine = engine_of(table)
    asked = plan([-1], Missing.DEFAULT)
    refusals: list[Unavailable] = []
    deadline = time.monotonic() + 60
    while not refusals or not table.default_vector_is_known:
        assert time.monotonic() < deadline
        try:
            engine.prepare([asked])
        except Unavailable as error:
            refusals.append(error)
    assert all("is being computed" in str(one) and one.retry_after_seconds for one in refusals)
    found = engine.lookup(asked).vectors[0]
    whole = np.load(path).mean(axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(found, whole)


def test_a_table_too_large_to_average_says_how_it_gets_a_default_vector(path: Path) -> None:
    limits = Limits(16 << 20, 64 << 20, 1 << 20, 16, 16, default_mean_bytes_max=ROWS * DIM * 4 - 1)
    engine = engine_of(open_file_table("t", path, None), limits)
    with pytest.raises(FailedPrecondition, match="give it one by --default-vector"):
        engine.prepare([plan([-1], Missing.DEFAULT)])
    assert engine.lookup(plan([-1], Missing.ZERO)).vectors.any() is np.False_
