"""What a server with tokens does besides: reload, limits, refusals to start, Unix sockets, logs."""

import json
import re
import socket
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from gatherd import AsyncClient, Client
from gatherd.errors import (
    GatherdError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
)
from security.conftest import Certificates, Guarded, make_token
from support.cli import invoke
from support.server import RunningServer, run_cli, wait_until
from support.small_engine import lookup_request

LOOKUP = "/gatherd.v1.EmbeddingService/Lookup"


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_the_sdk_shows_its_token(wire: str, guarded: Guarded) -> None:
    url = getattr(guarded.server, wire)
    with Client(url, token=guarded.tokens["reader"]) as client:
        for _ in range(3):  # the later ones are foreseen
            np.testing.assert_array_equal(client.lookup("items", [1]), [[4, 5, 6, 7]])
        with pytest.raises(PermissionDenied, match="isn't for table 'users'") as denied:
            client.lookup("users", [1])
        assert denied.value.metadata["table"] == "users"
        with pytest.raises(PermissionDenied, match="scope update"):
            client.assign("items", [1], np.zeros((1, 4), np.float32))
    for wrong in (None, "wrong"):
        with Client(url, token=wrong) as client, pytest.raises(Unauthenticated):
            client.lookup("items", [1])


async def _looked_up(url: str, token: str) -> object:
    async with AsyncClient(url, token=token) as client:
        await client.lookup("items", [1])
        return (await client.lookup("items", [1])).tolist()


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_the_awaited_sdk_shows_its_token(wire: str, guarded: Guarded) -> None:
    import asyncio

    url = getattr(guarded.server, wire)
    assert asyncio.run(_looked_up(url, guarded.tokens["reader"])) == [[4, 5, 6, 7]]
    with pytest.raises(Unauthenticated):
        asyncio.run(_looked_up(url, "wrong"))


def test_a_revoked_token_ends_on_open_connections_and_a_renewed_file_is_read(
    guarded: Guarded, tmp_path: Path
) -> None:
    first = make_token(guarded.file, "brief", "--scope", "read", "--table", "items")
    (tmp_path / "token").write_text(first + "\n")
    for url in (guarded.server.http, guarded.server.grpc):
        with Client(url, token_file=tmp_path / "token") as client:
            wait_until(partial(_is_known, client), "the token is known", 10)
    with (
        Client(guarded.server.http, token=first) as kept,
        Client(guarded.server.http, token_file=tmp_path / "token") as renewing,
    ):
        for _ in range(3):
            kept.lookup("items", [1])
            renewing.lookup("items", [1])
        invoke("token", "brief", "--revoke", "--tokens", guarded.file)
        wait_until(lambda: not _is_known(kept), "the token is revoked", 10)
        second = make_token(guarded.file, "briefer", "--scope", "read", "--table", "items")
        (tmp_path / "token").write_text(second + "\n")
        wait_until(lambda: _is_known(renewing), "the new token is known", 10)
        assert not _is_known(kept)
    # What is wrong in the file changes nothing.
    good = guarded.file.read_text()
    guarded.file.write_text(good + "nonsense\n")
    with Client(guarded.server.http, token=guarded.tokens["reader"]) as client:
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            client.lookup("items", [1])
    guarded.file.write_text(good)


def _is_known(client: Client) -> bool:
    try:
        client.lookup("items", [1])
    except Unauthenticated:
        return False
    return True


def test_a_token_has_as_many_requests_a_second_as_it_is_for(guarded: Guarded) -> None:
    token = make_token(guarded.file, "slow", "--scope", "read", "--table", "items", "--rate", "0.5")
    with Client(guarded.server.http, token=token) as client:
        wait_until(lambda: _is_known_or_full(client), "the token is known", 10)
    for url in (guarded.server.http, guarded.server.grpc):
        with Client(url, token=token, retries=0) as client, pytest.raises(Overloaded) as full:
            client.lookup("items", [1])
        assert (full.value.metadata["limit"], full.value.metadata["max"]) == ("rate", "0.5")
        assert 0 < (full.value.retry_after_seconds or 0) <= 2
    given = {"Authorization": f"Bearer {token}"}
    response = httpx.get(f"{guarded.server.http}/v1/tables", headers=given)
    assert response.status_code == 429
    assert response.headers["retry-after"] in ("1", "2")
    # Others aren't held back.
    with Client(guarded.server.http, token=guarded.tokens["reader"]) as client:
        client.lookup("items", [1])


def _is_known_or_full(client: Client) -> bool:
    try:
        return _is_known(client)
    except Overloaded:
        return True


