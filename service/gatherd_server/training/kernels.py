"""The compiled loops of updates: the typed door to compiled_updates.py and compiled_optimizers.py.

As in gatherd/store/kernels/compiled.py, numba is loaded by the first call or by `warm()`. That
compiles everything at once, or loads it from numba's cache.
"""

import secrets
from enum import IntEnum
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType
from gatherd.store.kernels.compiled import RowKind

# The seed of the hash of a push's ids: random, so that nobody can send ids that all collide.
_SEED = np.uint64(secrets.randbits(64))

NAMED_MAX = 5
LINKS = 4
# The row of `links` that has the touched positions.
TOUCHED = 0
HYPERS = 15
KINDS = {
    DType.FLOAT32: RowKind.FLOAT32,
    DType.FLOAT16: RowKind.FLOAT16,
    DType.BFLOAT16: RowKind.BFLOAT16,
}


class Rule(IntEnum):
    """How a gradient is applied; compiled_optimizers.py branches on the number."""

    SGD = 0
    MOMENTUM = 1
    ADAGRAD = 2
    ROWWISE_ADAGRAD = 3
    ADAM = 4
    FTRL = 5


@cache
def _updates() -> ModuleType:
    from gatherd_server.training import compiled_updates

    return compiled_updates


@cache
def _optimizers() -> ModuleType:
    from gatherd_server.training import compiled_optimizers

    return compiled_optimizers


def warm() -> None:
    """Compile or load every kernel, and run each once. Takes 0.1 s from the cache."""
    _updates().warm()
    _optimizers().warm()


def place(
    ids: NDArray[np.int64],
    padding_id: int,
    table: NDArray[np.int32],
    rows: NDArray[np.int64],
    row_count: int,
    marks: NDArray[np.int32],
    links: NDArray[np.int32],
) -> tuple[int, int]:
    """Find or make each id's position in `rows`, and link the ids of each row.

    `table`, whose length is a power of two above that of `rows`, holds positions plus one, or 0.
    `rows` has `row_count` entries so far. `marks`, as long as `rows`, may hold anything. `links`,
    (LINKS, n), is filled. `padding_id`, −1 for none, is left out. Returns how many rows are
    touched, and the new row count.
    """
    touched, count = _updates().place(ids, padding_id, _SEED, table, rows, row_count, marks, links)
    return touched, count


def scatter_add(
    kind: RowKind,
    base: NDArray[np.uint8],
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    known: int,
    links: NDArray[np.int32],
    touched: int,
    deltas: NDArray[np.float32],
    nonfinite: NDArray[np.int64],
) -> int:
    """Add `deltas`, (n, dim), to the touched images, each rounded once.

    Images from position `known` on don't exist yet: their rows are read from `base`. Returns how
    many rows became non-finite; the first NAMED_MAX of them are put into `nonfinite`.
    """
    wrong: int = _updates().scatter_add(
        int(kind), base, images, rows, known, links, touched, deltas, nonfinite
    )
    return wrong


def assign(
    kind: RowKind,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    links: NDArray[np.int32],
    touched: int,
    values: NDArray[np.float32],
    nonfinite: NDArray[np.int64],
) -> int:
    """Put the last of each touched row's `values`, (n, dim), into its image; as scatter_add."""
    wrong: int = _updates().assign(int(kind), images, rows, links, touched, values, nonfinite)
    return wrong


def apply_gradients(
    rule: Rule,
    kind: RowKind,
    base: NDArray[np.uint8],
    images: NDArray[np.uint8],
    slots: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    rows: NDArray[np.int64],
    known: int,
    links: NDArray[np.int32],
    touched: int,
    grads: NDArray[np.float32],
    hyper: NDArray[np.float32],
    nonfinite: NDArray[np.int64],
) -> int:
    """Do one step of each touched image and its slots, each rounded once; else as scatter_add.

    `slots` are two pairs of mapped slots and their images, of width 0 for no slot. `hyper`,
    (HYPERS,), has the options in the order of compiled_optimizers.py.
    """
    (base_1, slot_1), (base_2, slot_2) = slots
    wrong: int = _optimizers().apply_gradients(
        int(rule),
        int(kind),
        base,
        images,
        base_1,
        slot_1,
        base_2,
        slot_2,
        rows,
        known,
        links,
        touched,
        grads,
        hyper,
        nonfinite,
    )
    return wrong
