"""What one client can take from others on a server that they share: answers, memory, tokens."""

import gzip
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import RequestIdReused
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from security.conftest import Guarded, make_token
from support.cli import invoke
from support.server import RunningServer, run_cli, wait_until

KIB = 1 << 10


def push(guarded: Guarded, token: str, row: int, key: str) -> tuple[int, Any]:
    """Add nothing to a row, under an idempotency key."""
    response = httpx.post(
        f"{guarded.server.http}/v1/tables/items:scatterAdd",
        headers={"Authorization": f"Bearer {guarded.tokens[token]}", "Idempotency-Key": key},
        json={"ids": [row], "values": [[0, 0, 0, 0]]},
    )
    document = response.json()
    return response.status_code, document.get("lsn") or document["reason"]


def test_an_idempotency_key_is_its_tokens_own(guarded: Guarded) -> None:
    status, lsn = push(guarded, "all", 2, "batch-1")
    assert status == 200
    assert push(guarded, "all", 2, "batch-1") == (200, lsn)
    # The same push by another token is another push, with another answer.
    status, other = push(guarded, "updater", 2, "batch-1")
    assert status == 200
    assert other != lsn
    assert push(guarded, "updater", 2, "batch-1") == (200, other)
    assert push(guarded, "updater", 3, "batch-1") == (422, "REQUEST_ID_REUSED")
    # Another push under the key of another's is no conflict.
    assert push(guarded, "all", 2, "batch-2")[0] == 200
    assert push(guarded, "updater", 3, "batch-2")[0] == 200


def test_a_session_is_its_tokens_own(guarded: Guarded) -> None:
    def sent(token: str, row: int) -> tuple[int, bytes]:
        request = embedding_pb2.UpdateRequest(
            sequence=embedding_pb2.SessionSequence(session=b"a stolen session", sequence=1)
        )
        update = request.updates.add(table="items")
        update.ids.CopyFrom(
            tensor_pb2.Tensor(
                dtype=tensor_pb2.DTYPE_INT64, shape=[1], data=np.array([row], "<i8").tobytes()
            )
        )
        update.values.CopyFrom(
            tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[1, 4], data=bytes(16))
        )
        response = httpx.post(
            f"{guarded.server.http}/gatherd.v1.EmbeddingService/ScatterAdd",
            content=request.SerializeToString(),
            headers={
                "Authorization": f"Bearer {guarded.tokens[token]}",
                "Content-Type": "application/proto",
            },
        )
        return response.status_code, response.content

    stranger = sent("updater", 3)
    first = sent("all", 2)
    assert stranger[0] == first[0] == 200
    assert stranger != first
    assert sent("all", 2) == first
    assert sent("updater", 3) == stranger


def test_the_sdk_says_whose_key_was_used_twice(guarded: Guarded) -> None:
    zeros = np.zeros((1, 4), np.float32)
    with (
        Client(guarded.server.grpc, token=guarded.tokens["all"]) as client,
        Client(guarded.server.grpc, token=guarded.tokens["updater"]) as other,
    ):
        client.scatter_add("items", [2], zeros, idempotency_key="once")
        other.scatter_add("items", [3], zeros, idempotency_key="once")
        with pytest.raises(RequestIdReused, match="'once' belongs to another update"):
            client.scatter_add("items", [3], zeros, idempotency_key="once")


# What bodies may hold together

OCTETS = "application/octet-stream"
JSON = "application/json"


