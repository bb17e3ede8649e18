"""A search for neighbors as the caller asked for it: checked, before anything is sent."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import check_table, check_version
from gatherd._shown import Shown
from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import bfloat16_to_float32
from gatherd.store.given import as_given_array
from gatherd.store.ids import as_id_array
from gatherd.store.keys import as_keys
from gatherd.store.query import Asked, ByKey, NeighborsQuery, parse_metric

_K_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors(Shown):
    """The nearest rows of queries of shape S, nearest first: arrays of shape S + (k',).

    `ids` are int64. `scores`, float32, are cosines, dot products or, for "l2", distances. `keys`
    are the rows' keys, as `keys_of` gives them; None for a table without keys. `version` is the one
    that was searched. k' is k, or the number of rows that can be neighbors if there are fewer.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    keys: NDArray[Any] | None
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class NeighborsSpec:
    """A search in one table; `version` is LIVE_VERSION for the live one."""

    table: str
    table_bytes: bytes
    query: NeighborsQuery
    version: int


def prepare_neighbors(
    table: object,
    query: object,
    keys: object,
    k: object,
    metric: object,
    include_self: object,
    version: object,
) -> NeighborsSpec:
    """Check the arguments of neighbors. InvalidArgument if the search can't be sent."""
    name, table_bytes = check_table(table)
    if (query is None) is (keys is None):
        given = "neither a query nor keys" if query is None else "both a query and keys"
        raise InvalidArgument(f"{given} were given; a search takes one of them")
    if isinstance(k, bool | np.bool_) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidArgument(f"k is an integer, 1 or more, not {k!r}")
    if not isinstance(include_self, bool):
        raise InvalidArgument(f"include_self is True or False, not {include_self!r}")
    asked, vectors = _rows_or_vectors(query) if keys is None else (ByKey(as_keys(keys)), None)
    found = NeighborsQuery(asked, vectors, min(int(k), _K_MAX), parse_metric(metric), include_self)
    return NeighborsSpec(name, table_bytes, found, check_version("version", version))


def _rows_or_vectors(query: Any) -> tuple[Asked | None, NDArray[np.float32] | None]:
    """Strings are keys, integers ids, and floats vectors."""
    first = query
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, str | bytes):
        return ByKey(as_keys(query)), None
    if isinstance(query, int | range):
        return as_id_array(query), None
    array = as_given_array(query, "query")
    if array.dtype.kind in "iu":
        return as_id_array(query), None
    if array.dtype.kind in "OUST":
        # A list of integers and floats is an array of floats; objects are keys, or wrong.
        return ByKey(as_keys(query)), None
    if array.dtype.name == "bfloat16":
        wide = np.empty(array.shape, np.float32)
        bfloat16_to_float32(np.ascontiguousarray(array).view(np.uint16), wide)
        return None, wide
    if array.dtype.kind != "f" or array.ndim == 0:
        raise InvalidArgument(
            "a query is a key (a string), an id (an integer) or a vector (floats), or an array of "
            f"one of them, not {'a float' if array.dtype.kind == 'f' else array.dtype}"
        )
    with np.errstate(over="ignore"):  # too large ones become infinity, and are refused
        return None, np.ascontiguousarray(array, np.float32)
