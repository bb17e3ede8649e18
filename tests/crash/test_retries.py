"""Retries of pushes, doubled, delayed and reordered on the way: the table is as if each came once.

Values are whole numbers, which float32 adds exactly in any order, so that NumPy alone is the judge.
"""

import random
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from gatherd import Client
from gatherd_proto.v1 import embedding_pb2
from support.proxy import MischievousProxy
from support.server import RunningServer, run_cli

THREADS, PUSHES, ROWS, DIM = 4, 60, 50, 8


@pytest.mark.timeout(180)
@pytest.mark.parametrize("workers", [1, 2])
def test_pushes_doubled_and_reordered_by_the_network_are_done_once(
    workers: int, tmp_path: Path
) -> None:
    for table in ("sums", "last"):
        run_cli(
            "create", table, "--rows", str(ROWS), "--dim", str(DIM), "--init", "zeros",
            "--optimizer", "sgd", "--lr", "0.5", "--data-dir", tmp_path,
        )  # fmt: skip
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
    assert all(proxy.happened[what] > 20 for what in ("pass", "lose", "mute", "double", "haunt"))


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