class Unfinished:
    """A request whose body came but for its last byte."""

    def __init__(self, url: str, path: str, body: bytes, *headers: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=30)
        lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers)
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body[:-1])
        self._last = body[-1:]

    def finish(self) -> None:
        self._socket.sendall(self._last)

    def answer(self) -> httpx.Response:
        """What came, read as far as a head and its body go."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        split = [line.partition(": ") for line in lines]
        headers = httpx.Headers([(name, value) for name, _, value in split])
        while len(body) < int(headers["content-length"]):
            body += self._socket.recv(65536)
        return httpx.Response(int(status.split()[1]), headers=headers, content=body)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def small_room(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(file, np.arange(40, dtype=np.float32).reshape(10, 4))
    room = {"GATHERD_BODIES_BYTES_MAX": str(1024 * KIB)}
    with RunningServer(f"items={file}", environment=room) as server:
        yield server


REQUESTS = {
    "fast": ("/v1/tables/items:lookup", bytes(700 * KIB), f"Accept: {OCTETS}", OCTETS),
    "rest": (
        "/v1/tables/items:lookup", b'{"ids":[1' + b" " * 700 * KIB + b"]}", "Accept: */*", JSON,
    ),
    "connect": (
        "/gatherd.v1.EmbeddingService/Lookup", b"{" + b" " * 700 * KIB + b"}", "Accept: */*", JSON,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_bodies_that_nobody_finishes_have_a_room_of_their_own(
    name: str, small_room: RunningServer
) -> None:
    path, body, accept, media_type = REQUESTS[name]
    ask = (path, body, accept, f"Content-Type: {media_type}")
    first = Unfinished(small_room.http, *ask)
    with httpx.Client(base_url=small_room.http) as others:
        wait_until(lambda: held_bytes(others) > 600 * KIB, "the first body is held")
        second = Unfinished(small_room.http, *ask)
        refused = second.answer()
        assert refused.status_code == 429, refused.text
        assert refused.headers["retry-after"] == "1"
        assert "bodies_bytes_max" in refused.text
        # Who asks for little is answered.
        few = others.post(
            "/v1/tables/items:lookup", content=bytes(8 * 1000), headers={"Content-Type": OCTETS}
        )
        assert few.status_code == 200
        assert 'gatherd_shed_requests_total{limit="bodies_bytes_max"}' in told(others)
        # Nor does the one that was there lose its place.
        first.finish()
        assert first.answer().status_code in (200, 400)
        for one in (first, second):
            one.close()
        wait_until(lambda: held_bytes(others) == 0, "the room is free")
        # Gone without an end, it gives back what it had.
        third = Unfinished(small_room.http, *ask)
        wait_until(lambda: held_bytes(others) > 600 * KIB, "the third body is held")
        third.close()
        wait_until(lambda: held_bytes(others) == 0, "the room is free again")


def test_what_a_body_inflates_to_is_held_too(small_room: RunningServer) -> None:
    path, body, accept, media_type = REQUESTS["rest"]
    first = Unfinished(small_room.http, path, body, accept, f"Content-Type: {media_type}")
    with httpx.Client(base_url=small_room.http) as others:
        wait_until(lambda: held_bytes(others) > 600 * KIB, "the first body is held")
        headers = {"Content-Type": JSON, "Content-Encoding": "gzip"}
        refused = others.post(path, content=gzip.compress(body), headers=headers)
        assert (refused.status_code, refused.json()["reason"]) == (429, "OVERLOADED")
        first.close()
        wait_until(lambda: held_bytes(others) == 0, "the room is free")
        assert others.post(path, content=gzip.compress(body), headers=headers).status_code == 200


def told(client: httpx.Client) -> str:
    return client.get("/metrics").text


def held_bytes(client: httpx.Client) -> float:
    return next(
        float(line.split()[1])
        for line in told(client).splitlines()
        if line.startswith("gatherd_held_body_bytes ")
    )


# A token file without tokens

EMPTY = {"empty": "", "blank": " \n\n", "comments": "# nobody\n"}


@pytest.mark.parametrize("content", EMPTY.values(), ids=EMPTY)
def test_a_token_file_without_tokens_revokes_nobody_and_is_told(
    content: str, guarded: Guarded
) -> None:
    good = guarded.file.read_text()
    given = {"Authorization": f"Bearer {guarded.tokens['metrics']}"}

    def refused() -> float:
        told = httpx.get(f"{guarded.server.http}/metrics", headers=given).text
        return float(told.partition("\ngatherd_tokens_refused ")[2].split()[0])

    assert refused() == 0
    guarded.file.write_text(content)
    try:
        wait_until(lambda: refused() == 1, "the file is refused", 10)
        with Client(guarded.server.http, token=guarded.tokens["reader"]) as client:
            client.lookup("items", [1])
    finally:
        guarded.file.write_text(good)
    wait_until(lambda: refused() == 0, "the file is taken", 10)


@pytest.mark.parametrize("content", EMPTY.values(), ids=EMPTY)
def test_a_server_does_not_start_with_a_token_file_without_tokens(
    content: str, data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(content)
    done = run_cli("serve", "--data-dir", data_dir, "--tokens", tmp_path / "tokens", check=False)
    assert done.returncode != 0
    assert "has no token" in done.stderr
    assert "gatherd token NAME" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_last_token_is_revoked_once_it_has_a_successor(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    make_token(tokens, "old", "--scope", "read", "--table", "*")
    before = tokens.read_text()
    done = invoke("token", "old", "--revoke", "--tokens", tokens, check=False)
    assert done.returncode != 0
    assert "is the only token" in done.stderr
    assert tokens.read_text() == before
    make_token(tokens, "new", "--scope", "read", "--table", "*")
    invoke("token", "old", "--revoke", "--tokens", tokens)
    assert [json.loads(line)["name"] for line in tokens.read_text().splitlines()] == ["new"]
