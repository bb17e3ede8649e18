"""What torch and safetensors.torch write comes in as torch has it."""

import collections
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd_server.loaders.torch_pickle import read_tensors
from loaders.harness import run_import

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = tensor.detach().to(torch.float32).numpy()
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_dict_comes_in(tmp_path: Path, dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(
        collections.OrderedDict(
            emb=torch.nn.Embedding(50, 8, dtype=dtype), lin=torch.nn.Linear(8, 2, dtype=dtype)
        )
    )
    torch.save(model.state_dict(), tmp_path / "m.pt")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        done = run_import(tmp_path / "d", f"{tmp_path / name}#emb.weight")
        assert done.table.dtype is DType(str(dtype).removeprefix("torch."))
        np.testing.assert_array_equal(done.rows, numbers(model.emb.weight))


def test_a_checkpoint_with_an_optimizer_comes_in(tmp_path: Path) -> None:
    emb = torch.nn.Embedding(50, 8, sparse=False)
    optimizer = torch.optim.Adam(emb.parameters(), lr=0.1)
    emb(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 3,
            "best": 0.25,
            "name": "naïve",
            "state_dict": emb.state_dict(),
            "optimizer": optimizer.state_dict(),
            "dtype": torch.float16,
            "size": torch.Size([3, 4]),
            "device": torch.device("cpu"),
            "parameter": torch.nn.Parameter(torch.ones(2, 2)),
            "flags": torch.tensor([True, False]),
        },
        tmp_path / "c.pth",
    )
    done = run_import(tmp_path / "d", f"{tmp_path}/c.pth#state_dict.weight")
    np.testing.assert_array_equal(done.rows, numbers(emb.weight))
    done = run_import(tmp_path / "d", f"{tmp_path}/c.pth#parameter")
    np.testing.assert_array_equal(done.rows, np.ones((2, 2)))
    moments = run_import(tmp_path / "d", f"{tmp_path}/c.pth#optimizer.state.0.exp_avg")
    np.testing.assert_array_equal(moments.rows, optimizer.state[emb.weight]["exp_avg"].numpy())


def test_a_tensor_alone_and_views_of_one_come_in(tmp_path: Path) -> None:
    whole = torch.arange(60, dtype=torch.float32).reshape(20, 3)
    torch.save(whole, tmp_path / "t.pt")
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "t.pt").rows, whole)
    torch.save({"part": whole[5:9]}, tmp_path / "t.pt")
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "t.pt").rows, whole[5:9])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_that_lie_in_no_piece_come_in(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.randn(40, 6).to(dtype)
    views = [whole.T, whole[::2], whole[:, :2], whole[3::5, 1::2], whole[:1].expand(5, 6),
             whole[:, :1].expand(40, 9), whole.flatten().unfold(0, 8, 3),
             whole.reshape(4, 10, 6).transpose(0, 1)[:, 2]]  # fmt: skip
    for view in views:
        torch.save({"w": view, "other": torch.ones(3)}, tmp_path / "t.pt")
        done = run_import(tmp_path / "d", f"{tmp_path}/t.pt#w")
        np.testing.assert_array_equal(done.rows, numbers(view))


def test_tied_weights_come_in_by_either_name(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):  # type: ignore[misc]  # where the lint runs there is no torch
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(30, 4)
            self.head = torch.nn.Linear(4, 30, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    save_model(model, str(tmp_path / "m.safetensors"))
    for file in ("m.pt", "m.safetensors"):
        for tensor in ("embed.weight", "head.weight"):
            done = run_import(tmp_path / "d", f"{tmp_path / file}#{tensor}")
            np.testing.assert_array_equal(done.rows, numbers(model.embed.weight))


def everything() -> dict[Any, Any]:
    """What torch.load(weights_only=True) takes beside plain tensors."""
    found: dict[Any, Any] = {
        "set": {1, 2}, "bytearray": bytearray(b"xyz"), "complex": 1 + 2j, "bytes": b"caf\xe9",
        "counter": collections.Counter("abca"), "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"), "layout": torch.sparse_coo, "none": None,
        "scheme": torch.per_channel_affine,
        "dtypes": [value for value in vars(torch).values() if isinstance(value, torch.dtype)],
        "ordered": collections.OrderedDict([("inner", torch.zeros(2, 2))]),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "sparse": torch.eye(3).to_sparse(), "meta": torch.empty(3, 2, device="meta"),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
        "channels": torch.quantize_per_channel(
            torch.ones(2, 2), torch.tensor([0.1, 0.2]), torch.tensor([0, 0]), 0, torch.quint8
        ),
        "conjugate": torch.ones(2, 2, dtype=torch.complex64).conj(),
        b"key": torch.ones(1, 2), 7: torch.ones(1, 3),
        "many": {f"word {number}": number for number in range(150_000)},
    }  # fmt: skip
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
                 "float8_e8m0fnu", "int8", "uint16", "uint32", "uint64", "bool"):  # fmt: skip
        found[name] = torch.ones(3, 2).to(getattr(torch, name))
    with_attribute = torch.ones(2, 4)
    with_attribute.note = "x"
    found["attribute"] = with_attribute
    parameter = torch.nn.Parameter(torch.ones(2, 5))
    parameter.note = "x"
    found["noted parameter"] = parameter
    return found


