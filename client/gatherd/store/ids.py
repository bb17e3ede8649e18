"""Ids as callers give them: checked, never coerced.

NumPy would silently turn `[True, 2]` into integers, `[1, 2.0]` into floats and `[2**63]` into
unsigned integers. Here each of these is an error, and so is −1, which NumPy counts from the end.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import IdOutOfRange, InvalidArgument
from gatherd.store.given import (
    NESTING_MAX,
    NULLS,
    OFFENDERS_MAX,
    as_given_array,
    has_array,
    position,
)

# Without elements, no number of bytes bounds a shape's lengths. NumPy still has to count their
# product, zeros left out, with a dim of up to 2**20 float32 behind them.
SHAPE_SIZE_MAX = 2**40
_LENGTH_MAX = 2**64 - 1
_INT64 = np.dtype(np.int64)
_INT64_MAX = 2**63 - 1
# By the dtype's character: the unsigned dtype of its size, and the largest id that it holds.
_UNSIGNED = {
    np.dtype(kind).char: (np.dtype(f"u{np.dtype(kind).itemsize}"), int(np.iinfo(kind).max))
    for kind in ("b", "h", "i", "l", "q", "B", "H", "I", "L", "Q")
}


def check_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` if `name` can have it, else InvalidArgument."""
    if len(shape) > NESTING_MAX:
        raise InvalidArgument(
            f"{name} have {len(shape)} dimensions; at most {NESTING_MAX} are taken"
        )
    if any(length < 0 for length in shape):
        raise InvalidArgument(f"{name} have shape {shape}; no dimension can be negative")
    if any(length > _LENGTH_MAX for length in shape):
        raise InvalidArgument(f"{name} have a dimension of more than {_LENGTH_MAX}")
    if 0 in shape and math.prod(length for length in shape if length) > SHAPE_SIZE_MAX:
        raise InvalidArgument(
            f"{name} have shape {shape}; beside a dimension of 0, the others may multiply to "
            f"{SHAPE_SIZE_MAX} at most"
        )
    return shape


def as_id_array(ids: object) -> NDArray[np.integer[Any]]:
    """`ids` as an integer array of the same shape, C-contiguous and in native byte order.

    Takes an integer, a range, a (nested) list or tuple of integers, or anything with a NumPy array
    interface. InvalidArgument for floats, bools, strings, objects, ragged lists and entries that
    are masked or null; IdOutOfRange for an integer that no 64-bit type holds.
    """
    if ids is None or isinstance(ids, list | tuple | int | float | str | bytes | dict):
        return _from_nested(ids)
    array = as_given_array(ids, "ids")
    if array.size == 0:
        check_shape("ids", array.shape)
    if array.dtype.kind == "O" and not isinstance(ids, np.ndarray):
        # Another library's nullable integers become objects.
        return _from_nested(array.tolist())
    if array.dtype.kind not in "iu":
        if array.size == 0 and array.dtype.kind == "f":
            # An empty array made without a dtype is float64; it holds no wrong id.
            return np.empty(array.shape, np.int64)
        raise InvalidArgument(f"ids must be integers, not {array.dtype}{_hint(array.dtype.kind)}")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def _from_nested(ids: Any) -> NDArray[np.integer[Any]]:
    if not _plain_integers(ids, 0):
        ids = _checked_leaves(ids, "ids")
    try:
        array = np.asarray(ids)
    except ValueError:
        raise InvalidArgument(
            "ids are ragged: every list on one level must be equally long"
        ) from None
    if array.size == 0:
        return np.empty(array.shape, np.int64)
    if array.dtype.kind in "iu":
        return array
    # No type holds both integers above 2**63 - 1 and negative ones.
    found = first_leaf(ids, lambda leaf: not 0 <= leaf <= _INT64_MAX)
    assert found is not None
    name, value = where("ids", found[0]), found[1]
    raise IdOutOfRange(f"{name}={value} is out of range: no table has such a row")


def _plain_integers(value: Any, depth: int) -> bool:
    """Whether `value` is an int or lists of only ints; lists are checked at the speed of C."""
    if depth > NESTING_MAX:
        raise InvalidArgument(f"ids are nested deeper than {NESTING_MAX} levels")
    if not isinstance(value, list | tuple):
        return type(value) is int
    kinds = set(map(type, value))
    if kinds <= {int}:
        return True
    return kinds <= {list, tuple} and all(_plain_integers(item, depth + 1) for item in value)


def _checked_leaves(value: Any, name: str) -> Any:
    """`value` with NumPy arrays in place of others; InvalidArgument for a leaf of another kind."""
    wrong = first_leaf(value, _is_no_id)
    if wrong is not None:
        where_wrong = where(name, wrong[0])
        hint = _hint("U" if isinstance(wrong[1], str | bytes) else "")
        kind = _kind(wrong[1])
        what = f"null: {NULLS}" if wrong[1] is None else f"{kind}; ids must be integers{hint}"
        raise InvalidArgument(f"{where_wrong} is {what}")
    return _with_arrays(value, name)


def _hint(dtype_kind: str) -> str:
    """The next step for someone who gave strings as ids."""
    return "; strings are keys, and given as keys=" if dtype_kind in "US" and dtype_kind else ""


