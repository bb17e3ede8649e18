"""Bags: ragged lists of ids, each pooled into one vector, as torch's `embedding_bag` does it.

Bag i is ids[offsets[i]:offsets[i + 1]]; the last one runs to the end (torch's
`include_last_offset=False`). x are the rows of a bag and w their weights, 1 if none are given:

    sum     Σ w·x
    mean    Σ w·x / Σ w
    sqrtn   Σ w·x / sqrt(Σ w²)
    max     the largest, element by element; takes no weights, as in torch

mean and sqrtn with weights are the combiners of TensorFlow's `tf.nn.embedding_lookup_sparse`; like
its `div_no_nan` they give zeros when the divisor is 0. An empty bag, or one whose ids are all
skipped, gives zeros. Sums are accumulated in float32, whatever the table's dtype (float64 elements
are rounded first), in an order that depends only on the request; divisions come last.

A NaN goes through sum, mean and sqrtn. max treats it as torch does on a CPU: it starts with the
first row, and each later element replaces the current one if it is greater. So a NaN in a bag's
first row stays, and one in a later row is passed over.

The rows are never gathered: each is added from the mapped page into the bag's vector. If rows may
change meanwhile, several are added at a time, and the addition is undone if one of them was torn.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.given import as_given_array, has_array
from gatherd.store.ids import as_id_array, in_range
from gatherd.store.kernels import compiled
from gatherd.store.kernels.compiled import RowKind
from gatherd.store.keys import Keys, keys_from_leaves
from gatherd.store.query import Pooling
from gatherd.store.stripes import Patience, RowReader

SKIP: Final = -1
FILL: Final = -2
"""Entries of an index that are no rows: pass over the id, or pool the filler in its place."""


MODES: Final = {Pooling.SUM: 0, Pooling.MEAN: 1, Pooling.MAX: 2, Pooling.SQRTN: 3}
"""Numbers that kernels/bags.py branches on."""
_NO_WEIGHTS = np.empty(0, np.float32)
_NO_COUNTERS = np.empty(0, np.uint32)
_ROW_KINDS = {
    np.dtype("<f4"): RowKind.FLOAT32,
    np.dtype("<f2"): RowKind.FLOAT16,
    np.dtype("<u2"): RowKind.BFLOAT16,
    np.dtype("<f8"): RowKind.FLOAT64,
}


def check_offsets(offsets: object, id_count: int) -> NDArray[np.int64]:
    """`offsets` as int64, (bags,), checked against the number of ids.

    InvalidArgument, naming offsets[i], unless they are a flat list of integers that begins with
    0, never decreases and never exceeds `id_count`; also when there are ids but no bag.
    """
    array = as_given_array(offsets, "offsets")
    if array.ndim != 1:
        raise InvalidArgument(f"offsets have shape {array.shape}; they are a flat list")
    if array.size == 0:
        if id_count:
            raise InvalidArgument(f"there are {id_count} ids and no bag; offsets[0] must be 0")
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise InvalidArgument(f"offsets must be integers, not {array.dtype}")
    if array[0] != 0:
        raise InvalidArgument(f"offsets[0]={array[0]}; the first bag begins at 0")
    over = array > id_count
    if over.any():
        i = int(over.argmax())
        raise InvalidArgument(f"offsets[{i}]={array[i]} is past the end of {id_count} ids")
    checked = np.ascontiguousarray(array, np.int64)
    falls = checked[1:] < checked[:-1]
    if falls.any():
        i = int(falls.argmax()) + 1
        raise InvalidArgument(
            f"offsets[{i}]={checked[i]} is before offsets[{i - 1}]={checked[i - 1]}; "
            "offsets can't decrease"
        )
    return checked


def check_weights(weights: object, id_count: int, mode: Pooling) -> NDArray[np.float32] | None:
    """`weights` as float32, (id_count,), or None.

    InvalidArgument when they aren't real numbers, have another length, or `mode` is max.
    """
    if weights is None:
        return None
    if mode is Pooling.MAX:
        raise InvalidArgument("mode 'max' takes no weights")
    array = as_given_array(weights, "weights")
    if array.ndim != 1:
        raise InvalidArgument(f"weights have shape {array.shape}; they are a flat list, one an id")
    if array.size != id_count:
        raise InvalidArgument(f"there are {id_count} ids and {array.size} weights")
    if array.size and array.dtype.kind not in "iuf":
        raise InvalidArgument(f"weights must be numbers, not {array.dtype}")
    with np.errstate(over="ignore"):
        return np.require(array, np.float32, ["C", "A"])


def flat_weights(weights: Sequence[Any], offsets: NDArray[np.int64], id_count: int) -> list[Any]:
    """Flatten weights that are as jagged as the bags.

    InvalidArgument, naming weights[i], unless each bag has a list of its own length.
    """
    lengths = np.diff(offsets, append=id_count).tolist()
    if len(weights) != len(lengths):
        raise InvalidArgument(f"there are {len(lengths)} bags of ids and {len(weights)} of weights")
    for i, (bag, length) in enumerate(zip(weights, lengths, strict=True)):
        if not hasattr(bag, "__len__") or len(bag) != length:
            raise InvalidArgument(f"weights[{i}] isn't a list of {length}, as the bag's ids are")
    return list(chain.from_iterable(weights))


def jagged(bags: Sequence[Any], name: str = "ids") -> tuple[Keys, NDArray[np.int64]]:
    """Flat ids or keys, and offsets, of a list of lists, such as [[1, 2], [], [3]].

    A bag can be a list, a tuple or any 1-D array. Ids and integer keys come back as an integer
    array, strings as StringKeys. InvalidArgument, naming `name`[i][j], for an entry that is
    neither, or is masked or null.
    """
    if not isinstance(bags, list | tuple):
        raise InvalidArgument(f"jagged {name} are a list of lists, not a {type(bags).__name__}")
    bags = [_as_bag(bag, f"{name}[{i}]") for i, bag in enumerate(bags)]
    lengths = np.fromiter(map(len, bags), np.int64, len(bags))
    offsets = np.zeros(len(bags), np.int64)
    np.cumsum(lengths[:-1], out=offsets[1:])
    if bags and all(isinstance(bag, np.ndarray) and bag.dtype.kind in "iu" for bag in bags):
        return as_id_array(np.concatenate(bags)), offsets
    plain = (bag.tolist() if isinstance(bag, np.ndarray) else bag for bag in bags)
    leaves = list(chain.from_iterable(plain))

    def where(flat: int) -> str:
        i = int(np.searchsorted(offsets, flat, side="right")) - 1
        return f"{name}[{i}][{flat - int(offsets[i])}]"

    return keys_from_leaves(
        leaves, (len(leaves),), where, f"{name} are strings or integers"
    ), offsets


def _as_bag(bag: Any, name: str) -> Any:
    if isinstance(bag, list | tuple):
        return bag
    array = as_given_array(bag, name) if has_array(bag) else None
    if array is None or array.ndim != 1:
        raise InvalidArgument(f"{name} is a {type(bag).__name__}; each bag is a list")
    return array


def bag_index(
    ids: NDArray[np.integer[Any]], row_count: int, absent: int, padding_id: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The index that `pool` takes for flat `ids`, and per id whether it has a row (or is padding).

    `absent`, SKIP or FILL, is put for an id without a row. `padding_id` is skipped, also when the
    table has no such row.
    """
    found = in_range(ids, row_count)
    # Wide first: SKIP and FILL are negative, and `ids` may be unsigned.
    index = np.where(found, ids.astype(np.int64, copy=False), absent)
    if padding_id is not None:
        padding = ids == padding_id
        index[padding] = SKIP
        found |= padding
    return index, found


