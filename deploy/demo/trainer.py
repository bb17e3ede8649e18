"""One trainer of the demo: trains a table, by key, to tell synonyms from opposites.

A client like any other: it looks up the rows of a batch of words, computes the loss and its
gradient in NumPy, and pushes the gradient for the same keys; the optimizer is the table's. Several
of them run at the same time, each on its share of the pairs, and meet in the rows of the words that
they share. pairs.txt beside this file has the task.

Left out on purpose: pairs that are held out. It shows training, not a better model of language.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gatherd import Client

Floats = NDArray[np.floating[Any]]

PAIRS: Final = Path(__file__).with_name("pairs.txt")
# The tokenizer marks the beginning of a word with this character.
WORD_START: Final = "\N{LOWER ONE EIGHTH BLOCK}"
# A pair counts as synonyms above this cosine, and the loss falls this steeply around it.
COSINE, STEEPNESS = 0.3, 8.0
BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of words: `keys` (n, 2), and `signs` (n,), 1 for synonyms and -1 for opposites."""

    keys: NDArray[np.object_]
    signs: NDArray[np.float32]

    @classmethod
    def read(cls, path: Path = PAIRS) -> Self:
        """The pairs of a file of lines such as `+ hot warm` and `- hot cold`."""
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line[0] in "+-"]
        keys = [[WORD_START + first, WORD_START + second] for _, first, second in lines]
        signs = [1 if sign == "+" else -1 for sign, _, _ in lines]
        return cls(np.array(keys, object), np.array(signs, np.float32))

    def __getitem__(self, which: slice | NDArray[np.integer[Any]]) -> "Pairs":
        return Pairs(self.keys[which], self.signs[which])

    def __len__(self) -> int:
        return self.signs.size


def cosines(vectors: Floats) -> Floats:
    """The cosine of each pair: (n, 2, dim) → (n,)."""
    norms = np.linalg.norm(vectors, axis=-1)
    products: Floats = np.einsum("nd,nd->n", vectors[:, 0], vectors[:, 1])
    cosine: Floats = products / norms.prod(axis=-1)
    return cosine


def losses(vectors: Floats, signs: Floats) -> Floats:
    """The logistic loss of each pair: ln(1 + exp(-sign · STEEPNESS · (cosine - COSINE)))."""
    values: Floats = np.logaddexp(0, -signs * STEEPNESS * (cosines(vectors) - COSINE))
    return values


def gradients(vectors: Floats, signs: Floats) -> Floats:
    """The gradient of the mean loss with respect to the vectors: (n, 2, dim), as they have."""
    cosine = cosines(vectors)[:, None, None]
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit = vectors / norms
    # d cosine / d a = (b/|b| - cosine · a/|a|) / |a|, and the same with a and b exchanged.
    by_vectors = (unit[:, ::-1] - cosine * unit) / norms
    wrong = 1 / (1 + np.exp(signs * STEEPNESS * (cosine[:, 0, 0] - COSINE)))
    by_cosine = -signs * STEEPNESS * wrong / signs.size
    by_all: Floats = by_cosine[:, None, None] * by_vectors
    return by_all


def train(client: Client, table: str, pairs: Pairs, passes: int, name: str) -> None:
    """Go over the pairs `passes` times in batches, a push for each; print the loss of each pass."""
    rng = np.random.default_rng(0)
    lsns = []
    for turn in range(1, passes + 1):
        lost = 0.0
        order = rng.permutation(len(pairs))
        for start in range(0, len(pairs), BATCH):
            batch = pairs[order[start : start + BATCH]]
            vectors = client.lookup(table, keys=batch.keys)
            lost += float(losses(vectors, batch.signs).sum())
            grads = gradients(vectors, batch.signs)
            lsns.append(client.apply_gradients(table, keys=batch.keys, grads=grads).lsn)
        if turn == 1 or turn % 5 == 0:
            print(f"{name}: pass {turn:2}, loss {lost / len(pairs):.3f}", flush=True)
    print(f"{name}: {len(lsns)} pushes, LSN {lsns[0]} to {lsns[-1]}", flush=True)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train a table of words by key.")
    parser.add_argument("url", help="the server's, http:// or grpc://")
    parser.add_argument("table")
    parser.add_argument("--share", default="1/1", help="which part of the pairs: 1/2 or 2/2")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--wait", action="store_true", help="say ready, and begin at end of input")
    given = parser.parse_args()
    number, count = map(int, given.share.split("/"))
    pairs = Pairs.read()[slice(number - 1, None, count)]
    with Client(given.url) as client:
        client.table(given.table)
        if given.wait:
            print("ready", flush=True)
            sys.stdin.read()
        train(client, given.table, pairs, given.passes, f"trainer {number} on {given.url}")


if __name__ == "__main__":
    main()
