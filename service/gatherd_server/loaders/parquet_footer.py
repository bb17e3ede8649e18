"""The columns' sizes from a Parquet file's footer, read without Arrow.

If some fields of a column's metadata contradict each other, Arrow's own view of it ends the process
instead of raising. So the sizes that must be checked before unpacking are read here. The footer is
a FileMetaData in Thrift's compact protocol, followed by its length in 4 bytes, little-endian, and
"PAR1" (https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift). Left
out on purpose: everything else in it, and encrypted footers, which Arrow refuses without their key.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gatherd.errors import BadFile

FOOTER_BYTES_MAX: Final = 256 << 20
_DEPTH_MAX: Final = 16
_VARINT_BYTES_MAX: Final = 10
_END_BYTES: Final = 8

# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS: Final = (4, 5, 6)
# Numbers of fields, one line for each struct.
_NUM_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS = 1, 3
_META_DATA = 3
_TYPE, _PATH, _NUM_VALUES, _UNCOMPRESSED = 1, 3, 5, 6


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """A column's part of a row group. `physical_type` is the number of parquet.thrift's Type."""

    name: str
    physical_type: int
    value_count: int
    unpacked_bytes: int


@dataclass(frozen=True, slots=True)
class Footer:
    """The rows that the file claims, those that its groups claim, and every group's columns."""

    row_count: int
    group_rows: int
    chunks: list[ColumnChunk]


def read_footer(name: str, path: Path) -> Footer:
    """The footer of the file `path`, called `name` in errors. BadFile when it is damaged."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END_BYTES))
            footer_bytes = int.from_bytes(file.read(4), "little")
            if footer_bytes + _END_BYTES > size or footer_bytes > FOOTER_BYTES_MAX:
                raise BadFile(f"{name} is damaged: its footer would have {footer_bytes} bytes")
            file.seek(size - _END_BYTES - footer_bytes)
            document, _ = _struct(file.read(footer_bytes), 0, 0)
        groups = document[_ROW_GROUPS]
        chunks = [_chunk(column) for group in groups for column in group[_COLUMNS]]
        in_groups = sum(group[_GROUP_ROWS] for group in groups)
        return Footer(document[_NUM_ROWS], in_groups, chunks)
    except (LookupError, ValueError, TypeError) as error:
        raise BadFile(f"{name} is damaged: its footer can't be read ({error})") from None
    except OSError as error:
        raise BadFile(f"{name} can't be read: {error.strerror}") from None


def _chunk(column: dict[int, Any]) -> ColumnChunk:
    found = column[_META_DATA]
    sizes = found[_NUM_VALUES], found[_UNCOMPRESSED]
    if min(sizes) < 0:
        raise ValueError(f"a column of {sizes[0]} values and {sizes[1]} bytes")
    return ColumnChunk(found[_PATH][0].decode("utf-8", "replace"), found[_TYPE], *sizes)


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of the struct that begins at `at`, by their numbers, and its end."""
    if depth > _DEPTH_MAX:
        raise ValueError(f"structs in structs, more than {_DEPTH_MAX}")
    fields: dict[int, Any] = {}
    number = 0
    while kind := data[at]:
        at += 1
        delta, kind = kind >> 4, kind & 15
        if delta:
            number += delta
        else:
            number, at = _zigzag(data, at)
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        return _zigzag(data, at)
    if kind in (_TRUE, _FALSE, _BYTE):
        return data[at], at + 1
    if kind == _BINARY:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError("a string reaches past the end")
        return data[at : at + length], at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind in (_LIST, _SET):
        return _list(data, at, depth)
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _MAP:
        raise ValueError("a map, of which there are none")
    raise ValueError(f"a value of type {kind}")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    if depth > _DEPTH_MAX:
        raise ValueError(f"lists in lists, more than {_DEPTH_MAX}")
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data) - at:
        raise ValueError(f"a list of {count} where {len(data) - at} bytes are left")
    values = []
    for _ in range(count):
        value, at = _value(data, at, kind, depth + 1)
        values.append(value)
    return values, at


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(at, at + _VARINT_BYTES_MAX):
        byte = data[index]
        value |= (byte & 127) << 7 * (index - at)
        if byte < 128:
            return value, index + 1
    raise ValueError(f"a number of more than {_VARINT_BYTES_MAX} bytes")
