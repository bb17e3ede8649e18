"""What torch and safetensors.torch write comes in as torch has it."""

import collections
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
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
    for view in (whole.T, whole[::2], whole[:, :2], whole[:1].expand(5, 3)):
        torch.save(view, tmp_path / "t.pt")
        with pytest.raises(BadFile, match="doesn't lie in one piece"):
            run_import(tmp_path / "d", tmp_path / "t.pt")
        torch.save(view.contiguous(), tmp_path / "t.pt")
        np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "t.pt").rows, view)


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
