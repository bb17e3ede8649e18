"""SIGHUP serves a file that was replaced by mv: no lookup is lost, none sees a mixture."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import GatherdError
from support.server import RunningServer, wait_until

ROWS, DIM = 4096, 16
TABLES = ("user", "item")
IDS = np.arange(0, ROWS, 16)
LOADERS = 4


@dataclass
class Replaced:
    """A server of two files whose every value is the number of their generation."""

    server: RunningServer
    folder: Path
    generation: int = 1

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def write(self, generation: int, *, rows: int = ROWS, dim: int = DIM) -> None:
        for name in TABLES:
            new = self.folder / f"new-{name}.npy"
            np.save(new, np.full((rows, dim), generation, np.float32))
            new.replace(self.folder / f"{name}.npy")

    def reload(self, expected: str) -> None:
        """SIGHUP; wait until the log has one more line with `expected`."""
        before = self.log.count(expected)
        os.kill(self.server.process.pid, signal.SIGHUP)
        wait_until(lambda: self.log.count(expected) > before, f"the log has {expected!r}")

    def replace(self) -> None:
        self.generation += 1
        self.write(self.generation)
        self.reload(f"version {self.generation}, {ROWS} x {DIM} float32, is live")

    def served(self) -> set[tuple[float, int]]:
        """The values and versions that fresh connections get, which go to either worker."""
        found = set()
        for _ in range(8):
            reply = httpx.post(f"{self.server.http}/v1/tables/user:lookup", json={"ids": [1]})
            answer = reply.json()
            found.add((answer["vectors"][0][0], answer["version"]))
        return found


@dataclass
class Load:
    """Lookups of both tables, over and over, each over a wire of its own."""

    seen: list[float] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, url: str) -> None:
        try:
            with Client(url) as client:
                while not self.stop.is_set():
                    both = client.lookup_many(dict.fromkeys(TABLES, IDS))
                    values = {float(value) for one in both.values() for value in np.unique(one)}
                    if len(values) != 1:
                        self.wrong.append(values)
                    self.seen.append(values.pop())
        except GatherdError as error:
            self.wrong.append(error)


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replaced]:
    folder = tmp_path_factory.mktemp("replaced")
    for name in TABLES:
        np.save(folder / f"{name}.npy", np.full((ROWS, DIM), 1, np.float32))
    files = [f"{name}={folder / f'{name}.npy'}" for name in TABLES]
    with RunningServer(*files, "--workers", "2", log_path=folder / "log") as server:
        yield Replaced(server, folder)


def test_lookups_go_on_while_files_are_replaced(replaced: Replaced) -> None:
    load = Load()
    urls = [replaced.server.http, replaced.server.grpc] * (LOADERS // 2)
    threads = [threading.Thread(target=load.run, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            looked_up = len(load.seen)
            wait_until(lambda seen=looked_up: len(load.seen) > seen + LOADERS, "lookups go on")  # type: ignore[misc]
            replaced.replace()
        wait_until(lambda: load.seen[-LOADERS:] == [replaced.generation] * LOADERS, "all see it")
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()
    assert load.wrong == []
    assert set(load.seen) == set(range(1, replaced.generation + 1))
    assert replaced.served() == {(replaced.generation, replaced.generation)}


def refused_files(replaced: Replaced) -> Iterator[tuple[str, str]]:
    """Leaves a bad file in the place of one, and gives the name and what the log has of it."""
    path = replaced.folder / "user.npy"
    whole = path.read_bytes()
    bad = replaced.folder / "bad"
    bad.write_bytes(whole[: len(whole) // 2])
    bad.replace(path)
    yield "truncated", "is truncated"
    bad.write_bytes(b"king 0.5 1.5\n")
    bad.replace(path)
    yield "text", "user.npy"
    np.save(bad.with_suffix(".npy"), np.zeros((ROWS, DIM + 1), np.float32))
    bad.with_suffix(".npy").replace(path)
    yield "dim", f"has dim {DIM}"


def test_a_bad_file_replaces_nothing_and_the_log_says_why(replaced: Replaced) -> None:
    served = replaced.served()
    # The other file is a good one, and stays out too: the two belong together.
    np.save(replaced.folder / "good.npy", np.full((ROWS, DIM), 99, np.float32))
    (replaced.folder / "good.npy").replace(replaced.folder / "item.npy")
    for name, why in refused_files(replaced):
        replaced.reload("no file is replaced")
        line = [one for one in replaced.log.splitlines() if "no file is replaced" in one][-1]
        assert why in line, name
        assert "ERROR" in line
        assert replaced.served() == served
        with Client(replaced.server.http) as client:
            assert client.lookup("item", [0])[0, 0] == replaced.generation
    metrics = httpx.get(f"{replaced.server.http}/metrics").text
    assert 'gatherd_reloads_total{outcome="refused"} 3' in metrics
    replaced.replace()
    assert replaced.served() == {(replaced.generation, replaced.generation)}


def test_files_that_are_the_same_or_gone_are_served_on(replaced: Replaced) -> None:
    (replaced.folder / "item.npy").unlink()
    replaced.reload("settings reloaded")
    # Handled in order: whatever the first one did to the files is in the log by now.
    replaced.reload("settings reloaded")
    assert replaced.served() == {(replaced.generation, replaced.generation)}
    with Client(replaced.server.http) as client:
        assert client.lookup("item", [0])[0, 0] == replaced.generation
    replaced.replace()


def test_a_restarted_worker_serves_what_the_others_serve(replaced: Replaced) -> None:
    replaced.replace()
    os.kill(replaced.server.worker_pids()[0], signal.SIGKILL)
    ready = "is ready"
    count = replaced.log.count(ready)
    wait_until(lambda: replaced.log.count(ready) > count, "the worker is back")
    assert replaced.served() == {(replaced.generation, replaced.generation)}
    replaced.replace()
    assert replaced.served() == {(replaced.generation, replaced.generation)}
