"""Keras' Ftrl, clip_by_norm, constraints, regularizers and weight decay judge ours, over 100 steps.

Keras has no lazy Ftrl: its step takes every row. A gradient of 0 leaves a row of Ftrl as it is once
its state is its weights' (the first step of a new row is what makes it so), so every row is in
each gradient here.
"""

from typing import Any

import keras
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gatherd_server.training.optimizer import Optimizer
from peers.test_optimizers_torch import Ours

ROW_COUNT, DIM, STEPS = 40, 12, 100
F32 = np.float32

KERAS_NAMES = {
    "lr": "learning_rate",
    "l1": "l1_regularization_strength",
    "l2": "l2_regularization_strength",
    "l2_shrinkage": "l2_shrinkage_regularization_strength",
    "beta": "beta",
    "initial_accumulator": "initial_accumulator_value",
    "learning_rate_power": "learning_rate_power",
}


def draw(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids of every row, some of them several times, and their gradients."""
    ids = rng.permutation(np.concatenate([rng.integers(0, ROW_COUNT, 50), np.arange(ROW_COUNT)]))
    return ids, rng.standard_normal((ids.size, DIM)).astype(F32)


def summed(ids: NDArray[np.int64], grads: NDArray[np.float32]) -> NDArray[np.float32]:
    dense = np.zeros((ROW_COUNT, DIM), F32)
    np.add.at(dense, ids, grads)
    return dense


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"lr": 0.1, "l1": 0.5, "l2": 0.1},
        {"lr": 0.05, "beta": 1.0, "initial_accumulator": 1.0},
        {"lr": 0.05, "l2_shrinkage": 0.02},
        {"lr": 0.02, "learning_rate_power": -0.7},
        {"lr": 0.05, "learning_rate_power": 0.0, "l2": 0.3},
    ],
)
def test_ftrl_is_keras(options: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROW_COUNT, DIM)).astype(F32)
    ours = Ours(rows, Optimizer.parse("ftrl", options))
    theirs = keras.Variable(rows)
    optimizer = keras.optimizers.Ftrl(**{KERAS_NAMES[name]: o for name, o in options.items()})
    for step in range(STEPS):
        ids, grads = draw(rng)
        ours.step(ids, grads)
        optimizer.apply([keras.ops.convert_to_tensor(summed(ids, grads))], [theirs])
        if step % 10 == 9:
            expected = theirs.value.detach().numpy()
            np.testing.assert_allclose(ours.rows, expected, rtol=1e-3, atol=2e-4)
    assert np.abs(ours.rows - rows).max() > 0.1


def test_row_clipping_is_keras_clip_by_norm_of_each_row() -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros((ROW_COUNT, DIM), F32)
    ours = Ours(rows, Optimizer.parse("sgd", {"lr": 1, "clip_row_norm": 2.5}))
    ids, grads = draw(rng)
    grads[: ids.size // 2] *= F32(0.1)
    ours.step(ids, grads)
    dense = torch.from_numpy(summed(ids, grads))
    norms = torch.linalg.vector_norm(dense, dim=1, keepdim=True)
    assert (norms < 2.5).any()
    assert (norms > 2.5).any()
    theirs = keras.Variable(rows[0])
    for row in range(ROW_COUNT):
        theirs.assign(np.zeros(DIM, F32))
        keras.optimizers.SGD(1.0, clipnorm=2.5).apply([dense[row]], [theirs])
        expected = theirs.value.detach().numpy()
        np.testing.assert_allclose(ours.rows[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "constraint", "regularizer", "decay"),
    [
        ({"non_neg": 1}, keras.constraints.NonNeg(), None, None),
        ({"max_norm": 2}, keras.constraints.MaxNorm(2, axis=1), None, None),
        ({"unit_norm": 1}, keras.constraints.UnitNorm(axis=1), None, None),
        (
            {"min_norm": 0, "max_norm": 1, "norm_rate": 1},
            keras.constraints.MinMaxNorm(axis=1), None, None,
        ),
        (
            {"min_norm": 2.5, "max_norm": 3.5, "norm_rate": 0.4},
            keras.constraints.MinMaxNorm(2.5, 3.5, 0.4, axis=1), None, None,
        ),
        ({"regularizer_l1": 0.5}, None, keras.regularizers.L1(0.5), None),
        ({"regularizer_l2": 0.5}, None, keras.regularizers.L2(0.5), None),
        (
            {"regularizer_l1": 0.2, "regularizer_l2": 0.3, "clip_value": 0.5},
            None, keras.regularizers.L1L2(0.2, 0.3), None,
        ),
        ({"decoupled_weight_decay": 0.7}, None, None, 0.7),
        (
            {"regularizer_l2": 0.1, "decoupled_weight_decay": 0.2, "max_norm": 2},
            keras.constraints.MaxNorm(2, axis=1), keras.regularizers.L2(0.1), 0.2,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_constraints_regularizers_and_decay_are_keras(
    name: str, options: dict[str, float], constraint: Any, regularizer: Any, decay: float | None
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROW_COUNT, DIM)).astype(F32)
    own = {"initial_accumulator": 0.1, "eps": 1e-7} if name == "adagrad" else {}
    ours = Ours(rows, Optimizer.parse(name, {"lr": 0.05, **own, **options}))
    theirs = keras.Variable(rows)
    theirs.constraint = constraint
    known = {"sgd": keras.optimizers.SGD, "adagrad": keras.optimizers.Adagrad}
    optimizer = known[name](0.05, weight_decay=decay, clipvalue=options.get("clip_value"))
    for step in range(STEPS):
        ids, grads = draw(rng)
        ours.step(ids, grads)
        dense = torch.from_numpy(summed(ids, grads))
        if regularizer is not None:
            weights = theirs.value.detach().clone().requires_grad_()
            regularizer(weights).backward()
            assert weights.grad is not None
            dense = dense + weights.grad
        optimizer.apply([dense], [theirs])
        if step % 10 == 9:
            expected = theirs.value.detach().numpy()
            np.testing.assert_allclose(ours.rows, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(ours.rows - rows).max() > 0.1