def _with_arrays(value: Any, name: str) -> Any:
    if isinstance(value, list | tuple):
        return [_with_arrays(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.integer) or type(value) is int:
        return value
    array = as_given_array(value, name)
    if array.dtype.kind in "iu" and (array.ndim or array is not value):
        return array
    raise InvalidArgument(f"{name} is {_kind(value)}; ids must be integers")


def _is_no_id(value: Any) -> bool:
    """Whether `value` can be neither an integer nor an array of integers."""
    return type(value) is not int and not has_array(value)


def first_leaf(value: Any, is_wanted: Callable[[Any], bool]) -> tuple[tuple[int, ...], Any] | None:
    """The position and value of the first leaf of nested lists for which `is_wanted` is true."""
    if not isinstance(value, list | tuple):
        return ((), value) if is_wanted(value) else None
    for index, item in enumerate(value):
        if isinstance(item, list | tuple):
            found = first_leaf(item, is_wanted)
            if found is not None:
                return (index, *found[0]), found[1]
        elif is_wanted(item):
            return (index,), item
    return None


def where(name: str, position: Iterable[int]) -> str:
    """The name of an element, such as ids[1][0]."""
    return name + "".join(f"[{int(index)}]" for index in position)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return f"the bool {value}"
    if isinstance(value, float):
        return f"the float {value}"
    if value is None:
        return "null"
    return f"a {type(value).__name__}"


def all_in_range(ids: NDArray[np.integer[Any]], row_count: int) -> bool:
    """Whether every id has a row. One pass: a negative id, seen as unsigned, is a huge one."""
    if ids.size == 0:
        return True
    unsigned, largest = _UNSIGNED[ids.dtype.char]
    if row_count > largest:
        return _wide(ids)
    # For a few ids, np.max's own steps around this call would double its time.
    return int(np.maximum.reduce(ids.view(unsigned), axis=None)) < row_count


def _wide(ids: NDArray[np.integer[Any]]) -> bool:
    # The table has more rows than the dtype can count, so only a negative id has no row.
    return ids.dtype.kind == "u" or int(ids.min()) >= 0


def flat_ids(ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """`ids`, C-contiguous, as int64 of shape (n,); an id that int64 can't hold becomes negative."""
    flat: NDArray[Any] = ids
    if flat.dtype is _INT64 and flat.ndim == 1 and flat.flags.aligned:
        return flat
    flat = flat.reshape(-1)
    wide = flat.view(np.int64) if flat.dtype.itemsize == 8 else flat.astype(np.int64)
    return wide if wide.flags.aligned else wide.copy()


def in_range(ids: NDArray[np.integer[Any]], row_count: int) -> NDArray[np.bool_]:
    """Per id, whether it has a row."""
    return (ids >= 0) & (ids < row_count)


def out_of_range_error(
    table: str,
    ids: NDArray[np.integer[Any]],
    row_count: int,
    found: NDArray[np.bool_] | None = None,
) -> IdOutOfRange:
    """The error that names the first ids without a row and the valid range.

    `found` says which ids have a row, if being in range isn't the whole test.
    """
    bad = np.flatnonzero(~(in_range(ids, row_count) if found is None else found))
    named = []
    for flat in bad[:OFFENDERS_MAX]:
        where = position("ids", int(flat), ids.shape)
        named.append((where, int(ids.reshape(-1)[flat])))
    listed = ", ".join(f"{where}={value}" for where, value in named)
    more = f" (and {bad.size - len(named)} more)" if bad.size > len(named) else ""
    is_or_are = "is" if bad.size == 1 else "are"
    valid = f"valid ids are 0 to {row_count - 1}" if row_count else "it has no valid id"
    return IdOutOfRange(
        f"table {table!r} has {row_count} rows; {listed}{more} {is_or_are} out of range: {valid}",
        {"table": table, "rows": str(row_count), "offenders": str(bad.size), **dict(_text(named))},
    )


def _text(named: list[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    return ((name, str(value)) for name, value in named)


def ids_from_bytes(
    data: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...] | None
) -> NDArray[np.integer[Any]]:
    """Ids from a wire, of an integer `dtype` and `shape` (flat when None), uncopied.

    InvalidArgument when the byte count doesn't fit shape and dtype.
    """
    if shape is None:
        if len(data) % dtype.itemsize:
            raise InvalidArgument(f"ids have {len(data)} bytes, which isn't a number of {dtype}")
        return np.frombuffer(data, dtype)
    return array_from_bytes("ids", data, dtype, shape)


def array_from_bytes(
    name: str, data: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """The array of `dtype` and `shape` that came off a wire as `data`, uncopied.

    InvalidArgument, calling it `name`, when the byte count doesn't fit shape and dtype.
    """
    if len(shape) == 1 and len(data) == shape[0] * dtype.itemsize:
        return np.frombuffer(data, dtype)
    check_shape(name, shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidArgument(
            f"{name} of shape {shape} and dtype {dtype} are {expected} bytes; {len(data)} were sent"
        )
    return np.frombuffer(data, dtype).reshape(shape)
