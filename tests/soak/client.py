"""A client process of the soak: looks up and pushes until its standard input closes.

    python -m soak.client NUMBER URL

Each client changes rows of its own, so that it knows what they have to be: every push gives all
elements of a row the same number, and NumPy does the same. What it found is printed as JSON.
"""

import json
import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd import Client

DIM = 32
FIXED_ROWS = 50_000
KEYED_ROWS = 5_000
OWN_ROWS = 2_000
"""Rows of each table that a client changes and nobody else."""
AT_ONCE_MAX = 400
LR = np.float32(0.5)
PROBLEMS_MAX = 5
# Sums stay exact in float32, and so NumPy's, in whatever order.
TOTAL_MAX = 2.0**20


def fixed_rows() -> NDArray[np.float32]:
    """The rows of the tables that nobody changes: small whole numbers, so that sums are exact."""
    return np.random.default_rng(3).integers(-99, 100, (FIXED_ROWS, DIM)).astype(np.float32)


def key_of(row: int) -> bytes:
    """The key of a row of the keyed table."""
    return b"key-%d" % row


@dataclass(slots=True)
class Oracle:
    """The one number of each row that a client changes, by table."""

    ids: NDArray[np.int64]
    tables: dict[str, NDArray[np.float32]]
    squares: NDArray[np.float32]

    @classmethod
    def begin(cls, number: int) -> Self:
        """As the tables are made."""
        ids = np.arange(number * OWN_ROWS, (number + 1) * OWN_ROWS)
        zeros = {name: np.zeros(OWN_ROWS, np.float32) for name in ("added", "trained", "assigned")}
        return cls(ids, zeros, np.zeros(OWN_ROWS, np.float32))

    def to_json(self) -> dict[str, list[float]]:
        """What `from_json` reads."""
        return {name: values.tolist() for name, values in self.tables.items()}

    @classmethod
    def from_json(cls, number: int, document: dict[str, list[float]]) -> Self:
        """The tables, as the client left them."""
        oracle = cls.begin(number)
        oracle.tables = {name: np.array(v, np.float32) for name, v in document.items()}
        return oracle

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """What scatter_add does."""
        np.add.at(self.tables["added"], rows, values)

    def train(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """What one step of Adagrad does; its formula is in docs/optimizers.md."""
        total = np.zeros(OWN_ROWS, np.float32)
        np.add.at(total, rows, values)
        touched = np.unique(rows)
        grad = total[touched]
        self.squares[touched] += grad * grad
        step = LR * (grad / (np.sqrt(self.squares[touched]) + np.float32(1e-10)))
        self.tables["trained"][touched] -= step

    def assign(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """What assign does."""
        self.tables["assigned"][rows] = values


@dataclass(slots=True)
class Soaking:
    """One client's work, and what it saw."""

    number: int
    client: Client
    oracle: Oracle
    fixed: NDArray[np.float32] = field(default_factory=fixed_rows)
    problems: list[str] = field(default_factory=list)
    pushes: Counter[str] = field(default_factory=Counter)
    lookups: int = 0
    rows: int = 0

    def run(self, stop: threading.Event) -> None:
        """Look up and push until it is told to stop, or enough is wrong."""
        rng = np.random.default_rng(self.number)
        draw = random.Random(self.number)
        calls = (self._fixed, self._keyed, self._bags, self._own, self._many, self._switched)
        pushes = (self._add, self._train, self._assign)
        while not stop.is_set() and len(self.problems) < PROBLEMS_MAX:
            try:
                for _ in range(8):
                    draw.choice(calls)(rng)
                draw.choice(pushes)(rng)
            except Exception as error:  # noqa: BLE001 - any error is a failure of the soak
                self.problems.append(repr(error)[:500])

    def _same(self, what: str, found: Any, expected: Any) -> None:
        self.lookups += 1
        self.rows += len(found)
        if not np.array_equal(found, expected):
            self.problems.append(
                f"{what}: {int((found != expected).any(axis=-1).sum())} rows wrong"
            )

    def _fixed(self, rng: np.random.Generator) -> None:
        ids = rng.integers(0, FIXED_ROWS, int(rng.choice([1, 16, 512, 8_192])))
        self._same("fixed", self.client.lookup("fixed", ids), self.fixed[ids])

    def _keyed(self, rng: np.random.Generator) -> None:
        rows = rng.integers(0, KEYED_ROWS, int(rng.integers(1, 200)))
        found = self.client.lookup("keyed", keys=[key_of(row) for row in rows.tolist()])
        self._same("keyed", found, self.fixed[rows])

    def _bags(self, rng: np.random.Generator) -> None:
        lengths = rng.integers(1, 30, int(rng.integers(1, 100)))
        ids = rng.integers(0, FIXED_ROWS, int(lengths.sum()))
        offsets = np.cumsum(lengths) - lengths
        found = self.client.lookup_bags("fixed", ids, offsets, mode="sum")
        self._same("bags", found, np.add.reduceat(self.fixed[ids], offsets))

    def _own(self, rng: np.random.Generator) -> None:
        rows = rng.integers(0, OWN_ROWS, int(rng.integers(1, 1_000)))
        name = str(rng.choice(list(self.oracle.tables)))
        found = self.client.lookup(name, self.oracle.ids[rows])
        self._same(name, found, np.repeat(self.oracle.tables[name][rows, None], DIM, 1))

    def _many(self, rng: np.random.Generator) -> None:
        ids = rng.integers(0, KEYED_ROWS, 64)
        found = self.client.lookup_many({"fixed": ids, "keyed": ids[:5]})
        self._same("many", found["fixed"], self.fixed[ids])
        self._same("many", found["keyed"], self.fixed[ids[:5]])

    def _switched(self, rng: np.random.Generator) -> None:
        """Its versions change under it; nothing pushes to it, so that all are the same."""
        found = self.client.lookup("switched", rng.integers(0, 1_000, 50))
        self._same("switched", np.isfinite(found) & (abs(found) <= 0.05), np.ones((50, DIM), bool))

    def _drawn(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows = rng.integers(0, OWN_ROWS, int(rng.integers(1, AT_ONCE_MAX)))
        return rows, rng.integers(-3, 4, len(rows)).astype(np.float32)

    def _add(self, rng: np.random.Generator) -> None:
        rows, values = self._drawn(rng)
        if abs(self.oracle.tables["added"]).max() > TOTAL_MAX:
            return
        self.client.scatter_add("added", self.oracle.ids[rows], _wide(values))
        self.oracle.add(rows, values)
        self.pushes["scatter_add"] += 1

    def _train(self, rng: np.random.Generator) -> None:
        rows, values = self._drawn(rng)
        self.client.apply_gradients("trained", self.oracle.ids[rows], _wide(values))
        self.oracle.train(rows, values)
        self.pushes["apply_gradients"] += 1

    def _assign(self, rng: np.random.Generator) -> None:
        rows, values = self._drawn(rng)
        rows, first = np.unique(rows, return_index=True)
        self.client.assign("assigned", self.oracle.ids[rows], _wide(values[first]))
        self.oracle.assign(rows, values[first])
        self.pushes["assign"] += 1


def _wide(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.repeat(values[:, None], DIM, 1)


def main(number: int, url: str) -> int:
    """Soak until standard input closes."""
    stop = threading.Event()
    with Client(url, timeout=60) as client:
        soaking = Soaking(number, client, Oracle.begin(number))
        thread = threading.Thread(target=soaking.run, args=(stop,))
        thread.start()
        sys.stdin.read()
        stop.set()
        thread.join()
    document = {
        "lookups": soaking.lookups,
        "rows": soaking.rows,
        "pushes": soaking.pushes,
        "problems": soaking.problems,
        "oracle": soaking.oracle.to_json(),
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
