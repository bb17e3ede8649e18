"""Requests to bytes and bytes to replies; the messages are those of proto/gatherd_proto/v1.

What carries tensors is framed and read by hand: a generated class would copy the vectors twice.
The reader takes every valid encoding (any field order, packed or unpacked shapes, fields it
doesn't know, a message in several parts) and answers anything else with InternalError: a reply
that can't be read is the server's fault. What carries no tensor goes through the generated classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from gatherd._chunks import Limits
from gatherd._lookup import IdArray, LookupSpec, TableInfo
from gatherd.errors import InternalError
from gatherd.store.dtypes import DType
from gatherd.store.table import Missing
from gatherd_proto.v1 import embedding_pb2, table_pb2, tensor_pb2

DTYPE_CODES = {
    DType.FLOAT32: tensor_pb2.DTYPE_FLOAT32,
    DType.FLOAT16: tensor_pb2.DTYPE_FLOAT16,
    DType.BFLOAT16: tensor_pb2.DTYPE_BFLOAT16,
    DType.FLOAT64: tensor_pb2.DTYPE_FLOAT64,
}
_ID_CODES = {
    ("i", 1): tensor_pb2.DTYPE_INT8,
    ("i", 2): tensor_pb2.DTYPE_INT16,
    ("i", 4): tensor_pb2.DTYPE_INT32,
    ("i", 8): tensor_pb2.DTYPE_INT64,
    ("u", 1): tensor_pb2.DTYPE_UINT8,
    ("u", 2): tensor_pb2.DTYPE_UINT16,
    ("u", 4): tensor_pb2.DTYPE_UINT32,
    ("u", 8): tensor_pb2.DTYPE_UINT64,
}
_MISSING_CODES = {
    Missing.ERROR: embedding_pb2.MISSING_ERROR,
    Missing.ZERO: embedding_pb2.MISSING_ZERO,
    Missing.DEFAULT: embedding_pb2.MISSING_DEFAULT,
}

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_VARINT_BITS_MAX = 70
_FIELD_NUMBER_MAX = (1 << 29) - 1
_GROUP_DEPTH_MAX = 100
_MASK64 = (1 << 64) - 1


# --- requests ---


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, wire_type: int) -> bytes:
    return bytes((number << 3 | wire_type,))


_TABLE = _tag(1, _BYTES)
_IDS = _tag(2, _BYTES)
_REPLY_DTYPE = _tag(3, _VARINT)
_MISSING = _tag(4, _VARINT)
_VERSION = _tag(5, _VARINT)
_TENSOR_DTYPE = _tag(1, _VARINT)
_TENSOR_SHAPE = _tag(2, _BYTES)
_TENSOR_DATA = _tag(3, _BYTES)
_LOOKUPS = _tag(1, _BYTES)


def encode_lookup(spec: LookupSpec, ids: IdArray, version: int = 0) -> bytes:
    """A LookupRequest for `ids`, which are all of the lookup's or a run of them."""
    return b"".join(_lookup_parts(spec, ids, version))


def encode_lookup_many(parts: Sequence[tuple[LookupSpec, IdArray, int]]) -> bytes:
    """A LookupManyRequest of (spec, ids, version) in this order."""
    out: list[bytes | memoryview] = []
    for spec, ids, version in parts:
        lookup = _lookup_parts(spec, ids, version)
        length = sum(memoryview(part).nbytes for part in lookup)
        out += (_LOOKUPS, _varint(length))
        out += lookup
    return b"".join(out)


def _lookup_parts(spec: LookupSpec, ids: IdArray, version: int) -> list[bytes | memoryview]:
    dims = b"".join(map(_varint, ids.shape))
    code = _ID_CODES[ids.dtype.kind, ids.dtype.itemsize]
    head = b"".join(
        (
            _TENSOR_DTYPE,
            _varint(code),
            _TENSOR_SHAPE,
            _varint(len(dims)),
            dims,
            _TENSOR_DATA,
            _varint(ids.nbytes),
        )
    )
    parts: list[bytes | memoryview] = [
        _TABLE + _varint(len(spec.table_bytes)) + spec.table_bytes,
        _IDS + _varint(len(head) + ids.nbytes) + head,
        ids.data,
        _REPLY_DTYPE + _varint(DTYPE_CODES[spec.reply.wire]),
        _MISSING + _varint(_MISSING_CODES[spec.missing]),
    ]
    if version:
        parts.append(_VERSION + _varint(version))
    return parts


def encode_list_tables() -> bytes:
    """A ListTablesRequest."""
    return table_pb2.ListTablesRequest().SerializeToString()


def encode_get_table(table: str) -> bytes:
    """A GetTableRequest."""
    return table_pb2.GetTableRequest(table=table).SerializeToString()


# --- replies ---


