"""Drawn rows have Keras' distributions; tests/peers/test_initializers_keras.py asks Keras itself.

The moments are those of the formulas in Keras' documentation, with fan_in = rows and fan_out = dim.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.catalog import open_table
from gatherd.store.dtypes import DType
from gatherd.store.initializer import NAMES, Initializer
from gatherd_server.loaders import initializers
from gatherd_server.loaders.initializers import initial_blocks
from support.cli import invoke

ROWS, DIM = 900, 240
CONSTANT = ("zeros", "ones", "constant", "identity")


def drawn(
    name: str,
    shape: tuple[int, int] = (ROWS, DIM),
    dtype: DType = DType.FLOAT32,
    seed: int = 1,
    padding_id: int | None = None,
    **parameters: float | str,
) -> NDArray[Any]:
    initializer = Initializer.parse(name, parameters)
    blocks = list(initial_blocks(initializer, *shape, dtype, seed, padding_id))
    return np.concatenate(blocks) if blocks else np.empty((0, shape[1]), dtype.storage)


def check_normal(rows: NDArray[np.float32], mean: float, stddev: float) -> None:
    """Mean, deviation and the two tails of a normal; the bounds are five deviations of each."""
    z = (rows.astype(np.float64) - mean) / stddev
    count = z.size
    assert abs(z.mean()) < 5 / math.sqrt(count)
    assert abs(z.std() - 1) < 5 / math.sqrt(2 * count)
    beyond = math.erfc(2 / math.sqrt(2))
    assert abs((np.abs(z) > 2).mean() - beyond) < 5 * math.sqrt(beyond / count)
    assert np.abs(z).max() > 3.5


def check_truncated(rows: NDArray[np.float32], mean: float, stddev: float) -> None:
    """A normal of `stddev` cut at two deviations, whose own deviation is 0.8796 of it."""
    z = (rows.astype(np.float64) - mean) / stddev
    assert 1.99 < np.abs(z).max() <= 2 * (1 + 1e-6)
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    inside = math.erf(2 / math.sqrt(2))
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    own = math.sqrt(1 - 4 * density / inside)
    assert abs(z.std() - own) < 5 / math.sqrt(2 * z.size)
    # Uniform over its quantiles: the middle half of a cut normal is within 0.6386 deviations.
    middle = math.erf(0.5 / math.sqrt(2)) / inside
    assert abs((np.abs(z) <= 0.5).mean() - middle) < 5 * 0.5 / math.sqrt(z.size)


def check_uniform(rows: NDArray[np.float32], low: float, high: float) -> None:
    u = (rows.astype(np.float64) - low) / (high - low)
    assert u.min() >= -1e-6
    assert rows.max() < np.float32(high)
    assert u.min() < 1e-3
    assert u.max() > 1 - 1e-3
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * u.size)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / u.size)


SCALED = {
    "glorot": 2 / (ROWS + DIM),
    "he": 2 / ROWS,
    "lecun": 1 / ROWS,
}


@pytest.mark.parametrize("family", SCALED)
def test_fans_are_the_rows_and_the_dim(family: str) -> None:
    """Keras: limit √(6/(in+out)), √(6/in), √(3/in); deviation √(2/(in+out)), √(2/in), √(1/in)."""
    variance = SCALED[family]
    limit = math.sqrt(3 * variance)
    check_uniform(drawn(f"{family}_uniform"), -limit, limit)
    normal = drawn(f"{family}_normal")
    check_truncated(normal, 0, math.sqrt(variance) / 0.87962566103423978)
    assert abs(normal.std() / math.sqrt(variance) - 1) < 0.01


@pytest.mark.parametrize(
    ("mode", "fan"), [("fan_in", ROWS), ("fan_out", DIM), ("fan_avg", (ROWS + DIM) / 2)]
)
def test_variance_scaling_has_a_scale_a_mode_and_a_distribution(mode: str, fan: float) -> None:
    variance = 0.3 / fan
    scaled = {"scale": 0.3, "mode": mode}
    stddev = math.sqrt(variance)
    check_truncated(drawn("variance_scaling", **scaled), 0, stddev / 0.87962566103423978)  # type: ignore[arg-type]  # a dict
    rows = drawn("variance_scaling", distribution="untruncated_normal", **scaled)  # type: ignore[arg-type]  # a dict
    check_normal(rows, 0, stddev)
    rows = drawn("variance_scaling", distribution="uniform", **scaled)  # type: ignore[arg-type]  # a dict
    check_uniform(rows, -math.sqrt(3) * stddev, math.sqrt(3) * stddev)


def test_the_simple_ones_have_kerass_parameters_and_defaults() -> None:
    check_uniform(drawn("uniform"), -0.05, 0.05)
    check_uniform(drawn("uniform", minval=1, maxval=3), 1, 3)
    check_normal(drawn("normal"), 0, 0.05)
    check_normal(drawn("normal", mean=-2, stddev=0.5), -2, 0.5)
    check_truncated(drawn("truncated_normal"), 0, 0.05)
    check_truncated(drawn("truncated_normal", mean=1, stddev=0.25), 1, 0.25)
    assert not drawn("zeros").any()
    assert (drawn("ones") == 1).all()
    assert not drawn("constant").any()
    assert (drawn("constant", value=0.3) == np.float32(0.3)).all()
    assert (drawn("constant", dtype=DType.FLOAT64, value=0.3) == 0.3).all()
    assert (drawn("uniform", minval=2, maxval=2) == 2).all()
    assert (drawn("normal", stddev=0, mean=3) == 3).all()
    for shape in ((5, 3), (3, 5), (4, 4)):
        np.testing.assert_array_equal(drawn("identity", shape, gain=2.5), 2.5 * np.eye(*shape))


def test_the_same_seed_gives_what_it_gave_in_earlier_releases() -> None:
    rng = np.random.default_rng(7)
    uniform = rng.random((ROWS, DIM), np.float32) * 2 - 1
    np.testing.assert_array_equal(drawn("uniform", seed=7), uniform * np.float32(0.05))
    limit = np.float32(math.sqrt(6 / (ROWS + DIM)))
    np.testing.assert_array_equal(drawn("glorot", seed=7), uniform * limit)
    normal = np.random.default_rng(7).standard_normal((ROWS, DIM), np.float32)
    np.testing.assert_array_equal(drawn("normal", seed=7), normal * np.float32(0.05))


@pytest.mark.parametrize("shape", [(700, 30), (60, 30), (59, 30), (30, 30), (12, 30), (1, 1)])
def test_orthogonal_is_the_q_of_a_qr_whose_r_is_positive(shape: tuple[int, int]) -> None:
    """Keras' rule, with NumPy's QR of the same normals as the judge."""
    flat = (max(shape), min(shape))
    normals = np.random.default_rng(3).standard_normal(flat, np.float32)
    q, r = np.linalg.qr(normals.astype(np.float64))
    q = q * np.sign(np.diag(r))
    wanted = q if shape[0] >= shape[1] else q.T
    rows = drawn("orthogonal", shape, seed=3)
    np.testing.assert_allclose(rows, wanted, atol=2e-7)
    np.testing.assert_allclose(drawn("orthogonal", shape, seed=3, gain=2), 2 * wanted, atol=4e-7)
    products = rows.T @ rows if shape[0] >= shape[1] else rows @ rows.T
    np.testing.assert_allclose(products, np.eye(min(shape)), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_whatever_the_block(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for dtype in DType:
        whole = drawn(name, (301, 40), dtype, seed=7)
        with monkeypatch.context() as patch:
            # 17 rows a block; the last has fewer.
            patch.setattr(initializers, "BLOCK_BYTES", 17 * 40 * 4)
            parts = list(initial_blocks(Initializer.parse(name), 301, 40, dtype, 7))
            padded = drawn(name, (301, 40), dtype, seed=7, padding_id=100)
        assert [len(part) for part in parts] == [17] * 17 + [12]
        if name == "orthogonal":
            # The sum AᵀA is rounded in another order.
            bound = {DType.FLOAT16: 1e-3, DType.BFLOAT16: 1}.get(dtype, 1e-6)
            np.testing.assert_allclose(np.concatenate(parts), whole, atol=bound)
        else:
            np.testing.assert_array_equal(np.concatenate(parts), whole)
            others = np.arange(301) != 100
            np.testing.assert_array_equal(padded[others], whole[others])
        assert not padded[100].any()
        assert name in CONSTANT or (whole != drawn(name, (301, 40), dtype, seed=8)).any()
        assert drawn(name, (0, 4), dtype).shape == (0, 4)


@given(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32), st.integers(0, 2**64 - 1))
def test_uniform_stays_below_its_end(low: float, width: float, seed: int) -> None:
    high = float(np.float32(low + width))
    rows = drawn("uniform", (20, 5), seed=seed, minval=low, maxval=high)
    assert rows.min() >= np.float32(low)
    assert rows.max() < np.float32(high) or low == high


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_gives_the_initializer_back(name: str) -> None:
    initializer = Initializer.parse(name)
    assert Initializer.from_json(initializer.to_json()) == initializer
    assert hash(initializer) == hash(Initializer.parse(name))


@pytest.mark.parametrize("name", NAMES)
def test_an_open_table_takes_those_that_draw_row_by_row(name: str) -> None:
    if name not in ("orthogonal", "identity"):
        Initializer.parse(name).check_by_row()
        return
    with pytest.raises(InvalidArgument, match=f"{name} draws the whole table at once; use one of"):
        Initializer.parse(name).check_by_row()


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("xavier", {}, "no initializer 'xavier'; there are zeros, ones, constant, uniform"),
        ("glorot_unifrom", {}, "did you mean 'glorot_uniform'"),
        ("zeros", {"value": 1}, "zeros has no parameter 'value'; it has none"),
        ("normal", {"std": 1}, "'std'; it has mean, stddev; did you mean 'stddev'"),
        ("normal", {"stddev": -1}, "stddev can't be -1: it is 0 or larger"),
        ("normal", {"stddev": math.nan}, "stddev can't be nan: it is finite"),
        ("normal", {"mean": 1e60}, "mean can't be 1e\\+60"),
        ("normal", {"mean": 10**400}, "mean can't be inf"),
        ("normal", {"mean": "0"}, "normal's mean is a number, not '0'"),
        ("constant", {"value": True}, "value is a number, not True"),
        ("uniform", {"minval": 1}, "uniform's minval 1 is above its maxval 0.05"),
        ("variance_scaling", {"scale": 0}, "scale can't be 0: it is larger than 0"),
        ("variance_scaling", {"mode": "fan_on"}, "can be fan_in, .*; did you mean 'fan_"),
        ("variance_scaling", {"mode": 3}, "mode is 3; it can be fan_in, fan_out, fan_avg"),
        ("variance_scaling", {"distribution": "cauchy"}, "it can be truncated_normal, "),
    ],
)
def test_what_no_initializer_has_is_refused(
    name: str, parameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Initializer.parse(name, parameters)
    with pytest.raises(BadFile, match="the manifest's initializer can't be used"):
        Initializer.from_json({"name": name, **parameters})


def test_a_damaged_manifest_is_refused() -> None:
    damaged: list[object] = [None, [], {}, {"name": 3}]
    for document in damaged:
        with pytest.raises(BadFile, match="the manifest's initializer is damaged"):
            Initializer.from_json(document)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="constant draws values that are too large for fl"):
        drawn("constant", (2, 2), DType.FLOAT16, value=1e5)
    with pytest.raises(InvalidArgument, match=r"orthogonal holds .* use glorot_normal"):
        drawn("orthogonal", (10_000_000, 4096))


def test_the_command_line_takes_parameters(tmp_path: Path) -> None:
    place = ("--rows", "6", "--dim", "4", "--seed", "3", "--data-dir", tmp_path)
    options = ("--init-option", "scale=0.5", "--init-option", "mode=fan_out")
    invoke("create", "a", "--init", "variance_scaling", *options, *place)
    wanted = drawn("variance_scaling", (6, 4), seed=3, scale=0.5, mode="fan_out")
    table = open_table(tmp_path, "a", 1)
    np.testing.assert_array_equal(table.lookup(np.arange(6)).vectors, wanted)
    for wrong, says in (
        (("stddev",), "--init-option 'stddev' isn't NAME=VALUE"),
        (("mean=1", "mean=2"), "the initializer's mean is given twice"),
        (("gain=1",), "normal has no parameter 'gain'; it has mean, stddev"),
        (("mean=high",), "normal's mean is a number, not 'high'"),
    ):
        given = [word for one in wrong for word in ("--init-option", one)]
        refused = invoke("create", "b", "--init", "normal", *given, *place, check=False)
        assert refused.returncode != 0
        assert says in refused.stderr
