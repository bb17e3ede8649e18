"""One server of two workers and a writer, with everything on that tells what it does."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gatherd_server.cli.top import Scrape
from support.server import RunningServer, run_cli, wait_until

ROWS = 1000
DIM = 8


@dataclass(frozen=True)
class Operated:
    server: RunningServer
    data_dir: Path
    log_path: Path
    config: Path

    def scrape(self) -> Scrape:
        reply = httpx.get(f"{self.server.http}/metrics")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        return Scrape.parse(reply.text, 0.0)

    def settled(self, condition: Callable[[Scrape], bool], what: str) -> Scrape:
        """A scrape that has it: other processes publish twice a second."""
        seen = self.scrape()

        def holds() -> bool:
            nonlocal seen
            seen = self.scrape()
            return condition(seen)

        wait_until(holds, what)
        return seen

    def records(self) -> list[dict[str, Any]]:
        """Every line of the log so far; all of them are JSON."""
        *lines, _ = self.log_path.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def logged(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if "message" in record]

    def spans(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if "context" in record]


# One server for each module: another module's last lookups may be published late, and counted here.
@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    folder = tmp_path_factory.mktemp("operated")
    data_dir, config = folder / "data", folder / "gatherd.toml"
    np.save(folder / "rows.npy", np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM))
    run_cli(
        "import", "items", folder / "rows.npy", "--optimizer", "sgd", "--data-dir", data_dir
    )  # fmt: skip
    config.write_text('log_level = "info"\n')
    with RunningServer(
        "--data-dir", data_dir, "--workers", "2", "--config", config, "--log-format", "json",
        "--traces", "console", "--checkpoint-seconds", "0.1", "--snapshot-dir", folder / "snaps",
        log_path=folder / "log",
    ) as server:  # fmt: skip
        yield Operated(server, data_dir, folder / "log", config)
