"""A trainer: matrix factorisation, with NumPy, on tables that live in gatherd.

Ratings are explained by the dot product of a user's and an item's row. The trainer looks up the
rows of a batch, computes their gradients, and pushes these. The optimizer and its state belong to
the tables, which were made with one:

    gatherd create users --rows 500 --dim 8 --init normal --seed 1 --optimizer adagrad --lr 0.1
    gatherd create items --rows 200 --dim 8 --init normal --seed 2 --optimizer adagrad --lr 0.1
    python trainer.py --url http://127.0.0.1:8000 --steps 300

The ratings are drawn, so that there is something to learn. With torch, `torch.from_numpy(rows)`
gives tensors; docs/training.md has that loop.
"""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gatherd import Client, RequestIdReused

USERS, ITEMS = "users", "items"


@dataclass
class Batch:
    """Ratings, all of shape (n,)."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]


def drawn_batches(users: int, items: int, size: int) -> Iterator[Batch]:
    """Ratings that 4 hidden traits explain, without end."""
    rng = np.random.default_rng(0)
    user_traits, item_traits = rng.normal(size=(users, 4)), rng.normal(size=(items, 4))
    while True:
        u, i = rng.integers(0, users, size), rng.integers(0, items, size)
        yield Batch(u, i, (user_traits[u] * item_traits[i]).sum(axis=1).astype(np.float32) / 2)


def step(client: Client, batch: Batch, name: str) -> float:
    """Learn from one batch; the mean squared error before it."""
    # One round trip for both tables. Rows have shape (n, dim).
    rows = client.lookup_many({USERS: batch.users, ITEMS: batch.items})
    wrong = (rows[USERS] * rows[ITEMS]).sum(axis=1) - batch.ratings
    slope = (2 * wrong)[:, None]
    grads = {
        USERS: (batch.users, slope * rows[ITEMS]),
        ITEMS: (batch.items, slope * rows[USERS]),
    }
    # One push, all or nothing, and durable when it returns. The gradients of an id that is in the
    # batch twice are summed. The push has a name, under which it is done once, even if this process
    # dies now and repeats its steps after a restart. RequestIdReused says that it was done before
    # the restart, by gradients of what the rows were then.
    with contextlib.suppress(RequestIdReused):
        client.apply_gradients_many(grads, idempotency_key=name)
    return float(np.mean(wrong**2))


def train(client: Client, steps: int, size: int, run: str) -> list[float]:
    """The error of each step."""
    users, items = client.table(USERS).rows, client.table(ITEMS).rows
    errors = []
    for number, batch in zip(range(steps), drawn_batches(users, items, size), strict=False):
        errors.append(step(client, batch, f"{run}/step-{number}"))
        if number % 50 == 0 or number == steps - 1:
            print(f"step {number}: mean squared error {errors[-1]:.3f}")
    return errors


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Factorise ratings on tables in gatherd.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--run", default="run-1", help="a name; another one trains again")
    given = parser.parse_args()
    with Client(given.url) as client:
        train(client, given.steps, given.batch, given.run)


if __name__ == "__main__":
    main()
