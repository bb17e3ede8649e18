"""Token tables of GGUF files, gensim's files, and models in folders; hostile ones run nothing."""

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gatherd.errors import BadFile, GatherdError, InvalidArgument
from gatherd.store.table import open_file_table
from loaders.harness import run_import

ROWS = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
WORDS = [b"<s>", b"a", "œuf".encode(), b"b c", b"d"]


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf(kind: int = 0, rows: np.ndarray[Any, Any] = ROWS, words: list[bytes] = WORDS) -> bytes:
    tokens = string(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(words))
    tokens += b"".join(map(string, words))
    lengths = struct.pack("<IQQ", 2, rows.shape[1], rows.shape[0])
    tensors = b"".join(
        string(name) + lengths + struct.pack("<IQ", kind, 0)
        for name in (b"output.weight", b"token_embd.weight")
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 1) + tokens + tensors
    return head + bytes(-len(head) % 32) + rows.tobytes()


@pytest.mark.parametrize(("kind", "dtype"), [(0, "f4"), (1, "f2"), (28, "f8")])
def test_a_gguf_token_table_comes_in_and_is_served(tmp_path: Path, kind: int, dtype: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(kind, ROWS.astype(dtype)))
    done = run_import(tmp_path / "d", path, key_column="tokenizer.ggml.tokens")
    np.testing.assert_array_equal(done.rows, ROWS.astype(dtype).astype("f4"))
    assert done.keys == WORDS
    served = open_file_table("t", path, None)
    np.testing.assert_array_equal(served.lookup(np.arange(5)).vectors, done.rows)


def test_what_a_gguf_file_cannot_give_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(2))
    with pytest.raises(BadFile, match=r"#token_embd.weight is quantised Q4_0; a table is of"):
        run_import(tmp_path / "d", path)
    path.write_bytes(gguf(words=WORDS[:3]))
    with pytest.raises(BadFile, match=r"has 3 keys; token_embd.weight has 5 rows"):
        run_import(tmp_path / "d", path, key_column="tokenizer.ggml.tokens")
    whole = gguf()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(GatherdError):
            run_import(tmp_path / "d", path)


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, exec, getattr, open, print])
def test_a_pickle_runs_nothing(tmp_path: Path, function: Any) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return function, (f"touch {tmp_path}/ran",)

    (tmp_path / "m.kv").write_bytes(pickle.dumps(Hostile(), 4))
    with pytest.raises(BadFile, match=r"asks for .*, and pickled code is never run here"):
        run_import(tmp_path / "d", tmp_path / "m.kv")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_a_pickled_array_comes_in(tmp_path: Path, protocol: int, order: Any, dtype: str) -> None:
    rows = np.array(ROWS, dtype, order=order)
    (tmp_path / "a").write_bytes(pickle.dumps(rows, protocol))
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "a").rows, rows)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", ">f2"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_order_and_version_of_npy_comes_in(
    tmp_path: Path, order: Any, dtype: str, version: tuple[int, int]
) -> None:
    rows = np.array(ROWS, dtype, order=order)
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, rows, version)
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "a.npy").rows, rows)
    np.savez(tmp_path / "a.npz", w=rows)
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "a.npz").rows, rows)
    if order == "F" or dtype[0] == ">":
        with pytest.raises(BadFile, match=r"`gatherd import TABLE .*converts it"):
            open_file_table("t", tmp_path / "a.npy", None)


def test_a_models_folder_gives_its_table_or_lists_what_it_has(tmp_path: Path) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    save_file({name: ROWS, "other.weight": ROWS}, tmp_path / "s-1.safetensors")
    index = {"weight_map": {name: "s-1.safetensors", "other.weight": "s-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path).rows, ROWS)
    served = open_file_table("t", tmp_path / "model.safetensors.index.json", name)
    assert served.row_count == 5
    with pytest.raises(InvalidArgument, match=r"has no tensor 'x'; there are:\n  bert"):
        run_import(tmp_path / "d", f"{tmp_path}#x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="without Parquet parts or a model's weights"):
        run_import(tmp_path / "d", tmp_path / "empty")
