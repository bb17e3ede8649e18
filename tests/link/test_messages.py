"""Messages between workers and the writer: whole, in pieces, cut, too large, and what is none."""

from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd.errors import BadFile, GatherdError, InternalError, RetryableError
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import StringKeys
from gatherd.store.open_spec import OnFull, OpenSpec
from gatherd.store.query import ByKey
from gatherd_server.link.messages import (
    HEAD_BYTES,
    MESSAGE_BYTES_MAX,
    MessageKind,
    MessageReader,
    Result,
    message_parts,
    pack_change,
    pack_error,
    pack_push,
    pack_result,
    unpack_answer,
    unpack_change,
    unpack_push,
)
from gatherd_server.storage.records import Record, pack
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    CreateTable,
    DeleteTable,
    DeleteVersion,
    OptimizerSpec,
    OwnedKey,
    Publish,
    Push,
    PushResult,
    Rollback,
    SetOptimizer,
    SnapshotResult,
    TableChange,
    TableUpdate,
    UpdateOp,
)
from gatherd_server.writer.commit import Submitted
from gatherd_server.writer.window import push_digest
from support.error_classes import ERROR_CLASSES

ADAM = OptimizerSpec("adam", {"lr": 0.25, "beta1": 0.5})
OPEN = OpenSpec(
    *(KeyKind.BYTES, 50, 7, Initializer.parse("normal"), True, 3, OnFull.EVICT_LRU, 60, True)
)
CHANGES: list[TableChange] = [
    AddStaged("items", "0f"),
    CreateTable(
        "items", 7, 3, DType.BFLOAT16, Initializer.parse("normal", {"stddev": 0.5}), None, ADAM
    ),
    CreateTable("items", 7, 3, DType.FLOAT32, Initializer.parse("zeros"), 1 << 60, None),
    CreateTable("items", 0, 3, DType.FLOAT32, Initializer.parse("normal"), 7, ADAM, OPEN),
    DeleteTable("items"),
    DeleteVersion("items", 2),
    Publish("items", "0f", 3),
    Rollback("items", 2, 3),
    SetOptimizer("items", ADAM, 4),
]
RESULTS: list[Result] = [
    None,
    PushResult(1 << 50, (1, 2)),
    PushResult(1 << 50, (1, 2), (3, 0), (), (0, 1 << 31)),
    ChangeResult(3, 9),
    SnapshotResult("somewhere/é", 9),
]


def sent(
    parts: list[bytes | memoryview], kind: MessageKind = MessageKind.PUSH, number: int = 1
) -> bytes:
    return b"".join(message_parts(kind, number, parts))


def received(data: bytes) -> Record:
    ((_, _, record),) = MessageReader().feed(data)
    return record


def a_push() -> Submitted:
    rng = np.random.default_rng(1)
    push = Push(
        UpdateOp.APPLY_GRADIENTS,
        (
            TableUpdate("ids", np.array([[1], [9]]), np.ones((2, 1, 3), np.float32), 0.5, 4),
            TableUpdate(
                "strings",
                ByKey(StringKeys.of([b"a", "ünï".encode(), b"c"])),
                rng.normal(size=(3, 2)).astype(np.float32),
            ),
            TableUpdate("keys", ByKey(np.array([2**63], np.uint64)), np.ones((1, 2), np.float32)),
            TableUpdate("none", np.zeros((0,), np.int32), np.ones((0, 2), np.float32)),
            TableUpdate(
                "new", ByKey(np.array([7])), np.zeros((1, 0), np.float32), None, 0, creates=True
            ),
        ),
        OwnedKey("step 7", "trainer"),
        "00-trace-01",
    )
    return Submitted(push, push_digest(push))


