"""A model trained by key from empty open tables is the one trained with all keys there before.

Matrix factorization of ratings as MovieLens has them, drawn here: few users and items have most of
the ratings. Each batch looks up what it needs, with the initial vectors of keys that have no row,
and pushes gradients of both tables at once.
"""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from durability.trainer import Quick
from gatherd.store.catalog import open_table
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import ByKey, Missing
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.types import (
    CreateTable,
    OptimizerSpec,
    Push,
    PushResult,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.writer import Writer

DIM, USERS, ITEMS, RATINGS, BATCH = 8, 120, 200, 1_500, 50
TABLES = ("users", "items")
WAIT_SECONDS = 60
LIMITS = WriterLimits(checkpoint_seconds=3600.0)


def ratings() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Keys of users and items, of any size and sign, and what the users gave, 1 to 5."""
    rng = np.random.default_rng(100)
    users = np.minimum(rng.geometric(0.03, RATINGS), USERS) * 7_919 - 2**40
    items = np.minimum(rng.geometric(0.02, RATINGS), ITEMS) * 104_729
    return users, items, rng.integers(1, 6, RATINGS).astype(np.float32)


class Model:
    """Two open tables and their writer."""

    def __init__(self, data: Path, optimizer: OptimizerSpec) -> None:
        with own_data_dir(data, create=True, files=Quick()):
            pass
        self.data = data
        self.writer = Writer(data, Quick(), LIMITS)
        changes = Changes(self.writer, LIMITS)
        init = Initializer.parse("normal", {"stddev": 0.1})
        for seed, name in enumerate(TABLES):
            spec = OpenSpec(KeyKind.INT64, 1_000, seed, init)
            made = CreateTable(name, 0, DIM, DType.FLOAT32, init, seed, optimizer, spec)
            changes.change(made).result(WAIT_SECONDS)
        changes.close()
        self.tables = {name: open_table(data, name, 1) for name in TABLES}

    def rows(self, name: str, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        table = self.tables[name].renewed()
        return table.lookup(ByKey(keys), DType.FLOAT32, Missing.INIT).vectors

    def push(self, op: UpdateOp, values: dict[str, tuple[Any, Any]]) -> PushResult:
        updates = tuple(
            TableUpdate(name, ByKey(keys), given, creates=True)
            for name, (keys, given) in values.items()
        )
        future: Future[PushResult] = self.writer.submit(Push(op, updates), b"")
        return future.result(WAIT_SECONDS)

    def train(self) -> int:
        """One pass; how many rows it created."""
        users, items, given = ratings()
        created = 0
        for begin in range(0, RATINGS, BATCH):
            part = slice(begin, begin + BATCH)
            u, v = self.rows("users", users[part]), self.rows("items", items[part])
            error = (np.einsum("ij,ij->i", u, v) - given[part])[:, None].astype(np.float32)
            pushed = self.push(
                UpdateOp.APPLY_GRADIENTS,
                {"users": (users[part], error * v), "items": (items[part], error * u)},
            )
            created += sum(pushed.created)
        return created


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerSpec("sgd", {"lr": 0.05, "momentum": 0.5}),
        OptimizerSpec("adagrad", {"lr": 0.1}),
        OptimizerSpec("rowwise-adagrad", {"lr": 0.1}),
        OptimizerSpec("adam", {"lr": 0.01}),
        OptimizerSpec("ftrl", {"lr": 0.1}),
    ],
    ids=lambda spec: spec.name,
)
def test_rows_that_come_with_their_first_gradient_learn_the_same(
    tmp_path: Path, optimizer: OptimizerSpec
) -> None:
    grown, made = Model(tmp_path / "grown", optimizer), Model(tmp_path / "made", optimizer)
    users, items, given = ratings()
    each = {"users": np.unique(users), "items": np.unique(items)}
    nothing = {name: (keys, np.zeros((keys.size, DIM), np.float32)) for name, keys in each.items()}
    try:
        before = made.push(UpdateOp.SCATTER_ADD, nothing)
        assert sum(before.created) == sum(keys.size for keys in each.values())
        assert made.train() == 0
        assert grown.train() == sum(before.created)
        for name, keys in each.items():
            rows = grown.rows(name, keys)
            np.testing.assert_array_equal(rows, made.rows(name, keys))
        u, v = grown.rows("users", users), grown.rows("items", items)
        assert np.mean((np.einsum("ij,ij->i", u, v) - given) ** 2) < np.mean(given**2), "it learnt"
    finally:
        grown.writer.close()
        made.writer.close()
