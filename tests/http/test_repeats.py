"""A connection's next request is answered alike, whether it is like its last one or not."""

import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd_proto.v1 import embedding_pb2
from support.server import wait_until
from support.small_engine import lookup_request, small_engine, vectors_of
from support.web_server import Twins, web_server

CONNECT = "/gatherd.v1.EmbeddingService/Lookup"
OCTETS = "application/octet-stream"
LENGTH = re.compile(rb"content-length: (\d+)\r\n")
DATE = re.compile(rb"date: [^\r]*\r\n")
SECONDS = 20.0
ROWS = 5000
# Of 64 floats: one in one piece, one in several, one that streams.
SIZES = (1, 2, 7, 1500, 4000, 6000)


# Of errors: another each time.
MADE_ID = re.compile(rb"x-request-id: [0-9a-f]{32}\r\n")


class Caller:
    """One connection, on which each request is answered before the next is sent."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.sock = socket.create_connection((parts.hostname, parts.port), timeout=SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, request: bytes) -> bytes:
        """The whole answer, without its date."""
        self.sock.sendall(request)
        return DATE.sub(b"", self.read())

    def read(self) -> bytes:
        """One answer."""
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, body = got.partition(b"\r\n\r\n")
        found = LENGTH.search(head + b"\r\n")
        assert found, head
        pieces, missing = [head, b"\r\n\r\n", body], int(found[1]) - len(body)
        while missing > 0:
            pieces.append(self._more())
            missing -= len(pieces[-1])
        assert missing == 0, "more than one answer"
        return MADE_ID.sub(b"", b"".join(pieces))

    def _more(self) -> bytes:
        piece = self.sock.recv(1 << 20)
        assert piece, "closed"
        return piece


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: gatherd.test", *lines, f"Content-Length: {len(body)}"]
    return "".join(f"{line}\r\n" for line in head).encode() + b"\r\n" + body


def connect(ids: Any, table: str = "words", timeout_ms: int = 0, **fields: Any) -> bytes:
    body = lookup_request(table, np.asarray(ids, np.int64), **fields).SerializeToString()
    timeout = (f"Connect-Timeout-Ms: {timeout_ms}",) if timeout_ms else ()
    return post(CONNECT, body, "Content-Type: application/proto", *timeout)


def octets(ids: Any, query: str = "") -> bytes:
    body = np.asarray(ids, "<i8").tobytes()
    path = f"/v1/tables/words:lookup{query}"
    return post(path, body, f"Content-Type: {OCTETS}", f"Accept: {OCTETS}")


def vectors(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    return vectors_of(embedding_pb2.LookupResponse.FromString(body))


requests = st.one_of(
    st.builds(
        lambda seed, size, last, timeout, more: connect(
            [*np.random.default_rng(seed).integers(0, ROWS, size - 1), last],
            timeout_ms=timeout,
            **more,
        ),
        st.integers(0, 99),
        st.sampled_from(SIZES),
        st.sampled_from([0, ROWS - 1, ROWS - 1, ROWS, -1, 2**63 - 1]),
        st.sampled_from([0, 0, 10_000, 20]),
        st.sampled_from([{}, {}, {"version": 0}, {"dtype": "DTYPE_FLOAT16"}, {"version": 9}]),
    ),
    st.builds(
        octets,
        st.lists(st.integers(-1, ROWS), min_size=4, max_size=4),
        st.sampled_from(["", "", "?shape=2,2", "?missing=zero"]),
    ),
    st.builds(lambda ids: connect(ids, "half"), st.lists(st.integers(0, 299), min_size=2)),
)


@given(st.lists(st.tuples(requests, st.integers(1, 3)), min_size=1, max_size=6))
@settings(max_examples=60)
def test_requests_one_after_the_other_are_answered_as_without_the_fast_path(
    twins: Twins, asked: list[tuple[bytes, int]]
) -> None:
    with Caller(twins.fast) as fast, Caller(twins.asgi) as asgi:
        for one, times in asked:
            for _ in range(times):
                assert fast.ask(one) == asgi.ask(one)


def test_ids_that_differ_alone_get_their_own_rows(twins: Twins) -> None:
    rows = twins.served.rows["words"]
    rng = np.random.default_rng(3)
    with Caller(twins.fast) as caller:
        for size in SIZES:
            for _ in range(4):
                ids = rng.integers(0, ROWS, size)
                np.testing.assert_array_equal(vectors(caller.ask(connect(ids))), rows[ids])


def test_ids_that_differ_alone_over_octets_get_their_own_rows(twins: Twins) -> None:
    rows = twins.served.rows["words"]
    with Caller(twins.fast) as caller:
        for first in range(5):
            body = caller.ask(octets([first, 9])).partition(b"\r\n\r\n")[2]
            np.testing.assert_array_equal(
                np.frombuffer(body, "<f4").reshape(2, 64), rows[[first, 9]]
            )


def test_replies_tell_the_time_anew(twins: Twins) -> None:
    dates = set()
    with Caller(twins.fast) as caller:

        def told() -> bool:
            caller.sock.sendall(connect([1]))
            dates.update(DATE.findall(caller.read()))
            return len(dates) > 1

        wait_until(told, "another second is told")


def test_a_connection_that_is_used_doesnt_expire(tmp_path: Path) -> None:
    with (
        web_server(small_engine(tmp_path), timeout_keep_alive=1) as url,
        Caller(url) as caller,
    ):
        started = time.monotonic()
        while time.monotonic() < started + 2.5:
            last = time.monotonic()
            caller.ask(connect([1]))
            time.sleep(0.3)
        assert caller.sock.recv(1) == b""
        assert 0.9 <= time.monotonic() - last < 2.5


def test_a_full_server_refuses_repeated_requests_too(tmp_path: Path) -> None:
    served = small_engine(tmp_path, requests_in_flight_max=1)
    with web_server(served) as url, Caller(url) as caller, Caller(url) as other:
        for _ in range(2):
            assert caller.ask(connect([1])).startswith(b"HTTP/1.1 200 ")
        other.sock.sendall(connect([1])[:-1])
        wait_until(lambda: served.admission.in_flight == 1, "the only place is taken")
        assert caller.ask(connect([2])).startswith(b"HTTP/1.1 429 ")
        other.sock.sendall(connect([1])[-1:])
        assert other.read().startswith(b"HTTP/1.1 200 ")
        assert caller.ask(connect([2])).startswith(b"HTTP/1.1 200 ")


def test_a_peer_that_asks_and_never_reads_is_waited_for(twins: Twins) -> None:
    admission, rows = twins.served.admission, twins.served.rows["words"]
    ids = np.arange(4000)
    with Caller(twins.fast) as caller:
        caller.ask(connect(ids))
        count = 0
        while admission.in_flight == 0:
            assert count < 200, "200 MB were answered to who doesn't read"
            caller.sock.sendall(connect(ids))
            count += 1
            time.sleep(0.002)  # apart from the next one; together they are as right
        expected = count
        received = bytearray()
        while expected:
            received += caller.sock.recv(1 << 20)
            while True:
                end = received.find(b"\r\n\r\n")
                found = LENGTH.search(received[: end + 2]) if end >= 0 else None
                if found is None or len(received) < end + 4 + int(found[1]):
                    break
                stop = end + 4 + int(found[1])
                np.testing.assert_array_equal(vectors(bytes(received[:stop])), rows[ids])
                del received[:stop]
                expected -= 1
    wait_until(lambda: admission.in_flight == 0, "the place is given back")


def test_requests_are_seen_by_a_drain(tmp_path: Path) -> None:
    stack = ExitStack()
    url = stack.enter_context(web_server(small_engine(tmp_path)))
    with Caller(url) as caller:
        for _ in range(3):
            assert caller.ask(connect([1])).startswith(b"HTTP/1.1 200 ")
        stack.close()
        assert caller.sock.recv(1) == b""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
