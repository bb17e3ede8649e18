"""Bags as callers give them: flat ids with offsets, or a list of lists; ids or keys alike.

A tuple in `lookup_bags_many` is (ids, offsets), everything else is jagged.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import (
    LookupSpec,
    ReplyType,
    check_one_of,
    check_out,
    check_table,
    check_version,
)
from gatherd.errors import InvalidArgument
from gatherd.store.bags import check_offsets, check_weights, flat_weights, jagged
from gatherd.store.given import as_given_array, has_array
from gatherd.store.ids import as_id_array
from gatherd.store.keys import StringKeys, as_keys
from gatherd.store.query import (
    BAG_POLICIES,
    Asked,
    BagsQuery,
    ByKey,
    parse_missing,
    parse_pooling,
)

_INT64 = np.iinfo(np.int64)


def prepare_bags(
    table: object,
    ids: object,
    offsets: object,
    keys: object,
    *,
    mode: str,
    weights: object,
    padding_id: object,
    reply: ReplyType,
    missing: str,
    out: NDArray[Any] | None = None,
    version: object = None,
) -> LookupSpec:
    """Check the arguments of a lookup of bags. InvalidArgument if it can't be sent or filled."""
    name, table_bytes = check_table(table)
    policy = parse_missing(missing, BAG_POLICIES)
    pooling = parse_pooling(mode)
    check_one_of(ids, keys)
    if keys is None:
        asked, starts = _flat_ids(ids, offsets)
    else:
        asked, starts = _flat_keys(keys, offsets)
    if weights is not None and offsets is None:
        weights = _flat_weights(weights, starts, asked.size)
    bags = BagsQuery(
        starts, pooling, check_weights(weights, asked.size, pooling), _padding_id(padding_id)
    )
    if out is not None:
        check_out(out, starts.shape, reply.array)
    wanted = check_version("version", version)
    return LookupSpec(name, table_bytes, asked, reply, policy, out, bags, wanted)


def split_pair(table: str, given: object) -> tuple[object, object]:
    """A value of lookup_bags_many as (ids or keys, offsets); offsets are None for jagged bags."""
    if not isinstance(given, tuple):
        return given, None
    if len(given) != 2:
        raise InvalidArgument(
            f"bags of table {table!r} are a tuple of {len(given)}; "
            "a tuple is (ids, offsets), a list is one of lists"
        )
    return given


def _flat_ids(ids: object, offsets: object) -> tuple[Asked, NDArray[np.int64]]:
    if offsets is not None:
        flat = as_id_array(ids)
        if flat.ndim != 1:
            raise InvalidArgument(
                f"ids have shape {flat.shape}; with offsets they are flat, of shape (n,)"
            )
        return flat, check_offsets(offsets, flat.size)
    given = _bags(ids, "ids")
    if isinstance(given, np.ndarray):
        return as_id_array(given).reshape(-1), _even(given.shape)
    found, starts = jagged(given, "ids")
    if isinstance(found, StringKeys):
        raise InvalidArgument("ids must be integers, not strings; strings are given as keys=")
    return as_id_array(found), starts


def _flat_keys(keys: object, offsets: object) -> tuple[Asked, NDArray[np.int64]]:
    if offsets is not None:
        flat = as_keys(keys)
        if len(flat.shape) != 1:
            raise InvalidArgument(
                f"keys have shape {flat.shape}; with offsets they are flat, of shape (n,)"
            )
        return ByKey(flat), check_offsets(offsets, flat.size)
    given = _bags(keys, "keys")
    if isinstance(given, np.ndarray):
        return ByKey(as_keys(given.reshape(-1))), _even(given.shape)
    found, starts = jagged(given, "keys")
    return ByKey(found), starts


def _bags(bags: Any, name: str) -> list[Any] | tuple[Any, ...] | NDArray[Any]:
    """A list of bags, or an array of equally long bags."""
    array = as_given_array(bags, name) if has_array(bags) else None
    if array is not None and array.ndim == 2:
        return array
    if array is not None and array.ndim == 1 and array.dtype.kind == "O":
        # A column of lists. NumPy would make NaN of the nulls in them.
        as_list = getattr(bags, "to_list", None) or getattr(bags, "to_pylist", None)
        bags = as_list() if callable(as_list) else array.tolist()
    if not isinstance(bags, list | tuple):
        raise InvalidArgument(
            f"without offsets, {name} are a list of lists such as [[1, 2], [], [3]], "
            f"not a {type(bags).__name__}"
        )
    return bags


def _even(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The offsets of bags of equal length."""
    return np.arange(shape[0], dtype=np.int64) * shape[1]


def _flat_weights(weights: object, starts: NDArray[np.int64], id_count: int) -> object:
    """Weights as given, or flattened where they are as jagged as the ids."""
    if has_array(weights):
        array = as_given_array(weights, "weights")
        weights = list(array) if array.ndim == 2 or array.dtype.kind == "O" else array
    if not isinstance(weights, list | tuple):
        return weights
    if not any(isinstance(bag, list | tuple) or hasattr(bag, "__len__") for bag in weights):
        return weights
    flat = flat_weights(weights, starts, id_count)
    for i, bag in enumerate(weights):
        as_given_array(bag, f"weights[{i}]")  # it refuses nulls, and names their place
    return flat


def _padding_id(padding_id: object) -> int | None:
    if padding_id is None:
        return None
    if isinstance(padding_id, bool | np.bool_) or not isinstance(padding_id, int | np.integer):
        raise InvalidArgument(f"padding_id is an integer, not {padding_id!r}")
    if not _INT64.min <= padding_id <= _INT64.max:
        raise InvalidArgument(f"padding_id={padding_id} doesn't fit into 64 bits")
    return int(padding_id)
