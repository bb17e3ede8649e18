"""Bounds the fields of a protobuf message, before the generated classes read it.

Two bytes make a submessage or an unknown field. The parser builds an object for each, and holds the
GIL until it is done: 16 MB of them stop a worker for seconds. So messages of more than SMALL_BYTES
are walked first, until a bound is exceeded. Every field counts, also one that no message of ours
has; bytes and strings are stepped over. A whole message has at most a few thousand fields, however
many rows it is about.
"""

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from gatherd.errors import GatherdError, InvalidArgument, LimitExceeded, MalformedRequest
from gatherd.store.given import NESTING_MAX
from gatherd_proto.framing import BYTES, FIXED32, FIXED64, VARINT
from gatherd_server.types import Limits

# Whatever its contents, a message as short as this is read in 3 ms.
SMALL_BYTES: Final = 64 << 10
# One table's part of a request has about 25; each dimension of a shape may be a field.
FIELDS_PER_TABLE: Final = 128
# A dimension is a varint of at most ten bytes. Twice the limit, so that the error is exact.
SHAPE_BYTES_MAX: Final = 2 * 10 * NESTING_MAX

_FIXED_BYTES: Final = {FIXED64: 8, FIXED32: 4}
# None of our fields is a group: fields in a group are counted, and not looked into. The wire types
# 6 and 7 don't exist, and raise IndexError.
_GROUPS: Final = (0, 0, 0, 1, -1, 0)
_VARINT_BYTES_MAX: Final = 10
_SHAPE: Final[dict[int, Any]] = {}
"""Marks a packed field among the submessages of a schema."""
_SCHEMAS: Final[dict[str, dict[int, Any]]] = {}


def check_fields(message: type[Message], body: bytes, limits: Limits) -> None:
    """Check a body that is to become a `message`.

    LimitExceeded for more fields than `tables_max` tables can have, InvalidArgument for a shape of
    too many dimensions, MalformedRequest when the part that was read isn't protobuf.
    """
    if len(body) <= SMALL_BYTES:
        return
    walk = _Walk(body, FIELDS_PER_TABLE * (limits.tables_max + 1), limits.tables_max)
    try:
        walk.message(0, len(body), _schema_of(message))
    except GatherdError:
        raise
    except (IndexError, ValueError):
        raise MalformedRequest(
            f"the body isn't a {message.DESCRIPTOR.full_name} in protobuf: "
            "a field of it is damaged, or goes past the end"
        ) from None


class _Walk:
    """Steps over the fields of one body."""

    def __init__(self, body: bytes, fields_max: int, tables_max: int) -> None:
        self._body = body
        self._fields_max = self._left = fields_max
        self._tables_max = tables_max

    def message(self, position: int, end: int, schema: dict[int, Any]) -> None:
        """One message at body[position:end]. IndexError or ValueError when it is damaged."""
        body = self._body
        groups = 0
        while position < end:
            self._count()
            tag = body[position]
            position += 1
            if tag >= 0x80:
                tag, position = self._varint(position - 1)
            kind = tag & 7
            if kind == BYTES:
                position = self._bytes(position, end, None if groups else schema.get(tag >> 3))
            elif kind == VARINT:
                position = self._varint(position)[1]
            elif kind in _FIXED_BYTES:
                position += _FIXED_BYTES[kind]
            else:
                groups += _GROUPS[kind]
        if position != end:
            raise ValueError

    def _bytes(self, position: int, end: int, schema: dict[int, Any] | None) -> int:
        """Step over a length and its bytes, or walk their fields; returns their end."""
        length = self._body[position]
        position += 1
        if length >= 0x80:
            length, position = self._varint(position - 1)
        stop = position + length
        if stop > end:
            raise ValueError
        if schema is _SHAPE:
            _check_shape(length)
        elif schema is not None:
            self.message(position, stop, schema)
        return stop

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise LimitExceeded(
                f"the request has more than {self._fields_max} protobuf fields; at most "
                f"{self._tables_max} tables are taken (tables_max), which have no more",
                {"limit": "tables_max", "max": str(self._tables_max)},
            )

    def _varint(self, position: int) -> tuple[int, int]:
        """The varint at `position`, and the position after it."""
        value = 0
        for index, byte in enumerate(self._body[position : position + _VARINT_BYTES_MAX]):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise ValueError


def _check_shape(nbytes: int) -> None:
    if nbytes > SHAPE_BYTES_MAX:
        raise InvalidArgument(
            f"a shape has {nbytes} bytes; at most {NESTING_MAX} dimensions are taken"
        )


def _schema_of(message: type[Message]) -> dict[int, Any]:
    name = message.DESCRIPTOR.full_name
    if name not in _SCHEMAS:
        _SCHEMAS[name] = _schema(message.DESCRIPTOR)
    return _SCHEMAS[name]


def _schema(descriptor: Any) -> dict[int, Any]:
    """The schema of each field that holds more than one value, by number."""
    schema: dict[int, Any] = {}
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            schema[field.number] = _schema(field.message_type)
        elif field.is_packed:
            schema[field.number] = _SHAPE
    return schema
