"""Rows for `gatherd create`: the initializers that Keras and torch users know."""

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType, convert

BLOCK_BYTES = 4 << 20
# Keras' defaults for RandomUniform and RandomNormal.
UNIFORM_LIMIT = 0.05
NORMAL_STDDEV = 0.05


class Initializer(Enum):
    """The distributions of a new table's rows."""

    ZEROS = "zeros"
    UNIFORM = "uniform"
    NORMAL = "normal"
    GLOROT = "glorot"


def initial_blocks(
    initializer: Initializer,
    row_count: int,
    dim: int,
    dtype: DType,
    seed: int,
    padding_id: int | None = None,
) -> Iterator[NDArray[Any]]:
    """Blocks of new rows, (n, dim) in `dtype`'s storage.

    ZEROS; UNIFORM in [-0.05, 0.05); NORMAL with standard deviation 0.05; GLOROT uniform in
    [-l, l) with l = sqrt(6 / (rows + dim)) (Glorot and Bengio 2010, eq. 16). Drawn in float32
    from one PCG64 stream in row order: the same seed gives the same table, whatever the block.
    The row `padding_id` is zeros, like `padding_idx` in torch.nn.Embedding; the other rows don't
    depend on it.
    """
    rng = np.random.default_rng(seed)
    rows_per_block = max(1, BLOCK_BYTES // (dim * 4))
    for start in range(0, row_count, rows_per_block):
        shape = (min(rows_per_block, row_count - start), dim)
        drawn = _draw(initializer, rng, shape, row_count)
        block = np.empty(shape, dtype.storage)
        if padding_id is not None and 0 <= padding_id - start < len(drawn):
            drawn[padding_id - start] = 0
        convert(drawn, DType.FLOAT32, block, dtype)
        yield block


def _draw(
    initializer: Initializer, rng: np.random.Generator, shape: tuple[int, int], row_count: int
) -> NDArray[np.float32]:
    match initializer:
        case Initializer.ZEROS:
            return np.zeros(shape, np.float32)
        case Initializer.NORMAL:
            return rng.standard_normal(shape, np.float32) * np.float32(NORMAL_STDDEV)
        case Initializer.UNIFORM:
            limit = UNIFORM_LIMIT
        case Initializer.GLOROT:
            limit = math.sqrt(6 / (row_count + shape[1]))
    return (rng.random(shape, np.float32) * 2 - 1) * np.float32(limit)
