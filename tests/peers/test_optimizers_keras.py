"""Keras' Ftrl and clip_by_norm as the judges of ours, over 100 steps.

Keras has no lazy Ftrl: its step takes every row. A gradient of 0 leaves a row of Ftrl as it is once
its state is its weights' (the first step of a new row is what makes it so), so every row is in
each gradient here.
"""

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
