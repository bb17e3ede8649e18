"""What keras, h5py and pyarrow write comes in as they have it."""

from pathlib import Path

import h5py
import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from gatherd.errors import InvalidArgument
from loaders.harness import run_import

# keras' own: its torch backend hasn't NumPy 2's copy keyword.
KERAS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def model() -> keras.Model:
    made = keras.Sequential(
        [keras.layers.Embedding(50, 8, name="words"), keras.layers.Dense(2, name="out")]
    )
    made(np.zeros((1, 3), "int32"))
    return made


@KERAS
@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_a_keras_embedding_comes_in(tmp_path: Path, name: str) -> None:
    made = model()
    path = tmp_path / name
    if name.endswith(".keras"):
        made.save(path)
    else:
        made.save_weights(path)
    with pytest.raises(InvalidArgument, match=r"\n  layers/embedding/vars/0  float32 \(50, 8\)"):
        run_import(tmp_path / "d", path)
    done = run_import(tmp_path / "d", f"{path}#layers/embedding/vars/0")
    np.testing.assert_array_equal(done.rows, made.layers[0].get_weights()[0])


@KERAS
def test_a_trained_keras_model_with_its_optimizer_comes_in(tmp_path: Path) -> None:
    made = model()
    made.compile("adam", "mse")
    made.fit(np.ones((4, 3), "int32"), np.zeros((4, 3, 2)), verbose=0)
    made.save(tmp_path / "m.keras")
    done = run_import(tmp_path / "d", f"{tmp_path}/m.keras#layers/embedding/vars/0")
    np.testing.assert_array_equal(done.rows, made.layers[0].get_weights()[0])


def test_h5py_files_come_in(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("w", data=rows, chunks=True, compression="gzip", fletcher32=True)
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "w.h5").rows, rows)


def test_pyarrow_tables_come_in_with_their_keys(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    keys = np.arange(1000) * 7 - 500
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 16)
    pa.parquet.write_table(pa.table({"key": keys, "vector": vectors}), tmp_path / "t.parquet")
    done = run_import(tmp_path / "d", tmp_path / "t.parquet", key_column="key")
    assert done.keys == keys.tolist()
    np.testing.assert_array_equal(done.rows, rows)
