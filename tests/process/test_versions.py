"""Servers and `local:` clients over a data dir that changes under them, at every request."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import TableNotFound, VersionNotFound
from support.publisher import DIM, ROWS, Publisher
from support.server import RunningServer, wait_until

IDS = np.arange(ROWS)
PUBLISHES = 25
# Each is a new connection: with so many, both workers answer some.
CONNECTIONS = 30


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = Publisher(tmp_path)
    publisher.publish(0, "a", "b")
    return publisher


@pytest.fixture
def server(publisher: Publisher) -> Iterator[RunningServer]:
    with RunningServer("--data-dir", publisher.path, "--workers", "2") as server:
        yield server


def urls(server: RunningServer, publisher: Publisher) -> list[str]:
    return [server.http, server.grpc, f"local:{publisher.path}"]


def values(client: Client, *names: str) -> list[float]:
    """The numbers that the tables' rows hold, all the same in a version, read in one request."""
    found = client.lookup_many(dict.fromkeys(names, IDS))
    for rows in found.values():
        assert rows.shape == (ROWS, DIM)
        assert rows.min() == rows.max()
    return [float(rows[0, 0]) for rows in found.values()]


def test_no_worker_answers_with_a_mixture_or_with_what_was_before(
    publisher: Publisher, server: RunningServer
) -> None:
    acknowledged = 0.0

    def follow(url: str) -> int:
        count = 0
        while (least := acknowledged) < PUBLISHES:
            with Client(url) as client:  # a new connection, so another worker
                a, b = values(client, "a", "b")
                assert a == b
                assert a >= least
                count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        followers = [pool.submit(follow, url) for url in urls(server, publisher)]
        try:
            for value in range(1, PUBLISHES + 1):
                publisher.publish(value, "a", "b", keep=2)
                acknowledged = value
        finally:
            acknowledged = PUBLISHES
        assert all(follower.result(60) for follower in followers)


def test_every_worker_follows_tables_that_come_go_and_go_back(
    publisher: Publisher, server: RunningServer
) -> None:
    def everywhere(check: Callable[[Client], None]) -> None:
        for url in urls(server, publisher):
            for _ in range(CONNECTIONS if url == server.http else 1):
                with Client(url) as client:
                    check(client)

    def new_is_there(client: Client) -> None:
        assert values(client, "a", "new") == [1, 7]
        assert [table.name for table in client.tables()] == ["a", "b", "new"]

    publisher.switch(a=publisher.stage("a", 1), new=publisher.stage("new", 7))
    everywhere(new_is_there)

    def a_is_back(client: Client) -> None:
        assert values(client, "a") == [0]
        np.testing.assert_array_equal(client.lookup("a", [[3]], version=2), np.ones((1, 1, DIM)))
        info = client.table("a")
        assert (info.version, info.versions) == (1, (1, 2))
        with pytest.raises(VersionNotFound, match="no version 3; it has 1, 2; version 1 is live"):
            client.lookup("a", [1], version=3)

    publisher.switch(a=1)
    everywhere(a_is_back)

    def new_is_gone(client: Client) -> None:
        with pytest.raises(TableNotFound, match="no table 'new'; there are: a, b"):
            client.lookup("new", [1])

    publisher.switch(new=None)
    everywhere(new_is_gone)

    def new_is_another(client: Client) -> None:
        assert values(client, "new", "a") == [8, 0]
        assert client.table("new").versions == (1,)

    publisher.publish(8, "new")
    everywhere(new_is_another)


def test_a_worker_that_comes_back_has_the_tables_of_now(
    publisher: Publisher, server: RunningServer
) -> None:
    before = server.worker_pids()
    publisher.publish(3, "a", "b")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not {*before} & {*server.worker_pids()}, "the workers were replaced")
    with Client(server.http, timeout=60) as client:
        assert values(client, "a", "b") == [3, 3]
        publisher.publish(4, "a", "b")
        assert values(client, "a", "b") == [4, 4]