def test_a_tokens_requests_beyond_its_concurrency_are_refused_and_none_waits(
    guarded: Guarded,
) -> None:
    options = ("--scope", "read", "--table", "items", "--concurrency", "1")
    token = make_token(guarded.file, "single", *options)
    with Client(guarded.server.http, token=token) as client:
        wait_until(lambda: _is_known(client), "the token is known", 10)
    body = lookup_request("items", [1]).SerializeToString()
    given = {"Authorization": f"Bearer {token}", "Content-Type": "application/proto"}
    head = [f"POST {LOOKUP} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in given.items()]
    parts = urlsplit(guarded.server.http)

    def is_full() -> bool:
        return httpx.post(guarded.server.http + LOOKUP, content=body, headers=given).is_error

    with socket.create_connection((str(parts.hostname), int(parts.port or 0))) as sock:
        sock.sendall("\r\n".join([*head, "", ""]).encode() + body[:-1])
        wait_until(is_full, "its only place is taken", 10)
        for path in (LOOKUP, "/v1/tables/items:lookup"):  # on the fast path, and past it
            response = httpx.post(guarded.server.http + path, content=body, headers=given)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
        with (
            Client(guarded.server.grpc, token=token, retries=0) as client,
            pytest.raises(Overloaded) as full,
        ):
            client.lookup("items", [1])
        metadata = full.value.metadata
        assert (metadata["limit"], metadata["max"]) == ("concurrency", "1")
        assert full.value.retry_after_seconds == 1
        with Client(guarded.server.http, token=guarded.tokens["reader"]) as client:
            client.lookup("items", [1])
        sock.sendall(body[-1:])
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    told = _metrics(guarded)
    assert told['gatherd_shed_requests_total{limit="token_concurrency"}'] >= 3


def test_who_is_refused_is_counted_on_every_wire(guarded: Guarded) -> None:
    counts = [
        f'gatherd_requests_total{{wire="{wire}",procedure="Lookup",code="unauthenticated"}}'
        for wire in ("connect", "grpc")
    ]
    before = _metrics(guarded)
    for url in (guarded.server.http, guarded.server.grpc):
        with Client(url, token="wrong") as client, pytest.raises(Unauthenticated):
            client.lookup("items", [1])
    after = _metrics(guarded)
    assert [after[one] - before.get(one, 0) for one in counts] == [1, 1]


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_lookup_that_one_token_repeats_is_no_others(wire: str, guarded: Guarded) -> None:
    """Repeated lookups are answered from what was found out before."""
    url = getattr(guarded.server, wire)
    given = {"wire": "connect" if wire == "http" else "grpc", "procedure": "Lookup", "code": "ok"}
    labels = ",".join(f'{name}="{value}"' for name, value in given.items())
    requests = f"gatherd_requests_total{{{labels}}}"
    lookups, rows = (
        f'gatherd_table_{what}_total{{table="items"}}' for what in ("lookups", "lookup_rows")
    )
    before = _metrics(guarded)
    with Client(url, token=guarded.tokens["reader"]) as reader:
        for turn in range(5):
            found = reader.lookup("items", [turn, 1])
            assert found.tolist() == [[4 * turn + i for i in range(4)], [4, 5, 6, 7]]
        for other in ("other", "updater", "admin", "metrics"):
            with (
                Client(url, token=guarded.tokens[other]) as client,
                pytest.raises(PermissionDenied),
            ):
                client.lookup("items", [0, 1])
        with Client(url, token="wrong") as client, pytest.raises(Unauthenticated):
            client.lookup("items", [0, 1])
        reader.lookup("items", [0, 1])
    after = _metrics(guarded)
    assert [after[one] - before.get(one, 0) for one in (requests, lookups, rows)] == [6, 6, 12]


def _metrics(guarded: Guarded) -> dict[str, float]:
    given = {"Authorization": f"Bearer {guarded.tokens['metrics']}"}
    text = httpx.get(f"{guarded.server.http}/metrics", headers=given).text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in lines}


