"""The protobuf encoding, by hand: frames tensors without copying them, and reads them in place.

The reader takes every valid encoding and answers anything else with InternalError: a reply that
can't be read is the server's fault. Left out on purpose: writing anything but varints and bytes.
"""

from collections.abc import Iterator
from typing import TypeAlias

from gatherd._outcome import OUTCOME, UNKNOWN
from gatherd.errors import InternalError
from gatherd_proto.framing import BYTES, FIXED32, FIXED64, GROUP, GROUP_END, VARINT, varint

_VARINT_BITS_MAX = 70
_FIELD_NUMBER_MAX = (1 << 29) - 1
_GROUP_DEPTH_MAX = 100
_MASK64 = (1 << 64) - 1

Parts: TypeAlias = list[bytes | memoryview]
"""A message in pieces, to be joined once."""


def nested(begin: bytes, parts: Parts) -> Parts:
    """`parts` as the content of a field that begins with the tag `begin`."""
    return [begin + varint(sum(memoryview(part).nbytes for part in parts)), *parts]


def unreadable(why: str) -> InternalError:
    """The error for a reply that isn't what it should be."""
    return InternalError(f"the server's reply can't be used: {why}", {OUTCOME: UNKNOWN})


def read_fields(body: memoryview, pos: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, value, 0) of varints and (number, wire type, start, stop) of bytes.

    Fields of the other wire types are skipped: no message here has one.
    """
    while pos < end:
        tag, pos = read_varint(body, pos, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number <= _FIELD_NUMBER_MAX:
            raise unreadable(f"no field can have number {number}")
        if wire_type == VARINT:
            value, pos = read_varint(body, pos, end)
            yield number, wire_type, value, 0
        elif wire_type == BYTES:
            start, pos = _skip(body, pos, end, wire_type)
            yield number, wire_type, start, pos
        elif wire_type == GROUP:
            pos = _skip_group(body, pos, end, number)
        else:
            _, pos = _skip(body, pos, end, wire_type)


def _skip(body: memoryview, pos: int, end: int, wire_type: int) -> tuple[int, int]:
    """The start and the stop of a field's content."""
    if wire_type == BYTES:
        length, pos = read_varint(body, pos, end)
    elif wire_type == FIXED64:
        length = 8
    elif wire_type == FIXED32:
        length = 4
    else:
        raise unreadable(f"a field has wire type {wire_type} at byte {pos}")
    if length > end - pos:
        raise unreadable(f"a field of {length} bytes at byte {pos} goes past the end")
    return pos, pos + length


def _skip_group(body: memoryview, pos: int, end: int, number: int) -> int:
    open_groups = [number]
    while open_groups:
        tag, pos = read_varint(body, pos, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == GROUP:
            open_groups.append(number)
            if len(open_groups) > _GROUP_DEPTH_MAX:
                raise unreadable(f"its groups are nested deeper than {_GROUP_DEPTH_MAX}")
        elif wire_type == GROUP_END:
            if open_groups.pop() != number:
                raise unreadable(f"group {number} ends without having begun")
        elif wire_type == VARINT:
            _, pos = read_varint(body, pos, end)
        else:
            _, pos = _skip(body, pos, end, wire_type)
    return pos


def read_varint(body: memoryview, pos: int, end: int) -> tuple[int, int]:
    """The varint at `pos` and where it ends."""
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


def signed(value: int) -> int:
    """A varint as the int64 that was written."""
    return value - (1 << 64) if value >> 63 else value