def test_a_push_arrives_as_it_was_sent() -> None:
    given_push = a_push()
    back = unpack_push(received(sent(pack_push(given_push))))
    push, original = back.push, given_push.push
    assert (push.op, push.request_id, push.traceparent) == (
        *(original.op, original.request_id),
        original.traceparent,
    )
    assert back.digest == given_push.digest == push_digest(push)
    for one, other in zip(push.updates, original.updates, strict=True):
        assert (one.table, one.lr, one.if_version) == (other.table, other.lr, other.if_version)
        assert one.creates == other.creates
        assert one.asked.shape == other.asked.shape
        assert one.values.flags.aligned
        np.testing.assert_array_equal(one.values, other.values)
    assert cast("ByKey", push.updates[1].asked).keys.tolist() == [b"a", "ünï".encode(), b"c"]
    assert cast("ByKey", push.updates[2].asked).keys.tolist() == [2**63]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_arrives_as_it_was_sent(change: TableChange) -> None:
    assert unpack_change(received(sent(pack_change(change)))) == change


@pytest.mark.parametrize("result", RESULTS, ids=str)
def test_a_result_arrives_as_it_was_sent(result: Result) -> None:
    assert unpack_answer(received(sent(pack_result(result)))) == result


@pytest.mark.parametrize("cls", ERROR_CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_of_every_class_arrives_as_it_was_sent(cls: type[GatherdError]) -> None:
    metadata = {"table": "items"}
    is_retryable = issubclass(cls, RetryableError)
    error = cls("why", metadata, 0.75) if is_retryable else cls("why", metadata)  # type: ignore[call-arg]
    back = unpack_answer(received(sent(pack_error(error))))
    assert type(back) is cls
    assert (back.message, back.metadata) == ("why", metadata)
    if isinstance(back, RetryableError):
        assert back.retry_after_seconds == 0.75


def test_an_error_that_this_end_does_not_know_is_an_internal_one() -> None:
    back = unpack_answer(Record({"error": ["NEW_IN_2030", "why", {}, None]}, [], 0))
    assert type(back) is InternalError
    assert back.message == "why"


def stream() -> tuple[bytes, list[tuple[MessageKind, int]]]:
    listed = [(MessageKind.PUSH, 1), (MessageKind.PING, 0), (MessageKind.ANSWER, 2**64 - 1)]
    parts = [pack_push(a_push()), pack({}, []), pack_result(None)]
    messages = [sent(some, *one) for some, one in zip(parts, listed, strict=True)]
    return b"".join(messages), listed


def test_a_stream_that_is_cut_at_any_byte_gives_its_whole_messages_and_goes_on() -> None:
    data, listed = stream()
    for cut in range(len(data) + 1):
        reader = MessageReader()
        first, rest = reader.feed(data[:cut]), reader.feed(data[cut:])
        assert [(kind, number) for kind, number, _ in (*first, *rest)] == listed
        if 0 < cut < len(data):
            assert len(first) < len(listed)


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(0, 1 << 12)))
def test_a_stream_in_any_pieces_is_the_same_messages(cuts: list[int]) -> None:
    data, listed = stream()
    reader, found = MessageReader(), []
    for begin, end in pairwise(sorted({0, len(data), *(cut % len(data) for cut in cuts)})):
        found += reader.feed(data[begin:end])
    assert [(kind, number) for kind, number, _ in found] == listed
    assert push_digest(unpack_push(found[0][2]).push) == a_push().digest


@pytest.mark.parametrize("byte_count", [0, HEAD_BYTES - 5, MESSAGE_BYTES_MAX - 3, 2**32 - 1])
def test_a_length_that_no_message_has_is_refused_by_its_head_alone(byte_count: int) -> None:
    head = byte_count.to_bytes(4, "little") + bytes(HEAD_BYTES - 4)
    assert MessageReader().feed(head[:-1]) == []
    with pytest.raises(ValueError, match="a message of"):
        MessageReader().feed(head)


@pytest.mark.parametrize("kind", [0, 10, 255])
def test_a_kind_that_there_is_not_is_refused(kind: int) -> None:
    data = bytearray(sent(pack({}, [])))
    data[4] = kind
    with pytest.raises(ValueError, match="not a valid MessageKind"):
        MessageReader().feed(bytes(data))


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xff\xff\xff", b"\2\0\0\0{}\0\0", b"\5\0\0\0{...\0"], ids=str
)
def test_a_body_that_is_no_record_is_refused(body: Any) -> None:
    with pytest.raises(BadFile, match="a message is damaged"):
        MessageReader().feed(sent([body]))
