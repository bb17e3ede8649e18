"""Requests to bytes and bytes to replies; the messages are those of proto/gatherd_proto/v1.

Requests with ids or keys, and replies with vectors, are framed and read by hand, with protobuf.py:
a generated class would copy the vectors twice. The reader takes every valid encoding (any field
order, packed or unpacked shapes, fields it doesn't know, a message in several parts). All else goes
through the generated classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gatherd._requests.lookups import KeysOfSpec, Limits, LookupSpec, TableInfo
from gatherd._wire.protobuf import (
    Parts,
    nested,
    read_fields,
    read_varint,
    signed,
    unreadable,
)
from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.keys import Keys, StringKeys, string_keys_from_wire
from gatherd.store.query import BagsQuery, ByKey, Missing, Pooling
from gatherd_proto.framing import BYTES, TENSOR_DATA, VARINT, dtype_code, tag, tensor_head, varint
from gatherd_proto.procedures import LOOKUP, LOOKUP_BAGS, LOOKUP_BAGS_MANY, LOOKUP_MANY
from gatherd_proto.v1 import embedding_pb2, table_pb2, tensor_pb2

DTYPE_CODES = {dtype: dtype_code(dtype.value) for dtype in DType}
_TENSOR_CODES = {
    (dtype.kind, dtype.itemsize): dtype_code(dtype.name)
    for dtype in map(np.dtype, ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4"))
}
_KEY_DTYPES: dict[int, np.dtype[Any]] = {
    tensor_pb2.DTYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DTYPE_UINT64: np.dtype("<u8"),
}
_MISSING_CODES = {one: embedding_pb2.Missing.Value(f"MISSING_{one.name}") for one in Missing}
_POOLING_CODES = {one: embedding_pb2.Pooling.Value(f"POOLING_{one.name}") for one in Pooling}
_MASK64 = (1 << 64) - 1


# --- requests ---

_TABLE = tag(1, BYTES)
_IDS = tag(2, BYTES)
_REPLY_DTYPE = tag(3, VARINT)
_MISSING = tag(4, VARINT)
_VERSION = tag(5, VARINT)
_KEYS = tag(6, BYTES)
_DIMS = tag(7, VARINT)
_NORMALIZE = tag(8, VARINT)
_WITH_LSN = tag(9, VARINT)
_KEYS_OF_VERSION = tag(3, VARINT)
_STRINGS = tag(1, BYTES)
_INTEGERS = tag(2, BYTES)
_STRINGS_SHAPE = tag(1, BYTES)
_STRINGS_LENGTHS = tag(2, BYTES)
_STRINGS_DATA = tag(3, BYTES)
_BAGS_LOOKUP = tag(1, BYTES)
_BAGS_OFFSETS = tag(2, BYTES)
_BAGS_POOLING = tag(3, VARINT)
_BAGS_WEIGHTS = tag(4, BYTES)
_BAGS_PADDING_ID = tag(5, VARINT)
_MEMBER = tag(1, BYTES)  # of LookupManyRequest and LookupBagsManyRequest alike


def encode_lookups(parts: Sequence[tuple[LookupSpec, int]], *, many: bool) -> tuple[str, bytes]:
    """The method and the request for lookups, or cuts of them, each with the version to pin it to.

    All of them are bags, or none is; without `many` there is one.
    """
    method = method_of([spec for spec, _ in parts], many=many)
    return method, b"".join(_lookups(parts, many=many))


def method_of(specs: Sequence[LookupSpec], *, many: bool) -> str:
    """The path of the method that lookups are sent to."""
    bags = specs[0].bags is not None
    if many:
        return LOOKUP_BAGS_MANY.path if bags else LOOKUP_MANY.path
    return LOOKUP_BAGS.path if bags else LOOKUP.path


def around_arrays(
    specs: Sequence[LookupSpec], *, many: bool
) -> tuple[tuple[bytes, ...], list[NDArray[Any]]]:
    """A request without string keys: the bytes around its arrays, and the arrays, in order.

    With other arrays of the same dtypes and shapes it is the request for those.
    """
    around: list[list[bytes]] = [[]]
    arrays: list[NDArray[Any]] = []
    for part in _lookups([(spec, spec.version) for spec in specs], many=many):
        if isinstance(part, memoryview):
            around.append([])
            arrays.append(np.asarray(part))
        else:
            around[-1].append(part)
    return tuple(map(b"".join, around)), arrays


def _lookups(parts: Sequence[tuple[LookupSpec, int]], *, many: bool) -> Parts:
    if not many:
        return _lookup(*parts[0])
    out: Parts = []
    for spec, version in parts:
        out += nested(_MEMBER, _lookup(spec, version))
    return out


def _lookup(spec: LookupSpec, version: int) -> Parts:
    """A LookupRequest, in a LookupBagsRequest if rows are pooled."""
    if isinstance(spec.asked, ByKey):
        rows = nested(_KEYS, keys_parts(spec.asked.keys))
    else:
        rows = nested(_IDS, tensor_parts(spec.asked))
    parts = _plain_lookup(spec, rows, version)
    return parts if spec.bags is None else nested(_BAGS_LOOKUP, parts) + _pooled(spec.bags)


def _plain_lookup(spec: LookupSpec, rows: Parts, version: int) -> Parts:
    after = (
        _REPLY_DTYPE
        + varint(DTYPE_CODES[spec.reply.wire])
        + _MISSING
        + varint(_MISSING_CODES[spec.missing])
    )
    if version:
        after += _VERSION + varint(version)
    if spec.form is not None:
        after += _DIMS + varint(spec.form.dims) + _NORMALIZE + varint(spec.form.normalize)
    if spec.with_lsn:
        after += _WITH_LSN + varint(1)
    return [_TABLE + varint(len(spec.table_bytes)) + spec.table_bytes, *rows, after]


def _pooled(bags: BagsQuery) -> Parts:
    """What a LookupBagsRequest has beside its lookup."""
    parts = nested(_BAGS_OFFSETS, tensor_parts(bags.offsets))
    parts.append(_BAGS_POOLING + varint(_POOLING_CODES[bags.pooling]))
    if bags.weights is not None:
        parts += nested(_BAGS_WEIGHTS, tensor_parts(bags.weights))
    if bags.padding_id is not None:
        parts.append(_BAGS_PADDING_ID + varint(bags.padding_id & _MASK64))
    return parts


def keys_parts(keys: Keys) -> Parts:
    """A Keys message."""
    if not isinstance(keys, StringKeys):
        return nested(_INTEGERS, tensor_parts(keys))
    return _strings(sent_strings(keys))


@dataclass(frozen=True, slots=True, eq=False)
class SentStrings:
    """String keys of shape S as they are sent: `lengths` are uint32 each, `data` all the keys."""

    shape: tuple[int, ...]
    lengths: bytes
    data: bytes


def sent_strings(keys: StringKeys) -> SentStrings:
    """`keys` as they are sent."""
    lengths = np.diff(keys.offsets).astype("<u4")
    data = keys.data[int(keys.offsets[0]) : int(keys.offsets[-1])]
    return SentStrings(keys.shape, lengths.tobytes(), data.tobytes())


def _strings(keys: SentStrings) -> Parts:
    """A Keys message of strings."""
    dims = b"".join(map(varint, keys.shape))
    head = _STRINGS_SHAPE + varint(len(dims)) + dims + _STRINGS_LENGTHS + varint(len(keys.lengths))
    tail = _STRINGS_DATA + varint(len(keys.data))
    size = len(head) + len(keys.lengths) + len(tail) + len(keys.data)
    return [_STRINGS + varint(size) + head, keys.lengths, tail, keys.data]


@dataclass(frozen=True, slots=True, eq=False)
class AroundStrings:
    """A request by string keys but for them: `before` and `after` them in its LookupRequest.

    `pooled` are the bytes around offsets and weights, which follow that where rows are pooled.
    """

    before: bytes
    after: bytes
    pooled: tuple[bytes, ...]

    @classmethod
    def of(cls, spec: LookupSpec) -> "AroundStrings":
        """That of a lookup by string keys."""
        before, *_, after = _plain_lookup(spec, [b""], spec.version)
        pooled: list[list[bytes]] = [[]]
        for part in _pooled(spec.bags) if spec.bags is not None else ():
            if isinstance(part, memoryview):
                pooled.append([])
            else:
                pooled[-1].append(part)
        return cls(bytes(before), bytes(after), tuple(map(b"".join, pooled)))

    def request(self, keys: SentStrings, arrays: Sequence[NDArray[Any]]) -> bytes:
        """The request for `keys`, with offsets and weights in `arrays` if rows are pooled."""
        strings = _strings(keys)
        size = sum(map(len, strings))
        field = _KEYS + varint(size)
        if not arrays:
            return b"".join((self.before, field, *strings, self.after))
        size += len(self.before) + len(field) + len(self.after)
        first, *others = self.pooled
        parts: list[Any] = [_BAGS_LOOKUP + varint(size), self.before, field, *strings, self.after]
        parts += [first, *chain.from_iterable(zip(arrays, others, strict=True))]
        return b"".join(parts)


def tensor_parts(array: NDArray[Any], code: int | None = None) -> Parts:
    """A Tensor message; `code` is that of a dtype that NumPy lacks."""
    if code is None:
        code = _TENSOR_CODES[array.dtype.kind, array.dtype.itemsize]
    head = tensor_head(code, array.shape) + TENSOR_DATA + varint(array.nbytes)
    return [head, array.data]


def encode_keys_of(spec: KeysOfSpec, version: int) -> bytes:
    """A KeysOfRequest."""
    parts: Parts = [_TABLE + varint(len(spec.table_bytes)) + spec.table_bytes]
    parts += nested(_IDS, tensor_parts(spec.asked))
    if version:
        parts.append(_KEYS_OF_VERSION + varint(version))
    return b"".join(parts)


def encode_list_tables() -> bytes:
    """A ListTablesRequest."""
    return table_pb2.ListTablesRequest().SerializeToString()


def encode_get_table(table: str) -> bytes:
    """A GetTableRequest."""
    return table_pb2.GetTableRequest(table=table).SerializeToString()


# --- replies ---


@dataclass(slots=True)
class LookupReply:
    """A LookupResponse as it was sent; only its encoding has been checked.

    `status` and `data` are views of the reply's buffer, not copies.
    """

    version: int = 0
    status: memoryview = field(default_factory=lambda: memoryview(b""))
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    lsn: int | None = None
    normalized: bool = False


def decode_lookups(body: memoryview, *, many: bool) -> list[LookupReply]:
    """The replies to lookups or bags, of one or `many`. InternalError when they can't be read."""
    return decode_lookup_many(body) if many else [decode_lookup(body)]


