"""Tokens, certificates and one server that asks for tokens."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from support.cli import invoke
from support.server import RunningServer

GRANTS = {
    "reader": ("--scope", "read", "--table", "items*"),
    "updater": ("--scope", "update", "--table", "items*"),
    "admin": ("--scope", "admin", "--table", "items*"),
    "other": ("--scope", "read", "--scope", "update", "--scope", "admin", "--table", "users"),
    "all": ("--scope", "read", "--scope", "update", "--scope", "admin", "--table", "*"),
    "metrics": ("--scope", "metrics"),
}


def make_token(tokens: Path, name: str, *options: str) -> str:
    return invoke("token", name, "--tokens", tokens, *options).stdout.strip()


@dataclass(frozen=True)
class Guarded:
    server: RunningServer
    tokens: dict[str, str]
    file: Path
    data_dir: Path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secured")
    np.save(folder / "rows.npy", np.arange(40, dtype=np.float32).reshape(10, 4))
    for name in ("items", "users"):
        invoke(
            "import", name, folder / "rows.npy", "--optimizer", "sgd",
            "--data-dir", folder / "data",
        )  # fmt: skip
    return folder / "data"


@pytest.fixture(scope="session")
def guarded(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens = {name: make_token(file, name, *options) for name, options in GRANTS.items()}
    with RunningServer("--data-dir", data_dir, "--tokens", file, "--reflection") as server:
        yield Guarded(server, tokens, file, data_dir)
        server.stop()


@dataclass(frozen=True)
class Certificates:
    """PEM files: two authorities, and pairs of certificate and key signed by the first."""

    ca: Path
    other_ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    stranger: tuple[Path, Path]
    """Signed by the other authority."""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ca, ca_key = _authority(folder, "ca")
    other, other_key = _authority(folder, "other")
    return Certificates(
        ca,
        other,
        _signed(folder, "server", ca, ca_key),
        _signed(folder, "client", ca, ca_key),
        _signed(folder, "stranger", other, other_key),
    )


def _authority(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", cert)  # fmt: skip
    return cert, key


def _signed(folder: Path, name: str, ca: Path, ca_key: Path) -> tuple[Path, Path]:
    cert, key, request = (folder / f"{name}.{suffix}" for suffix in ("pem", "key", "csr"))
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-subj", f"/CN={name}", "-keyout", key, "-out", request)  # fmt: skip
    _openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial",
             "-days", "2", "-extfile", extensions, "-out", cert)  # fmt: skip
    return cert, key


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
