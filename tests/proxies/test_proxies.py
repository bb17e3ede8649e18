"""What a client gets through nginx and HAProxy, set up as docs/proxies.md says."""

import contextlib
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import GatherdError, Unauthenticated
from proxies.conftest import Guarded
from proxies.running import BODY_BYTES_MAX, Proxied, connections_of, proxied
from support.server import RunningServer

LOOKUP = "/v1/tables/items:lookup"
OCTETS = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket"}
REQUESTS_BETWEEN = 6


def bearer(guarded: Guarded) -> dict[str, str]:
    return {"Authorization": f"Bearer {guarded.token}"}


def test_the_sdk_looks_up_and_pushes_on_kept_connections(proxy: Proxied, guarded: Guarded) -> None:
    port = urlsplit(guarded.server.http).port or 0
    before = connections_of(port)
    with Client(proxy.http, token=guarded.token) as client:
        for row in range(100):
            np.testing.assert_array_equal(client.lookup("items", [row]), guarded.rows[[row]])
        client.assign("train", [7], np.full((1, 4), 7, np.float32))
        np.testing.assert_array_equal(client.lookup("train", [7]), [[7] * 4])
        with pytest.raises(GatherdError, match="1000 rows"):
            client.lookup("items", [1000])
    # A connection each would be a hundred.
    assert connections_of(port) - before < 20


@pytest.mark.parametrize("prefix", ["prefix", "kept"])
def test_a_proxy_removes_a_prefix_or_keeps_the_servers_own(
    proxy: Proxied, guarded: Guarded, prefix: str
) -> None:
    with Client(f"{proxy.http}/{prefix}", token=guarded.token) as client:
        np.testing.assert_array_equal(client.lookup("items", [3, 4]), guarded.rows[3:5])
        assert {table.name for table in client.tables()} == {"items", "train"}
    with Client(f"{proxy.http}/{prefix}") as client, pytest.raises(Unauthenticated):
        client.lookup("items", [3])


def test_grpc_goes_through(proxy: Proxied, guarded: Guarded) -> None:
    with Client(proxy.grpc, token=guarded.token) as client:
        for row in range(20):
            np.testing.assert_array_equal(client.lookup("items", [row]), guarded.rows[[row]])
        client.assign("train", [8], np.full((1, 4), 8, np.float32))
        np.testing.assert_array_equal(client.lookup("train", [8]), [[8] * 4])
        many = np.arange(200_000) % 1000
        np.testing.assert_array_equal(client.lookup("items", many), guarded.rows[many])
    with Client(proxy.grpc) as client, pytest.raises(Unauthenticated):
        client.lookup("items", [3])


