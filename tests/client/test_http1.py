"""The HTTP/1.1 reader: bytes in any pieces, and bytes that aren't quite HTTP."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatherd.transports.http1 import (
    ALIGN_BYTES,
    HEAD_BYTES_MAX,
    ConnectionEnded,
    HttpError,
    ResponseReader,
    finish_request,
    request_prefix,
)


def feed(reader: ResponseReader, data: bytes, step: int = 1 << 20) -> int:
    """Give `data` to the reader in pieces of up to `step` bytes; how many it took when done."""
    pos = 0
    while pos < len(data):
        buffer = reader.buffer()
        assert len(buffer) > 0
        part = data[pos : pos + min(step, len(buffer))]
        buffer[: len(part)] = part
        reader.received(len(part))
        pos += len(part)
        if reader.done:
            break
    return pos


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2;name=value\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + LENGTH
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"


@pytest.mark.parametrize("raw", [LENGTH, CHUNKED, INTERIM, UNTIL_CLOSE])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_response_is_read_in_pieces_of_any_size(raw: bytes, step: int) -> None:
    reader = ResponseReader()
    for _ in range(2):
        reader.reset()
        assert feed(reader, raw, step) == len(raw)
        if raw is UNTIL_CLOSE:
            reader.eof()
        assert reader.done
        assert reader.head is not None
        assert reader.head.status == 200
        assert bytes(reader.body) == b"hello"
        assert reader.reusable == (raw is not UNTIL_CLOSE)


@pytest.mark.parametrize("raw", [LENGTH, CHUNKED, INTERIM])
def test_a_response_that_ends_early_is_an_error_at_every_byte(raw: bytes) -> None:
    for end in range(len(raw)):
        reader = ResponseReader()
        feed(reader, raw[:end])
        assert not reader.done
        assert reader.started == (end > 0)
        with pytest.raises(ConnectionEnded):
            reader.eof()


def test_a_body_ends_on_an_aligned_byte() -> None:
    import numpy as np

    for size in (4, 100, 70_000):
        reader = ResponseReader()
        feed(reader, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        end = np.frombuffer(reader.body, np.uint8).ctypes.data + size
        # np.empty itself guarantees 16.
        assert end % min(16, ALIGN_BYTES) == 0
        assert not reader.body.readonly


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nB: c\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * HEAD_BYTES_MAX + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * HEAD_BYTES_MAX,
    ],
)
def test_a_malformed_head_is_an_error(head: bytes) -> None:
    for step in (1, 1 << 20):
        with pytest.raises(HttpError):
            feed(ResponseReader(), head, step)


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-1\r\n",
        b"0x3\r\n",
        b"3\nabc",
        b"3\r\nabcd\r\n",
        b"f" * 300,
        b"3;" + b"e" * 300 + b"\r\n",
        b"0\r\n" + b"T: v\r\n" * 200,
        b"0\r\n" + b"T" * 9000,
        b"65\r\n",
        b"60\r\n" + b"a" * 0x60 + b"\r\n10\r\n",
    ],
)
def test_malformed_or_overlong_chunks_are_an_error(chunks: bytes) -> None:
    with pytest.raises(HttpError):
        feed(
            ResponseReader(body_bytes_max=100),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
        )


def test_a_body_over_the_maximum_is_an_error() -> None:
    for raw in (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", UNTIL_CLOSE + b"!"):
        with pytest.raises(HttpError):
            feed(ResponseReader(body_bytes_max=5), raw)


def test_bytes_after_a_response_end_the_connections_use() -> None:
    for raw in (LENGTH, CHUNKED):
        reader = ResponseReader()
        feed(reader, raw + b"HTTP/1.1")
        assert reader.done
        assert not reader.reusable


def test_connection_headers_and_versions_decide_about_reuse() -> None:
    cases = [
        (b"HTTP/1.1", b"close", False),
        (b"HTTP/1.1", b"Keep-Alive, Close", False),
        (b"HTTP/1.1", b"keep-alive", True),
        (b"HTTP/1.0", b"", False),
        (b"HTTP/1.0", b"Keep-Alive", True),
    ]
    for version, value, expected in cases:
        reader = ResponseReader()
        feed(
            reader, version + b" 200 OK\r\nConnection: " + value + b"\r\nContent-Length: 0\r\n\r\n"
        )
        assert reader.done
        assert reader.reusable == expected


def test_no_body_belongs_to_204_and_304() -> None:
    for status in (204, 304):
        reader = ResponseReader()
        feed(reader, b"HTTP/1.1 %d x\r\n\r\n" % status)
        assert reader.done
        assert reader.reusable


@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_is_an_error_or_a_response_and_nothing_else(data: bytes, step: int) -> None:
    for raw in (data, b"HTTP/1.1 " + data, CHUNKED[:50] + data):
        reader = ResponseReader(body_bytes_max=1000)
        try:
            feed(reader, raw, step)
            reader.eof()
        except HttpError:
            continue
        assert reader.done


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 20))
def test_chunks_are_joined(parts: list[bytes], step: int) -> None:
    reader = ResponseReader()
    raw = b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    feed(reader, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw, step)
    assert bytes(reader.body) == b"".join(parts)


def test_a_requests_head() -> None:
    prefix = request_prefix("POST", "/a.B/C", "h:1", [("X", "y")])
    assert finish_request(prefix, 1500, 3) == (
        b"POST /a.B/C HTTP/1.1\r\nHost: h:1\r\nX: y\r\n"
        b"Connect-Timeout-Ms: 1500\r\nContent-Length: 3\r\n\r\n"
    )
