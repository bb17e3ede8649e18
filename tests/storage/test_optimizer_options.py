"""An optimizer has its options, within bounds, and no others."""

from pathlib import Path

import pytest

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd_server.training.optimizer import Optimizer, OptimizerName, check_lr, option_names
from gatherd_server.types import OptimizerSpec

DOCUMENT = Path(__file__).parent.parent.parent / "docs/optimizers.md"
EVERY_OPTION = sorted({option for name in OptimizerName for option in option_names(name)})

DEFAULTS = {
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "adagrad": {"eps": 1e-10, "initial_accumulator": 0.0},
    "rowwise-adagrad": {"eps": 1e-8, "initial_accumulator": 0.0},
    "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "ftrl": {
        "l1": 0.0,
        "l2": 0.0,
        "l2_shrinkage": 0.0,
        "beta": 0.0,
        "initial_accumulator": 0.1,
        "learning_rate_power": -0.5,
    },
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_those_of_the_originals(name: str) -> None:
    assert Optimizer.parse(name, {}).options() == {"lr": 0.01, **DEFAULTS[name]}


@pytest.mark.parametrize("name", OptimizerName)
@pytest.mark.parametrize("option", EVERY_OPTION)
def test_an_option_is_kept_or_refused(name: OptimizerName, option: str) -> None:
    value = {"learning_rate_power": -0.25, "padding_id": 7.0, "non_neg": 1.0, "unit_norm": 1.0}.get(
        option, 0.25
    )
    beside = {"max_norm": 0.5} if option in ("min_norm", "norm_rate") else {}
    if option in option_names(name):
        assert Optimizer.parse(name.value, beside | {option: value}).options()[option] == value
    else:
        known = "lr, " if name.takes_gradients else "none"
        message = f"{name.value} has no option '{option}'; it has {known}"
        with pytest.raises(InvalidArgument, match=message):
            Optimizer.parse(name.value, {option: value})


def test_an_unknown_optimizer_is_refused_naming_those_there_are() -> None:
    with pytest.raises(
        InvalidArgument, match="no optimizer 'lamb'; there are none, sgd, adagrad, "
    ):
        Optimizer.parse("lamb", {})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("ftrl", "lr", 0.0),
        ("ftrl", "lr", 1e-60),
        ("sgd", "lr", -1.0),
        ("sgd", "lr", float("inf")),
        ("sgd", "lr", float("nan")),
        ("sgd", "lr", 1e60),
        ("sgd", "momentum", 1.0),
        ("sgd", "momentum", -0.1),
        ("sgd", "weight_decay", -0.1),
        ("adagrad", "eps", 0.0),
        ("adagrad", "initial_accumulator", -1.0),
        ("adam", "beta1", 1.0),
        ("adam", "beta2", 1.0),
        ("adam", "beta2", 1 - 1e-12),
        ("adam", "eps", 0.0),
        ("ftrl", "l1", -1.0),
        ("ftrl", "l2", -1.0),
        ("ftrl", "l2_shrinkage", -1.0),
        ("ftrl", "beta", -1.0),
        ("ftrl", "initial_accumulator", 0.0),
        ("ftrl", "learning_rate_power", 0.5),
        ("sgd", "clip_value", 0.0),
        ("sgd", "clip_row_norm", -1.0),
        ("sgd", "max_norm", 0.0),
        ("sgd", "regularizer_l1", -1.0),
        ("sgd", "regularizer_l2", -1.0),
        ("sgd", "decoupled_weight_decay", -1.0),
        ("sgd", "non_neg", 0.5),
        ("sgd", "unit_norm", 2.0),
        ("sgd", "min_norm", -1.0),
        ("sgd", "norm_rate", 0.0),
        ("sgd", "norm_rate", 1.5),
        ("sgd", "padding_id", -1.0),
        ("sgd", "padding_id", 1.5),
        ("sgd", "padding_id", float("nan")),
        ("sgd", "padding_id", float("inf")),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, option: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}'s {option} can't be .*: it is "):
        Optimizer.parse(name, {option: value})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"unit_norm": 1, "max_norm": 1}, "unit_norm and max_norm contradict"),
        ({"unit_norm": 1, "min_norm": 1}, "unit_norm and min_norm contradict"),
        ({"min_norm": 1}, "min_norm goes with max_norm, which is 1 in Keras' MinMaxNorm"),
        ({"norm_rate": 0.5}, "norm_rate goes with max_norm"),
        ({"min_norm": 2, "max_norm": 1}, "min_norm 2 is above its max_norm 1"),
    ],
)
def test_constraints_that_do_not_go_together_are_refused(
    options: dict[str, float], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"sgd's {says}"):
        Optimizer.parse("sgd", options)


def test_zero_switches_regularizers_and_flags_off() -> None:
    off = ("regularizer_l1", "regularizer_l2", "decoupled_weight_decay", "non_neg", "unit_norm")
    assert Optimizer.parse("adam", dict.fromkeys(off, 0)) == Optimizer.parse("adam", {})


@pytest.mark.parametrize("name", OptimizerName)
def test_a_manifest_gives_the_optimizer_back(name: OptimizerName) -> None:
    options = {"lr": 0.3, "clip_value": 2.0, "padding_id": 5} if name.takes_gradients else {}
    optimizer = Optimizer.parse(name.value, options)
    assert Optimizer.from_json(optimizer.to_json()) == optimizer
    assert Optimizer.from_spec(OptimizerSpec(name.value, optimizer.options())) == optimizer


def test_a_manifest_of_before_there_were_options_has_the_defaults() -> None:
    assert Optimizer.from_json({"name": "adam", "lr": 0.5}) == Optimizer.parse("adam", {"lr": 0.5})


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"name": 3},
        {"name": "lamb"},
        {"name": "sgd", "lr": "fast"},
        {"name": "sgd", "x": 1},
    ],
)
def test_a_damaged_manifest_is_refused(document: object) -> None:
    with pytest.raises(BadFile, match="the manifest's optimizer"):
        Optimizer.from_json(document)


def test_what_cannot_be_trained_is_refused() -> None:
    optimizer = Optimizer.parse("sgd", {"padding_id": 3})
    for dtype in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16):
        optimizer.check_table(dtype, 4)
    with pytest.raises(InvalidArgument, match="padding_id 3 is out of range: the table has 3 rows"):
        optimizer.check_table(DType.FLOAT32, 3)
    with pytest.raises(InvalidArgument, match="a float64 table can't be trained"):
        optimizer.check_table(DType.FLOAT64)


def test_a_pushs_own_rate_has_the_bounds_of_a_tables() -> None:
    assert check_lr(0.5) == 0.5
    assert check_lr(0, OptimizerName.ADAGRAD) == 0
    with pytest.raises(InvalidArgument, match="a push's lr can't be -1"):
        check_lr(-1)
    with pytest.raises(InvalidArgument, match="ftrl's lr can't be 0: it is larger than 0"):
        check_lr(0, OptimizerName.FTRL)


def rows() -> list[str]:
    """The rows of the document's table of defaults."""
    lines = []
    for name in OptimizerName:
        if not name.takes_gradients:
            continue
        optimizer = Optimizer.parse(name.value, {})
        shown = ", ".join(f"`{option}` {value:g}" for option, value in optimizer.options().items())
        lines.append(f"| `{name.value}` | {shown} |")
    return lines


def test_every_option_and_its_default_is_documented() -> None:
    text = DOCUMENT.read_text()
    for line in rows():
        assert line in text
    for option in EVERY_OPTION:
        assert f"| `{option}` |" in text


if __name__ == "__main__":
    print("\n".join(rows()))
