"""Bodies, limits, overload and disconnects: what is the same for REST and Connect."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from gatherd_proto.v1 import embedding_pb2
from gatherd_server.engine.engine import Engine, PreparedLookup
from gatherd_server.http.app import create_app
from support.small_engine import SmallEngine, lookup_request, vectors_of

REST = "/v1/tables/words:lookup"
CONNECT = "/gatherd.v1.EmbeddingService/Lookup"
OCTETS = "application/octet-stream"
TYPES = {REST: OCTETS, CONNECT: "application/proto"}


@pytest.mark.parametrize(("path", "status"), [(REST, 413), (CONNECT, 429)])
def test_an_announced_body_over_the_limit_is_not_read(
    small: SmallEngine, runner: asyncio.Runner, path: str, status: int
) -> None:
    async def read() -> Any:
        raise AssertionError("the body was read")

    sent = runner.run(_run_app(small, path, read, [(b"content-length", b"1048577")]))
    assert sent[0]["status"] == status
    assert b"request_bytes_max" in sent[1]["body"]
    assert b"LIMIT_EXCEEDED" in sent[1]["body"]


@pytest.mark.parametrize(("path", "status"), [(REST, 413), (CONNECT, 429)])
def test_a_chunked_body_is_counted_while_it_is_read(ask: Any, path: str, status: int) -> None:
    given = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(100):
            given += 1
            yield bytes(100_000)

    response = ask("POST", path, content=chunks(), headers={"Content-Type": TYPES[path]})
    assert response.status_code == status
    assert given == 11


@pytest.mark.parametrize("path", [REST, CONNECT])
def test_a_chunked_body_is_put_together(ask: Any, small: SmallEngine, path: str) -> None:
    ids = np.arange(100, dtype=np.int64)
    body = ids.tobytes() if path == REST else lookup_request("words", ids).SerializeToString()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    response = ask(
        "POST", path, content=chunks(), headers={"Content-Type": TYPES[path], "Accept": OCTETS}
    )
    reply = response.content
    if path == CONNECT:
        reply = embedding_pb2.LookupResponse.FromString(reply).vectors.data
    np.testing.assert_array_equal(
        np.frombuffer(reply, "<f4").reshape(-1, 64), small.rows["words"][:100]
    )


@pytest.mark.parametrize("path", [REST, CONNECT])
def test_a_client_that_leaves_mid_body_is_not_logged(
    small: SmallEngine, runner: asyncio.Runner, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages = iter(
        [{"type": "http.request", "body": b"12", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def read() -> Any:
        return next(messages)

    runner.run(_run_app(small, path, read, []))
    assert not caplog.records
    assert small.admission.in_flight == 0


async def _run_app(
    small: SmallEngine, path: str, receive: Any, headers: list[tuple[bytes, bytes]]
) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", TYPES[path].encode()), *headers],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("gatherd.test", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
    await create_app(small.engine, small.admission, small.offload)(scope, receive, send)
    return sent


@pytest.mark.parametrize("path", [REST, CONNECT])
def test_limits_name_themselves(narrow: Any, path: str) -> None:
    ask, _ = narrow(ids_max=10, reply_bytes_max=1000)
    for ids, limit in (
        (np.zeros(11, np.int64), "ids_max"),
        (np.zeros(9, np.int64), "reply_bytes_max"),
    ):
        body = ids.tobytes() if path == REST else lookup_request("words", ids).SerializeToString()
        response = ask("POST", path, content=body, headers={"Content-Type": TYPES[path]})
        assert response.status_code == (413 if path == REST else 429)
        assert limit in response.text
        assert "retry-after" not in response.headers


def test_too_many_tables(ask: Any) -> None:
    body: Any = {"tables": {str(number): {"ids": []} for number in range(4)}}
    response = ask("POST", "/v1/lookup", json=body)
    assert response.status_code == 413
    assert response.json()["metadata"]["limit"] == "tables_max"


def test_json_of_too_many_values_is_refused_before_it_is_parsed(narrow: Any) -> None:
    ask, _ = narrow(ids_max=100)
    for path, body in (
        (REST, b'{"ids": [' + b"0," * 200 + b"oh]}"),
        ("/v1/lookup", b'{"tables": {"words": {"ids": [' + b"[]," * 200 + b"oh]}}}"),
    ):
        response = ask("POST", path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 413


@pytest.mark.parametrize("path", [REST, CONNECT])
def test_a_full_server_says_when_to_come_back(narrow: Any, path: str) -> None:
    ask, small = narrow(requests_in_flight_max=1)
    body = bytes(8) if path == REST else lookup_request("words", [0]).SerializeToString()
    headers = {"Content-Type": TYPES[path]}
    with small.admission.request():
        response = ask("POST", path, content=body, headers=headers)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert ask("GET", "/v1/tables").status_code == 200
    assert ask("POST", path, content=body, headers=headers).status_code == 200
    assert small.admission.in_flight == 0


@pytest.mark.parametrize("path", [REST, CONNECT])
@pytest.mark.parametrize("id_count", [1, 20_000])
def test_a_place_is_held_until_the_reply_is_sent(
    small: SmallEngine, runner: asyncio.Runner, path: str, id_count: int
) -> None:
    ids = np.zeros(id_count, np.int64)
    body = ids.tobytes() if path == REST else lookup_request("words", ids).SerializeToString()
    held: list[int] = []

    async def run() -> None:
        async def receive() -> Any:
            held.append(small.admission.in_flight)
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            held.append(small.admission.in_flight)

        await create_app(small.engine, small.admission, small.offload)(
            {
                "type": "http",
                "method": "POST",
                "path": path,
                "query_string": b"",
                "headers": [(b"content-type", TYPES[path].encode()), (b"accept", OCTETS.encode())],
                "root_path": "",
            },
            receive,
            send,
        )

    runner.run(run())
    assert len(held) >= 3
    assert set(held) == {1}
    assert small.admission.in_flight == 0


class BrokenEngine(Engine):
    """One that fails in a way nobody foresaw."""

    def __init__(self) -> None:
        pass

    def prepare(self, lookups: Any) -> PreparedLookup:
        raise ZeroDivisionError("a secret")


@pytest.mark.parametrize("path", [REST, CONNECT])
def test_the_unexpected_is_logged_once_and_answered_with_a_fixed_text(
    make_client: Any, small: SmallEngine, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    ask = make_client(replace(small, engine=BrokenEngine()))
    body = bytes(8) if path == REST else lookup_request("words", [0]).SerializeToString()
    response = ask("POST", path, content=body, headers={"Content-Type": TYPES[path]})
    assert response.status_code == 500
    assert "INTERNAL" in response.text
    assert "secret" not in response.text
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert small.admission.in_flight == 0


# Through a real web server


def test_a_real_server_answers_every_size(url: str, small: SmallEngine) -> None:
    with httpx.Client(base_url=url) as client:
        for count in (0, 1, 1000, 20_000):
            ids = np.random.default_rng(count).integers(0, 5000, count)
            reply = client.post(
                CONNECT,
                content=lookup_request("words", ids).SerializeToString(),
                headers={"Content-Type": TYPES[CONNECT]},
            )
            message = embedding_pb2.LookupResponse.FromString(reply.content)
            np.testing.assert_array_equal(vectors_of(message), small.rows["words"][ids])
            raw = client.post(
                REST, content=ids.tobytes(), headers={"Content-Type": OCTETS, "Accept": OCTETS}
            )
            assert raw.content == message.vectors.data
        assert client.head("/v1/tables").content == b""


@pytest.mark.parametrize("path", [REST, CONNECT])
def test_a_real_client_reads_the_answer_to_a_body_that_is_too_large(url: str, path: str) -> None:
    with httpx.Client(base_url=url) as client:
        response = client.post(path, content=bytes(8 << 20), headers={"Content-Type": TYPES[path]})
        assert response.status_code in (413, 429)
        assert client.get("/healthz").status_code == 200


def test_a_real_client_may_leave_mid_body(
    url: str, small: SmallEngine, caplog: pytest.LogCaptureFixture
) -> None:
    address = urlsplit(url)
    for path, content_type in TYPES.items():
        with socket.create_connection((address.hostname, address.port)) as leaving:
            leaving.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
                "Content-Length: 1000\r\n\r\nabc".encode()
            )
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
