"""Keras' initializers as the judges of ours: names, defaults, distributions, fans, matrices."""

import inspect
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd_server.loaders.initializers import initial_blocks

SHAPE = (700, 300)

OURS: dict[str, list[dict[str, Any]]] = {
    "zeros": [{}],
    "ones": [{}],
    "constant": [{}, {"value": 0.3}],
    "random_uniform": [{}, {"minval": 1.0, "maxval": 2.5}],
    "random_normal": [{}, {"mean": -1.0, "stddev": 0.5}],
    "truncated_normal": [{}, {"mean": 2.0, "stddev": 0.1}],
    "glorot_uniform": [{}],
    "glorot_normal": [{}],
    "he_uniform": [{}],
    "he_normal": [{}],
    "lecun_uniform": [{}],
    "lecun_normal": [{}],
    "variance_scaling": [
        {},
        {"scale": 0.2, "mode": "fan_out", "distribution": "uniform"},
        {"scale": 3.0, "mode": "fan_avg", "distribution": "untruncated_normal"},
    ],
    "orthogonal": [{}, {"gain": 2.0}],
    "identity": [{}, {"gain": 2.0}],
}
CASES = [(name, parameters) for name, cases in OURS.items() for parameters in cases]


def drawn(name: str, parameters: dict[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    given = Initializer.parse(name, parameters)
    return np.concatenate(list(initial_blocks(given, *shape, DType.FLOAT32, 5)))


def theirs(name: str, parameters: dict[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    config = {**parameters}
    if name not in ("zeros", "ones", "constant", "identity"):
        config["seed"] = 5
    values: NDArray[Any] = keras_class(name)(**config)(shape).detach().numpy()
    return values


def keras_class(name: str) -> Any:
    return getattr(keras.initializers, "".join(word.title() for word in name.split("_")))


@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("shape", [SHAPE, SHAPE[::-1]])
def test_elements_are_distributed_as_keras(
    name: str, parameters: dict[str, Any], shape: tuple[int, int]
) -> None:
    ours, keras_own = drawn(name, parameters, shape), theirs(name, parameters, shape)
    assert ours.shape == keras_own.shape
    if name in ("zeros", "ones", "constant", "identity"):
        np.testing.assert_array_equal(ours, keras_own)
        return
    # Two samples of one distribution: their quantiles lie within what samples of this size do.
    spread = keras_own.std()
    sorted_ours, sorted_theirs = np.sort(ours, axis=None), np.sort(keras_own, axis=None)
    merged = np.concatenate([sorted_ours, sorted_theirs])
    distance = np.abs(
        np.searchsorted(sorted_ours, merged, side="right")
        - np.searchsorted(sorted_theirs, merged, side="right")
    ).max()
    assert distance / ours.size < 2.5 * np.sqrt(2 / ours.size)
    assert abs(ours.std() / spread - 1) < 0.01
    assert abs(ours.mean() - keras_own.mean()) < 8 * spread / np.sqrt(ours.size)


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[::-1], (40, 40)])
def test_orthogonal_has_the_products_of_keras(shape: tuple[int, int]) -> None:
    for matrix in (
        drawn("orthogonal", {"gain": 2.0}, shape),
        theirs("orthogonal", {"gain": 2.0}, shape),
    ):
        products = matrix.T @ matrix if shape[0] >= shape[1] else matrix @ matrix.T
        np.testing.assert_allclose(products, 4 * np.eye(min(shape)), atol=1e-4)


@pytest.mark.parametrize("name", [name for name in OURS if OURS[name] != [{}]])
def test_parameters_and_defaults_are_keras(name: str) -> None:
    own = {"self", "seed", "input_axes", "output_axes"}
    signature = inspect.signature(keras_class(name).__init__).parameters
    defaults = {one: known.default for one, known in signature.items() if one not in own}
    assert dict(Initializer.parse(name).parameters) == defaults
