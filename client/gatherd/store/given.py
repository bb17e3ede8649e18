"""Arrays as callers give them: from NumPy, pandas, Polars, Arrow, torch, JAX and others.

NumPy's own conversion loses the mask of a masked array, and turns the nulls of pandas, Polars and
Arrow into NaN or None. Here a masked or null entry is an error that names its position.
None of these libraries is imported: their nulls are found through the methods that they share. The
one exception is an object that has nothing but Arrow's C interface, which pyarrow reads.
"""

import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument

OFFENDERS_MAX = 5
# One less than the dimensions that every NumPy supports, because the reply has one more.
NESTING_MAX = 31
NULLS: Final = "fill nulls in, or drop them, first"
# Of ml_dtypes, as are bfloat16 and the kinds of float8.
_SMALL_INTEGERS: Final = {"int2", "int4", "uint2", "uint4"}
# Of these an object has one if it holds an array.
_PROTOCOLS: Final = ("__array__", "__dlpack__", "__arrow_c_array__", "__arrow_c_stream__")
# Types of entries that can't be null, so a list of them needn't be searched.
_NEVER_NULL = {bool, bytes, float, int, np.ndarray, str}


def position(name: str, flat: int, shape: tuple[int, ...]) -> str:
    """The name in errors of the entry at `flat`, row-major, of an array of `shape`: `ids[3][0]`."""
    return name + "".join(f"[{int(index)}]" for index in np.unravel_index(flat, shape))


def has_array(value: Any) -> bool:
    """Whether `value`, or a type's instances, can be made an array by one of the protocols."""
    return any(hasattr(value, protocol) for protocol in _PROTOCOLS)


def as_given_array(given: Any, name: str) -> NDArray[Any]:
    """Convert nested lists, or an object with an array interface; shares its memory if possible.

    bfloat16 and float8 come as float32, int4 as int8. InvalidArgument, calling it `name`, for
    masked and null entries, for ragged lists and for data on another device.
    """
    if given.__class__ is np.ndarray:
        return _numpys_own(given) if given.dtype.kind == "V" else given
    _refuse_nulls(given, name, 0)
    try:
        array = _converted(given, name)
    except InvalidArgument:
        raise
    except (TypeError, RuntimeError, BufferError) as error:
        raise InvalidArgument(f"{name} can't be made an array: {error}") from None
    except ValueError:
        raise InvalidArgument(
            f"{name} are ragged: every list on one level must be equally long"
        ) from None
    if hasattr(given, "is_null") and _may_have_lost_nulls(array):
        _refuse_nulls(_as_list(given), name, 0)
    return _numpys_own(array) if array.dtype.kind == "V" else array


def _numpys_own(array: NDArray[Any]) -> NDArray[Any]:
    """An array of a type of ml_dtypes, which NumPy knows nothing of, in the nearest that it has."""
    if array.dtype.name in _SMALL_INTEGERS:
        return array.astype(np.int8)
    return array.astype(np.float32) if "float" in array.dtype.name else array


def bfloat16_bits(given: Any, name: str) -> NDArray[np.uint16] | None:
    """The bits of a bfloat16 array of ml_dtypes, JAX or torch; None for anything else.

    InvalidArgument for masked entries.
    """
    if _is_bfloat16_tensor(given) and given.device.type == "cpu":
        as_integers = given.detach().contiguous().view(sys.modules["torch"].int16)
        bits: NDArray[np.uint16] = as_integers.numpy().view(np.uint16)
        return bits
    if getattr(getattr(given, "dtype", None), "name", "") != "bfloat16":
        return None
    _refuse_nulls(given, name, 0)
    array = np.ascontiguousarray(given)
    return array.view(np.uint16).reshape(array.shape)


def _converted(given: Any, name: str) -> NDArray[Any]:
    if isinstance(given, list | tuple):
        try:
            array = np.asarray(given)
        except (TypeError, RuntimeError):
            pass  # of tensors that NumPy doesn't take as they are
        else:
            if array.dtype.kind != "O":
                return array
    return np.asarray(_held(given, name, 0))


