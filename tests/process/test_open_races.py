"""Over the wires, too, no reader gets another key's row: beside pushes that create and delete."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd import Client
from support.open_races import BATCH, KEPT, KEYS, judged
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

NAME, DIM, ROWS_MAX, CHANGED = "items", 32, 640, 96
# With those of tests/store/test_open_races.py, 10 million.
ROWS = 1_000_000
WAYS = ("http", "grpc", "local")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    make_data_dir(tmp_path / "data", drawn_table("other", 1, 1))
    with RunningServer("--data-dir", tmp_path / "data", "--workers", "1") as running:
        yield running


class Writer:
    """Deletes and creates rows without pause; the keys below KEPT stay."""

    def __init__(self, url: str) -> None:
        self._client = Client(url)
        init: dict[str, str | float] = {"name": "constant", "value": -1.0}
        self._client.create_table(NAME, dim=DIM, keys="int64", rows_max=ROWS_MAX, init=init)
        self._rng = np.random.default_rng(0)
        others = self._rng.permutation(np.arange(KEPT, KEYS))
        self._there, self._waiting = np.split(others, [ROWS_MAX - KEPT])
        self._put(np.concatenate([np.arange(KEPT), self._there]))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.created = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _put(self, numbers: NDArray[np.int64]) -> None:
        rows = np.repeat(numbers.astype(np.float32)[:, None], DIM, axis=1)
        self._client.assign(NAME, keys=numbers, rows=rows, create=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            gone, self._there = np.split(self._there, [CHANGED])
            come, self._waiting = np.split(self._waiting, [CHANGED])
            self._client.delete_rows(NAME, keys=gone)
            self._put(come)
            self._there = np.concatenate([self._there, come])
            self._waiting = np.concatenate([self._waiting, self._rng.permutation(gone)])
            self.created += come.size


def test_no_wire_gives_another_key_s_row(server: RunningServer, tmp_path: Path) -> None:
    urls = dict(zip(WAYS, (server.http, server.grpc, f"local:{tmp_path / 'data'}"), strict=True))
    rng = np.random.default_rng(1)
    with Writer(server.http) as writer:
        for way in WAYS:
            found, count, before = np.zeros(3, np.int64), 0, writer.created
            with Client(urls[way]) as client:
                while count < ROWS or writer.created < before + ROWS_MAX:
                    numbers = rng.integers(0, KEYS, BATCH)
                    numbers[::8] %= KEPT
                    vectors, status = client.lookup(
                        NAME, keys=numbers, missing="init", return_status=True
                    )
                    found += judged(numbers, vectors, status)
                    bags = client.lookup_bags(
                        NAME, keys=numbers, offsets=np.arange(BATCH), missing="init"
                    )
                    is_own = (bags == numbers[:, None]).all(axis=1) | (bags == -1).all(axis=1)
                    found[0] += np.count_nonzero(~is_own)
                    count += 2 * BATCH
            assert found[[0, 2]].tolist() == [0, 0], way
            assert found[1] > count // 20


def test_acknowledged_rows_are_found_while_the_index_grows(
    server: RunningServer, tmp_path: Path
) -> None:
    batch, batches = 5000, 24  # an index begins with 65,536 slots
    clients = [Client(url) for url in (server.http, server.grpc, f"local:{tmp_path / 'data'}")]
    clients[0].create_table("growing", dim=4, keys="string", rows_max=200_000)
    rng = np.random.default_rng(0)
    for begin in range(0, batch * batches, batch):
        numbers = np.arange(begin, begin + batch)
        rows = np.repeat(numbers.astype(np.float32)[:, None], 4, axis=1)
        keys = [f"key {i}" for i in numbers]
        clients[0].assign("growing", keys=keys, rows=rows, create=True)
        older = rng.integers(0, begin + batch, 1000)
        for client in clients:
            np.testing.assert_array_equal(client.lookup("growing", keys=keys), rows)
            found = client.lookup("growing", keys=[f"key {i}" for i in older])
            np.testing.assert_array_equal(found[:, 0], older)
    assert {client.table("growing").rows for client in clients} == {batch * batches}
    for client in clients:
        client.close()
