"""An update read by comparison with an earlier one is the update that protobuf reads."""

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd.errors import GatherdError
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.types import Push, UpdateOp
from gatherd_server.wire import updates
from gatherd_server.wire.seen_updates import SeenUpdates
from support.small_engine import LIMITS

OP = UpdateOp.APPLY_GRADIENTS


def body(number: int, ids: Any, value: float, lr: float | None = None, version: int = 0) -> bytes:
    """An update as the SDK sends it: the id first, the values last."""
    values = np.full((*ids.shape, 3), value, np.float32)
    tensors = [
        tensor_pb2.Tensor(dtype=f"DTYPE_{a.dtype.name.upper()}", shape=a.shape, data=a.tobytes())
        for a in (ids, values)
    ]
    begin = embedding_pb2.TableUpdate(table="t", ids=tensors[0], if_version=version)
    if lr is not None:
        begin.learning_rate = lr
    update = begin.SerializeToString()
    update += embedding_pb2.TableUpdate(values=tensors[1]).SerializeToString()
    sequence = embedding_pb2.SessionSequence(session=b"s" * 16, sequence=number)
    framed = embedding_pb2.UpdateRequest(sequence=sequence).SerializeToString()
    # A length of two bytes, as protobuf writes it from 128 on.
    length = bytes((len(update),)) if len(update) < 128 else _varint(len(update))
    return framed + b"\x0a" + length + update


def _varint(value: int) -> bytes:
    return bytes((value & 0x7F | 0x80, value >> 7))


def read(message: bytes) -> Push | None:
    """What protobuf reads; None for what is refused."""
    try:
        return updates.push(OP, embedding_pb2.UpdateRequest.FromString(message), LIMITS)
    except (DecodeError, GatherdError):
        return None


def same(one: Push, other: Push) -> bool:
    (a,), (b,) = one.updates, other.updates
    assert isinstance(a.asked, np.ndarray)
    assert isinstance(b.asked, np.ndarray)
    return (
        (one.op, one.request_id) == (other.op, other.request_id)
        and (a.table, a.lr, a.if_version) == (b.table, b.lr, b.if_version)
        and (a.asked.dtype, a.asked.shape) == (b.asked.dtype, b.asked.shape)
        and a.asked.tobytes() == b.asked.tobytes()
        and a.values.shape == b.values.shape
        and a.values.tobytes() == b.values.tobytes()
        and a.values.flags.aligned
    )


def taught(*messages: bytes) -> SeenUpdates:
    seen = SeenUpdates(OP)
    for message in messages:
        push = read(message)
        assert push is not None
        for _ in range(2):  # a length is learnt at its second update
            seen.learn(message, push, LIMITS)
    return seen


KINDS: list[dict[str, Any]] = [
    {"ids": np.arange(5)},
    {"ids": np.arange(6).reshape(2, 3), "lr": 0.5},
    {"ids": np.arange(1, dtype=np.int32), "version": 9},
    {"ids": np.zeros(4, np.int64), "lr": 0.0},
]


def test_updates_of_a_kind_that_was_learnt_are_found() -> None:
    for kind in KINDS:
        seen = taught(body(1, value=2.0, **kind))
        for number in (1, 2, 127, 128, 2**40, 2**63 - 1):
            other = {**kind, "ids": kind["ids"] + number % 1000}
            message = body(number, value=-3.5, **other)
            found, wanted = seen.find(message), read(message)
            assert found is not None
            assert wanted is not None
            assert same(found, wanted)


def test_a_length_is_learnt_when_it_comes_again() -> None:
    seen, message = SeenUpdates(OP), body(1, np.arange(5), 1.0)
    push = read(message)
    assert push is not None
    seen.learn(message, push, LIMITS)
    assert seen.find(message) is None
    seen.learn(message, push, LIMITS)
    assert seen.find(message) is not None


@settings(max_examples=200)
@given(st.data())
def test_damaged_updates_are_what_protobuf_reads_or_left_to_it(data: Any) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    seen = taught(*(body(3, value=1.0, **one) for one in KINDS))
    damaged = bytearray(body(data.draw(st.sampled_from([1, 127, 128, 2**62])), value=2.0, **kind))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, min(len(damaged) - 1, 80)))
        match data.draw(st.sampled_from(["flip", "cut", "add"])):
            case "flip":
                damaged[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del damaged[at]
            case "add":
                damaged.insert(at, data.draw(st.integers(0, 255)))
    found = seen.find(bytes(damaged))
    if found is not None:
        wanted = read(bytes(damaged))
        assert wanted is not None
        assert same(found, wanted)
