"""The fast path answers byte for byte what ASGI would: raw bytes to twin servers."""

import importlib.metadata
import inspect
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gatherd_proto.v1 import embedding_pb2
from support.http_judge import End, judged
from support.server import wait_until
from support.small_engine import LIMITS, lookup_request, small_engine, vectors_of
from support.web_server import Twins, web_server

CONNECT = "/gatherd.v1.EmbeddingService/"
PROTO = "application/proto"
OCTETS = "application/octet-stream"
DATE = re.compile(rb"date: [^\r]*\r\n")
# The id that an error's answer gets whose request had none.
MADE_ID = re.compile(rb"x-request-id: [0-9a-f]{32}\r\n")
SECONDS = 20.0
LARGE = np.arange(40_000) % 5000
"""Ids whose reply, 10 MB, fits into no socket's buffer."""


def comparable(answers: bytes) -> bytes:
    """Without what differs from one answer to the next."""
    return MADE_ID.sub(b"x-request-id: made\r\n", DATE.sub(b"", answers))


def request(path: str, body: bytes, kind: str = PROTO, *more: str, length: bool = True) -> bytes:
    """A POST as it stands on the wire; `more` are header lines."""
    lines = [f"POST {path} HTTP/1.1", "Host: gatherd.test", f"Content-Type: {kind}", *more]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def lookup(ids: Any, table: str = "words", *more: str, **fields: Any) -> bytes:
    body = lookup_request(table, ids, **fields).SerializeToString()
    return request(f"{CONNECT}Lookup", body, PROTO, *more)


def octets(ids: Any, query: str = "", *more: str) -> bytes:
    body = np.asarray(ids, "<i8").tobytes()
    return request(f"/v1/tables/words:lookup{query}", body, OCTETS, f"Accept: {OCTETS}", *more)


def many(*members: embedding_pb2.LookupRequest) -> bytes:
    body = embedding_pb2.LookupManyRequest(lookups=members).SerializeToString()
    return request(f"{CONNECT}LookupMany", body)