def _held(given: Any, name: str, depth: int) -> Any:
    """What NumPy can convert, in place of what it refuses, or would take for an object."""
    if isinstance(given, list | tuple):
        if depth > NESTING_MAX:
            return given
        return [_held(item, f"{name}[{index}]", depth + 1) for index, item in enumerate(given)]
    if hasattr(given, "detach"):  # a tensor, perhaps a part of a graph, or a lazy view
        plain = given.detach()
        for resolve in ("resolve_conj", "resolve_neg"):
            plain = getattr(plain, resolve)() if hasattr(plain, resolve) else plain
        return plain.float() if _is_bfloat16_tensor(plain) else plain
    if hasattr(given, "__array__"):
        return given
    if hasattr(given, "__dlpack__"):
        return np.from_dlpack(given)
    if hasattr(given, "__arrow_c_array__") or hasattr(given, "__arrow_c_stream__"):
        return as_given_array(_imported_by_arrow(given, name), name)
    return given


def _is_bfloat16_tensor(given: Any) -> bool:
    return hasattr(given, "detach") and str(given.dtype) == "torch.bfloat16"


def _imported_by_arrow(given: Any, name: str) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise InvalidArgument(
            f"{name} are Arrow data of a library that makes no NumPy arrays: install pyarrow, "
            "which does, or give a list"
        ) from None
    make = pa.array if hasattr(given, "__arrow_c_array__") else pa.chunked_array
    return make(given)


def _may_have_lost_nulls(array: NDArray[Any]) -> bool:
    """Whether nulls inside of a column's lists could have become NaN or None."""
    if array.dtype.kind == "f":
        return bool(np.isnan(array).any())
    return array.dtype.kind == "O" and any(isinstance(one, np.ndarray | list) for one in array.flat)


def _as_list(given: Any) -> Any:
    as_list = getattr(given, "to_list", None) or getattr(given, "to_pylist", None)
    return as_list() if callable(as_list) else given


def _refuse_nulls(given: Any, name: str, depth: int) -> None:
    if given is None and depth:
        raise InvalidArgument(f"{name} is null: {NULLS}")
    if isinstance(given, list | tuple):
        # Deeper nesting is an error of its own.
        if depth <= NESTING_MAX and not set(map(type, given)) <= _NEVER_NULL:
            for index, item in enumerate(given):
                _refuse_nulls(item, f"{name}[{index}]", depth + 1)
        return
    nulls = _nulls(given)
    if nulls is None or not nulls.any():
        return
    bad = np.flatnonzero(nulls)
    listed = ", ".join(position(name, int(flat), nulls.shape) for flat in bad[:OFFENDERS_MAX])
    more = f" (and {bad.size - OFFENDERS_MAX} more)" if bad.size > OFFENDERS_MAX else ""
    kind = "masked" if isinstance(given, np.ma.MaskedArray) else "null"
    raise InvalidArgument(f"{listed}{more} {'is' if bad.size == 1 else 'are'} {kind}: {NULLS}")


def _nulls(given: Any) -> NDArray[np.bool_] | None:
    """Which entries are masked or null; None for a type without masks and nulls."""
    if isinstance(given, np.ma.MaskedArray):
        return np.ma.getmaskarray(given)
    # pandas' Series, Index and DataFrame; Polars' Series and Arrow's arrays.
    for method in ("isna", "is_null"):
        found = getattr(given, method, None)
        if callable(found):
            return np.asarray(found(), bool)
    # Polars' DataFrame; Arrow's Table and RecordBatch.
    columns = getattr(given, "get_columns", None)
    columns = columns() if callable(columns) else getattr(given, "columns", None)
    if isinstance(columns, list) and columns and hasattr(columns[0], "is_null"):
        return np.column_stack([np.asarray(column.is_null(), bool) for column in columns])
    return None
