"""A URL whose scheme isn't what the port speaks is told the one that is; so is a missing ca."""

import asyncio
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gatherd import AsyncClient, Client
from gatherd.errors import FailedPrecondition, GatherdError, Unauthenticated
from security.conftest import Certificates, Guarded
from support.cli import invoke
from support.server import RunningServer


@dataclass(frozen=True)
class Servers:
    plain: RunningServer
    tls: RunningServer

    def url(self, scheme: str, server: str, port: str) -> str:
        found: str = getattr(getattr(self, server), port)
        return f"{scheme}://{found.partition('://')[2]}"


@pytest.fixture(scope="module")
def servers(certificates: Certificates, data_dir: Path) -> Iterator[Servers]:
    rows = data_dir.parent / "rows.npy"
    cert, key = certificates.server
    with (
        RunningServer(f"words={rows}") as plain,
        RunningServer(f"words={rows}", "--tls-cert", cert, "--tls-key", key) as tls,
    ):
        yield Servers(plain, tls)


def error_of(url: str, ca: Path | None, *, awaited: bool, retries: int = 0) -> GatherdError:
    async def ask() -> None:
        async with AsyncClient(url, ca=ca, timeout=20, retries=retries) as client:
            await client.lookup("words", [1])

    if awaited:
        with pytest.raises(GatherdError) as raised:
            asyncio.run(ask())
        return raised.value
    with Client(url, ca=ca, timeout=20, retries=retries) as client:
        with pytest.raises(GatherdError) as raised:
            client.lookup("words", [1])
        return raised.value


@pytest.mark.parametrize("awaited", [False, True], ids=["blocking", "awaited"])
@pytest.mark.parametrize(
    ("scheme", "server", "port", "right"),
    [
        ("http", "tls", "http", "https"),
        ("https", "plain", "http", "http"),
        ("grpc", "tls", "grpc", "grpcs"),
        ("grpcs", "plain", "grpc", "grpc"),
        ("http", "plain", "grpc", "grpc"),
        ("grpc", "plain", "http", "http"),
        ("grpcs", "tls", "http", "https"),
    ],
)
def test_the_right_scheme_is_named(
    servers: Servers,
    certificates: Certificates,
    scheme: str,
    server: str,
    port: str,
    right: str,
    awaited: bool,
) -> None:
    ca = certificates.ca if scheme in ("https", "grpcs") else None
    error = error_of(servers.url(scheme, server, port), ca, awaited=awaited)
    assert error.message.endswith(f"so the URL is {servers.url(right, server, port)}")


def test_the_right_scheme_is_still_named_after_several_tries(servers: Servers) -> None:
    url = servers.url("http", "tls", "http")
    assert "the port takes TLS" in error_of(url, None, awaited=False, retries=2).message


@pytest.mark.parametrize("awaited", [False, True], ids=["blocking", "awaited"])
@pytest.mark.parametrize(("scheme", "port"), [("https", "http"), ("grpcs", "grpc")])
def test_a_server_of_an_unknown_authority_asks_for_ca(
    servers: Servers, scheme: str, port: str, awaited: bool
) -> None:
    error = error_of(servers.url(scheme, "tls", port), None, awaited=awaited)
    assert isinstance(error, FailedPrecondition)
    assert "unable to get local issuer certificate" in error.message
    assert "by ca=FILE" in error.message


def test_commands_say_what_to_pass(
    servers: Servers, certificates: Certificates, guarded: Guarded
) -> None:
    wrong = ("lookup", "words", "1", "--url", servers.url("http", "tls", "http"))
    told = invoke(*wrong, check=False).stderr
    _, *proposed = shlex.split(told.partition("; type: ")[2])
    told = invoke(*proposed, check=False).stderr
    assert told.strip().endswith("--ca FILE")
    assert invoke(*proposed, "--ca", certificates.ca).stdout == "1: 4 5 6 7\n"
    done = invoke("ping", "--url", servers.url("http", "plain", "grpc"), check=False)
    assert done.returncode == 5
    assert "doesn't answer in HTTP/1.1; the port speaks gRPC" in done.stderr
    denied = invoke("top", "--once", "--url", guarded.server.http, check=False)
    assert denied.returncode == 5
    assert "`gatherd token NAME --scope metrics`" in denied.stderr
    denied = invoke("tables", "--url", guarded.server.http, check=False)
    assert denied.returncode == 5
    assert "--token-file FILE, or in GATHERD_TOKEN" in denied.stderr


def test_a_missing_token_says_what_to_pass(guarded: Guarded) -> None:
    with Client(guarded.server.http) as client, pytest.raises(Unauthenticated, match="token_file="):
        client.tables()