def decode_lookup(body: memoryview) -> LookupReply:
    """Read a LookupResponse. InternalError when it isn't one."""
    reply = LookupReply()
    _read_lookup(body, 0, len(body), reply)
    return reply


def decode_lookup_many(body: memoryview) -> list[LookupReply]:
    """Read a LookupManyResponse. InternalError when it isn't one."""
    replies = []
    for number, wire_type, value, stop in read_fields(body, 0, len(body)):
        if number == 1 and wire_type == BYTES:
            reply = LookupReply()
            _read_lookup(body, value, stop, reply)
            replies.append(reply)
    return replies


def _read_lookup(body: memoryview, pos: int, end: int, reply: LookupReply) -> None:
    for number, wire_type, value, stop in read_fields(body, pos, end):
        if number == 1 and wire_type == VARINT:
            reply.version = value
        elif number == 2 and wire_type == BYTES:
            reply.status = body[value:stop]
        elif number == 3 and wire_type == BYTES:
            # A message may come in parts, which add up in the same object.
            _read_tensor(body, value, stop, reply)
        elif number == 4 and wire_type == VARINT:
            reply.lsn = value
        elif number == 5 and wire_type == VARINT:
            reply.normalized = bool(value)


def _read_tensor(body: memoryview, pos: int, end: int, reply: LookupReply) -> None:
    for number, wire_type, value, stop in read_fields(body, pos, end):
        if number == 1 and wire_type == VARINT:
            reply.dtype = value
        elif number == 2 and wire_type == VARINT:
            reply.shape.append(signed(value))
        elif number == 2 and wire_type == BYTES:
            at = value
            while at < stop:
                extent, at = read_varint(body, at, stop)
                reply.shape.append(signed(extent))
        elif number == 3 and wire_type == BYTES:
            reply.data = body[value:stop]