@pytest.mark.filterwarnings("ignore")  # torch's own: of quantised and CSR tensors, and protocols
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_weights_only_takes_stands_in_no_tensors_way(tmp_path: Path, protocol: int) -> None:
    rows = torch.randn(5, 3)
    for name, value in everything().items():
        torch.save({"w": rows, name: value}, tmp_path / "t.pt", pickle_protocol=protocol)
        if protocol == 2:
            # The judge; its own machine doesn't know what later protocols write.
            torch.load(tmp_path / "t.pt", weights_only=True)
        done = run_import(tmp_path / "d", f"{tmp_path}/t.pt#w")
        np.testing.assert_array_equal(done.rows, rows)
    torch.save(everything(), tmp_path / "t.pt", pickle_protocol=protocol)
    for name in ("attribute", "noted parameter", "ordered.inner", "7", "key"):
        done = run_import(tmp_path / "d", f"{tmp_path}/t.pt#{name}")
        assert done.rows.size
    for name, message in (
        ("sparse", "is a sparse tensor; save tensor.to_dense"),
        ("meta", r"tensor \(3, 2\) on the meta device; it has no data"),
        ("quantised", r"quantised qint8 \(2, 2\); save tensor.dequantize"),
        ("float8_e5m2", "has dtype float8_e5m2; a table is of"),
    ):
        with pytest.raises(BadFile, match=f"t.pt#{name} .*{message}"):
            run_import(tmp_path / "d", f"{tmp_path}/t.pt#{name}")


def test_every_name_that_torch_allows_is_known(tmp_path: Path) -> None:
    for name in torch._weights_only_unpickler._get_allowed_globals():  # noqa: SLF001
        module, _, attribute = name.rpartition(".")
        data = b"\x80\x02" + f"c{module}\n{attribute}\n0".encode() + b"N."
        assert read_tensors(data, "m.pt") == {}, name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    rows = torch.randn(5, 3)
    torch.save({"w": rows}, tmp_path / "t.pt", pickle_protocol=protocol)
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "t.pt").rows, rows)


def test_the_format_of_before_1_6_says_how_to_save(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "t.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(BadFile, match=r"a torch file of before 1\.6"):
        run_import(tmp_path / "d", tmp_path / "t.pt")


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2), "x": Hostile(tmp_path / "ran")}, tmp_path / "t.pt")
    with pytest.raises(BadFile, match=r"asks for posix.system, and pickled code is never run"):
        run_import(tmp_path / "d", f"{tmp_path}/t.pt#w")
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Embedding(3, 2), tmp_path / "t.pt")
    with pytest.raises(BadFile, match=r"asks for torch.nn.modules.sparse.Embedding, .*state_dict"):
        run_import(tmp_path / "d", tmp_path / "t.pt")


def test_a_model_in_torch_shards_comes_in_by_its_index_and_its_folder(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    rows, other = torch.randn(9, 4), torch.randn(5, 3)
    shards = {
        "pytorch_model-1.bin": {name: rows.T.contiguous().T},
        "pytorch_model-2.bin": {"w": other},
    }
    for file, state in shards.items():
        torch.save(state, tmp_path / file)
    weight_map = {key: file for file, state in shards.items() for key in state}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    for source in (f"{index}#{name}", tmp_path, f"{tmp_path}#{name}", f"{tmp_path}#lm_head.weight"):
        done = run_import(tmp_path / "d", source)
        np.testing.assert_array_equal(done.rows, numbers(rows))
    np.testing.assert_array_equal(run_import(tmp_path / "d", f"{tmp_path}#w").rows, numbers(other))
