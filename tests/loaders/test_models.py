"""Token tables of GGUF files, gensim's files, and models in folders; hostile ones run nothing."""

import gzip
import itertools
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
from loaders.harness import run_import
from loaders.test_torch import ROWS as TORCH
from loaders.test_torch import mapping, number, tensor, torch_file
from support.file_tables import open_file_table

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


def keyed_vectors(attributes: dict[str, Any]) -> bytes:
    """What gensim's KeyedVectors.save writes, but for the attributes that are left out."""
    state = pickle.dumps(attributes, 2)[2:-1]
    return b"\x80\x02cgensim.models.keyedvectors\nKeyedVectors\n)\x81" + state + b"b."


def test_gensims_vectors_come_in_from_the_pickle_or_beside_it(tmp_path: Path) -> None:
    words = [word.decode() for word in WORDS]
    (tmp_path / "v.kv").write_bytes(keyed_vectors({"index_to_key": words, "vectors": ROWS}))
    beside = keyed_vectors({"index_to_key": words, "__numpys": ["vectors"]})
    (tmp_path / "w.kv").write_bytes(beside)
    np.save(tmp_path / "w.kv.vectors.npy", ROWS)
    for name in ("v.kv", "w.kv"):
        done = run_import(tmp_path / "d", tmp_path / name)
        np.testing.assert_array_equal(done.rows, ROWS)
        assert done.keys == WORDS
    with pytest.raises(InvalidArgument, match=r"is gensim, so leave --key-column out: it is for A"):
        run_import(tmp_path / "d", tmp_path / "v.kv", key_column="index_to_key")
    for names in (["../w.kv.vectors"], ["a/b"], [3], "vectors", {"vectors": 1}):
        pickled = keyed_vectors({"index_to_key": words, "__numpys": names})
        (tmp_path / "x.kv").write_bytes(pickled)
        with pytest.raises(BadFile, match="holds no array"):
            run_import(tmp_path / "d", tmp_path / "x.kv")
    np.save(tmp_path / "w.kv.vectors.npy", ROWS[:3])
    with pytest.raises(BadFile, match="has 3 rows and 5 keys"):
        run_import(tmp_path / "d", tmp_path / "w.kv")


def test_a_file_that_another_one_names_leads_no_further(tmp_path: Path) -> None:
    beside = keyed_vectors({"index_to_key": [], "__numpys": ["vectors"]})
    index = json.dumps({"weight_map": {"vectors": "a.kv"}}).encode()
    for first, name, second in (
        (beside, "a.kv.vectors.npy", beside),
        (beside, "a.kv.vectors.npy", gzip.compress(index)),
        (index, "a.kv", index),
        (index, "a.kv", gzip.compress(beside)),
    ):
        source = tmp_path / ("i.json" if first is index else "a.kv")
        source.write_bytes(first)
        (tmp_path / name).write_bytes(second)
        with pytest.raises(BadFile, match=r"names .*, which has no rows but names another file"):
            run_import(tmp_path / "d", source)
        (tmp_path / name).unlink()
        with pytest.raises(BadFile, match=rf"{source.name} names .*/{name}, which isn't there"):
            run_import(tmp_path / "d", source)


def test_what_an_index_names_may_be_packed_as_any_other(tmp_path: Path) -> None:
    body = mapping({"w": tensor()})
    packed = gzip.compress(torch_file(tmp_path / "t", body).read_bytes())
    (tmp_path / "pytorch_model-1.bin").write_bytes(packed)
    index = json.dumps({"weight_map": {"w": "pytorch_model-1.bin"}}).encode()
    (tmp_path / "i.json.gz").write_bytes(gzip.compress(index))
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "i.json.gz").rows, TORCH)


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
        with pytest.raises(BadFile, match=r"`gatherd import .*converts it"):
            open_file_table("t", tmp_path / "a.npy", None)


@pytest.mark.parametrize(
    ("weights", "below"),
    [
        ("gguf", ""),
        *itertools.product(["safetensors", "torch", "torch shards"], ["", "0_Transformer"]),
    ],
)
def test_a_folder_gives_its_table_whatever_it_is_in(
    tmp_path: Path, weights: str, below: str
) -> None:
    model = tmp_path / "model"
    inside = model / below
    inside.mkdir(parents=True)
    modules = [{"idx": 0, "path": below}, {"idx": 1, "path": "1_Pooling"}, {"path": "../.."}, 3]
    (model / "modules.json").write_text(json.dumps(modules))
    name = "model.embed_tokens.weight"
    if weights == "gguf":
        (inside / "m.gguf").write_bytes(gguf())
        name = "token_embd.weight"
    elif weights == "safetensors":
        save_file({name: ROWS, "other.weight": ROWS * 2}, inside / "model.safetensors")
    elif weights == "torch":
        torch_file(inside / "pytorch_model.bin", mapping({name: tensor(), "x": number(3)}))
    else:
        torch_file(inside / "pytorch_model-1.bin", mapping({name: tensor()}))
        shards = {"weight_map": {name: "pytorch_model-1.bin", "x": "pytorch_model-2.bin"}}
        (inside / "pytorch_model.bin.index.json").write_text(json.dumps(shards))
    rows = TORCH if weights.startswith("torch") else ROWS
    for part in ("", f"#{name}"):
        done = run_import(tmp_path / "d", f"{model}{part}")
        np.testing.assert_array_equal(done.rows, rows)
    tied = "output.weight" if weights == "gguf" else "lm_head.weight"
    if weights != "gguf":
        with pytest.raises(InvalidArgument, match=r"has no tensor 'lm_head.weight'; there are:"):
            run_import(tmp_path / "d", f"{model}#{tied}")
        (inside / "config.json").write_text('{"tie_word_embeddings": true}')
    np.testing.assert_array_equal(run_import(tmp_path / "d", f"{model}#{tied}").rows, rows)


def test_a_models_folder_gives_its_table_or_lists_what_it_has(tmp_path: Path) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    save_file({name: ROWS, "other.weight": ROWS}, tmp_path / "s-1.safetensors")
    index = {"weight_map": {name: "s-1.safetensors", "other.weight": "s-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path).rows, ROWS)
    served = open_file_table("t", tmp_path / "model.safetensors.index.json", name)
    assert served.row_count == 5
    with pytest.raises(InvalidArgument, match=r"is an index of shards; name a tensor as .*: bert"):
        open_file_table("t", tmp_path / "model.safetensors.index.json", None)
    with pytest.raises(InvalidArgument, match=r"has no tensor 'x'; there are:\n  bert"):
        run_import(tmp_path / "d", f"{tmp_path}#x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="without Parquet parts or a model's weights"):
        run_import(tmp_path / "d", tmp_path / "empty")