@dataclass(slots=True)
class LookupReply:
    """A LookupResponse as it was sent; nothing in it is checked but the encoding.

    `status` and `data` are views of the reply's buffer, not copies.
    """

    version: int = 0
    status: memoryview = field(default_factory=lambda: memoryview(b""))
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    data: memoryview = field(default_factory=lambda: memoryview(b""))


def unreadable(why: str) -> InternalError:
    """The error for a reply that isn't what it should be."""
    return InternalError(f"the server's reply can't be used: {why}")


def decode_lookup(body: memoryview) -> LookupReply:
    """Read a LookupResponse. InternalError when it isn't one."""
    reply = LookupReply()
    _read_lookup(body, 0, len(body), reply)
    return reply


def decode_lookup_many(body: memoryview) -> list[LookupReply]:
    """Read a LookupManyResponse. InternalError when it isn't one."""
    replies = []
    for number, wire_type, value, stop in _fields(body, 0, len(body)):
        if number == 1 and wire_type == _BYTES:
            reply = LookupReply()
            _read_lookup(body, value, stop, reply)
            replies.append(reply)
    return replies


def _read_lookup(body: memoryview, pos: int, end: int, reply: LookupReply) -> None:
    for number, wire_type, value, stop in _fields(body, pos, end):
        if number == 1 and wire_type == _VARINT:
            reply.version = value
        elif number == 2 and wire_type == _BYTES:
            reply.status = body[value:stop]
        elif number == 3 and wire_type == _BYTES:
            # A message may come in parts, which add up: into the same object, then.
            _read_tensor(body, value, stop, reply)


def _read_tensor(body: memoryview, pos: int, end: int, reply: LookupReply) -> None:
    for number, wire_type, value, stop in _fields(body, pos, end):
        if number == 1 and wire_type == _VARINT:
            reply.dtype = value
        elif number == 2 and wire_type == _VARINT:
            reply.shape.append(_signed(value))
        elif number == 2 and wire_type == _BYTES:
            at = value
            while at < stop:
                extent, at = _read_varint(body, at, stop)
                reply.shape.append(_signed(extent))
        elif number == 3 and wire_type == _BYTES:
            reply.data = body[value:stop]


def _fields(body: memoryview, pos: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, value, 0) of varints and (number, wire type, start, stop) of bytes.

    Fields of the other wire types are skipped: no message here has one.
    """
    while pos < end:
        tag, pos = _read_varint(body, pos, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number <= _FIELD_NUMBER_MAX:
            raise unreadable(f"no field can have number {number}")
        if wire_type == _VARINT:
            value, pos = _read_varint(body, pos, end)
            yield number, wire_type, value, 0
        elif wire_type == _BYTES:
            start, pos = _skip(body, pos, end, wire_type)
            yield number, wire_type, start, pos
        elif wire_type == _GROUP:
            pos = _skip_group(body, pos, end, number)
        else:
            _, pos = _skip(body, pos, end, wire_type)


def _skip(body: memoryview, pos: int, end: int, wire_type: int) -> tuple[int, int]:
    """Where a field's content starts and stops."""
    if wire_type == _BYTES:
        length, pos = _read_varint(body, pos, end)
    elif wire_type == _FIXED64:
        length = 8
    elif wire_type == _FIXED32:
        length = 4
    else:
        raise unreadable(f"a field has wire type {wire_type} at byte {pos}")
    if length > end - pos:
        raise unreadable(f"a field of {length} bytes at byte {pos} goes past the end")
    return pos, pos + length


def _skip_group(body: memoryview, pos: int, end: int, number: int) -> int:
    open_groups = [number]
    while open_groups:
        tag, pos = _read_varint(body, pos, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _GROUP:
            open_groups.append(number)
            if len(open_groups) > _GROUP_DEPTH_MAX:
                raise unreadable(f"its groups are nested deeper than {_GROUP_DEPTH_MAX}")
        elif wire_type == _GROUP_END:
            if open_groups.pop() != number:
                raise unreadable(f"group {number} ends without having begun")
        elif wire_type == _VARINT:
            _, pos = _read_varint(body, pos, end)
        else:
            _, pos = _skip(body, pos, end, wire_type)
    return pos


def _read_varint(body: memoryview, pos: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while pos < end:
        byte = body[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, pos
        shift += 7
        if shift >= _VARINT_BITS_MAX:
            raise unreadable(f"a varint at byte {pos} is longer than 10 bytes")
    raise unreadable("it ends in the middle of a varint")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


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
        dtype = f"dtype {int(table.dtype)}"  # of a newer server; looking the table up may work
    return TableInfo(
        table.name, table.rows, table.dim, dtype, table.version, table.trainable, table.refused
    )


def _limits(limits: table_pb2.Limits) -> Limits:
    return Limits(
        limits.request_bytes_max, limits.reply_bytes_max, limits.ids_max, limits.tables_max
    )
