"""The HTTP app in this process, asked through ASGI or through a real web server."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gatherd_server.http.app import create_app
from support.small_engine import SmallEngine, small_engine
from support.training_engine import Training, training
from support.web_server import Served, Twins, web_server


class AppClient:
    """Asks an ASGI app, each request to its end."""

    def __init__(self, app: Any, runner: asyncio.Runner) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://gatherd.test"
        )
        self._runner = runner

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self.requested(method, path, **options))

    async def requested(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer, to be awaited in the runner's loop."""
        return await self._client.request(method, path, **options)

    def close(self) -> None:
        self._runner.run(self._client.aclose())


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    served = small_engine(tmp_path_factory.mktemp("twins"))
    with web_server(served) as fast, web_server(served, is_fast=False) as asgi:
        yield Twins(fast, asgi, served)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def make_client(runner: asyncio.Runner) -> Iterator[Callable[[Served], AppClient]]:
    made: list[AppClient] = []

    def make(served: Served) -> AppClient:
        made.append(AppClient(create_app(served.engine, served.admission, served.offload), runner))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="session")
def ask(make_client: Callable[[Served], AppClient], small: SmallEngine) -> AppClient:
    return make_client(small)


@pytest.fixture
def narrow(
    make_client: Callable[[Served], AppClient], tmp_path: Path
) -> Callable[..., tuple[AppClient, SmallEngine]]:
    """A client of a server with other limits."""

    def make(**limits: int) -> tuple[AppClient, SmallEngine]:
        small = small_engine(tmp_path, **limits)
        return make_client(small), small

    return make


@pytest.fixture
def trained() -> Training:
    return training()


@pytest.fixture
def train(make_client: Callable[[Served], AppClient], trained: Training) -> AppClient:
    """Asks a server whose tables take updates."""
    return make_client(trained)


@pytest.fixture(scope="session")
def url(small: SmallEngine) -> Iterator[str]:
    """Where a real web server answers."""
    with web_server(small) as url:
        yield url


@pytest.fixture
def trained_url(trained: Training) -> Iterator[str]:
    """Where a real web server answers whose tables take updates."""
    with web_server(trained) as url:
        yield url
