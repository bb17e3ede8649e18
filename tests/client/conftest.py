"""A stand-in server on every wire, and both clients."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from client.clients import ITEMS, WORDS, Awaited
from client.fakes import FakeService, connect_server, grpc_server
from gatherd import Client


@pytest.fixture
def service() -> FakeService:
    keys: dict[str, list[Any]] = {
        "words": [b"word%d" % row for row in range(500)],
        "items": [row * 1000 - 7 for row in range(40)],
    }
    return FakeService({"words": WORDS, "items": ITEMS}, keys)


@pytest.fixture(params=["http", "unix", "grpc"])
def server(request: pytest.FixtureRequest, service: FakeService, tmp_path: Path) -> Iterator[str]:
    servers: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "http": lambda: connect_server(service),
        "unix": lambda: connect_server(service, tmp_path / "s.sock"),
        "grpc": lambda: grpc_server(service),
    }
    with servers[request.param]() as url:
        yield url


@pytest.fixture(params=[Client, Awaited], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param
