"""Clients that offer HTTP/2 by an Upgrade with every first request: Java's HttpClient, and curl."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from proxies.conftest import Guarded
from proxies.running import Proxied, needs

SECONDS = 120.0
ROWS = slice(5, 7)


@pytest.fixture(params=["", "/ws"])
def place(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


def run(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=SECONDS).stdout


def assert_java_gets_its_rows(url: str, guarded: Guarded) -> None:
    source = Path(__file__).with_name("Lookup.java")
    lines = run("java", str(source), url, guarded.token).decode().splitlines()
    assert len(lines) == 10
    for octets, values in zip(lines[::2], lines[1::2], strict=True):
        assert octets == "200 " + guarded.rows[ROWS].tobytes().hex()
        status, _, body = values.partition(" ")
        assert status == "200"
        np.testing.assert_array_equal(json.loads(body)["vectors"], guarded.rows[ROWS])


@needs("java")
def test_java_asks_the_server(guarded: Guarded) -> None:
    assert_java_gets_its_rows(guarded.server.http, guarded)


@needs("java")
def test_java_asks_a_proxy(proxy: Proxied, guarded: Guarded, place: str) -> None:
    assert_java_gets_its_rows(proxy.http + place, guarded)


def assert_curl_gets_its_rows(url: str, guarded: Guarded, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(np.array([5, 6], np.int64).tobytes())
    url += "/v1/tables/items:lookup"
    curl = ("curl", "--silent", "--fail", "--http2", "-H", f"Authorization: Bearer {guarded.token}")
    octets = (
        "-H",
        "Content-Type: application/octet-stream",
        "-H",
        "Accept: application/octet-stream",
    )
    one = (*octets, "--data-binary", f"@{tmp_path / 'ids'}", url)
    # Two of them on one connection.
    assert run(*curl, *one, "--next", *curl[1:], *one) == guarded.rows[ROWS].tobytes() * 2
    body = run(*curl, "--json", '{"ids": [5, 6]}', url)
    np.testing.assert_array_equal(json.loads(body)["vectors"], guarded.rows[ROWS])
    chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue")
    assert run(*curl, *chunked, *one) == guarded.rows[ROWS].tobytes()


@needs("curl")
def test_curl_asks_the_server(guarded: Guarded, tmp_path: Path) -> None:
    assert_curl_gets_its_rows(guarded.server.http, guarded, tmp_path)


@needs("curl")
def test_curl_asks_a_proxy(proxy: Proxied, guarded: Guarded, place: str, tmp_path: Path) -> None:
    assert_curl_gets_its_rows(proxy.http + place, guarded, tmp_path)
