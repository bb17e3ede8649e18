"""A reply that looks like the ones before takes a shorter path; both paths give the same."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.clients import ITEMS, WORDS, Awaited
from client.replies import Reply, replies, serving
from gatherd import Client, DeadlineExceeded, GatherdError, InternalError
from gatherd.transports.http1 import HttpError, ResponseReader, around_length, feed, parse_head

lookups = st.tuples(
    st.sampled_from(["words", "items"]),
    st.sampled_from([(), (1,), (3,), (2, 2), (200,)]),
    st.sampled_from([np.int64, np.int32]),
    st.sampled_from(["float32", "float16", np.float32]),
    st.booleans(),
)


@pytest.mark.parametrize("make", [Client, Awaited])
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(lookups, replies), min_size=2, max_size=8))
def test_a_reply_is_read_the_same_whether_it_was_foreseen_or_not(make: Any, steps: Any) -> None:
    tables = {"words": WORDS, "items": ITEMS}
    with serving() as server, make(server.url, retries=2, timeout=3) as client:
        for i, ((table, shape, dtype, reply_dtype, into), reply) in enumerate(steps):
            rows = tables[table]
            ids = np.arange(i, i + max(1, int(np.prod(shape))))[: int(np.prod(shape))]
            ids = (ids % len(rows)).reshape(shape).astype(dtype)
            server.replies.append(reply)
            out = np.empty((*shape, rows.shape[1]), reply_dtype) if into else None
            found = client.lookup(table, ids, dtype=reply_dtype, out=out)
            server.replies.clear()
            wanted = rows[ids].astype(reply_dtype)
            np.testing.assert_array_equal(found, wanted)
            assert found.dtype == wanted.dtype
            assert found.flags.writeable
            assert found.flags.aligned
            assert out is None or found is out


@pytest.mark.parametrize("make", [Client, Awaited])
def test_results_do_not_share_memory(make: Any) -> None:
    with serving() as server, make(server.url) as client:
        found = [client.lookup("words", np.array([i])) for i in range(5)]
        found[3][:] = 0
        for i in (0, 1, 2, 4):
            np.testing.assert_array_equal(found[i], WORDS[[i]])


@pytest.mark.parametrize("make", [Client, Awaited])
def test_ids_that_are_sent_again_are_whole_when_out_shares_their_memory(make: Any) -> None:
    memory = np.zeros(8, np.float32)
    with serving() as server, make(server.url, retries=1) as client:
        for _ in range(2):
            ids = memory.view(np.int64)[:1]
            ids[0] = 5
            server.replies[:] = [Reply(truncated=0.99)]
            found = client.lookup("words", ids, out=memory.reshape(1, 8))
            np.testing.assert_array_equal(found, WORDS[[5]])


@pytest.mark.parametrize("make", [Client, Awaited])
def test_a_foreseen_reply_that_stalls_ends_at_the_deadline(make: Any) -> None:
    ids = np.arange(3)
    with serving() as server, make(server.url, timeout=0.3) as client:
        for _ in range(2):
            client.lookup("words", ids)
        server.replies[:] = [Reply(truncated=0.9, stall=True)]
        with pytest.raises(DeadlineExceeded):
            client.lookup("words", ids)
        np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids])


@pytest.mark.parametrize("make", [Client, Awaited])
def test_another_dim_of_a_new_version_is_seen(make: Any) -> None:
    ids = np.array([1, 2])
    with serving() as server, make(server.url) as client:
        for _ in range(3):
            np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids])
        server.service.tables["words"] = ITEMS
        server.replies[:] = [Reply(version=8)]
        np.testing.assert_array_equal(client.lookup("words", ids), ITEMS[ids])
        server.replies[:] = [Reply(version=8)] * 2
        np.testing.assert_array_equal(client.lookup("words", ids), ITEMS[ids])
        with pytest.raises(GatherdError, match="dim 3"):
            client.lookup("words", ids, out=np.empty((2, 8), np.float32))


@pytest.mark.parametrize("make", [Client, Awaited])
def test_another_version_than_the_one_asked_for_is_refused(make: Any) -> None:
    with serving() as server, make(server.url) as client:
        client.lookup("words", np.array([1]), version=7)
        server.replies[:] = [Reply(version=8)]
        with pytest.raises(InternalError, match="version 8 answered, 7 was asked"):
            client.lookup("words", np.array([1]), version=7)


# --- heads ---

names = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
lengths = st.integers(0, 10**18 - 1)


@given(
    headers=st.lists(st.tuples(names, values), max_size=5),
    place=st.integers(0, 5),
    name=st.sampled_from(["content-length", "Content-Length", "CONTENT-length"]),
    space=st.sampled_from(["", " ", "\t "]),
    length=lengths,
    other=lengths,
)
def test_a_head_with_another_length_says_the_same_but_for_that(
    headers: Any, place: int, name: str, space: str, length: int, other: int
) -> None:
    lines = [f"{key}: {value}" for key, value in headers]
    lines.insert(min(place, len(lines)), f"{name}:{space}{length}{space}")
    raw = ("HTTP/1.1 200 OK\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()
    head, parts = parse_head(raw), around_length(raw)
    repeated = sum(key.lower() == "content-length" for key, _ in headers)
    assert (parts is None) == (repeated > 0)
    if parts is not None:
        before, after = parts
        assert before + b"%d" % length + after == raw
        again = parse_head(b"%b%d%b" % (before, other, after))
        assert again.headers == {**head.headers, "content-length": str(other)}
        assert (again.status, again.minor_version) == (head.status, head.minor_version)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nContent-Length: 1\r\n\r\n",
    ],
)
def test_a_head_without_one_plain_length_has_no_parts(head: bytes) -> None:
    assert around_length(head) is None


@given(body=st.binary(max_size=300), extra=st.binary(max_size=3))
def test_bytes_received_elsewhere_are_read_as_well(body: bytes, extra: bytes) -> None:
    reader = ResponseReader()
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    feed(reader, memoryview(raw + extra))
    assert reader.done
    assert bytes(reader.body) == body
    assert reader.reusable == (not extra)
    with pytest.raises(HttpError):
        feed(ResponseReader(), memoryview(b"nonsense"))
