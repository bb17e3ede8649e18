"""What is stored into a version is what its files hold, and all of it passes the fault seam."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gatherd.errors import BadFile, StorageError
from gatherd.store.catalog import open_table, version_dir
from gatherd.store.dtypes import DType
from gatherd.store.mapping import MappedFile
from gatherd.store.stripes import SEQ_NAME
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion
from gatherd_server.storage.table_writer import Block, TableFiles
from gatherd_server.training.optimizer import Optimizer

DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


def make_table(
    data_dir: Path, dtype: DType, rows: NDArray[Any], optimizer: str | None = "adam"
) -> Path:
    """A table "t" of `rows` in a new data dir; its version's folder."""
    trained = Optimizer.parse(optimizer, {}) if optimizer else None
    row_count, dim = rows.shape
    files = TableFiles("t", dtype, row_count, dim, [Block(rows)], {}, optimizer=trained)
    with own_data_dir(data_dir, create=True) as owned:
        owned.add_table(files)
    return version_dir(data_dir, "t", 1)


class InHalves(Files):
    """Notes what it is asked for, and stores the first half of a store before the second."""

    def __init__(self) -> None:
        self.mapped: list[str] = []
        self.stored: list[str] = []
        self.synced: list[str] = []
        self.is_failing = False

    def map_writable(self, path: Path) -> MappedFile:
        self.mapped.append(path.name)
        return super().map_writable(path)

    def store_rows(
        self,
        target: NDArray[np.uint8],
        counters: NDArray[np.uint32],
        rows: NDArray[np.int64],
        images: NDArray[np.uint8],
        path: Path,
    ) -> None:
        self.stored.append(path.name)
        half = len(rows) // 2
        for part in (slice(0, half), slice(half, None)):
            super().store_rows(target, counters, rows[part], images[part], path)

    def msync(self, mapping: MappedFile, path: Path) -> None:
        self.synced.append(path.name)
        if self.is_failing:
            raise StorageError(f"{path}: planted")
        super().msync(mapping, path)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_and_slots_hold_what_was_stored_last(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    row_count = data.draw(st.integers(1, 40))
    dim = data.draw(st.sampled_from((1, 3, 64, 1500)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    wanted = rng.integers(0, 1 << 14, (row_count, dim * dtype.itemsize // 2)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as name:
        folder = make_table(Path(name), dtype, wanted.view(dtype.storage))
        version = MappedVersion.open(Files(), folder)
        moments, writes = np.zeros((row_count, dim), np.float32), np.zeros(64, np.int64)
        for step in range(data.draw(st.integers(1, 4))):
            rows = rng.permutation(row_count)[: data.draw(st.integers(0, row_count))]
            new = rng.integers(0, 1 << 14, (rows.size, wanted.shape[1])).astype(np.uint16)
            slot = rng.normal(size=(rows.size, dim)).astype(np.float32)
            count = np.array([step], np.int64)
            version.store(rows, new.view(np.uint8), {"exp_avg": slot}, {"step": count})
            wanted[rows], moments[rows] = new, slot
            writes[rows] += 1
            np.testing.assert_array_equal(version.weights.view(np.uint16), wanted)
            np.testing.assert_array_equal(version.slots["exp_avg"], moments)
        version.sync()
        version.close()
        read = np.load(folder / "weights.npy").view(np.uint16).reshape(wanted.shape)
        np.testing.assert_array_equal(read, wanted)
        np.testing.assert_array_equal(np.load(folder / "slot_exp_avg.npy"), moments)
        assert np.load(folder / "slot_step.npy").tolist() == [step]
        # No row of so small a table shares its stripe.
        counters = np.fromfile(folder / SEQ_NAME, "<u4")
        np.testing.assert_array_equal(counters, 2 * writes[: counters.size])


def test_every_map_store_and_sync_passes_the_seam(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32, np.zeros((5, 3), np.float32))
    files = InHalves()
    version = MappedVersion.open(files, folder)
    everything = {"weights.npy", "seq", "slot_step.npy", "slot_exp_avg.npy", "slot_exp_avg_sq.npy"}
    assert set(files.mapped) == everything
    rows, new = np.array([4, 0, 2]), np.arange(9, dtype=np.float32).reshape(3, 3)
    slots = {"exp_avg": new + 1, "exp_avg_sq": new + 2}
    version.store(rows, new.view(np.uint8), slots, {"step": np.array([1])})
    # Slots before the weights, which readers see.
    assert files.stored[-1] == "weights.npy"
    assert set(files.stored) == everything - {"seq"}
    np.testing.assert_array_equal(open_table(tmp_path, "t", 1).lookup(rows).vectors, new)
    version.sync()
    assert set(files.synced) == everything
    files.is_failing = True
    with pytest.raises(StorageError, match="planted"):
        version.sync()


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32, np.zeros((5, 3), np.float32))
    version = MappedVersion.open(Files(), folder)
    image = np.zeros((1, 12), np.uint8)
    for row in (-1, 5):
        with pytest.raises(BadFile, match="don't fit"):
            version.store(np.array([row]), image, {}, {})
    with pytest.raises(BadFile, match="don't fit"):
        version.store(np.array([0]), image[:, :8], {}, {})
    with pytest.raises(BadFile):
        version.store(np.array([0]), image, {"exp_avg": np.zeros((1, 2), np.float32)}, {})


def test_what_a_copy_lost_of_the_reserved_blocks_is_reserved_again(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32, np.zeros((1000, 64), np.float32))
    slot = folder / "slot_exp_avg.npy"
    size = slot.stat().st_size
    os.truncate(slot, 128)
    os.truncate(slot, size)
    assert slot.stat().st_blocks * 512 < size
    MappedVersion.open(Files(), folder).close()
    assert slot.stat().st_blocks * 512 >= size


def test_files_that_contradict_the_manifest_are_refused(tmp_path: Path) -> None:
    rows = np.zeros((5, 3), np.float32)
    with pytest.raises(BadFile, match="no optimizer"):
        MappedVersion.open(Files(), make_table(tmp_path / "a", DType.FLOAT32, rows, None))
    folder = make_table(tmp_path / "b", DType.FLOAT32, rows)
    slot = folder / "slot_exp_avg.npy"
    np.save(slot, np.zeros((3, 5), np.float32))
    with pytest.raises(BadFile, match=r"slot_exp_avg.npy isn't the \(5, 3\) float32"):
        MappedVersion.open(Files(), folder)
    os.truncate(slot, 100)
    with pytest.raises(BadFile, match="has 100 bytes"):
        MappedVersion.open(Files(), folder)
