"""A table that is made trainable has its optimizer's slots, from the first value on."""

import json
from pathlib import Path

import numpy as np
import pytest

from gatherd.store.catalog import open_table
from support.server import run_cli

CREATE = ("create", "t", "--rows", "2000", "--dim", "1000")


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        ("sgd", {}),
        ("adagrad", {"sum": ((2000, 1000), 0)}),
        ("rowwise-adagrad", {"sum": ((2000, 1), 0)}),
        (
            "adam",
            {
                "step": ((1,), 0),
                "exp_avg": ((2000, 1000), 0),
                "exp_avg_sq": ((2000, 1000), 0),
            },
        ),
        ("ftrl", {"accumulator": ((2000, 1000), 0.1), "linear": ((2000, 1000), 0)}),
    ],
)
def test_an_optimizer_brings_its_slots(
    tmp_path: Path, optimizer: str, slots: dict[str, tuple[tuple[int, ...], float]]
) -> None:
    run_cli(*CREATE, "--optimizer", optimizer, "--lr", "0.5", "--data-dir", tmp_path)
    version = tmp_path / "tables/t/v000001"
    names = {path.stem.removeprefix("slot_") for path in version.glob("slot_*.npy")}
    assert names == set(slots)
    for name, (shape, initial) in slots.items():
        stored = np.load(version / f"slot_{name}.npy")
        assert stored.shape == shape
        np.testing.assert_array_equal(stored, stored.dtype.type(initial))
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["optimizer"] == {"name": optimizer, "lr": 0.5}
    assert open_table(tmp_path, "t", 1).is_trainable
    assert run_cli("verify", "--data-dir", tmp_path).stdout == "t v1: ok\n"


def test_a_table_without_an_optimizer_cannot_be_trained(tmp_path: Path) -> None:
    run_cli(*CREATE, "--data-dir", tmp_path)
    assert not open_table(tmp_path, "t", 1).is_trainable


def test_a_rate_without_an_optimizer_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    done = run_cli(*CREATE, "--lr", "0.5", "--data-dir", tmp_path / "data", check=False)
    assert done.returncode == 1
    assert "give --optimizer too" in done.stderr
    assert not (tmp_path / "data").exists()