def decode_keys_of(body: memoryview, shape: tuple[int, ...]) -> tuple[Keys, int]:
    """The keys in a KeysOfResponse to ids of `shape`, and the version that answered.

    InternalError when it isn't one, or answers something else.
    """
    try:
        reply = embedding_pb2.KeysOfResponse.FromString(bytes(body))
    except DecodeError:
        raise unreadable("it isn't a KeysOfResponse") from None
    return keys_of_message(reply.keys, shape), reply.version


def keys_of_message(keys: tensor_pb2.Keys, shape: tuple[int, ...]) -> Keys:
    """The keys of ids of `shape`. InternalError when they can't be."""
    kind = keys.WhichOneof("kind")
    if kind is None:
        raise unreadable("it holds no keys")
    sent = keys.strings if kind == "strings" else keys.integers
    if tuple(sent.shape) != shape:
        raise unreadable(f"keys of shape {list(sent.shape)} don't answer ids of shape {shape}")
    if kind == "strings":
        strings = keys.strings
        try:
            return string_keys_from_wire(strings.data, strings.lengths, shape)
        except InvalidArgument as error:
            raise unreadable(error.message) from None
    tensor = keys.integers
    dtype = _KEY_DTYPES.get(tensor.dtype)
    if dtype is None or len(tensor.data) != math.prod(shape) * dtype.itemsize:
        raise unreadable(f"{len(tensor.data)} bytes can't be keys of dtype {int(tensor.dtype)}")
    # A copy: the caller owns the array, and may write to it.
    return np.frombuffer(tensor.data, dtype).reshape(shape).copy()


