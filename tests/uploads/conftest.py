"""One server of two workers, and every kind of client that can upload to it."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gatherd import AsyncClient, Client
from support.server import RunningServer
from support.tables import make_data_dir

REQUEST_BYTES_MAX = 1 << 20
SURFACES = ("http", "grpc", "local", "async http", "async grpc")

Call = Callable[..., Any]


@dataclass(frozen=True)
class Uploading:
    """A server, its data dir, and the uploads that are in there."""

    server: RunningServer
    data_dir: Path

    def left(self) -> list[str]:
        """What is in staging: names of files of uploads that aren't committed, and of tables."""
        staging = self.data_dir / "staging"
        files = [path for path in staging.rglob("*") if path.is_file()]
        # Of a committed upload its answer is kept, for a commit that is sent again.
        done = {path.parent for path in files if path.name == "done.json"}
        return sorted(str(path.relative_to(staging)) for path in files if path.parent not in done)


@pytest.fixture(scope="session")
def uploading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploading]:
    data_dir = tmp_path_factory.mktemp("uploads") / "data"
    make_data_dir(data_dir)
    with RunningServer(
        *("--data-dir", data_dir, "--workers", "2"),
        *("--request-bytes-max", str(REQUEST_BYTES_MAX)),
        log_path=data_dir.with_name("log"),
    ) as server:
        yield Uploading(server, data_dir)


@pytest.fixture(scope="session", params=SURFACES)
def call(request: pytest.FixtureRequest, uploading: Uploading) -> Iterator[Call]:
    """Calls a client's method by its name; over each surface."""
    urls = {
        "http": uploading.server.http,
        "grpc": uploading.server.grpc,
        "local": f"local:{uploading.data_dir}",
    }
    *awaited, scheme = request.param.split()
    if not awaited:
        with Client(urls[scheme]) as client:
            yield lambda name, *args, **options: getattr(client, name)(*args, **options)
        return
    with asyncio.Runner() as runner:
        asynchronous = AsyncClient(urls[scheme])

        async def ask(name: str, *args: Any, **options: Any) -> Any:
            return await getattr(asynchronous, name)(*args, **options)

        yield lambda name, *args, **options: runner.run(ask(name, *args, **options))
        runner.run(asynchronous.aclose())


@pytest.fixture(scope="session")
def names() -> Iterator[str]:
    """Names that no table has."""
    return (f"table-{number}" for number in itertools.count())
