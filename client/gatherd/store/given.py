"""Arrays as callers give them: from NumPy, pandas, Polars, Arrow, torch, JAX and others.

NumPy's own conversion loses the mask of a masked array, and turns the nulls of pandas, Polars and
Arrow into NaN or None. Here a masked or null entry is an error that names its position.
None of these libraries is imported: their nulls are found through the methods that they share.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument

OFFENDERS_MAX = 5
# One less than the dimensions that every NumPy supports, because the reply has one more.
NESTING_MAX = 31
# Types of entries that can't be null, so a list of them needn't be searched.
_NEVER_NULL = {bool, bytes, float, int, np.ndarray, str}


def position(name: str, flat: int, shape: tuple[int, ...]) -> str:
    """The name in errors of the entry at `flat`, row-major, of an array of `shape`: `ids[3][0]`."""
    return name + "".join(f"[{int(index)}]" for index in np.unravel_index(flat, shape))


def as_given_array(given: Any, name: str) -> NDArray[Any]:
    """Convert nested lists, or an object with an array interface; shares its memory if possible.

    InvalidArgument, calling it `name`, for masked and null entries, for ragged lists and for data
    on another device.
    """
    if given.__class__ is np.ndarray:
        return given
    _refuse_nulls(given, name, 0)
    try:
        return np.asarray(given)
    except (TypeError, RuntimeError) as error:
        raise InvalidArgument(f"{name} can't be made an array: {error}") from None
    except ValueError:
        raise InvalidArgument(
            f"{name} are ragged: every list on one level must be equally long"
        ) from None


def _refuse_nulls(given: Any, name: str, depth: int) -> None:
    if given is None and depth:
        raise InvalidArgument(f"{name} is null")
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
    raise InvalidArgument(f"{listed}{more} {'is' if bad.size == 1 else 'are'} {kind}")


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