def decode_list_tables(body: memoryview) -> tuple[list[TableInfo], Limits]:
    """Read a ListTablesResponse. InternalError when it isn't one."""
    try:
        reply = table_pb2.ListTablesResponse.FromString(bytes(body))
    except DecodeError:
        raise unreadable("it isn't a ListTablesResponse") from None
    return [_table_info(table) for table in reply.tables], _limits(reply.limits)


def decode_get_table(body: memoryview) -> tuple[TableInfo, Limits]:
    """Read a GetTableResponse. InternalError when it isn't one."""
    try:
        reply = table_pb2.GetTableResponse.FromString(bytes(body))
    except DecodeError:
        raise unreadable("it isn't a GetTableResponse") from None
    return _table_info(reply.table), _limits(reply.limits)


def _table_info(table: table_pb2.Table) -> TableInfo:
    try:
        dtype = tensor_pb2.DType.Name(table.dtype).removeprefix("DTYPE_").lower()
    except ValueError:
        dtype = f"dtype {int(table.dtype)}"  # a newer server's; looking the table up may work
    return TableInfo(
        name=table.name,
        rows=table.rows,
        dim=table.dim,
        dtype=dtype,
        version=table.version,
        trainable=table.trainable,
        refused=table.refused,
        key_kind=table.key_kind,
        rows_bytes=table.rows_bytes,
        keys_bytes=table.keys_bytes,
        resident_bytes=table.resident_bytes,
        versions=tuple(table.versions),
        optimizer=_optimizer(table),
        lsn=table.lsn,
        open=_open(table),
    )


def _optimizer(table: table_pb2.Table) -> dict[str, Any] | None:
    if not table.HasField("optimizer"):
        return None
    return {"name": table.optimizer.name, **dict(sorted(table.optimizer.options.items()))}


def _open(table: table_pb2.Table) -> dict[str, Any] | None:
    """As OpenSpec.described."""
    if not table.HasField("open"):
        return None
    given = table.open
    return {
        "keys": given.keys,
        "rows_max": given.rows_max,
        "seed": given.seed,
        "init": {"name": given.init, **given.init_parameters, **given.init_words},
        "on_missing": given.on_missing,
        "admit_after": given.admit_after,
        "on_full": given.on_full,
        "ttl_seconds": given.ttl_seconds if given.HasField("ttl_seconds") else None,
        "touch_on_lookup": given.touch_on_lookup,
    }


def _limits(limits: table_pb2.Limits) -> Limits:
    return Limits(
        limits.request_bytes_max, limits.reply_bytes_max, limits.ids_max, limits.tables_max
    )
