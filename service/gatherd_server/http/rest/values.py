"""The values of updates as REST carries them: nested JSON numbers, or raw bytes behind the ids.

Checked, never coerced: NumPy would take true for 1, null for NaN, "1" for a number, and a number
too large for float32 for infinity. Here each of those is an error that names the element.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import REPLY_DTYPES, DType
from gatherd.store.given import NESTING_MAX
from gatherd.store.ids import first_leaf, ids_from_bytes, where
from gatherd_server.http.rest.arrays import Ids, id_dtype, parse_shape

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_NUMBERS: Final = frozenset((int, float))
# About 20 ms, with rows of about a hundred numbers.
LISTS_AT_ONCE: Final = 4096


def values_from_json(values: object) -> NDArray[np.float32]:
    """Nested lists of numbers, as orjson reads them, as an array of the same shape.

    InvalidArgument, naming values[i][j], for anything else, for ragged lists, and for numbers
    beyond float32's range.
    """
    if not _plain_numbers(values, 0):
        _check_leaves(values)
    try:
        with np.errstate(over="ignore"):
            array = _as_float32(values)
    except ValueError:
        raise InvalidArgument(f"values are ragged: {_first_ragged(values)}") from None
    if not np.isfinite(array).all():
        flat = int(np.flatnonzero(~np.isfinite(array))[0])
        position = tuple(map(int, np.unravel_index(flat, array.shape)))
        raise InvalidArgument(
            f"{_named(position)} is too large for float32, whose largest number is {_FLOAT32_MAX:g}"
        )
    return array


def _plain_numbers(value: Any, depth: int) -> bool:
    """Whether `value` is a number or nested lists of only numbers; lists are checked in C."""
    if depth > NESTING_MAX + 1:
        raise InvalidArgument(f"values are nested deeper than {NESTING_MAX + 1} levels")
    if type(value) is not list:
        return type(value) in _NUMBERS
    kinds = set(map(type, value))
    if kinds <= _NUMBERS:
        return True
    return kinds == {list} and all(_plain_numbers(item, depth + 1) for item in value)


def _as_float32(values: Any) -> NDArray[np.float32]:
    """np.asarray in pieces, so that others get the GIL in between. ValueError for ragged lists."""
    if type(values) is not list or len(values) <= LISTS_AT_ONCE:
        return np.asarray(values, np.float32)
    pieces = [
        np.asarray(values[begin : begin + LISTS_AT_ONCE], np.float32)
        for begin in range(0, len(values), LISTS_AT_ONCE)
    ]
    return np.concatenate(pieces)


def _check_leaves(values: Any) -> None:
    found = first_leaf(values, lambda value: type(value) not in _NUMBERS)
    if found is None:
        return
    position, value = found
    if isinstance(value, bool):
        kind = f"the bool {str(value).lower()}"
    elif value is None:
        kind = "null"
    else:
        kind = "a string" if isinstance(value, str) else "an object"
    raise InvalidArgument(f"{_named(position)} is {kind}; values must be numbers")


def _first_ragged(values: Any) -> str:
    """Describe the first element whose shape isn't its neighbours'."""
    shape = []
    first = values
    while type(first) is list and first:
        shape.append(len(first))
        first = first[0]
    if type(first) is list:
        shape.append(0)

    def find(value: Any, depth: int, position: tuple[int, ...]) -> str | None:
        if depth == len(shape):
            is_list = type(value) is list
            return f"{_named(position)} is a list, others there are numbers" if is_list else None
        if type(value) is not list:
            return f"{_named(position)} is a number, others there are lists"
        if len(value) != shape[depth]:
            return f"{_named(position)} has {len(value)} elements, others there have {shape[depth]}"
        if depth + 1 == len(shape) and list not in set(map(type, value)):
            return None
        found = (find(item, depth + 1, (*position, i)) for i, item in enumerate(value))
        return next((told for told in found if told), None)

    return find(values, 0, ()) or "every list on one level must be equally long"


def _named(position: tuple[int, ...]) -> str:
    return where("values", position)


def update_from_octets(
    body: bytes, ids_dtype: str, shape: str | None, values_dtype: str
) -> tuple[Ids, NDArray[Any], DType]:
    """The ids, values and values' dtype of a body of raw ids, directly followed by raw values.

    Ids have `shape`, S, and values S + (dim,), in their dtype's storage. The dim follows from the
    number of bytes after the ids; without ids it is 0.
    """
    if shape is None:
        raise InvalidArgument("shape is required beside raw bytes: it says where the ids end")
    lengths = parse_shape(shape)
    dtype = _value_dtype(values_dtype)
    id_kind = id_dtype(ids_dtype)
    ids_bytes = math.prod(lengths) * id_kind.itemsize
    content = memoryview(body)
    ids = ids_from_bytes(content[:ids_bytes], id_kind, lengths)
    raw = content[ids_bytes:]
    row_bytes, rest = divmod(len(raw), ids.size) if ids.size else (0, len(raw))
    if rest or row_bytes % dtype.itemsize:
        raise InvalidArgument(
            f"{len(raw)} bytes follow the ids; that isn't equally many {dtype.value} "
            f"for each of {ids.size}"
        )
    values = np.frombuffer(raw, dtype.storage)
    return ids, values.reshape((*lengths, row_bytes // dtype.itemsize)), dtype


def _value_dtype(name: str) -> DType:
    for dtype in REPLY_DTYPES:
        if dtype.value == name:
            return dtype
    known = ", ".join(dtype.value for dtype in REPLY_DTYPES)
    raise InvalidArgument(f"values can't be in dtype {name!r}; values_dtype is one of {known}")
