"""Protobuf's wire encoding, for the messages that both sides frame by hand.

A field is a tag and a value; a tag is the field's number << 3 | its wire type. The server writes
the head of a LookupResponse with `lookup_head`, and a client foresees it with the same function.
Field numbers are those of v1/embedding.proto and v1/tensor.proto; tests compare every frame with
that of the generated classes.
"""

from collections.abc import Sequence
from typing import Final

from gatherd_proto.v1 import tensor_pb2

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
"""The wire types; BYTES is a length and that many bytes."""


def varint(value: int) -> bytes:
    """`value`, not negative, as a varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    """The varint at message[at], and where it ends; of a message that is known to be sound."""
    value = shift = 0
    while message[at] >= 0x80:
        value |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
    return value | message[at] << shift, at + 1


def tag(number: int, wire_type: int) -> bytes:
    """The bytes that begin a field; `number` is below 16."""
    return bytes((number << 3 | wire_type,))


def dtype_code(name: str) -> tensor_pb2.DType:
    """The number of the dtype called `name`, such as "float32". ValueError when there is none."""
    return tensor_pb2.DType.Value(f"DTYPE_{name.upper()}")


TENSOR_DATA: Final = tag(3, BYTES)
_TENSOR_DTYPE: Final = tag(1, VARINT)
_TENSOR_SHAPE: Final = tag(2, BYTES)

LOOKUPS: Final = tag(1, BYTES)
"""A LookupResponse in a LookupManyResponse."""
STREAM_ID: Final = tag(1, VARINT)
STREAM_LOOKUP: Final = tag(2, BYTES)
VERSION: Final = tag(1, VARINT)
"""Begins a LookupResponse, unless its version is 0."""
_STATUS: Final = tag(2, BYTES)
_VECTORS: Final = tag(3, BYTES)
_LSN: Final = tag(4, VARINT)
_NORMALIZED: Final = tag(5, VARINT)


def tensor_head(code: int, shape: Sequence[int]) -> bytes:
    """A Tensor of the dtype `code` without its data, which is its last field (TENSOR_DATA)."""
    dims = b"".join(map(varint, shape))
    return b"".join((_TENSOR_DTYPE, varint(code), _TENSOR_SHAPE, varint(len(dims)), dims))


def lookup_head(
    version: int, code: int, shape: Sequence[int], data_bytes: int, status: bytes = b""
) -> bytes:
    """A LookupResponse without the vectors' `data_bytes` bytes, which come after it.

    `code` is the vectors' dtype. Every field but their data comes first, so a reader knows dtype
    and shape before the first row arrives.
    """
    tensor = tensor_head(code, shape)
    if data_bytes:
        tensor += TENSOR_DATA + varint(data_bytes)
    head = VERSION + varint(version) if version else b""
    if status:
        head += _STATUS + varint(len(status)) + status
    return head + _VECTORS + varint(len(tensor) + data_bytes) + tensor


def lookup_notes(lsn: int | None, *, is_normalized: bool) -> bytes:
    """What a LookupResponse that was asked for it has before its head."""
    notes = b"" if lsn is None else _LSN + varint(lsn)
    return notes + _NORMALIZED + varint(1) if is_normalized else notes