def test_bodies_are_bounded_by_whoever_is_asked_first(proxy: Proxied, guarded: Guarded) -> None:
    ids = np.zeros(BODY_BYTES_MAX // 8 + 1, np.int64).tobytes()
    with httpx.Client(headers={**bearer(guarded), **OCTETS}) as client:
        assert client.post(f"{proxy.http}/small{LOOKUP}", content=ids).status_code == 413
        assert client.post(f"{proxy.http}{LOOKUP}", content=ids).status_code == 200
        refused = client.post(f"{proxy.http}{LOOKUP}", content=bytes(33 << 20))
        assert refused.status_code == 413
        assert refused.json()["metadata"]["limit"] in ("request_bytes_max", "ids_max")
        assert client.post(f"{proxy.http}{LOOKUP}", content=bytes(8)).status_code == 200


def test_a_server_that_is_gone_is_unavailable(proxy: Proxied, guarded: Guarded) -> None:
    answer = httpx.post(f"{proxy.http}/dead{LOOKUP}", headers=bearer(guarded))
    assert answer.status_code in (502, 503)
    with Client(f"{proxy.http}/dead", token=guarded.token, timeout=2) as client:
        with pytest.raises(GatherdError) as failed:
            client.lookup("items", [1])
    assert "502" in str(failed.value) or "503" in str(failed.value)


@pytest.mark.parametrize("place", ["", "/ws"])
def test_an_upgrade_that_isnt_taken_is_ignored(
    proxy: Proxied, guarded: Guarded, place: str
) -> None:
    ids = np.array([5, 6], np.int64).tobytes()
    headers = {**bearer(guarded), **OCTETS, **UPGRADE}
    with httpx.Client(headers=headers) as client:
        for _ in range(20):
            answer = client.post(f"{proxy.http}{place}{LOOKUP}", content=ids)
            assert answer.status_code == 200
            assert answer.content == guarded.rows[5:7].tobytes()


def attacks() -> list[bytes]:
    """Requests without a token whose bodies are requests, should anybody read them so."""
    inner = (
        b"POST /v1/tables/items:lookup HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: 8\r\n\r\n" + bytes(8)
    )
    unfinished = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "
    long = b"\r\n" * (200 << 10) + unfinished
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    length, te = b"Content-Length: %d\r\n" % len(inner), b"Transfer-Encoding: chunked\r\n"
    upgrades = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
        b"",
    )
    framings = (
        (length, inner),
        (te, chunked),
        (length + te, chunked),
        (te + b"Content-Length: 3\r\n", chunked),
        (b"Transfer-Encoding:\x0bchunked\r\n" + length, inner),
        (b"Transfer-Encoding: xchunked\r\n" + length, inner),
        (b"Content-Length: 0\r\n" + length, inner),
        (b"Expect: 100-continue\r\n" + length, inner),
        (length, inner + b"\r\n\r\n" + inner),
        # Whoever comes next would end this one, and get its answer.
        (b"Content-Length: %d\r\n" % len(unfinished), unfinished),
        (te, b"%x\r\n%b\r\n0\r\n\r\n" % (len(unfinished), unfinished)),
        # A server reads these in several pieces.
        (b"Content-Length: %d\r\n" % len(long), long),
        (te, b"%x\r\n%b\r\n0\r\n\r\n" % (len(long), long)),
    )
    return [
        b"POST %b/v1/tables/items:lookup HTTP/1.1\r\nHost: x\r\n%b%b\r\n%b"
        % (place, upgrade, lines, body)
        for place in (b"", b"/ws")
        for upgrade in upgrades
        for lines, body in framings
    ]


def attack(url: str, data: bytes) -> None:
    """Send `data` and wait for an answer, if there is one."""
    parts = urlsplit(url)
    address = (str(parts.hostname), parts.port or 0)
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=0.2) as sock:
        sock.sendall(data)
        sock.recv(1 << 16)


@pytest.mark.parametrize("place", ["", "/ws"])
def test_nobody_is_answered_what_another_one_asked(
    proxy: Proxied, guarded: Guarded, place: str
) -> None:
    """Somebody without a token sends what may be read in two ways, among others' requests.

    A proxy takes the connection that was used last for the next request, whoever's it is.
    """
    with httpx.Client(headers={**bearer(guarded), **OCTETS}, timeout=20) as client:
        for number, data in enumerate(attacks()):
            attack(proxy.http, data)
            for row in range(number, number + REQUESTS_BETWEEN):
                ids = np.arange(row, row + row % 7 + 1)
                answer = client.post(f"{proxy.http}{place}{LOOKUP}", content=ids.tobytes())
                assert answer.status_code == 200, (answer.text, data)
                assert answer.content == guarded.rows[ids].tobytes(), data


def test_a_server_that_comes_back_is_found_again(
    proxy: Proxied, guarded: Guarded, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", guarded.rows)
    table = f"items={tmp_path / 'rows.npy'}"
    with RunningServer(table) as first:
        http, grpc = (urlsplit(url).netloc for url in (first.http, first.grpc))
        with proxied(proxy.name, tmp_path, first.http, first.grpc) as own:
            with Client(own.http, timeout=5) as client:
                np.testing.assert_array_equal(client.lookup("items", [1]), guarded.rows[[1]])
                first.kill()
                with pytest.raises(GatherdError):
                    client.lookup("items", [1])
                with RunningServer(table, "--http", http, "--grpc", grpc):
                    deadline = time.monotonic() + 20
                    while True:
                        try:
                            found = client.lookup("items", [2])
                            break
                        except GatherdError:
                            assert time.monotonic() < deadline
                    np.testing.assert_array_equal(found, guarded.rows[[2]])
