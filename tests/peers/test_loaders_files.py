"""What keras, h5py, pyarrow and gguf write comes in as they have it."""

from pathlib import Path

import gguf
import h5py
import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from gatherd.errors import BadFile, InvalidArgument
from loaders.harness import run_import
from support.file_tables import open_file_table

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


def write_gguf(path: Path, kind: gguf.GGMLQuantizationType, alignment: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_context_length(512)
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.5] * len(TOKENS))
    rows = np.random.default_rng(0).normal(size=(len(TOKENS), 64)).astype(np.float32)
    # A tensor before it whose length is no multiple of the alignment.
    writer.add_tensor("output_norm.weight", np.ones(3, np.float32))
    writer.add_tensor("token_embd.weight", gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TOKENS = [b"<s>", "naïve".encode(), "日本".encode(), b"\xe6", b"a b"]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("alignment", [32, 256])
def test_a_gguf_token_table_comes_in_and_is_served_as_gguf_reads_it(
    tmp_path: Path, kind: str, alignment: int
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, gguf.GGMLQuantizationType[kind], alignment)
    (found,) = [one for one in gguf.GGUFReader(path).tensors if one.name == "token_embd.weight"]
    expected = gguf.quants.dequantize(found.data, found.tensor_type)
    done = run_import(tmp_path / "d", path, key_column="tokenizer.ggml.tokens")
    np.testing.assert_array_equal(done.rows, expected)
    assert done.keys == TOKENS
    served = open_file_table("t", path, "token_embd.weight").lookup(np.arange(len(TOKENS)))
    np.testing.assert_array_equal(served.vectors, expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_a_quantised_gguf_table_is_refused_by_its_kind(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "m.gguf", gguf.GGMLQuantizationType[kind], 32)
    with pytest.raises(BadFile, match=f"is quantised {kind}; a table is of"):
        run_import(tmp_path / "d", tmp_path / "m.gguf")