def pool(
    rows: NDArray[Any],
    index: NDArray[np.int64],
    offsets: NDArray[np.int64],
    weights: NDArray[np.float32] | None,
    mode: Pooling,
    filler: NDArray[np.float32],
    out: NDArray[np.float32],
    reader: RowReader | None = None,
) -> None:
    """Pool `rows` into `out`, float32, (bags, dim), C-contiguous, as the module's docstring says.

    `rows` is (row_count, dim), C-contiguous, in a table dtype's storage: float32, float16,
    bfloat16's bits in uint16, or float64; it may be misaligned and read-only. `index`, (ids,),
    holds rows, SKIP, or FILL, which pools `filler`, (dim,). `offsets` and `weights` were checked.
    `reader` has the counters of rows that may change.

    InvalidArgument when shapes contradict each other or an index has no row, Unavailable when a
    writer died while it wrote a row, each with `out` filled in part; Unimplemented without numba.
    Releases the GIL.
    """
    kind = _ROW_KINDS.get(rows.dtype)
    if kind is None or rows.ndim != 2:
        raise InvalidArgument(f"rows of {rows.dtype} {rows.shape} can't be pooled")
    shape = (offsets.size, rows.shape[1])
    if out.shape != shape or out.dtype != np.float32 or filler.shape != shape[1:]:
        raise InvalidArgument(
            f"out is {out.dtype} {out.shape}, filler {filler.shape}; need {shape}"
        )
    if reader is not None and kind is RowKind.FLOAT64:
        raise InvalidArgument("rows of float64 that change can't be pooled: they aren't trainable")
    if weights is not None and (weights.size != index.size or mode is Pooling.MAX):
        raise InvalidArgument(f"{index.size} ids, {weights.size} weights, mode {mode.value}")
    if offsets.size == 0 or index.size == 0:
        out[...] = 0
        return
    raw = rows.view(np.uint8) if rows.size else np.empty((rows.shape[0], 0), np.uint8)
    given = _NO_WEIGHTS if weights is None else weights
    counters = _NO_COUNTERS if reader is None else reader.counters
    begin, patience = 0, None
    while True:
        bag, found = compiled.pool(
            raw, kind, counters, index, offsets, given, MODES[mode], filler, out, begin
        )
        if found == compiled.DONE:
            return
        if found >= 0:
            raise InvalidArgument(
                f"index[{found}]={index[found]}: the table has {rows.shape[0]} rows"
            )
        assert reader is not None
        if patience is None or bag > begin:
            begin, patience = bag, Patience(reader)
        patience.wait(compiled.torn_row(found))