def test_a_servers_own_sockets_are_for_who_may_open_them(guarded: Guarded) -> None:
    for name, mode in (("server.sock", 0o660), ("writer.sock", 0o600)):
        path = guarded.data_dir / name
        if path.exists():  # one worker has its writer in it
            assert path.stat().st_mode & 0o777 == mode
    with Client(f"unix://{guarded.data_dir}/server.sock") as client:
        assert {table.name for table in client.tables()} == {"items", "users"}
    # A token is held to all the same.
    with Client(f"unix://{guarded.data_dir}/server.sock", token=guarded.tokens["reader"]) as client:
        assert [table.name for table in client.tables()] == ["items"]


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_an_address_that_others_reach_takes_tokens(option: str, data_dir: Path) -> None:
    other = "--grpc" if option == "--http" else "--http"
    done = run_cli(
        "serve", f"words={data_dir.parent}/rows.npy", option, "0.0.0.0:0", other, "127.0.0.1:0",
        check=False,
    )  # fmt: skip
    assert done.returncode > 1
    assert f"{option} 0.0.0.0 is reached from other machines" in done.stderr
    assert "--tokens" in done.stderr
    assert "--insecure" in done.stderr


def test_on_loopback_pages_of_other_sites_change_nothing(data_dir: Path) -> None:
    rows = data_dir.parent / "rows.npy"
    with RunningServer(f"words={rows}", "--http", "0.0.0.0:0", "--insecure") as server:
        url = server.http.replace("0.0.0.0", "127.0.0.1")
        theirs = {"Origin": "https://example.com"}
        response = httpx.post(f"{url}/v1/tables/words:publish", headers=theirs)
        assert response.status_code == 403
        own = {"Origin": url}
        response = httpx.post(f"{url}/v1/tables/words:publish", headers=own)
        assert response.json()["reason"] == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{}", "sha256"),
        ("[]", "isn't a JSON object"),
        ('{"name": "a", "colour": 1}', "'colour' is no field"),
        (json.dumps({"name": "a", "sha256": "0" * 64, "scopes": ["x"], "tables": ["*"]}), "scope"),
        (json.dumps({"name": "a", "sha256": "0" * 64, "scopes": ["read"], "tables": []}), "tables"),
        (
            json.dumps({"name": "a", "sha256": "0" * 64, "scopes": ["read"], "tables": ["../x"]}),
            "pattern",
        ),
    ],
)
def test_a_wrong_line_is_named_at_the_start(line: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# tokens\n{line}\n")
    done = invoke(
        "serve", "a=b.npy", "--tokens", tmp_path / "tokens",
        "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", check=False,
    )  # fmt: skip
    assert done.returncode > 1
    assert "line 2" in done.stderr
    assert why in done.stderr


def test_a_file_that_anybody_writes_isnt_taken(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    make_token(tokens, "one", "--scope", "read", "--table", "*")
    tokens.chmod(0o666)
    done = invoke("serve", "a=b.npy", "--tokens", tokens, check=False)
    assert "can be written by everybody" in done.stderr


def test_a_token_is_kept_as_a_hash_alone(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    token = make_token(tokens, "one", "--scope", "read", "--table", "*", "--concurrency", "3")
    assert token.startswith("gatherd_")
    assert token.removeprefix("gatherd_") not in tokens.read_text()
    assert tokens.stat().st_mode & 0o777 == 0o600
    invoke("token", "two", "--tokens", tokens, "--scope", "metrics", "--out", tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o400
    assert len((tmp_path / "out").read_text()) == len(token) + 1
    assert "two" in tokens.read_text()
    taken = invoke("token", "two", "--tokens", tokens, "--scope", "metrics", check=False)
    assert "there is a token 'two'" in taken.stderr
    invoke("token", "one", "--tokens", tokens, "--revoke")
    assert "one" not in tokens.read_text()


@pytest.mark.parametrize("name", ["../out", "a/b", "/etc", "..", "x" * 200])
def test_names_of_snapshots_and_staged_folders_are_no_paths(name: str, guarded: Guarded) -> None:
    given = {"Authorization": f"Bearer {guarded.tokens['all']}"}
    with httpx.Client(base_url=guarded.server.http, headers=given) as http:
        for path, body in (
            ("/v1/snapshots", {"name": name}),
            ("/v1/tables", {"name": "new", "staged": name}),
            ("/v1/tables/items:publish", {"staged": name}),
            ("/v1/tables", {"name": name, "rows": 1, "dim": 1}),
        ):
            response = http.post(path, json=body)
            assert response.status_code in (400, 404, 422), (path, response.text)
            assert "INVALID_ARGUMENT" in response.text or "NOT_FOUND" in response.text


def test_nothing_secret_is_logged(data_dir: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    token = make_token(tokens, "one", "--scope", "read", "--table", "words")
    rows = data_dir.parent / "rows.npy"
    with RunningServer(
        *(f"words={rows}", "--tokens", tokens, "--log-level", "debug", "--log-format", "json"),
        log_path=tmp_path / "log",
    ) as server:
        for url in (server.http, server.grpc):
            with Client(url, token=token) as client:
                client.lookup("words", [1])
                with pytest.raises(GatherdError):
                    client.lookup("words", keys=["KEY-THAT-IS-SECRET"])
                with pytest.raises(PermissionDenied):
                    client.lookup("others", [1])
            with Client(url, token="TOKEN-THAT-IS-WRONG") as client:
                with pytest.raises(Unauthenticated):
                    client.lookup("words", [1])
        body = b'{"ids": ["BODY-THAT-IS-SECRET"]}'
        for given in (token, "TOKEN-THAT-IS-WRONG"):
            headers = {"Authorization": f"Bearer {given}", "Content-Type": "application/json"}
            httpx.post(f"{server.http}/v1/tables/words:lookup", content=body, headers=headers)
            octets = {**headers, "Content-Type": "application/octet-stream"}
            httpx.post(f"{server.http}/v1/tables/words:lookup", content=body, headers=octets)
        parts = urlsplit(server.http)
        with socket.create_connection((str(parts.hostname), int(parts.port or 0))) as sock:
            sock.sendall(f"NONSENSE {token}\r\nAuthorization {token}\r\n\r\n".encode())
            sock.recv(1 << 16)
        server.stop()
    # It is a log that tells of each of them.
    assert len(re.findall(r'"code": "unauthenticated"', server.log)) >= 4
    for shown in (token, token.removeprefix("gatherd_"), "THAT-IS-WRONG", "THAT-IS-SECRET"):
        assert shown not in server.log


def test_commands_show_the_token_of_the_environment_or_a_file(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = guarded.server.http
    denied = invoke("lookup", "items", "1", "--url", url, check=False)
    assert "takes a token" in denied.stderr
    (tmp_path / "token").write_text(guarded.tokens["reader"])
    shown = invoke("lookup", "items", "1", "--url", url, "--token-file", tmp_path / "token")
    assert shown.stdout == "1: 4 5 6 7\n"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://a", {"token": "a b"}),
        ("http://a", {"token": "a\r\nX: y"}),
        ("http://a", {"token": ""}),
        ("http://a", {"token": "a", "token_file": "b"}),
        ("http://a", {"ca": "x"}),
        ("grpc://a", {"cert": ("x", "y")}),
        ("local:/a", {"token": "a"}),
        ("https://a", {"ca": "/nowhere"}),
        ("grpcs://a", {"ca": "/nowhere"}),
        ("http://a", {"token_file": "/nowhere"}),
    ],
)
def test_what_cant_be_shown_is_refused(url: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Client(url, **options)  # type: ignore[arg-type]
    assert "a b" not in str(raised.value)


@pytest.mark.parametrize("is_mutual", [False, True])
def test_both_ports_are_encrypted(
    is_mutual: bool, certificates: Certificates, data_dir: Path, tmp_path: Path
) -> None:
    cert, key = certificates.server
    rows = data_dir.parent / "rows.npy"
    options: list[str | Path] = ["--tls-cert", cert, "--tls-key", key]
    if is_mutual:
        options += ["--tls-client-ca", certificates.ca]
    with RunningServer(f"words={rows}", *options, "--unix", tmp_path / "sock") as server:
        assert server.http.startswith("https://")
        assert server.grpc.startswith("grpcs://")
        with Client(f"unix://{tmp_path}/sock") as client:
            assert client.lookup("words", [1]).tolist() == [[4, 5, 6, 7]]
        for url in (server.http, server.grpc):
            _check_tls(url, certificates, is_mutual)


def _check_tls(url: str, certificates: Certificates, is_mutual: bool) -> None:
    import asyncio

    own = certificates.client if is_mutual else None
    with Client(url, ca=certificates.ca, cert=own) as client:
        for _ in range(2):
            assert client.lookup("words", [1]).tolist() == [[4, 5, 6, 7]]

    async def looked_up() -> object:
        async with AsyncClient(url, ca=certificates.ca, cert=own) as client:
            return (await client.lookup("words", [2])).tolist()

    assert asyncio.run(looked_up()) == [[8, 9, 10, 11]]
    wrong = [{"ca": certificates.other_ca, "cert": own}]
    if is_mutual:
        wrong += [{"ca": certificates.ca, "cert": certificates.stranger}, {"ca": certificates.ca}]
    for options in wrong:
        with (
            Client(url, **options, timeout=3, retries=0) as client,  # type: ignore[arg-type]
            pytest.raises(Exception, match=r"(?i)certificate|handshake|connect|ssl") as raised,
        ):
            client.lookup("words", [1])
        assert isinstance(raised.value, GatherdError)
