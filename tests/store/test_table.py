"""A table answers from its mapping, whatever becomes of the file's name."""

import threading
from pathlib import Path

import numpy as np
import pytest

from gatherd.errors import BadFile, IdOutOfRange, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.query import Missing
from gatherd.store.table import Preload, Table
from support.file_tables import open_file_table

ROWS = np.random.default_rng(5).normal(size=(1000, 33)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", ROWS)
    return tmp_path / "a.npy"


@pytest.fixture
def table(path: Path) -> Table:
    return open_file_table("t", path, None)


@pytest.mark.parametrize("policy", list(Preload))
def test_every_preload_policy_leaves_the_same_rows(table: Table, policy: Preload) -> None:
    table.preload(policy)
    np.testing.assert_array_equal(table.lookup(np.arange(1000)).vectors, ROWS)


def test_a_table_that_does_not_fit_into_memory_is_not_populated(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd.store.memory.available_bytes", lambda: table.nbytes)
    monkeypatch.setattr("gatherd.store.memory.populate", None)
    table.preload(Preload.AUTO)
    np.testing.assert_array_equal(table.lookup(np.array([7])).vectors, ROWS[[7]])


def test_a_deleted_or_replaced_file_goes_on_being_served(path: Path, table: Table) -> None:
    np.save(path.with_name("b.npy"), ROWS + 1)
    path.with_name("b.npy").rename(path)
    np.testing.assert_array_equal(table.lookup(np.array([3])).vectors, ROWS[[3]])
    path.unlink()
    np.testing.assert_array_equal(table.lookup(np.array([999])).vectors, ROWS[[999]])


def test_out_is_filled_and_returned(table: Table) -> None:
    out = np.empty((2, 1, 33), np.float32)
    gathered = table.lookup(np.array([[4], [20]]), out=out)
    assert gathered.vectors is out
    np.testing.assert_array_equal(out, ROWS[[[4], [20]]])


def test_out_is_untouched_when_an_id_is_bad(table: Table) -> None:
    out = np.full((2, 33), 7, np.float32)
    with pytest.raises(IdOutOfRange):
        table.lookup(np.array([0, 1000]), out=out)
    assert (out == 7).all()


def test_conversion_works_across_blocks(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 100))
    np.save(tmp_path / "wide.npy", rows)
    table = open_file_table("wide", tmp_path / "wide.npy", None)
    ids = np.random.default_rng(1).integers(0, 5000, 4001)
    np.testing.assert_array_equal(table.lookup(ids).vectors, rows[ids].astype(np.float32))


def test_the_default_vector_is_the_mean_for_every_thread(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS.astype(np.float16))
    table = open_file_table("t", tmp_path / "a.npy", None)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(table.default_vector())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = ROWS.astype(np.float16).astype(np.float64).mean(axis=0)
    for vector in found:
        np.testing.assert_allclose(vector, wanted, rtol=1e-6)
        np.testing.assert_array_equal(vector, found[0])


def test_a_default_vector_of_another_length_is_refused(path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"dim 33; its default vector has shape \(3,\)"):
        open_file_table("t", path, None, np.zeros(3, np.float32))


def test_a_table_without_rows_fills_what_is_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "empty.npy", np.empty((0, 3), np.float16))
    table = open_file_table("t", tmp_path / "empty.npy", None)
    gathered = table.lookup(np.array([0, -1]), DType.FLOAT32, Missing.DEFAULT)
    np.testing.assert_array_equal(gathered.vectors, np.zeros((2, 3)))
    assert gathered.status is not None
    assert gathered.status.tolist() == [1, 1]


def test_folders_pipes_and_absent_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadFile):
            open_file_table("t", path, None)
