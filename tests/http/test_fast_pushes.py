"""Updates on the fast path: answered as ASGI answers them, and waited for as it waits."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from gatherd.errors import DiskFull, IdOutOfRange
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.access.admission import Admission
from gatherd_server.access.token_file import TokenFile
from security.conftest import make_token
from support.server import wait_until
from support.training_engine import Training, training
from support.web_server import web_server

PATH = "/gatherd.v1.EmbeddingService/"
PROTO = "application/proto"
DATE = re.compile(rb"date: [^\r]*\r\n")
MADE_ID = re.compile(rb"x-request-id: [0-9a-f]{32}\r\n")
CLOSE = b"Connection: close\r\n"
SECONDS = 20.0


def tensor(array: Any) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        dtype=f"DTYPE_{array.dtype.name.upper()}", shape=array.shape, data=array.tobytes()
    )


def body(ids: Any, number: int = 0, value: float = 1.0, table: str = "items", **more: Any) -> bytes:
    """An update whose id, if it has a `number`, stands first, as the SDK's does."""
    ids = np.asarray(ids, np.int64)
    values = np.full((*ids.shape, 4), value, np.float32)
    update = embedding_pb2.TableUpdate(table=table, ids=tensor(ids), values=tensor(values), **more)
    begin = b""
    if number:
        sequence = embedding_pb2.SessionSequence(session=b"s" * 16, sequence=number)
        begin = embedding_pb2.UpdateRequest(sequence=sequence).SerializeToString()
    return begin + embedding_pb2.UpdateRequest(updates=[update]).SerializeToString()


