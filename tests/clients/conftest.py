"""One server with a keyed table, and the ways to it that lose an answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.losing_proxy import LosingProxy
from gatherd import Client
from support.cli import invoke
from support.server import RunningServer, wait_until

TABLE = "words"
KEYS = ["king", "queen", *(f"word{row}" for row in range(2, 40))]


@dataclass(frozen=True)
class Served:
    server: RunningServer
    token: str
    client: Client

    def rows(self, ids: list[int]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.client.lookup(TABLE, ids)
        return vectors

    def lsn(self) -> int:
        """Of the last update of the table."""
        return next(table.lsn for table in self.client.tables() if table.name == TABLE)

    @contextmanager
    def losing(self, wire: str, marker: str) -> Iterator[LosingProxy]:
        """A way to the port of `wire` that loses the answer to the update with `marker`."""
        url = urlsplit(self.server.grpc if wire == "grpc" else self.server.http)
        assert url.hostname is not None
        assert url.port is not None
        before = self.lsn()

        def landed() -> None:
            wait_until(lambda: self.lsn() > before, "the update is done")

        with LosingProxy((url.hostname, url.port), marker.encode(), landed) as proxy:
            yield proxy


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("clients")
    rows = np.random.default_rng(1).normal(size=(len(KEYS), 4)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    (folder / "keys.txt").write_text("\n".join(KEYS) + "\n")
    data = ("--data-dir", folder / "data")
    keyed = ("--keys", folder / "keys.txt")
    invoke("import", TABLE, folder / "rows.npy", *keyed, "--optimizer", "sgd", *data)
    tokens = folder / "tokens"
    scopes = ("--scope", "read", "--scope", "update")
    token = invoke("token", "user", "--tokens", tokens, *scopes, "--table", "*").stdout.strip()
    with RunningServer(
        *data, "--tokens", tokens, "--reflection", log_path=folder / "log"
    ) as server:
        with Client(server.http, token=token) as client:
            yield Served(server, token, client)
