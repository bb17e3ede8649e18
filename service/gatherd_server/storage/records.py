"""A record: a small JSON directory and the arrays that it lists.

    offset  bytes  field
    0       4      bytes of the directory, little-endian
    4       n      directory, JSON in UTF-8
            p      zeros up to a multiple of 8
            …      the arrays, each followed by zeros up to a multiple of 8

The directory's member "arrays" lists them: [[dtype, [shape]], …], dtype as NumPy's
`dtype.str`, little-endian numbers only.
Frames of the log, messages between worker and writer, and the checkpoint are records. A record has
no checksum: the code that stores one adds it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gatherd.errors import BadFile

ALIGNMENT = 8
_ZEROS = bytes(ALIGNMENT)
_DTYPES = {
    name: np.dtype(name)
    for name in ("<f4", "<f8", "|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8")
}


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A record as it was read; the arrays are views of its bytes."""

    directory: dict[str, Any]
    arrays: list[NDArray[Any]]
    byte_count: int


def padding(byte_count: int) -> int:
    """Bytes up to the next multiple of ALIGNMENT."""
    return -byte_count % ALIGNMENT


def pack(directory: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> list[bytes | memoryview]:
    """The parts of a record, to be written one after the other; the arrays aren't copied.

    `arrays` are C-contiguous.
    """
    listed = [[array.dtype.str, array.shape] for array in arrays]
    head = orjson.dumps({**directory, "arrays": listed})
    head = len(head).to_bytes(4, "little") + head
    parts: list[bytes | memoryview] = [head + _ZEROS[: padding(len(head))]]
    for array in arrays:
        if array.nbytes:
            parts.append(array.data.cast("B"))
        if short := padding(array.nbytes):
            parts.append(_ZEROS[:short])
    return parts


def pack_json(members: Mapping[str, bytes]) -> list[bytes | memoryview]:
    """The parts of a record without arrays, whose directory has these members, JSON already."""
    return pack({name: orjson.Fragment(text) for name, text in members.items()}, [])


def unpack(data: memoryview, what: str) -> Record:
    """The record in `data`. BadFile, naming `what`, when it isn't one."""
    try:
        end = 4 + int.from_bytes(data[:4], "little")
        directory = orjson.loads(data[4:end])
        position = end + padding(end)
        arrays: list[NDArray[Any]] = []
        for name, shape in directory["arrays"]:
            if not all(type(extent) is int and extent >= 0 for extent in shape):
                raise ValueError(f"it has the shape {shape}")  # noqa: TRY301 - as the others
            # NumPy refuses an array that reaches past the end of its bytes.
            array = np.frombuffer(data, _DTYPES[name], math.prod(shape), position).reshape(shape)
            arrays.append(array)
            position += array.nbytes + padding(array.nbytes)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise BadFile(f"{what} is damaged: {error}") from None
    return Record(directory, arrays, position)
