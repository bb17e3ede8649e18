"""The loops of docs/training.md against a server, held against the same model all in torch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gatherd import Client
from support.documents import DOCS, python_block
from support.server import RunningServer, run_cli

USERS, ITEMS, DIM = 200, 150, 16
STEPS, BATCH = 120, 256
Make = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
# torch warns, once, where neither is chosen.
torch.sparse.check_sparse_tensor_invariants.enable()

# Our optimizer, torch's, and how much of the loss is left at the end, at most.
TRAINED: dict[str, tuple[dict[str, Any], Make, float]] = {
    "sgd": ({"name": "sgd", "lr": 4.0}, lambda p: torch.optim.SGD(p, lr=4.0), 0.5),
    "adagrad": ({"name": "adagrad", "lr": 0.2}, lambda p: torch.optim.Adagrad(p, lr=0.2), 0.1),
    "adam": ({"name": "adam", "lr": 0.02}, lambda p: torch.optim.SparseAdam(list(p), lr=0.02), 0.2),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data_dir = tmp_path_factory.mktemp("training") / "data"
    run_cli("create", "placeholder", "--rows", "1", "--dim", "1", "--data-dir", data_dir)
    with RunningServer("--data-dir", data_dir) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def client(server: RunningServer, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(getattr(server, request.param)) as client:
        yield client


class Ratings:
    """What users of hidden tastes say of items, in batches with many duplicates."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        tastes, kinds = rng.standard_normal((USERS, 4)), rng.standard_normal((ITEMS, 4))
        self.users = rng.integers(0, USERS, STEPS * BATCH)
        # A few items have most of the ratings.
        self.items = np.minimum(rng.zipf(1.3, STEPS * BATCH) - 1, ITEMS - 1)
        noise = 0.1 * rng.standard_normal(STEPS * BATCH)
        scores = (tastes[self.users] * kinds[self.items]).sum(axis=1)
        self.ratings = (scores + 0.5 + noise).astype(np.float32)
        self.initial = {
            "users": rng.normal(0, 0.3, (USERS, DIM)).astype(np.float32),
            "items": rng.normal(0, 0.3, (ITEMS, DIM)).astype(np.float32),
        }

    def batches(self) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]]:
        for start in range(0, STEPS * BATCH, BATCH):
            cut = slice(start, start + BATCH)
            yield self.users[cut], self.items[cut], self.ratings[cut]

    def loss(self, users: NDArray[Any], items: NDArray[Any], bias: float) -> float:
        """The mean squared error over all ratings, in float64."""
        scores = (users[self.users].astype(float) * items[self.items]).sum(axis=1) + bias
        return float(np.mean((scores - self.ratings) ** 2))


def put(client: Client, table: str, rows: NDArray[np.float32], optimizer: dict[str, Any]) -> None:
    """Make `table` anew, holding `rows`."""
    if table in [info.name for info in client.tables()]:
        client.delete_table(table)
    client.create_table(table, *rows.shape, init="zeros", optimizer=optimizer)
    client.assign(table, np.arange(len(rows)), rows)


@pytest.mark.parametrize("name", TRAINED)
def test_a_matrix_factorisation_comes_to_where_torch_does(client: Client, name: str) -> None:
    options, make, left = TRAINED[name]
    data = Ratings()
    for table, rows in data.initial.items():
        put(client, table, rows, options)
    lsn = client.table("users").lsn
    ours: dict[str, Any] = {"client": client, "batches": data.batches()}
    exec(compile(python_block("training.md", "def embed("), DOCS / "training.md", "exec"), ours)
    assert client.table("users").lsn == lsn + STEPS

    theirs, bias = in_torch(data, make)
    trained = {
        table: client.lookup(table, np.arange(len(rows))) for table, rows in data.initial.items()
    }
    our_loss = data.loss(trained["users"], trained["items"], ours["bias"].item())
    their_loss = data.loss(theirs["users"], theirs["items"], bias)
    first = data.loss(data.initial["users"], data.initial["items"], 0)
    print(f"\n{name}: loss {first:.4f} → {our_loss:.6f}, torch {their_loss:.6f}")
    assert our_loss == pytest.approx(their_loss, rel=1e-3)
    assert our_loss < first * left
    for table, rows in trained.items():
        np.testing.assert_allclose(rows, theirs[table], rtol=1e-3, atol=1e-4)


def in_torch(data: Ratings, make: Make) -> tuple[dict[str, NDArray[Any]], float]:
    """The tables, and the bias, after the same batches with torch's own embeddings."""
    tables = {
        table: torch.nn.Embedding(*rows.shape, sparse=True, _weight=torch.tensor(rows))
        for table, rows in data.initial.items()
    }
    bias = torch.zeros(1, requires_grad=True)
    optimizers = [
        make([table.weight for table in tables.values()]),
        torch.optim.SGD([bias], lr=0.01),
    ]
    for users, items, ratings in data.batches():
        rows = tables["users"](torch.from_numpy(users)) * tables["items"](torch.from_numpy(items))
        loss = torch.nn.functional.mse_loss(rows.sum(dim=1) + bias, torch.from_numpy(ratings))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    weights = {table: tables[table].weight.detach().numpy() for table in data.initial}
    return weights, bias.item()


@pytest.mark.parametrize("name", TRAINED)
def test_bags_pooled_on_the_server_are_trained_as_torchs_embedding_bag(
    client: Client, name: str
) -> None:
    options, make, _ = TRAINED[name]
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    put(client, "words", rows, options)
    found: dict[str, Any] = {"np": np}
    exec(compile(python_block("training.md", "embed_bags"), DOCS / "training.md", "exec"), found)
    theirs = torch.nn.EmbeddingBag(ITEMS, DIM, mode="mean", sparse=True, _weight=torch.tensor(rows))
    optimizer = make(theirs.parameters())
    for _ in range(20):
        counts = rng.integers(0, 6, 30)  # some bags are empty
        offsets = np.cumsum(counts) - counts
        ids = rng.integers(0, ITEMS, int(counts.sum()))
        wanted = torch.from_numpy(rng.standard_normal((30, DIM)).astype(np.float32))

        pooled = found["embed_bags"](client, "words", ids, offsets)
        torch.nn.functional.mse_loss(pooled, wanted).backward()
        found["push_bags"](client, "words", ids, offsets, pooled)

        optimizer.zero_grad()
        same = theirs(torch.from_numpy(ids), torch.from_numpy(offsets))
        torch.nn.functional.mse_loss(same, wanted).backward()
        optimizer.step()
    after = client.lookup("words", np.arange(ITEMS))
    np.testing.assert_allclose(after, theirs.weight.detach().numpy(), rtol=1e-3, atol=1e-4)
    assert np.abs(after - rows).max() > 0.01
