"""An http(s) source is read as it comes; what fails says what happened, and what to do about it."""

import gzip
import io
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from gatherd.errors import BadFile, InvalidArgument
from loaders.harness import run_import
from loaders.test_packed import zipped

TEXT = b"2 2\nking 1 2\nqueen 3 4\n"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Handler(BaseHTTPRequestHandler):
    """Answers /STATUS with that, and some other paths with what they say."""

    seen: list[tuple[str, str | None]]
    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = self.path
        self.seen.append((path, self.headers["Authorization"]))
        if path == "/short":
            self._answer(200, TEXT, length=len(TEXT) + 5)
        elif path == "/odd":
            self.wfile.write(b"\x00\x01 not http\r\n\r\n")
        elif path == "/closed":
            pass
        elif path.startswith("/to/"):
            self._answer(302, b"", location=path[4:])
        elif path.strip("/").isdigit():
            self._answer(int(path.strip("/")), b"<html>no</html>")
        else:
            name = path.rpartition("/")[2]
            self._answer(200 if name in self.files else 404, self.files.get(name, b""))

    def do_CONNECT(self) -> None:
        self.seen.append((self.path, None))
        self._answer(407, b"")

    def _answer(
        self, status: int, body: bytes, length: int | None = None, location: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location is not None:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Site:
    """A server of `files` on a port of its own."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.seen: list[tuple[str, str | None]] = []
        buffer = io.BytesIO()
        np.save(buffer, np.eye(3))
        self.files = {
            "v.txt": TEXT,
            "v.gz": gzip.compress(TEXT),
            "v.zip": zipped({"v": TEXT}),
            "a.npy": buffer.getvalue(),
            "keys": b"a\nb\nc\n",
        }
        members = {"seen": self.seen, "files": self.files}
        handler: Any = type("SiteHandler", (Handler,), members)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as one:
        yield one


def closed_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize("name", ["v.txt", "v.gz", "v.zip"])
def test_a_file_comes_in(tmp_path: Path, site: Site, name: str) -> None:
    done = run_import(tmp_path / "d", f"http://{site.address}/x%20y/{name}")
    assert done.keys == [b"king", b"queen"]
    assert site.seen == [(f"/x%20y/{name}", None)]


def test_keys_come_from_there_too(tmp_path: Path, site: Site) -> None:
    keys = f"http://{site.address}/keys"
    assert run_import(tmp_path / "d", f"http://{site.address}/a.npy", keys=keys).keys == [
        b"a", b"b", b"c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, r"400 Bad Request; the server takes the request for wrong"),
        (401, r"401 Unauthorized; the server wants to know who asks: https://USER:PASSWORD@"),
        (403, r"403 Forbidden; the server refuses it; is a signed address past its time"),
        (404, r"404 Not Found; there is nothing at this address"),
        (418, r"418 I'm a Teapot$"),
        (429, r"429 Too Many Requests; .* try again later"),
        (500, r"500 Internal Server Error; the server, or a proxy before it, fails; try again"),
        (503, r"503 Service Unavailable; the server, or a proxy before it, fails; try again"),
    ],
)
def test_a_status_is_told(tmp_path: Path, site: Site, status: int, message: str) -> None:
    uri = f"http://{site.address}/{status}"
    with pytest.raises(BadFile, match=f"^{re.escape(uri)} can't be fetched: {message}"):
        run_import(tmp_path / "d", uri)


def test_what_happens_before_an_answer_is_told(tmp_path: Path, site: Site) -> None:
    nowhere = closed_port()
    for uri, message in (
        (f"http://{nowhere}/v", f"{nowhere} refuses the connection: nothing listens there"),
        ("http://no.such.host.invalid/v", r"there is no host no\.such\.host\.invalid: "),
        (f"http://{site.address}/closed", f"{site.address} hangs up before it answers"),
        (f"http://{site.address}/odd", f"{site.address} answers with what isn't HTTP"),
        (f"https://{site.address}/v", f"{site.address} doesn't speak TLS as we do: .*http:// ad"),
        (f"http://{site.address}/to/ftp://x/v", "it leads to ftp:, which isn't followed from http"),
    ):
        with pytest.raises(BadFile, match=f"can't be fetched: {message}"):
            run_import(tmp_path / "d", uri)
    for uri in ("http://", "http:///v", "http://[::1/v", "http://h:x/v"):
        with pytest.raises(InvalidArgument, match="is no address"):
            run_import(tmp_path / "d", uri)


def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.remote.SILENCE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}/v"
        with pytest.raises(BadFile, match=r"says nothing for 0\.1 s"):
            run_import(tmp_path / "d", uri)


def test_an_answer_that_breaks_off_is_told(tmp_path: Path, site: Site) -> None:
    with pytest.raises(BadFile, match=rf"broke off after {len(TEXT)}( of {len(TEXT) + 5})? bytes"):
        run_import(tmp_path / "d", f"http://{site.address}/short")


def test_a_redirect_is_followed_and_a_password_stays(tmp_path: Path, site: Site) -> None:
    with Site() as other:
        target = f"http://{other.address}/v.txt"
        done = run_import(tmp_path / "d", f"http://me:p%40ss@{site.address}/to/{target}")
        assert done.keys == [b"king", b"queen"]
        assert site.seen[0][1] == "Basic bWU6cEBzcw=="
        assert other.seen == [("/v.txt", None)]
    with pytest.raises(BadFile) as caught:
        run_import(tmp_path / "d", f"http://me:p%40ss@{site.address}/403")
    assert "p%40ss" not in caught.value.message
    assert "p@ss" not in caught.value.message


def test_the_environments_proxy_is_used(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{site.address}")
    assert run_import(tmp_path / "d", "http://no.such.host.invalid/v.txt").table.row_count == 2
    assert site.seen == [("http://no.such.host.invalid/v.txt", None)]
    monkeypatch.setenv("https_proxy", f"http://{site.address}")
    with pytest.raises(BadFile, match=rf"the proxy {site.address} .* 407 .*; the proxy wants to k"):
        run_import(tmp_path / "d", "https://no.such.host.invalid/v.txt")
    dead = closed_port()
    monkeypatch.setenv("http_proxy", f"http://{dead}")
    with pytest.raises(BadFile, match=rf"the proxy {dead} \(of http_proxy .*refuses the connec"):
        run_import(tmp_path / "d", f"http://{site.address}/v.txt")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run_import(tmp_path / "d", f"http://{site.address}/v.txt").table.row_count == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_a_certificate_that_nobody_vouches_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with Site(context) as site:
        uri = f"https://{site.address}/v.txt"
        with pytest.raises(BadFile, match=r"the certificate of .* isn't trusted: .*SSL_CERT_FILE"):
            run_import(tmp_path / "d", uri)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert run_import(tmp_path / "d", uri).table.row_count == 2
        # A redirect to http would give the file to whoever is on the way.
        with Site() as plain, pytest.raises(BadFile, match="leads to http:, which isn't followed"):
            run_import(tmp_path / "d", f"https://{site.address}/to/http://{plain.address}/v.txt")
