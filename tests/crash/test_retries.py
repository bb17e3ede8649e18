"""Retries of pushes: doubled, delayed and reordered on the way, or after all else has changed.

The table is as if each push came once, and each is answered as it first was. Values are whole
numbers, which float32 adds exactly in any order, so that NumPy alone is the judge.
"""

import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import VersionMismatch
from gatherd_proto.v1 import embedding_pb2
from support.proxy import MischievousProxy
from support.raw_updates import WIRES, Refused, raw_updates, request, sequence, update
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

THREADS, PUSHES, ROWS, DIM = 4, 40, 50, 8


@pytest.mark.timeout(180)
@pytest.mark.parametrize("workers", [1, 2])
def test_pushes_doubled_and_reordered_by_the_network_are_done_once(
    workers: int, tmp_path: Path
) -> None:
    drawn = [
        drawn_table(name, ROWS, DIM, optimizer="sgd", options={"lr": 0.5})
        for name in ("sums", "last")
    ]
    make_data_dir(tmp_path, *drawn)
    sums = np.zeros((ROWS, DIM), np.float32)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def push(client: Client, number: int) -> None:
        """Sums from everywhere, and a row of `last` that only this thread assigns."""
        rng = np.random.default_rng(number)
        try:
            for turn in range(PUSHES):
                ids = rng.integers(0, ROWS, 20)
                values = rng.integers(-9, 10, (20, DIM)).astype(np.float32)
                key = f"{number}/{turn}" if rng.random() < 0.5 else None
                if rng.random() < 0.5:
                    client.scatter_add("sums", ids, values, idempotency_key=key)
                    change = values
                else:
                    client.apply_gradients("sums", ids, values, idempotency_key=key)
                    change = values * np.float32(-0.5)
                with lock:
                    np.add.at(sums, ids, change)
                rows = np.full((1, DIM), turn + 1, np.float32)
                client.assign("last", [number], rows)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            failures.append(error)

    with RunningServer("--data-dir", tmp_path, "--workers", str(workers)) as server:
        address = urlsplit(server.http)
        assert address.hostname is not None
        assert address.port is not None
        with MischievousProxy((address.hostname, address.port), seed=workers) as proxy:
            clients = [Client(f"http://{proxy.address}", timeout=60, retries=50) for _ in range(2)]
            threads = [
                threading.Thread(target=push, args=(random.Random(i).choice(clients), i))
                for i in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for client in clients:
                client.close()
            proxy.settle()
        assert not failures, failures
        with Client(server.grpc) as reader:
            np.testing.assert_array_equal(reader.lookup("sums", np.arange(ROWS)), sums)
            last = reader.lookup("last", np.arange(THREADS))
        np.testing.assert_array_equal(last, np.full((THREADS, DIM), PUSHES, np.float32))
    _check_replies(proxy)
    print(f"\n{workers} workers: {dict(proxy.happened)}")
    assert all(proxy.happened[what] > 15 for what in ("pass", "lose", "mute", "double", "haunt"))


def _check_replies(proxy: MischievousProxy) -> None:
    """Every copy of a push was given the first one's answer; no other push the same LSN."""
    lsns: list[int] = []
    copies = 0
    for body, replies in proxy.replies.items():
        request = embedding_pb2.UpdateRequest.FromString(body)
        assert request.updates
        told = {embedding_pb2.UpdateResponse.FromString(reply).lsn for reply in replies}
        assert len(told) == 1, f"one push was given the LSNs {told}"
        lsns += told
        copies += len(replies) - 1
    assert len(set(lsns)) == len(lsns) == THREADS * PUSHES * 2
    assert copies > len(lsns) // 4


@dataclass(slots=True)
class Sent:
    """Pushes that were answered: the message, and the LSN and versions that it was told."""

    pushes: list[tuple[embedding_pb2.UpdateRequest, int, tuple[int, ...]]] = field(
        default_factory=list
    )

    def send(self, server: RunningServer, *messages: embedding_pb2.UpdateRequest) -> None:
        with raw_updates(server) as raw:
            for number, message in enumerate(messages):
                reply = raw.send(WIRES[number % len(WIRES)], "ScatterAdd", message)
                assert not isinstance(reply, Refused), reply
                self.pushes.append((message, reply.lsn, tuple(reply.versions)))

    def send_again(self, server: RunningServer) -> None:
        """Every push is told what it was told first, over every wire, and changes nothing."""
        with raw_updates(server) as raw, Client(server.http) as client:
            before = client.lookup("items", np.arange(ROWS))
            lsn = client.table("items").lsn
            for message, first_lsn, versions in self.pushes:
                for wire in WIRES:
                    reply = raw.send(wire, "ScatterAdd", message)
                    assert not isinstance(reply, Refused), reply
                    assert (reply.lsn, tuple(reply.versions)) == (first_lsn, versions)
            assert client.table("items").lsn == lsn
            np.testing.assert_array_equal(client.lookup("items", np.arange(ROWS)), before)


def test_a_retry_is_answered_as_at_first_whatever_was_published_and_restarted_since(
    tmp_path: Path,
) -> None:
    make_data_dir(tmp_path, drawn_table("items", ROWS, DIM))
    session = os.urandom(16)
    numbers = iter(range(1, 100))
    sent = Sent()

    def some(if_version: int) -> list[embedding_pb2.UpdateRequest]:
        """By a session and by a key, insisting on a version and not."""
        pushes: list[embedding_pb2.UpdateRequest] = []
        for fields in ({}, {"if_version": if_version}):
            for kind in ("session", "key"):
                number = next(numbers)
                one: Any = update("items", [number], np.ones((1, DIM)), **fields)
                if kind == "session":
                    pushes.append(request(one, sequence=sequence(session, number)))
                else:
                    pushes.append(request(one, idempotency_key=f"key-{number}"))
        return pushes

    with RunningServer("--data-dir", tmp_path, "--workers", "2") as server:
        with Client(server.http) as client:
            sent.send(server, *some(1))
            assert client.publish("items").version == 2
            sent.send_again(server)
            with pytest.raises(VersionMismatch):
                client.scatter_add("items", [0], np.ones((1, DIM)), if_version=1)
            sent.send(server, *some(2))
            assert client.rollback("items").version == 1
            sent.send_again(server)
            sent.send(server, *some(1))
        assert {versions for _, _, versions in sent.pushes} == {(1,), (2,)}
        server.kill()
    # From the log, and then from the checkpoint of a stop in good order.
    for _ in range(2):
        with RunningServer("--data-dir", tmp_path) as server:
            sent.send_again(server)
            assert server.stop() == 0
