"""The hand-written protobuf against the generated classes."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from gatherd import InternalError
from gatherd._requests.bags import prepare_bags
from gatherd._requests.lookups import parse_reply_type, prepare, prepare_keys_of
from gatherd._wire.lookups import (
    decode_get_table,
    decode_keys_of,
    decode_list_tables,
    decode_lookup,
    decode_lookup_many,
    encode_keys_of,
    encode_lookups,
)
from gatherd.store.keys import StringKeys
from gatherd_proto.v1 import embedding_pb2, tensor_pb2

UINT64 = st.integers(0, 2**64 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
RESPONSES = st.builds(
    embedding_pb2.LookupResponse,
    version=UINT64,
    status=st.binary(max_size=20),
    vectors=st.builds(
        tensor_pb2.Tensor,
        dtype=st.integers(0, 12),
        shape=st.lists(INT64, max_size=4),
        data=st.binary(max_size=300),
    ),
)


def same(reply: Any, message: Any) -> bool:
    return bool(
        reply.version == message.version
        and bytes(reply.status) == message.status
        and reply.dtype == message.vectors.dtype
        and reply.shape == list(message.vectors.shape)
        and bytes(reply.data) == message.vectors.data
    )


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


@given(RESPONSES)
def test_a_reply_is_read_as_the_generated_class_wrote_it(message: Any) -> None:
    assert same(decode_lookup(memoryview(message.SerializeToString())), message)


@given(st.lists(RESPONSES, max_size=4))
def test_many_replies_are_read_in_order(messages: list[Any]) -> None:
    body = embedding_pb2.LookupManyResponse(lookups=messages).SerializeToString()
    replies = decode_lookup_many(memoryview(body))
    assert len(replies) == len(messages)
    assert all(map(same, replies, messages))


@given(
    st.one_of(
        st.binary(max_size=60), st.tuples(RESPONSES, st.integers(0, 400), st.binary(max_size=3))
    )
)
def test_damaged_bytes_are_read_as_the_generated_class_reads_them_or_refused(source: Any) -> None:
    if isinstance(source, bytes):
        body = source
    else:
        message, place, patch = source
        body = message.SerializeToString()
        body = body[:place] + patch + body[place + len(patch) :]
    try:
        expected = embedding_pb2.LookupResponse.FromString(body)
    except DecodeError:
        expected = None
    try:
        reply = decode_lookup(memoryview(body))
    except InternalError:
        assert expected is None
    else:
        assert expected is None or same(reply, expected)


def test_a_reply_that_ends_early_is_refused_or_lacks_fields_at_every_byte() -> None:
    tensor = tensor_pb2.Tensor(dtype="DTYPE_FLOAT32", shape=[2, 300], data=bytes(2400))
    body = embedding_pb2.LookupResponse(version=300, status=b"\0\0", vectors=tensor)
    raw = body.SerializeToString()
    for end in range(len(raw)):
        try:
            reply = decode_lookup(memoryview(raw[:end]))
        except InternalError:
            continue
        assert not reply.data


def test_any_valid_encoding_is_accepted() -> None:
    group = varint(9 << 3 | 3) + varint(10 << 3) + b"\x01" + varint(9 << 3 | 4)
    fixed = varint(11 << 3 | 5) + bytes(4) + varint(12 << 3 | 1) + bytes(8)
    unknown = group + fixed + field(13, b"later") + varint(14 << 3) + b"\x96\x01"
    # Shape unpacked and packed, the tensor in two parts, the data before the shape, long varints.
    first = field(3, b"12345678") + b"\x10\x82\x80\x00" + unknown
    second = b"\x08\x02" + field(2, varint(2))
    raw = unknown + field(3, first) + field(3, second) + b"\x08\x05" + b"\x08\x07"
    reply = decode_lookup(memoryview(raw))
    assert same(reply, embedding_pb2.LookupResponse.FromString(raw))
    assert (reply.version, reply.shape, reply.dtype) == (7, [2, 2], 2)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01",
        b"\x0e",
        b"\x0c",
        b"\x1b",
        b"\x1b\x24",
        b"\x1b" * 200,
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08" + b"\xff" * 11,
        b"\x0d\x00",
        b"\x1a\x02\x12\x05",
    ],
)
def test_what_no_encoder_writes_is_refused(raw: bytes) -> None:
    with pytest.raises(InternalError, match="reply can't be used"):
        decode_lookup(memoryview(raw))


def test_table_replies_that_cannot_be_read_are_refused() -> None:
    for decode in (decode_get_table, decode_list_tables):
        with pytest.raises(InternalError, match="it isn't a"):
            decode(memoryview(b"\xff\xff"))


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    st.sampled_from("bhilqBHILQ"),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from(["error", "zero", "default"]),
    UINT64,
)
def test_a_request_is_read_by_the_generated_class(
    table: str, code: str, shape: list[int], dtype: str, missing: str, version: int
) -> None:
    ids = np.arange(np.prod(shape, dtype=int)).astype(code).reshape(shape)
    spec = prepare(table, ids, None, parse_reply_type(dtype), missing)
    method, body = encode_lookups([(spec, version)], many=False)
    assert method.endswith("/Lookup")
    request = embedding_pb2.LookupRequest.FromString(body)
    assert request.table == table
    assert list(request.ids.shape) == shape
    assert request.ids.data == ids.tobytes()
    name = tensor_pb2.DType.Name(request.ids.dtype)
    assert name == f"DTYPE_{ids.dtype.name.upper()}"
    assert tensor_pb2.DType.Name(request.dtype) == f"DTYPE_{dtype.upper()}"
    assert embedding_pb2.Missing.Name(request.missing) == f"MISSING_{missing.upper()}"
    assert request.version == version
    method, many = encode_lookups([(spec, version)] * 2, many=True)
    assert method.endswith("/LookupMany")
    assert list(embedding_pb2.LookupManyRequest.FromString(many).lookups) == [request] * 2
    spec_of = prepare_keys_of(table, ids)
    asked = embedding_pb2.KeysOfRequest.FromString(encode_keys_of(spec_of, version))
    assert (asked.table, asked.ids, asked.version) == (table, request.ids, version)


KEY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) | st.binary(
    min_size=1, max_size=20
)


@given(st.lists(KEY, min_size=1, max_size=30), st.booleans())
def test_string_keys_are_read_by_the_generated_class(keys: list[str | bytes], flat: bool) -> None:
    given_keys = keys if flat else [[key] for key in keys]
    spec = prepare("words", None, given_keys, parse_reply_type("float32"), "error")
    _, body = encode_lookups([(spec, 0)], many=False)
    request = embedding_pb2.LookupRequest.FromString(body)
    assert request.WhichOneof("rows") == "keys"
    strings = request.keys.strings
    assert list(strings.shape) == ([len(keys)] if flat else [len(keys), 1])
    encoded = [key.encode() if isinstance(key, str) else key for key in keys]
    assert strings.data == b"".join(encoded)
    assert np.frombuffer(strings.lengths, "<u4").tolist() == [len(key) for key in encoded]


@given(
    st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), max_size=8),
    st.sampled_from(["sum", "mean", "max", "sqrtn"]),
    st.booleans(),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["error", "zero", "default", "skip"]),
    UINT64,
)
def test_a_request_for_bags_is_read_by_the_generated_class(
    keys: list[list[int]],
    mode: str,
    weighted: bool,
    padding: int | None,
    missing: str,
    version: int,
) -> None:
    flat = [key for bag in keys for key in bag]
    weights = [0.5] * len(flat) if weighted and mode != "max" else None
    spec = prepare_bags(
        "words", None, None, keys, mode=mode, weights=weights, padding_id=padding,
        reply=parse_reply_type("float16"), missing=missing,
    )  # fmt: skip
    method, body = encode_lookups([(spec, version)], many=False)
    assert method.endswith("/LookupBags")
    request = embedding_pb2.LookupBagsRequest.FromString(body)
    assert request.lookup.keys.integers.data == np.array(flat, "<i8").tobytes()
    assert list(request.offsets.shape) == [len(keys)]
    lengths = [len(bag) for bag in keys]
    assert np.frombuffer(request.offsets.data, "<i8").tolist() == [
        sum(lengths[:i]) for i in range(len(keys))
    ]
    assert embedding_pb2.Pooling.Name(request.pooling) == f"POOLING_{mode.upper()}"
    assert request.HasField("weights") == (weights is not None)
    assert request.weights.data == np.array(weights or [], "<f4").tobytes()
    assert (request.padding_id if request.HasField("padding_id") else None) == padding
    assert request.lookup.version == version
    assert embedding_pb2.Missing.Name(request.lookup.missing) == f"MISSING_{missing.upper()}"
    method, many = encode_lookups([(spec, version)] * 2, many=True)
    assert method.endswith("/LookupBagsMany")
    assert list(embedding_pb2.LookupBagsManyRequest.FromString(many).bags) == [request] * 2


def keys_reply(**keys: Any) -> memoryview:
    reply = embedding_pb2.KeysOfResponse(version=3, keys=tensor_pb2.Keys(**keys))
    return memoryview(reply.SerializeToString())


def test_keys_in_a_reply_are_checked() -> None:
    lengths = np.array([1, 2], "<u4").tobytes()
    sound = tensor_pb2.StringKeys(shape=[2], lengths=lengths, data=b"abc")
    found, version = decode_keys_of(keys_reply(strings=sound), (2,))
    assert isinstance(found, StringKeys)
    assert (found.tolist(), version) == ([b"a", b"bc"], 3)
    integers = tensor_pb2.Tensor(dtype="DTYPE_UINT64", shape=[1, 2], data=bytes(16))
    found, _ = decode_keys_of(keys_reply(integers=integers), (1, 2))
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint64
    assert found.shape == (1, 2)
    assert found.flags.writeable
    narrow = tensor_pb2.Tensor(dtype="DTYPE_INT32", shape=[2], data=bytes(8))
    short = tensor_pb2.Tensor(dtype="DTYPE_INT64", shape=[2], data=bytes(15))
    empty = tensor_pb2.StringKeys(shape=[2], lengths=bytes(8))
    longer = tensor_pb2.StringKeys(shape=[2], lengths=lengths, data=b"abcd")
    for body in (
        keys_reply(),
        memoryview(b"\xff"),
        keys_reply(integers=narrow),
        keys_reply(integers=short),
        keys_reply(integers=integers),
        keys_reply(strings=empty),
        keys_reply(strings=longer),
    ):
        with pytest.raises(InternalError, match="reply can't be used"):
            decode_keys_of(body, (2,))
