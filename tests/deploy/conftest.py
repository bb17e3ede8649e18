"""One server as docker-compose.yml has it: tokens, a data dir, a table that can be trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from support.cli import invoke
from support.server import RunningServer

ROWS = 100
DIM = 8
LR = 0.5


@dataclass(frozen=True)
class Deployed:
    server: RunningServer
    data_dir: Path
    scorer_token: Path
    useless_token: Path


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    data_dir, tokens = folder / "data", folder / "tokens"
    # An empty volume is where a deployment begins.
    data_dir.mkdir()
    rows = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    grants = {
        "scorer": ("--scope", "read", "--scope", "update", "--table", "words"),
        "useless": ("--scope", "metrics"),
    }
    for name, options in grants.items():
        invoke("token", name, *options, "--tokens", tokens, "--out", folder / name)
    with RunningServer("--data-dir", data_dir, "--tokens", tokens) as server:
        invoke(
            "import", "words", folder / "rows.npy", "--optimizer", "sgd", "--lr", str(LR),
            "--data-dir", data_dir,
        )  # fmt: skip
        yield Deployed(server, data_dir, folder / "scorer", folder / "useless")
        server.stop()
