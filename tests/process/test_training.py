"""The demo's trainers, processes of their own, against a server; what docs/training.md shows."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd import Client
from gatherd.errors import KeyNotFound, VersionMismatch
from support.documents import DOCS, python_block
from support.server import RunningServer, clean_environment, run_cli

DEMO = DOCS.parent / "deploy" / "demo"
DIM, PASSES = 64, 12
OTHERS = 500


def task() -> tuple[NDArray[np.object_], NDArray[Any]]:
    """The demo's pairs of words: keys (n, 2), and signs (n,), 1 for synonyms, -1 for opposites."""
    lines = re.findall(r"^([+-]) (\S+) (\S+)$", (DEMO / "pairs.txt").read_text(), re.MULTILINE)
    keys = np.array([[f"\u2581{first}", f"\u2581{second}"] for _, first, second in lines], object)
    return keys, np.array([1 if sign == "+" else -1 for sign, _, _ in lines])


def loss_of(vectors: NDArray[Any], signs: NDArray[Any]) -> float:
    """The mean logistic loss of (n, 2, dim) vectors, in float64."""
    first, second = np.moveaxis(vectors.astype(float), 1, 0)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / lengths
    return float(np.mean(np.log1p(np.exp(-signs * 8 * (cosines - 0.3)))))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with `words`: those of the task, and others."""
    folder = tmp_path_factory.mktemp("training")
    words = [*dict.fromkeys(task()[0].ravel().tolist()), *[f"other{i}" for i in range(OTHERS)]]
    vectors = np.random.default_rng(5).standard_normal((len(words), DIM))
    np.save(folder / "words.npy", vectors.astype(np.float32))
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words), "utf-8")
    run_cli(
        "import", "words", folder / "words.npy", "--keys", folder / "words.txt",
        "--optimizer", "adagrad", "--lr", "0.1", "--data-dir", folder / "data",
    )  # fmt: skip
    return folder / "data"


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[RunningServer]:
    with RunningServer("--data-dir", data_dir, "--workers", "2") as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.http) as client:
        yield client


def test_two_trainers_on_two_wires_train_words_further_by_key(
    server: RunningServer, client: Client, data_dir: Path
) -> None:
    keys, signs = task()
    others = np.array([f"other{i}" for i in range(OTHERS)], object)
    before, untouched = client.lookup("words", keys=keys), client.lookup("words", keys=others)
    client.publish("words")
    lsn = client.table("words").lsn
    told = train(server.http, server.grpc)
    pushed = [
        list(map(int, re.findall(r"(\d+) pushes, LSN (\d+) to (\d+)", text)[0])) for text in told
    ]
    after = client.lookup("words", keys=keys)

    batches = -(-len(keys) // 2 // 16)
    assert [count for count, _, _ in pushed] == [PASSES * batches] * 2
    assert client.table("words").lsn == lsn + 2 * PASSES * batches
    # They ran at the same time: each began before the other ended.
    (_, first, last), (_, other_first, other_last) = pushed
    assert first < other_last
    assert other_first < last
    print(f"\nloss {loss_of(before, signs):.3f} → {loss_of(after, signs):.3f}")
    assert loss_of(after, signs) < 0.2 * loss_of(before, signs)
    for text in told:
        losses = [float(loss) for loss in re.findall(r"loss (\S+)", text)]
        assert losses == sorted(losses, reverse=True)
        assert len(losses) >= 3

    with Client(f"local:{data_dir}") as reader:
        np.testing.assert_array_equal(reader.lookup("words", keys=keys), after)
    np.testing.assert_array_equal(client.lookup("words", keys=others), untouched)
    client.rollback("words")
    np.testing.assert_array_equal(client.lookup("words", keys=keys), before)
    np.testing.assert_array_equal(client.lookup("words", keys=keys, version=2), after)


def train(*urls: str) -> list[str]:
    """What the demo's trainers print, one for each URL, run at the same time."""
    trainers = []
    with ExitStack() as stack:
        for number, url in enumerate(urls, 1):
            trainer = subprocess.Popen(
                [sys.executable, DEMO / "trainer.py", url, "words", "--wait",
                 "--share", f"{number}/{len(urls)}", "--passes", str(PASSES)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment(),
            )  # fmt: skip
            stack.callback(trainer.kill)
            trainers.append(stack.enter_context(trainer))
        for trainer in trainers:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "ready\n"
        for trainer in trainers:
            assert trainer.stdin is not None
            trainer.stdin.close()
        told = [trainer.stdout.read() if trainer.stdout else "" for trainer in trainers]
        assert [trainer.wait(60) for trainer in trainers] == [0, 0]
    return told


# What docs/training.md shows


def run_block(marker: str, names: dict[str, Any]) -> None:
    """Run the document's block that has `marker` in it, which takes and leaves its `names`."""
    exec(compile(python_block("training.md", marker), DOCS / "training.md", "exec"), names)


def test_the_loop_of_the_document_lowers_its_loss(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    optimizer: dict[str, str | float] = {"name": "adagrad", "lr": 0.1}
    for name in ("users", "items"):
        client.create_table(name, 40, 8, init="normal", seed=1, optimizer=optimizer)
    users, items = rng.integers(0, 40, (2, 100, 64))
    tastes = rng.choice([-1.0, 1.0], (2, 40)).astype(np.float32)
    ratings = tastes[0][users] * tastes[1][items]
    losses = []

    def batches() -> Iterator[tuple[Any, ...]]:
        for batch in zip(users, items, ratings, strict=True):
            yield batch
            losses.append(found["loss"])

    monkeypatch.setattr("gatherd.Client", lambda _: client)  # at another port than the document's
    found: dict[str, Any] = {"batches": batches()}
    run_block("wrong = ", found)
    assert losses[0] > 0.9
    assert np.mean(losses[-10:]) < 0.05


def test_unknown_words_are_left_out_as_the_document_does(client: Client) -> None:
    keys = np.array([["other1", "no such word"], ["other2", "other1"]], object)
    known = np.array(["other1", "other2"], object)
    before = client.lookup("words", keys=known)
    lsn = client.table("words").lsn
    with pytest.raises(KeyNotFound, match="no such word"):
        client.apply_gradients("words", keys=keys, grads=np.ones((2, 2, DIM)))
    assert client.table("words").lsn == lsn
    np.testing.assert_array_equal(client.lookup("words", keys=known), before)
    names = {"client": client, "keys": keys, "gradients_of": np.ones_like}
    run_block("known = status == 0", names)
    assert client.table("words").lsn == lsn + 1
    # The first step of Adagrad is of the learning rate's length, whatever the gradient's.
    np.testing.assert_allclose(before - client.lookup("words", keys=known), 0.1, rtol=1e-3)


def test_a_trainer_that_starts_over_does_no_step_twice(client: Client) -> None:
    client.create_table("steps", 4, 2, init="zeros", optimizer={"name": "sgd", "lr": 0.5})
    names: dict[str, Any] = {}
    run_block("def push_once", names)
    rows = []
    for _ in range(2):
        for step in range(3):
            # Of the rows as they are, so it's another gradient when the step comes again.
            names["push_once"](
                client, f"step-{step}", "steps", [1], client.lookup("steps", [1]) - 8
            )
            rows.append(client.lookup("steps", [1])[0, 0])
    assert rows == [4, 6, 7, 7, 7, 7]


def test_gradients_of_one_version_are_not_pushed_into_another(client: Client) -> None:
    client.create_table("insisting", 4, 2, init="zeros", optimizer="sgd")
    version = client.table("insisting").version
    rows = client.lookup("insisting", [1, 2], version=version)
    client.publish("insisting")
    with pytest.raises(VersionMismatch):
        client.apply_gradients("insisting", [1, 2], rows + 1, if_version=version)
    assert not client.lookup("insisting", [1, 2]).any()