def post(content: bytes, *more: str, op: str = "ScatterAdd") -> bytes:
    lines = [f"POST {PATH}{op} HTTP/1.1", "Host: gatherd.test", f"Content-Type: {PROTO}", *more]
    lines.append(f"Content-Length: {len(content)}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=SECONDS)


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return MADE_ID.sub(b"x-request-id: made\r\n", DATE.sub(b"", b"".join(pieces)))


def read_one(sock: socket.socket) -> bytes:
    """One answer, whole, without its date."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += sock.recv(1 << 16)
    head, _, rest = got.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    while len(rest) < int(length[1]):
        rest += sock.recv(1 << 16)
    return DATE.sub(b"", head + b"\r\n\r\n" + rest)


def exchanged(url: str, *pieces: bytes) -> bytes:
    """The answers to `pieces`, each sent after the answer before, and to a last request.

    None is sent behind one that ends the connection: it would reset it, and the answer with it.
    """
    with connected(url) as sock:
        got = b""
        for piece in pieces:
            sock.sendall(piece)
            if len(pieces) > 1:
                got += read_one(sock)
        if CLOSE not in pieces[-1]:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n")
        return MADE_ID.sub(b"x-request-id: made\r\n", got) + read_all(sock)


ONE = post(body([1]))
LONG = post(body(np.arange(20_000) % 100))
LONG_AGAIN = post(body(np.arange(20_000) % 100, 9))
EXCHANGES: dict[str, tuple[bytes, ...]] = {
    "one row": (ONE,),
    "each procedure": tuple(
        post(body([3], 7), op=op) for op in ("ScatterAdd", "ApplyGradients", "Assign")
    ),
    "one after the other": tuple(post(body([n, n + 1], n, n)) for n in range(1, 9)),
    "numbers of every length": tuple(
        post(body([5], 2**bits)) for bits in (0, 6, 7, 13, 14, 55, 62, 63)
    )
    * 2,
    "a shape": (post(body([[1, 2], [3, 3]])),) * 3,
    "another in between": (
        *(post(body([n], n)) for n in (1, 2, 3)),
        post(body([4], 4, table="users")),
        post(body([4], 5, table="itemz")),
        post(body([6], 6)),
    ),
    "learning rates": tuple(
        post(body([n], n, learning_rate=n / 8), op="ApplyGradients") for n in range(1, 6)
    ),
    "a learning rate where there is none": (post(body([1], learning_rate=0.5)),),
    "a version": (post(body([1], 1, if_version=3)), post(body([1], 2, if_version=2))),
    "NaN": (*(post(body([1], n)) for n in (1, 2, 3)), post(body([1], 4, float("nan")))),
    "an id out of range": (*(post(body([1], n)) for n in (1, 2, 3)), post(body([100], 4))),
    "no rows": (post(body(np.empty(0, np.int64))),) * 3,
    "no body": (post(b""),),
    "not protobuf": (post(b"\xff\xff\xff"),),
    "cut short": (*(post(body([1], n)) for n in (1, 2, 3)), post(body([1], 4)[:-1])),
    "a number that is none": (post(body([1], 3).replace(b"\x10\x03", b"\x10\x00")),),
    "a session too short": (post(body([1], 3).replace(b"\x12\x14\n\x10s", b"\x12\x14\n\x0fs")),),
    "longer than is read at once": (LONG,),
    "long and short ones": (LONG, ONE, LONG_AGAIN, LONG_AGAIN, ONE),
    "long and wrong": (
        post(body(np.arange(20_000) % 100, 1, float("nan"))),
        post(body(np.arange(20_000), 2)),
        post(b"\xff" * 300_000),
        ONE,
    ),
    "long, with a timeout": (post(body(np.arange(20_000) % 100), "Connect-Timeout-Ms: 19999"),),
    "long and pipelined": (ONE + LONG + ONE + LONG,),
    "a timeout": (post(body([1]), "Connect-Timeout-Ms: 9999"),) * 3,
    "no number for a timeout": (post(body([1]), "Connect-Timeout-Ms: soon"),),
    "another protocol version": (post(body([1]), "Connect-Protocol-Version: 2"),),
    "Connection: close": (post(body([1]), "Connection: close"),),
    "a request id": (post(body([101]), "X-Request-Id: mine"),),
    "pipelined": (ONE * 5 + post(b"") + ONE,),
    "among others": (
        ONE + b"GET /v1/tables HTTP/1.1\r\nHost: a\r\n\r\n" + ONE + post(b"\xff") + ONE,
    ),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_what_comes_back_is_what_asgi_sends(name: str) -> None:
    fast, asgi = training(), training()
    with web_server(fast) as fast_url, web_server(asgi, is_fast=False) as asgi_url:
        assert exchanged(fast_url, *EXCHANGES[name]) == exchanged(asgi_url, *EXCHANGES[name])
    for table, rows in fast.engine.rows.items():
        np.testing.assert_array_equal(rows, asgi.engine.rows[table])
    pushed, wanted = fast.engine.asked.pushes, asgi.engine.asked.pushes
    assert [push.request_id for push in pushed] == [push.request_id for push in wanted]


@contextmanager
def served(app: Any = None, **limits: int) -> Iterator[tuple[Training, str]]:
    trained = training(**limits)
    with web_server(trained, app=app) as url:
        yield trained, url


async def no_application(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body"})


def test_plain_updates_never_reach_the_application() -> None:
    with served(no_application) as (_, url), connected(url) as sock:
        for number in range(1, 5):
            sock.sendall(post(body([1, 2], number), "Connect-Timeout-Ms: 9999"))
            assert read_one(sock).startswith(b"HTTP/1.1 200 OK\r\n")
        sock.sendall(LONG)
        assert read_one(sock).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("error", [DiskFull("no room"), IdOutOfRange("no row"), ValueError("own")])
def test_what_the_writer_refuses_is_answered_alike(error: Exception) -> None:
    fast, asgi = training(), training()
    fast.engine.fails_with = asgi.engine.fails_with = error
    with web_server(fast) as fast_url, web_server(asgi, is_fast=False) as asgi_url:
        pushes = ONE, LONG, ONE
        assert exchanged(fast_url, *pushes) == exchanged(asgi_url, *pushes)
    assert fast.admission.updates_in_flight == 0


def test_all_of_a_commit_are_answered() -> None:
    with served(updates_in_flight_max=16) as (trained, url), ExitStack() as stack:
        trained.engine.waits_for = 8
        socks = [stack.enter_context(connected(url)) for _ in range(8)]
        for sock in socks:
            sock.sendall(ONE)
        assert all(read_one(sock).startswith(b"HTTP/1.1 200 OK\r\n") for sock in socks)
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [8] * 4)


def test_one_too_many_is_refused_and_lookups_places_stay() -> None:
    with served(updates_in_flight_max=1) as (trained, url):
        trained.engine.waits_for = 2
        with connected(url) as first, connected(url) as second:
            first.sendall(ONE)
            wait_until(lambda: trained.admission.updates_in_flight == 1, "the place is taken")
            second.sendall(ONE)
            answer = read_one(second)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"updates_in_flight_max" in answer
            trained.engine.let_go()
            assert read_one(first).startswith(b"HTTP/1.1 200 OK\r\n")
        assert trained.admission.in_flight == 0


def test_an_update_past_its_deadline_goes_on_and_may_be_done() -> None:
    with served() as (trained, url), connected(url) as sock:
        trained.engine.waits_for = 2
        sock.sendall(post(body([1]), "Connect-Timeout-Ms: 30"))
        answer = read_one(sock)
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"0.03 s; the update may still be done" in answer
        wait_until(lambda: trained.admission.in_flight == 0, "the place is free again")
        trained.engine.let_go()
        np.testing.assert_array_equal(trained.engine.rows["items"][1], [1] * 4)
        # The late answer isn't the next request's.
        trained.engine.waits_for = 1
        sock.sendall(post(b""))
        assert read_one(sock).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_doesnt_come_in_time_is_an_error() -> None:
    with served() as (trained, url), connected(url) as sock:
        late = post(body([1]), "Connect-Timeout-Ms: 50")
        sock.sendall(late[:-4])
        answer = read_one(sock)
        assert answer.startswith(b"HTTP/1.1 504 ")
        wait_until(lambda: trained.admission.in_flight == 0, "the place is free again")
        assert not trained.engine.asked.pushes


@pytest.mark.parametrize(("push", "each"), [(ONE, 1), (LONG, 200)], ids=["short", "long"])
def test_a_client_that_leaves_keeps_its_place_until_the_writer_answers(
    push: bytes, each: int
) -> None:
    with served() as (trained, url):
        trained.engine.waits_for = 2
        with connected(url) as sock:
            sock.sendall(push)
            wait_until(lambda: bool(trained.engine.asked.pushes), "the update arrived")
        with connected(url) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert other.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert trained.admission.updates_in_flight == 1
        trained.engine.let_go()
        wait_until(lambda: trained.admission.in_flight == 0, "the place is free again")
        np.testing.assert_array_equal(trained.engine.rows["items"][1], [each] * 4)


@pytest.mark.parametrize("push", [ONE, LONG], ids=["short", "long"])
def test_a_drain_waits_for_the_writer(push: bytes) -> None:
    trained = training()
    trained.engine.waits_for = 2
    stack = ExitStack()
    url = stack.enter_context(web_server(trained))
    with connected(url) as sock:
        sock.sendall(push)
        wait_until(lambda: bool(trained.engine.asked.pushes), "the update arrived")
        stopping = threading.Thread(target=stack.close)
        stopping.start()
        time.sleep(0.3)  # a drain that waited for nobody would be over
        assert stopping.is_alive()
        trained.engine.let_go()
        answer = read_all(sock)
        stopping.join(SECONDS)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close\r\n" in answer


def test_an_update_that_outlasts_a_drain_is_told_so() -> None:
    trained = training()
    trained.engine.waits_for = 2
    stack = ExitStack()
    url = stack.enter_context(web_server(trained, timeout_graceful_shutdown=1))
    with connected(url) as sock:
        sock.sendall(ONE)
        wait_until(lambda: bool(trained.engine.asked.pushes), "the update arrived")
        stack.close()
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the server is stopping" in answer
    assert b'"outcome":"unknown"' in answer
    trained.engine.let_go()


@pytest.mark.parametrize("whose", ["reader", "pusher", "other", "nobody"])
def test_a_token_is_held_to_what_it_is_for(tmp_path: Path, whose: str) -> None:
    tokens = {
        name: make_token(tmp_path / "tokens", name, "--scope", scope, "--table", table)
        for name, scope, table in (
            ("reader", "read", "*"), ("pusher", "update", "items"), ("other", "update", "users"),
        )
    }  # fmt: skip
    tokens["nobody"] = "none-of-this-server"
    asked = [post(body([n], n), f"Authorization: Bearer {tokens[whose]}") for n in (1, 2, 3, 4)]
    answers, ids = [], []
    for is_fast in (True, False):
        trained = training()
        admission = Admission(trained.admission.limits, TokenFile(tmp_path / "tokens"))
        with web_server(replace(trained, admission=admission), is_fast=is_fast) as url:
            answers.append(exchanged(url, *asked))
        ids.append([push.request_id for push in trained.engine.asked.pushes])
    assert answers[0] == answers[1]
    assert ids[0] == ids[1]
    assert answers[0].count(b"HTTP/1.1 200 OK") == (5 if whose == "pusher" else 1)


def test_a_token_that_may_not_push_is_refused_before_its_body(tmp_path: Path) -> None:
    token = make_token(tmp_path / "tokens", "reader", "--scope", "read", "--table", "*")
    trained = training()
    admission = Admission(trained.admission.limits, TokenFile(tmp_path / "tokens"))
    with (
        web_server(replace(trained, admission=admission)) as url,
        connected(url) as sock,
    ):
        sock.sendall(post(body([1]), f"Authorization: Bearer {token}")[:-40])
        assert read_one(sock).startswith(b"HTTP/1.1 403 ")
