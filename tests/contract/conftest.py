"""One server with tables of every dtype, and every surface onto it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from contract.messages import Connect, Grpc, GrpcStream
from contract.rest import Rest
from contract.surfaces import AsyncSdk, MergedSdk, Surface, SyncSdk
from support.cli import invoke
from support.server import RunningServer

REQUEST_BYTES_MAX = 1 << 20
REPLY_BYTES_MAX = 1 << 20
IDS_MAX = 20_000


@dataclass(frozen=True)
class Oracle:
    """A table as NumPy has it: the rows as float32, or as float64 where the file does."""

    rows: NDArray[Any]
    default: NDArray[np.float32]


@dataclass(frozen=True)
class ServedTables:
    server: RunningServer
    asgi: RunningServer
    data_dir: Path
    socket: Path
    oracles: dict[str, Oracle]
    words: list[str]
    """The keys of table "words" in row order; one isn't UTF-8 (surrogateescape)."""
    items: NDArray[np.int64]
    """The keys of table "items" in row order."""


WORDS = ["king", "queen", "New York", "Zürich", "京都", "caf\udce9", "a", "the", "🌊", "x" * 1000]


def _mean(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows.astype(np.float32).mean(axis=0, dtype=np.float64), np.float32)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedTables]:
    folder = tmp_path_factory.mktemp("contract")
    rng = np.random.default_rng(20261121)
    arrays: dict[str, NDArray[Any]] = {
        "float32": rng.normal(size=(300, 24)).astype(np.float32),
        "float16": rng.normal(size=(129, 7)).astype(np.float16),
        "bfloat16": rng.normal(size=(1000, 5)).astype(ml_dtypes.bfloat16),
        "float64": rng.normal(size=(70_000, 3)),
        "one-row": rng.normal(size=(1, 1)).astype(np.float32),
        "no-rows": np.empty((0, 4), np.float32),
    }
    data_dir = folder / "data"
    for name, rows in arrays.items():
        path = folder / f"{name}.safetensors"
        # A second tensor before ours, of odd length, so that ours lies misaligned in the file.
        save_file({"a": np.zeros(3, np.int8), "rows": rows}, path)
        invoke("import", name, f"{path}#rows", "--data-dir", data_dir)
    defaults = {
        name: _mean(rows) if len(rows) else np.zeros(4, np.float32) for name, rows in arrays.items()
    }
    stored = rng.normal(size=24).astype(np.float32)
    np.save(folder / "default.npy", stored)
    np.save(folder / "float32.npy", arrays["float32"])
    invoke(
        "import", "stored-default", folder / "float32.npy",
        "--default-vector", folder / "default.npy", "--data-dir", data_dir,
    )  # fmt: skip
    arrays["stored-default"] = arrays["float32"]
    defaults["stored-default"] = stored
    oracles = {
        name: Oracle(rows if name == "float64" else rows.astype(np.float32), defaults[name])
        for name, rows in arrays.items()
    }
    words = rng.normal(size=(len(WORDS), 6)).astype(np.float32)
    lines = [
        b" ".join([word.encode("utf-8", "surrogateescape"), *(b"%.9g" % x for x in row)])
        for word, row in zip(WORDS, words.astype(float), strict=True)
    ]
    (folder / "words.txt").write_bytes(b"\n".join(lines) + b"\n")
    invoke("import", "words", folder / "words.txt", "--data-dir", data_dir)
    items = rng.normal(size=(500, 4)).astype(np.float32)
    item_keys = rng.permutation(np.arange(-250, 250)) * 2**53 + 7
    item_keys[1] = 2**62
    np.save(folder / "items.npy", items)
    np.save(folder / "item_keys.npy", item_keys)
    invoke(
        "import", "items", folder / "items.npy", "--keys", folder / "item_keys.npy",
        "--data-dir", data_dir,
    )  # fmt: skip
    oracles["words"] = Oracle(words, _mean(words))
    oracles["items"] = Oracle(items, _mean(items))
    socket = folder / "gatherd.sock"
    limits = (
        "--reflection",
        "--request-bytes-max", str(REQUEST_BYTES_MAX),
        "--reply-bytes-max", str(REPLY_BYTES_MAX),
        "--ids-max", str(IDS_MAX), "--tables-max", "4",
    )  # fmt: skip
    # Without the compiled answer, over HTTP through ASGI alone; a data dir has one server.
    twin = folder / "twin"
    shutil.copytree(data_dir, twin)
    with (
        RunningServer(
            "--data-dir", data_dir, "--unix", socket, "--workers", "2", *limits
        ) as server,
        RunningServer("--data-dir", twin, "--no-fast-path", *limits) as asgi,
    ):
        yield ServedTables(server, asgi, data_dir, socket, oracles, WORDS, item_keys)


SURFACES = (
    "sdk-http", "sdk-unix", "sdk-grpc", "sdk-local",
    "async-http", "async-unix", "async-grpc", "async-local",
    "sdk-dedup", "async-merged",
    "connect-proto", "connect-json", "grpc-stub", "grpc-stream",
    "rest-json", "rest-octets", "rest-npy",
    "sdk-http-asgi", "connect-proto-asgi", "rest-json-asgi", "grpc-stub-asgi",
)  # fmt: skip


def open_surface(name: str, server: RunningServer, data_dir: Path, socket: Path) -> Surface:
    urls = {
        "http": server.http,
        "unix": f"unix://{socket}",
        "grpc": server.grpc,
        "local": f"local:{data_dir}",
    }
    kind, which = name.split("-")[:2]
    match kind:
        case "sdk" if which == "dedup":
            return SyncSdk(name, server.http, dedup=True)
        case "async" if which == "merged":
            return MergedSdk(name, server.http)
        case "sdk":
            return SyncSdk(name, urls[which])
        case "async":
            return AsyncSdk(name, urls[which])
        case "connect":
            return Connect(server.http, which)
        case "rest":
            return Rest(server.http, which)
        case _:
            return (GrpcStream if which == "stream" else Grpc)(server.grpc)


@pytest.fixture(scope="session", params=SURFACES)
def surface(request: pytest.FixtureRequest, served: ServedTables) -> Iterator[Surface]:
    server = served.asgi if request.param.endswith("-asgi") else served.server
    opened = open_surface(request.param, server, served.data_dir, served.socket)
    yield opened
    opened.close()
