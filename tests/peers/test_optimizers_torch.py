"""torch's optimizers as the judge of ours, on sparse gradients with duplicates, over 100 steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gatherd.store.dtypes import DType
from gatherd_server.training.images import RowImages, TrainedRows
from gatherd_server.training.optimizer import Optimizer

ROW_COUNT, STEPS = 60, 100
F32 = np.float32
# torch warns, once, where neither is chosen.
torch.sparse.check_sparse_tensor_invariants.enable()


class Ours:
    """A table that is trained by pushes, each a batch of its own."""

    def __init__(self, rows: NDArray[np.float32], optimizer: Optimizer) -> None:
        self.rows = rows.copy()
        self._optimizer = optimizer
        slots: dict[str, NDArray[Any]] = {}
        for slot in optimizer.slots:
            kind, shape = slot.array(*rows.shape)
            slots[slot.name] = np.full(shape, slot.initial, kind)
        self._base = TrainedRows(self.rows.view(np.uint8), DType.FLOAT32, rows.shape[1], slots)

    def step(
        self, ids: NDArray[np.int64], grads: NDArray[np.float32], lr: float | None = None
    ) -> None:
        images = RowImages(self._base, self._optimizer, ids.size)
        images.apply_gradients(ids, grads, lr)
        self._base.weights[images.rows] = images.weights
        for name, slot in images.slots.items():
            self._base.slots[name][images.rows] = slot
        for name, scalar in images.scalars.items():
            self._base.slots[name][:] = scalar


def train(
    name: str,
    options: Mapping[str, float],
    make: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer],
    dim: int,
    every_row: bool = False,
    max_norm: float | None = None,
    padding_id: int | None = None,
) -> None:
    """Do the same steps on both sides and compare the rows after each tenth."""
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((ROW_COUNT, dim)).astype(F32)
    ours = Ours(rows, Optimizer.parse(name, options))
    theirs = torch.nn.Embedding(
        ROW_COUNT, dim, sparse=True, _weight=torch.tensor(rows), padding_idx=padding_id
    )
    optimizer = make(theirs.parameters())
    for step in range(STEPS):
        ids = rng.integers(0, ROW_COUNT, 90)
        if every_row:
            ids = np.concatenate([ids, np.arange(ROW_COUNT)])
        grads = rng.standard_normal((ids.size, dim)).astype(F32)
        ours.step(ids, grads)
        optimizer.zero_grad()
        theirs(torch.from_numpy(ids)).backward(torch.from_numpy(grads))
        optimizer.step()
        with torch.no_grad():
            if max_norm is not None:
                moved = torch.from_numpy(np.unique(ids))
                kept = torch.renorm(theirs.weight[moved], 2, 0, max_norm)
                theirs.weight[moved] = kept
            if step % 10 == 9:
                np.testing.assert_allclose(ours.rows, theirs.weight.numpy(), rtol=2e-4, atol=2e-5)
    assert np.abs(ours.rows - rows).max() > 0.1


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_sgd_is_torchs(dim: int) -> None:
    train("sgd", {"lr": 0.05}, lambda p: torch.optim.SGD(p, lr=0.05), dim)


# torch decays the momentum of every row at each step, and ours only of those in the gradient: they
# are the same where every row is in every gradient.
@pytest.mark.parametrize("dim", [1, 7, 64])
def test_sgd_with_momentum_is_torchs_where_every_row_is_in_the_gradient(dim: int) -> None:
    options = {"lr": 0.02, "momentum": 0.9}
    train("sgd", options, lambda p: torch.optim.SGD(p, **options), dim, every_row=True)


# torch has weight decay for dense gradients only.
def train_densely(
    name: str,
    options: Mapping[str, float],
    make: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer],
) -> None:
    """The same steps on both sides, with every row in every gradient; compare the last rows."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROW_COUNT, 16)).astype(F32)
    ours = Ours(rows, Optimizer.parse(name, options))
    theirs = torch.tensor(rows, requires_grad=True)
    optimizer = make([theirs])
    for _ in range(STEPS):
        ids = np.concatenate([rng.integers(0, ROW_COUNT, 30), np.arange(ROW_COUNT)])
        grads = rng.standard_normal((ids.size, 16)).astype(F32)
        ours.step(ids, grads)
        theirs.grad = torch.zeros_like(theirs).index_add_(
            0, torch.from_numpy(ids), torch.from_numpy(grads)
        )
        optimizer.step()
    np.testing.assert_allclose(ours.rows, theirs.detach().numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_weight_decay_is_torchs_where_every_row_is_in_the_gradient(momentum: float) -> None:
    options = {"lr": 0.02, "momentum": momentum, "weight_decay": 0.1}
    train_densely("sgd", options, lambda p: torch.optim.SGD(p, **options))


def test_decoupled_decay_is_that_of_torchs_adamw_where_every_row_is_in_the_gradient() -> None:
    # SparseAdam and AdamW scale eps differently, so that it is next to nothing here.
    train_densely(
        "adam",
        {"lr": 0.02, "eps": 1e-20, "decoupled_weight_decay": 0.5},
        lambda p: torch.optim.AdamW(p, lr=0.02, eps=1e-20, weight_decay=0.5),
    )


@pytest.mark.parametrize("dim", [1, 7, 64])
@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_adagrad_is_torchs(initial: float, dim: int) -> None:
    train(
        "adagrad",
        {"lr": 0.1, "initial_accumulator": initial},
        lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=initial),
        dim,
    )


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_adam_is_torchs_sparse_adam(dim: int) -> None:
    train("adam", {"lr": 0.02}, lambda p: torch.optim.SparseAdam(list(p), lr=0.02), dim)


def test_adams_options_are_torchs() -> None:
    train(
        "adam",
        {"lr": 0.02, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3},
        lambda p: torch.optim.SparseAdam(list(p), lr=0.02, betas=(0.7, 0.95), eps=1e-3),
        16,
    )


def test_max_norm_is_torchs_renorm() -> None:
    options = {"lr": 0.05, "max_norm": 1.5}
    train("sgd", options, lambda p: torch.optim.SGD(p, lr=0.05), 16, max_norm=1.5)


def test_a_padding_row_is_torchs() -> None:
    options = {"lr": 0.1, "padding_id": 3}
    train("adagrad", options, lambda p: torch.optim.Adagrad(p, lr=0.1), 16, padding_id=3)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.1)),
        ("adam", lambda p: torch.optim.SparseAdam(list(p), lr=0.1)),
    ],
)
def test_a_warm_up_from_0_is_torchs(
    name: str, make: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((ROW_COUNT, 8)).astype(F32)
    ours = Ours(rows, Optimizer.parse(name, {"lr": 0.1}))
    theirs = torch.nn.Embedding(ROW_COUNT, 8, sparse=True, _weight=torch.tensor(rows))
    optimizer = make(theirs.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    for step in range(12):
        ids = rng.integers(0, ROW_COUNT, 20)
        grads = rng.standard_normal((ids.size, 8)).astype(F32)
        ours.step(ids, grads, schedule.get_last_lr()[0])
        optimizer.zero_grad()
        theirs(torch.from_numpy(ids)).backward(torch.from_numpy(grads))
        optimizer.step()
        schedule.step()
        np.testing.assert_allclose(
            ours.rows, theirs.weight.detach().numpy(), rtol=2e-4, atol=2e-5, err_msg=str(step)
        )
    assert np.abs(ours.rows - rows).max() > 0.1
