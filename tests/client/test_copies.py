"""Clients that are pickled, copied, forked, spawned, or used by one event loop after another."""

import asyncio
import copy
import gc
import multiprocessing
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.clients import WORDS
from client.fakes import FakeService, connect_server, grpc_server
from gatherd import AsyncClient, Batching, Client, ClientError, GatherdError
from support.error_classes import CLIENT_CLASSES


def ask(client: Any, answers: Any) -> None:
    """Run in another process."""
    try:
        if isinstance(client, AsyncClient):
            found = asyncio.run(_ask(client))
        else:
            found = client.lookup("words", [3, 4])
    except BaseException as error:  # noqa: BLE001 - sent to the parent
        answers.put(repr(error))
    else:
        answers.put(found)


async def _ask(client: AsyncClient) -> Any:
    return await client.lookup("words", [3, 4])


@pytest.mark.parametrize("cls", [Client, AsyncClient])
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_are_clients_of_their_own(cls: Any, again: Callable[[Any], Any]) -> None:
    with connect_server(FakeService({"words": WORDS})) as url:
        client = cls(url, timeout=3.5, batching=Batching(), token="t", headers={"X-A": "b"})

        async def run() -> None:
            made = again(client)
            assert type(made) is cls
            for one in (client, made):
                found = one.lookup("words", [1])
                found = await found if cls is AsyncClient else found
                np.testing.assert_array_equal(found, WORDS[[1]])
            await client.aclose() if cls is AsyncClient else client.close()
            found = made.lookup("words", [2])
            found = await found if cls is AsyncClient else found
            np.testing.assert_array_equal(found, WORDS[[2]])
            await made.aclose() if cls is AsyncClient else made.close()

        asyncio.run(run())


@pytest.mark.parametrize("start", ["spawn", "fork"])
@pytest.mark.parametrize("wire", ["http", "unix", "grpc"])
def test_a_client_goes_into_another_process(start: str, wire: str, tmp_path: Path) -> None:
    service = FakeService({"words": WORDS})
    servers: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "http": lambda: connect_server(service),
        "unix": lambda: connect_server(service, tmp_path / "s"),
        "grpc": lambda: grpc_server(service),
    }
    if (start, wire) == ("fork", "grpc"):
        pytest.skip("test_a_fork does it, without a gRPC server in the process that forks")
    processes: Any = multiprocessing.get_context(start)
    with servers[wire]() as url, Client(url) as client:
        client.lookup("words", [1])
        answers = processes.Queue()
        asked = [client, AsyncClient(url)]
        children = [processes.Process(target=ask, args=(one, answers)) for one in asked]
        for child in children:
            child.start()
        for _ in children:
            np.testing.assert_array_equal(answers.get(timeout=60), WORDS[[3, 4]])
        for child in children:
            child.join(30)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the loops' ends, not the client's
@pytest.mark.parametrize("wire", ["http", "unix", "grpc"])
@pytest.mark.parametrize("batching", [None, Batching()])
def test_one_event_loop_after_another(wire: str, batching: Batching | None, tmp_path: Path) -> None:
    service = FakeService({"words": WORDS})
    servers: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "http": lambda: connect_server(service),
        "unix": lambda: connect_server(service, tmp_path / "s"),
        "grpc": lambda: grpc_server(service),
    }
    with servers[wire]() as url:
        client = AsyncClient(url, batching=batching)
        for _ in range(3):
            np.testing.assert_array_equal(asyncio.run(_ask(client)), WORDS[[3, 4]])

        async def beside() -> None:
            await _ask(client)
            with pytest.raises(ClientError, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(_ask(client)))
            await client.aclose()

        asyncio.run(beside())
        gc.collect()


@pytest.mark.parametrize("cls", CLIENT_CLASSES)
def test_errors_come_back_from_other_processes(cls: type[GatherdError]) -> None:
    error = pickle.loads(pickle.dumps(cls("said", {"k": "v"})))
    assert type(error) is cls
    assert (error.message, error.metadata, str(error)) == ("said", {"k": "v"}, "said")
