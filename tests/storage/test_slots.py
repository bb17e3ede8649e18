"""A table that is made trainable has its optimizer's slots, from the first value on."""

import json
from pathlib import Path

import numpy as np
import pytest

from gatherd.store.catalog import open_table
from gatherd_server.training.optimizer import Optimizer
from support.cli import invoke

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
    invoke(*CREATE, "--optimizer", optimizer, "--lr", "0.5", "--data-dir", tmp_path)
    version = tmp_path / "tables/t/v000001"
    names = {path.stem.removeprefix("slot_") for path in version.glob("slot_*.npy")}
    assert names == set(slots)
    for name, (shape, initial) in slots.items():
        stored = np.load(version / f"slot_{name}.npy")
        assert stored.shape == shape
        np.testing.assert_array_equal(stored, stored.dtype.type(initial))
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["optimizer"] == Optimizer.parse(optimizer, {"lr": 0.5}).to_json()
    assert open_table(tmp_path, "t", 1).is_trainable
    assert invoke("verify", "--data-dir", tmp_path).stdout.startswith("t v1: ok\n")


@pytest.mark.parametrize("init", ["normal", "uniform", "glorot"])
def test_a_new_tables_padding_row_is_zeros(tmp_path: Path, init: str) -> None:
    drawn = ("--rows", "3000", "--dim", "1000", "--init", init, "--seed", "7")
    padded = ("--optimizer", "sgd", "--optimizer-option", "padding_id=2500")
    invoke("create", "plain", *drawn, "--data-dir", tmp_path)
    invoke("create", "padded", *drawn, *padded, "--data-dir", tmp_path)
    expected = np.load(tmp_path / "tables/plain/v000001/weights.npy")
    assert expected[2500].any()
    expected[2500] = 0
    stored = np.load(tmp_path / "tables/padded/v000001/weights.npy")
    np.testing.assert_array_equal(stored, expected)


def test_a_table_is_trainable_unless_it_is_frozen(tmp_path: Path) -> None:
    invoke(*CREATE, "--data-dir", tmp_path)
    table = open_table(tmp_path, "t", 1)
    assert (table.is_trainable, table.optimizer) == (True, None)
    assert table.counters.size
    invoke(*CREATE, "--frozen", "--data-dir", tmp_path / "frozen")
    frozen = open_table(tmp_path / "frozen", "t", 1)
    assert (frozen.is_trainable, frozen.optimizer) == (False, None)
    assert not frozen.counters.size


def test_a_frozen_table_with_an_optimizer_is_refused(tmp_path: Path) -> None:
    asked = (*CREATE, "--frozen", "--optimizer", "sgd", "--data-dir", tmp_path / "data")
    done = invoke(*asked, check=False)
    assert done.returncode > 1
    assert "a frozen table takes no updates, so sgd can't train it" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_rate_without_an_optimizer_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    done = invoke(*CREATE, "--lr", "0.5", "--data-dir", tmp_path / "data", check=False)
    assert done.returncode > 1
    assert "give --optimizer too" in done.stderr
    assert not (tmp_path / "data").exists()


def test_options_are_kept_and_slots_follow_them(tmp_path: Path) -> None:
    options = ("--optimizer-option", "momentum=0.9", "--optimizer-option", "padding_id=3")
    invoke(*CREATE, "--optimizer", "sgd", *options, "--data-dir", tmp_path)
    version = tmp_path / "tables/t/v000001"
    assert np.load(version / "slot_momentum.npy").shape == (2000, 1000)
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["optimizer"] == {
        "name": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "padding_id": 3,
    }


def test_a_slot_begins_at_the_value_asked_for(tmp_path: Path) -> None:
    option = ("--optimizer-option", "initial_accumulator=0.25")
    invoke(*CREATE, "--optimizer", "rowwise-adagrad", *option, "--data-dir", tmp_path)
    stored = np.load(tmp_path / "tables/t/v000001/slot_sum.npy")
    np.testing.assert_array_equal(stored, np.full((2000, 1), 0.25, np.float32))


@pytest.mark.parametrize("command", ["create", "plan"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--optimizer", "adam", "--optimizer-option", "momentum=0.9"), "adam has no option"),
        (("--optimizer", "sgd", "--optimizer-option", "momentum"), "isn't NAME=NUMBER"),
        (("--optimizer", "sgd", "--optimizer-option", "momentum=much"), "isn't NAME=NUMBER"),
        (("--optimizer", "sgd", "--lr", "1", "--optimizer-option", "lr=1"), "given twice"),
        (("--optimizer", "sgd", "--optimizer-option", "padding_id=2000"), "has 2000 rows"),
        (("--optimizer", "sgd", "--dtype", "float64"), "float64 table can't be trained"),
        (("--optimizer-option", "momentum=0.9"), "give --optimizer too"),
    ],
)
def test_what_an_optimizer_has_not_is_refused_and_changes_nothing(
    tmp_path: Path, command: str, arguments: tuple[str, ...], message: str
) -> None:
    shape = ("--rows", "2000", "--dim", "10")
    if command == "create":
        done = invoke(
            "create", "t", *shape, *arguments, "--data-dir", tmp_path / "data", check=False
        )
    else:
        done = invoke("plan", *shape, *arguments, check=False)
    assert done.returncode > 1
    assert message in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_plan_counts_the_slots_that_options_bring(tmp_path: Path) -> None:
    momentum = ("--optimizer", "sgd", "--optimizer-option", "momentum=0.9")
    invoke(*CREATE, *momentum, "--data-dir", tmp_path)
    plan = json.loads(invoke("plan", *CREATE[2:], *momentum, "--json").stdout)
    slot = tmp_path / "tables/t/v000001/slot_momentum.npy"
    assert plan["slots_bytes"] == slot.stat().st_size


def test_an_import_of_doubles_that_are_to_be_trained_leaves_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((3, 2)))
    arguments = ("import", "t", tmp_path / "rows.npy", "--optimizer", "sgd")
    done = invoke(*arguments, "--data-dir", tmp_path / "data", check=False)
    assert done.returncode > 1
    assert "float64 table can't be trained" in done.stderr
    invoke(*arguments, "--dtype", "float32", "--data-dir", tmp_path / "data")
