"""Clients that reach the server through an HTTP proxy, on every wire."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.clients import Awaited
from gatherd import Client
from gatherd.errors import InvalidArgument, Unavailable
from security.conftest import Certificates, Guarded
from support.server import RunningServer

EXPECTED = np.arange(8, 16, dtype=np.float32).reshape(2, 4)


class HttpProxy:
    """Forwards what it is asked for, by CONNECT or in absolute form; `seen` are request lines."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.authorizations: list[str | None] = []
        self.refusal: bytes | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.authority = "{}:{}".format(*self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += client.recv(65536)
            line, _, rest = data.partition(b"\r\n")
            method, target, _ = line.decode().split(" ")
            self.seen.append(f"{method} {target}")
            named = [h for h in rest.split(b"\r\n") if h.lower().startswith(b"proxy-authorization")]
            self.authorizations.append(named[0].decode().partition(": ")[2] if named else None)
            if self.refusal is not None:
                client.sendall(self.refusal)
                return
            host = target.removeprefix("http://").partition("/")[0]
            name, _, port = host.rpartition(":")
            with socket.create_connection((name.strip("[]"), int(port))) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    # One request a connection is enough here, and is told so.
                    path = target.removeprefix(f"http://{host}").encode()
                    kept = b"\r\n".join(
                        one for one in rest.split(b"\r\n")
                        if not one.lower().startswith(b"proxy-authorization")
                    )  # fmt: skip
                    head = method.encode() + b" " + path + b" HTTP/1.1\r\nConnection: close\r\n"
                    server.sendall(head + kept)
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()

    def close(self) -> None:
        self._listener.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpProxy]:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = HttpProxy()
    yield made
    made.close()


@pytest.fixture(scope="module")
def encrypted(data_dir: Path, certificates: Certificates, tmp_path_factory: Any) -> Iterator[Any]:
    cert, key = certificates.server
    options = ("--tls-cert", cert, "--tls-key", key, "--insecure")
    weights = data_dir / "tables/items/v000001/weights.npy"
    with RunningServer(f"items={weights}", *options) as server:
        yield server
        server.stop()


@contextmanager
def connected(make: Any, url: str, **options: Any) -> Iterator[Any]:
    with make(url, **options) as client:
        yield client


@pytest.mark.parametrize("make", [Client, Awaited])
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_lookups_go_through_the_proxy(
    guarded: Guarded, proxy: HttpProxy, make: Any, wire: str
) -> None:
    url = getattr(guarded.server, wire)
    token = guarded.tokens["reader"]
    with connected(make, url, token=token, proxy=f"http://{proxy.authority}") as client:
        for _ in range(3):
            np.testing.assert_array_equal(client.lookup("items", [2, 3]), EXPECTED)
    assert proxy.seen
    assert all(
        one.startswith("CONNECT" if wire == "grpc" else "POST http://") for one in proxy.seen
    )


@pytest.mark.parametrize("make", [Client, Awaited])
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_encrypted_lookups_go_through_a_tunnel(
    encrypted: RunningServer, certificates: Certificates, proxy: HttpProxy, make: Any, wire: str
) -> None:
    url = getattr(encrypted, wire)
    through = f"http://me:p%40ss@{proxy.authority}"
    with connected(make, url, ca=certificates.ca, proxy=through) as client:
        for _ in range(3):
            np.testing.assert_array_equal(client.lookup("items", [2, 3]), EXPECTED)
    assert {one.partition(" ")[0] for one in proxy.seen} == {"CONNECT"}
    assert set(proxy.authorizations) == {"Basic bWU6cEBzcw=="}


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_the_environment_says_which_proxy_when_it_is_asked(
    guarded: Guarded, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    url, token = getattr(guarded.server, wire), guarded.tokens["reader"]
    monkeypatch.setenv("http_proxy", f"http://{proxy.authority}")
    with Client(url, token=token) as client:
        client.lookup("items", [2, 3])
    assert not proxy.seen
    with Client(url, token=token, proxy="environment") as client:
        np.testing.assert_array_equal(client.lookup("items", [2, 3]), EXPECTED)
    assert len(proxy.seen) == 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Client(url, token=token, proxy="environment") as client:
        np.testing.assert_array_equal(client.lookup("items", [2, 3]), EXPECTED)
    assert len(proxy.seen) == 1


@pytest.mark.parametrize("make", [Client, Awaited])
def test_what_a_proxy_refuses_is_named(
    encrypted: RunningServer, certificates: Certificates, proxy: HttpProxy, make: Any
) -> None:
    proxy.refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    options = {"ca": certificates.ca, "proxy": proxy.authority, "retries": 0}
    with connected(make, encrypted.http, **options) as client:
        with pytest.raises(Unavailable, match=rf"proxy {proxy.authority}.* answered 407"):
            client.lookup("items", [2])
    proxy.close()


def test_a_proxy_that_is_not_there_is_named(guarded: Guarded) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(guarded.server.http, proxy=f"http://127.0.0.1:{port}", retries=0) as client:
        with pytest.raises(Unavailable, match=f"through the proxy 127.0.0.1:{port}"):
            client.tables()


@pytest.mark.parametrize(
    ("url", "proxy", "says"),
    [
        ("http://a", "socks5://b:1", "is a socks5:// URL; a proxy is http://"),
        ("http://a", "http://secret@", "names no host"),
        ("http://a", "http://b:99999", "can't be used"),
        ("http://a", 3, "not a int"),
        ("local:/data", "http://b", "no proxy"),
        ("unix:///run/x", "http://b", "no proxy"),
    ],
)
def test_a_proxy_that_cannot_be_one_is_refused(url: str, proxy: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as refused:
        Client(url, proxy=proxy)
    assert "secret" not in str(refused.value)