def bags(ids: list[int], offsets: list[int], **fields: Any) -> bytes:
    message = embedding_pb2.LookupBagsRequest(lookup=lookup_request("words", ids, **fields))
    message.offsets.CopyFrom(lookup_request("", np.asarray(offsets)).ids)
    return request(f"{CONNECT}LookupBags", message.SerializeToString())


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=SECONDS)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server closes."""
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def exchanged(url: str, *pieces: bytes) -> bytes:
    """What comes back for `pieces`, sent one by one, and a last request that ends the connection.

    Without the date, which is the clock's. h11 says whether the last request would be one, or is in
    the place of a body.
    """
    sent = b"".join(pieces)
    end = judged(sent)[1]
    with connected(url) as sock:
        for piece in pieces:
            sock.sendall(piece)
            if len(pieces) > 1:
                time.sleep(0.005)  # for the parts to be read apart; together they are as right
        if end is End.MORE:
            early = sock.recv(1 << 20)  # before the end of the stream, which would outrun it
            sock.shutdown(socket.SHUT_WR)
            return comparable(early + read_all(sock))
        if end is End.IDLE:
            sock.sendall(
                b"GET /healthz HTTP/1.1\r\nHost: gatherd.test\r\nConnection: close\r\n\r\n"
            )
        return comparable(read_all(sock))


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA")
ONE = lookup([3])
BODY = lookup_request("words", [3]).SerializeToString()
EXCHANGES: dict[str, tuple[bytes, ...]] = {
    "one id": (ONE,),
    "a shape": (lookup(np.arange(12).reshape(3, 2, 2)),),
    "no id": (lookup(np.empty(0, np.int64)),),
    "ids of one byte": (lookup(np.array([1, 2], np.uint8)),),
    "float16 from float32": (lookup([1, 2], dtype="DTYPE_FLOAT16"),),
    "a large reply": (lookup(LARGE),),
    "a large converted reply": (lookup(LARGE, dtype="DTYPE_BFLOAT16"),),
    "float32 from float16": (lookup(np.arange(300), "half"),),
    "missing rows as zeros": (lookup([1, -1], missing="MISSING_ZERO"),),
    "a table without rows": (lookup(np.empty((2, 0), np.int64), "empty"),),
    "an id out of range": (lookup([1, 5000]),),
    "a negative id": (lookup([-1]),),
    "an id out of range at the end of many": (lookup([*LARGE, 5000]),),
    "an id that no int64 holds": (lookup(np.array([2**63 + 1], np.uint64)),),
    "an unknown table": (lookup([1], "nothing"),),
    "a refused table": (lookup([1], "refused"),),
    "a version that isn't": (lookup([1], version=9),),
    "floats for ids": (lookup([1.5]),),
    "keys of a table without": (lookup([1]).replace(b"words", b"odd\0\0"),),
    "not protobuf": (request(f"{CONNECT}Lookup", b"\xff\xff\xff"),),
    "no body": (request(f"{CONNECT}Lookup", b""),),
    "many tables": (many(lookup_request("words", [1]), lookup_request("half", [2, 3])),),
    "many long replies": (many(*[lookup_request("words", LARGE[:n]) for n in (9000, 10, 3000)]),),
    "a long reply with statuses": (lookup([*LARGE, -1, 5000], missing="MISSING_ZERO"),),
    "a long reply of nothing missing": (lookup([*LARGE, 5000], dtype="DTYPE_FLOAT16"),),
    "long bags": (bags([*LARGE], [*range(0, len(LARGE), 2)]),),
    "one long bag": (bags([*LARGE], [0, 1]), ONE),
    "long converted replies of one head": (lookup(LARGE[:3000], dtype="DTYPE_FLOAT16"),) * 3,
    "long rows in octets": (octets(LARGE[:9000]),) * 2,
    "many lengths in turn": tuple(lookup(np.arange(n % 7)) for n in range(20)),
    "too many tables": (many(*[lookup_request("words", [1])] * 4),),
    "bags": (bags([1, 2, 3], [0, 1]),),
    "bags out of range": (bags([1, 2, 9999], [0, 1]),),
    "raw ids": (octets([1, 2, 3]),),
    "raw ids and options": (octets([1, 2], "?dtype=float16&shape=2,1"),),
    "raw ids, missing": (octets([1, -2], "?missing=zero"),),
    "raw ids out of range": (octets([9999]),),
    "raw ids and a wrong option": (octets([1], "?nothing=1"),),
    "raw ids of odd length": (
        request("/v1/tables/words:lookup", b"abc", OCTETS, f"Accept: {OCTETS}"),
    ),
    "raw ids answered in JSON": (request("/v1/tables/words:lookup", b"\0" * 8, OCTETS),),
    "a table's name in percent": (
        request("/v1/tables/w%6Frds:lookup", b"\0" * 8, OCTETS, f"Accept: {OCTETS}"),
    ),
    "an unknown path": (request("/v1/tables/words:look", b""),),
    "GET": (b"GET /gatherd.v1.EmbeddingService/Lookup HTTP/1.1\r\nHost: a\r\n\r\n",),
    "HTTP/1.0": (ONE.replace(b"HTTP/1.1", b"HTTP/1.0"),),
    "no Content-Type": (ONE.replace(b"Content-Type: application/proto\r\n", b""),),
    "another Content-Type": (ONE.replace(b"/proto", b"/json"),),
    "a charset": (ONE.replace(b"/proto", b"/proto; charset=utf-8"),),
    "headers in other cases": (ONE.replace(b"Content-Type", b"CONTENT-type"),),
    "a header twice": (lookup([3], "words", "Content-Type: application/json"),),
    "a timeout": (lookup([3], "words", "Connect-Timeout-Ms: 5000"),),
    "no time at all": (lookup([3], "words", "Connect-Timeout-Ms: 0"),),
    "no time for many": (lookup(LARGE, "words", "Connect-Timeout-Ms: 0"),),
    "no number for a timeout": (lookup([3], "words", "Connect-Timeout-Ms: soon"),),
    "a timeout of too many digits": (lookup([3], "words", f"Connect-Timeout-Ms: {'9' * 11}"),),
    "another protocol version": (lookup([3], "words", "Connect-Protocol-Version: 2"),),
    "compressed, it says": (lookup([3], "words", "Content-Encoding: gzip"),),
    "an unknown compression": (lookup([3], "words", "Content-Encoding: br"),),
    "an upgrade": (lookup([3], "words", "Connection: upgrade", "Upgrade: h2c"),),
    "upgrades again and again": (lookup([3], "words", *UPGRADE), lookup([4], "words", *UPGRADE))
    * 2,
    "many upgrades at once": (lookup([3], "words", *UPGRADE) * 50 + ONE,),
    "an upgrade behind a large one": (lookup(LARGE) + lookup([3], "words", *UPGRADE) + ONE,),
    "blank lines behind": (ONE + b"\r\n", lookup([4]) + b"\r\n", ONE + b"\r\n\r\n", ONE),
    "blank lines before": (b"\r\n" + ONE, b"\r\n" + lookup([4]), ONE, b"\r\n\r\n" + ONE),
    "blank lines apart": (ONE, b"\r\n", lookup([4]), b"\r", b"\n", ONE),
    "octets and blank lines": tuple(octets([row, row + 1]) + b"\r\n" for row in range(6)),
    "chunked": (
        request(
            f"{CONNECT}Lookup", chunked(BODY), PROTO, "Transfer-Encoding: chunked", length=False
        ),
    ),
    "Connection: close": (lookup([3], "words", "Connection: close"),),
    "Connection: close, large": (lookup(LARGE, "words", "Connection: close"),),
    "over the limit": (
        request(f"{CONNECT}Lookup", b"", PROTO, f"Content-Length: {2**20 + 1}", length=False),
    ),
    "no number for a length": (
        request(f"{CONNECT}Lookup", b"", PROTO, "Content-Length: many", length=False),
    ),
    "not HTTP": (b"nonsense\r\n\r\n",),
    "byte by byte": tuple(ONE[i : i + 1] for i in range(len(ONE))),
    "head and body apart": (ONE[: -len(BODY)], ONE[-len(BODY) :]),
    "two in one": (ONE + octets([4]),),
    "the same head again and again": (
        ONE,
        lookup([4]),
        lookup([-1]),
        ONE[:-3],
        ONE[-3:],
        ONE,
        ONE + lookup([5]),
        ONE,
        lookup([6, 7]),
        lookup([8, 9]),
        octets([1]),
        octets([2]),
        ONE,
        ONE,
    ),
    "as long and not the same": (
        ONE,
        lookup([3], "wordz"),
        ONE,
        lookup([3], version=1),
        lookup([3], version=2),
        lookup([3], dtype="DTYPE_FLOAT16"),
        lookup([3], dtype="DTYPE_FLOAT64"),
        lookup(np.array([3], np.uint64)),
        lookup(np.array([2**64 - 1], np.uint64)),
        ONE,
    ),
    "the same head until the last": (ONE, ONE, lookup([3], "words", "Connection: close")),
    "the same head with a timeout": tuple(
        lookup([row], "words", "Connect-Timeout-Ms: 5000") for row in (1, 2, 3)
    ),
    "small ones behind a large one": (lookup(LARGE) + ONE + octets([4]) + lookup([-1]) + ONE,),
    "ASGI's before and behind": (
        b"GET /v1/tables HTTP/1.1\r\nHost: a\r\n\r\n"
        + ONE
        + b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
        + ONE,
    ),
    "two thousand behind a large one": (lookup(LARGE) + ONE * 2000,),
    "a body behind a refusal": (lookup([3], "words", "Connect-Protocol-Version: 2") + ONE,),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_what_comes_back_is_what_asgi_sends(twins: Twins, name: str) -> None:
    pieces = EXCHANGES[name]
    assert exchanged(twins.fast, *pieces) == exchanged(twins.asgi, *pieces)


PLAIN = (
    "one id", "a large reply", "float16 from float32", "missing rows as zeros", "many tables",
    "bags", "an id out of range", "raw ids", "raw ids and options", "a timeout", "byte by byte",
)  # fmt: skip


def test_plain_lookups_never_reach_the_application(tmp_path: Path) -> None:
    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 500, "headers": headers})
        await send({"type": "http.response.body"})

    with web_server(small_engine(tmp_path), app=application) as url:
        for name in PLAIN:
            answer = exchanged(url, *EXCHANGES[name])
            assert not answer.startswith(b"HTTP/1.1 500"), name
        with connected(url) as sock:  # nothing behind it: this application closes the connection
            sock.sendall(b"".join(EXCHANGES["chunked"]))
            assert read_all(sock).startswith(b"HTTP/1.1 500")


def test_rows_are_those_of_the_table(twins: Twins) -> None:
    answer = exchanged(twins.fast, lookup(LARGE))
    length = re.search(rb"content-length: ([0-9]+)\r\n", answer)
    assert length
    body = answer.partition(b"\r\n\r\n")[2][: int(length[1])]
    vectors = vectors_of(embedding_pb2.LookupResponse.FromString(body))
    np.testing.assert_array_equal(vectors, twins.served.rows["words"][LARGE])


def test_rows_are_the_own_ids_with_blank_lines_behind_each_body(twins: Twins) -> None:
    rows = twins.served.rows["words"]
    with connected(twins.fast) as sock:
        for ids in ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]):
            for blank in (b"\r\n", b"\r\n\r\n", b""):
                sock.sendall(octets(ids) + blank)
                answer = b""
                while len(answer.partition(b"\r\n\r\n")[2]) < rows[ids].nbytes:
                    answer += sock.recv(1 << 16)
                assert answer.partition(b"\r\n\r\n")[2] == rows[ids].tobytes()


def test_expect_continue_is_answered(twins: Twins) -> None:
    with connected(twins.fast) as sock:
        head, body = ONE[: -len(BODY)], ONE[-len(BODY) :]
        sock.sendall(head[:-2] + b"Expect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_peer_that_reads_slowly_gets_everything(twins: Twins) -> None:
    with connected(twins.fast) as slow, connected(twins.fast) as other:
        slow.sendall(lookup(LARGE, "words", "Connection: close"))
        pieces = [slow.recv(4096)]
        for _ in range(50):
            pieces.append(slow.recv(4096))
            other.sendall(ONE)
            assert other.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
        body = b"".join([*pieces, read_all(slow)]).partition(b"\r\n\r\n")[2]
    vectors = vectors_of(embedding_pb2.LookupResponse.FromString(body))
    np.testing.assert_array_equal(vectors, twins.served.rows["words"][LARGE])


def test_a_peer_that_never_reads_holds_one_place_until_it_goes(twins: Twins) -> None:
    admission = twins.served.admission
    with connected(twins.fast) as mute:
        mute.sendall(lookup(LARGE) * 3)
        wait_until(lambda: admission.in_flight == 1, "the first reply is under way")
        with connected(twins.fast) as other:
            other.sendall(ONE)
            assert other.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
        assert admission.in_flight == 1
    wait_until(lambda: admission.in_flight == 0, "the place is given back")


def test_a_peer_that_goes_amid_its_body_gives_its_place_back(twins: Twins) -> None:
    admission = twins.served.admission
    with connected(twins.fast) as sock:
        sock.sendall(ONE[:-4])
        wait_until(lambda: admission.in_flight == 1, "the head was read")
    wait_until(lambda: admission.in_flight == 0, "the place is given back")


def test_a_body_that_doesnt_come_in_time_is_an_error(twins: Twins) -> None:
    with connected(twins.fast) as sock:
        late = lookup([3], "words", "Connect-Timeout-Ms: 100")
        sock.sendall(late[:-4])
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 504 ")
        sock.sendall(late[-4:] + ONE)  # what was left of it, and another request
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert twins.served.admission.in_flight == 0


def test_a_half_closed_peer_is_answered_what_was_read(twins: Twins) -> None:
    with connected(twins.fast) as sock:
        sock.sendall(ONE + ONE)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).count(b"HTTP/1.1 200 OK") == 2


def test_a_full_server_refuses_at_once(tmp_path: Path) -> None:
    served = small_engine(tmp_path, requests_in_flight_max=1)
    with web_server(served) as url, connected(url) as waiting, connected(url) as sock:
        waiting.sendall(ONE[:-1])
        wait_until(lambda: served.admission.in_flight == 1, "the only place is taken")
        sock.sendall(ONE)
        answer = sock.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in answer
        waiting.sendall(ONE[-1:])
        assert waiting.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")


def test_too_many_connections_are_refused(tmp_path: Path) -> None:
    with (
        web_server(small_engine(tmp_path), limit_concurrency=1) as url,
        connected(url) as first,
        connected(url) as second,
    ):
        first.sendall(ONE)
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        second.sendall(ONE)
        assert second.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        first.sendall(ONE)
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_expires(tmp_path: Path) -> None:
    with web_server(small_engine(tmp_path), timeout_keep_alive=1) as url, connected(url) as sock:
        started = time.monotonic()
        for _ in range(3):
            sock.sendall(ONE)
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
        assert sock.recv(1) == b""
        assert time.monotonic() - started >= 1


def test_a_drain_lets_replies_under_way_end(tmp_path: Path) -> None:
    served = small_engine(tmp_path)
    stack = ExitStack()
    url = stack.enter_context(web_server(served))
    with connected(url) as sock, connected(url) as idle:
        idle.sendall(ONE)
        assert idle.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
        sock.sendall(lookup(LARGE))
        wait_until(lambda: served.admission.in_flight == 1, "the reply is under way")
        stopping = threading.Thread(target=stack.close)
        stopping.start()
        assert idle.recv(1) == b""
        body = read_all(sock).partition(b"\r\n\r\n")[2]
        stopping.join(SECONDS)
        assert not stopping.is_alive()
    vectors = vectors_of(embedding_pb2.LookupResponse.FromString(body))
    np.testing.assert_array_equal(vectors, served.rows["words"][LARGE])


def test_uvicorn_is_the_one_that_the_fast_path_was_made_for() -> None:
    assert re.match(r"0\.54\.", importlib.metadata.version("uvicorn"))
    own: Callable[[object], set[str]] = lambda cls: set(vars(cls))  # noqa: E731
    used = {
        "connection_lost", "on_body", "on_headers_complete", "on_message_begin",
        "on_message_complete", "on_response_complete", "shutdown", "_start_asgi_task",
        "data_received", "on_url", "on_header", "_unset_keepalive_if_required",
    }  # fmt: skip
    assert used <= own(HttpToolsProtocol)
    # What uvicorn asks of the cycle that stands in `self.cycle`, other than what is overridden.
    source = inspect.getsource(HttpToolsProtocol)
    asked = set(re.findall(r"self\.cycle\.(\w+)", source))
    assert asked == {
        "body", "disconnected", "keep_alive", "message_event", "more_body", "response_complete",
    }  # fmt: skip
    assert set(inspect.signature(RequestResponseCycle).parameters) >= {"keep_alive", "on_response"}
    assert LIMITS.requests_in_flight_max > 1
