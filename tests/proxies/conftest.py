"""One server that asks for tokens, and both proxies in front of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from proxies.running import Proxied, needs, proxied
from support.cli import invoke
from support.server import RunningServer


@dataclass(frozen=True)
class Guarded:
    server: RunningServer
    token: str
    rows: NDArray[np.float32]
    """Of the tables items, a file, and train, which takes updates."""


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("behind")
    rows = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    np.save(folder / "rows.npy", rows)
    invoke(
        "import", "train", folder / "rows.npy", "--optimizer", "sgd", "--data-dir", folder / "data"
    )
    tokens = folder / "tokens"
    token = invoke(
        "token", "user", "--tokens", tokens, "--scope", "read", "--scope", "update", "--table", "*"
    ).stdout.strip()
    with RunningServer(
        f"items={folder / 'rows.npy'}", "--data-dir", folder / "data", "--tokens", tokens,
        "--root-path", "/kept", log_path=folder / "log",
    ) as server:  # fmt: skip
        yield Guarded(server, token, rows)


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=needs(name)) for name in ("nginx", "haproxy")],
)
def proxy(
    request: pytest.FixtureRequest, guarded: Guarded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with proxied(request.param, folder, guarded.server.http, guarded.server.grpc) as running:
        yield running
