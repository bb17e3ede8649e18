"""The rows of a new table, drawn block by block; store/initializer.py has the distributions.

Everything is drawn in float32 from one PCG64 stream in row order, so that the same seed gives the
same table, whatever the block.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType, convert
from gatherd.store.initializer import TRUNCATED_AT, Distribution, Initializer, Law

BLOCK_BYTES = 4 << 20
ORTHOGONAL_ELEMENTS_MAX: Final = 1 << 24
"""An orthogonal table holds min(rows, 2 · dim) × dim elements in memory, in float64."""

# The next rows, (n, dim), for n.
_Draw = Callable[[int], NDArray[Any]]


def initial_blocks(
    initializer: Initializer,
    row_count: int,
    dim: int,
    dtype: DType,
    seed: int,
    padding_id: int | None = None,
) -> Iterator[NDArray[Any]]:
    """Blocks of new rows, (n, dim) in `dtype`'s storage.

    The row `padding_id` is zeros, like `padding_idx` in torch.nn.Embedding; the other rows don't
    depend on it. InvalidArgument when a value is too large for `dtype`, and for an orthogonal table
    of more elements than ORTHOGONAL_ELEMENTS_MAX.
    """
    # A constant is exact in a float64 table; what is drawn has float32's digits there.
    exact = np.float64 if dtype is DType.FLOAT64 else np.float32
    draw = _drawing(initializer.distribution(row_count, dim), (row_count, dim), exact, seed)
    rows_per_block = _block_rows(dim)
    for start in range(0, row_count, rows_per_block):
        drawn = draw(min(rows_per_block, row_count - start))
        block = np.empty(drawn.shape, dtype.storage)
        if padding_id is not None and 0 <= padding_id - start < len(drawn):
            drawn[padding_id - start] = 0
        convert(drawn, DType(drawn.dtype.name), block, dtype)
        if dtype is DType.FLOAT16 and not np.isfinite(block).all():
            raise InvalidArgument(
                f"{initializer.name} draws values that are too large for float16, which ends at "
                "65504; make its parameters smaller, or store the table as bfloat16 or float32"
            )
        yield block


def created_origin(initializer: Initializer, seed: int) -> dict[str, object]:
    """What a manifest tells of where drawn rows are from."""
    parameters = {"parameters": dict(initializer.parameters)} if initializer.parameters else {}
    return {"created": initializer.name, **parameters, "seed": seed}


def _block_rows(dim: int) -> int:
    return max(1, BLOCK_BYTES // (dim * 4))


def _drawing(
    distribution: Distribution, shape: tuple[int, int], exact: type[np.floating[Any]], seed: int
) -> _Draw:
    row_count, dim = shape
    rng = np.random.default_rng(seed)
    a, b = distribution.a, distribution.b
    match distribution.law:
        case Law.CONSTANT:
            return lambda count: np.full((count, dim), a, exact)
        case Law.UNIFORM if a == -b:
            return lambda count: (rng.random((count, dim), np.float32) * 2 - 1) * np.float32(b)
        case Law.UNIFORM:
            return lambda count: _between(rng.random((count, dim), np.float32), a, b)
        case Law.NORMAL:
            return lambda count: _moved(rng.standard_normal((count, dim), np.float32), a, b)
        case Law.TRUNCATED_NORMAL:
            truncated = _Truncated(rng)
            return lambda count: _moved(truncated.draw(count * dim).reshape(count, dim), a, b)
        case Law.ORTHOGONAL:
            rows = _orthogonal(row_count, dim, seed)
            return partial(_next_block, rows, a)
        case Law.IDENTITY:
            return _Diagonal(a, dim, exact).draw


def _between(drawn: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    rows = (drawn * (high - low) + low).astype(np.float32)
    # Rounding may reach the end that isn't among the values.
    below = np.nextafter(np.float32(high), np.float32(low))
    return np.minimum(rows, below, out=rows)


def _moved(drawn: NDArray[np.float32], mean: float, stddev: float) -> NDArray[np.float32]:
    rows = drawn * np.float32(stddev)
    return rows + np.float32(mean) if mean else rows


class _Truncated:
    """Standard normals within ±TRUNCATED_AT: a stream without those beyond."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._rest = np.empty(0, np.float32)

    def draw(self, count: int) -> NDArray[np.float32]:
        """The next `count`."""
        parts, found = [self._rest], self._rest.size
        while found < count:
            # 4.6 % are beyond; what is too many is kept for the next call.
            drawn = self._rng.standard_normal((count - found) * 21 // 20 + 64, np.float32)
            parts.append(drawn[np.abs(drawn) <= TRUNCATED_AT])
            found += parts[-1].size
        together = np.concatenate(parts)
        self._rest = together[count:].copy()
        return together[:count]


class _Diagonal:
    """The rows of a matrix with one value on its diagonal."""

    def __init__(self, value: float, dim: int, exact: type[np.floating[Any]]) -> None:
        self._value = value
        self._exact = exact
        self._dim = dim
        self._next = 0

    def draw(self, count: int) -> NDArray[Any]:
        """The next `count` rows."""
        rows = np.zeros((count, self._dim), self._exact)
        on = np.arange(min(count, max(0, self._dim - self._next)))
        rows[on, self._next + on] = self._value
        self._next += count
        return rows


def _orthogonal(row_count: int, dim: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Blocks of the matrix that Keras' Orthogonal makes: Q of A = Q·R, R's diagonal positive.

    A is (rows, dim) of standard normals, transposed where rows are fewer. Of a tall A only AᵀA is
    held: R is its Cholesky factor, and Q = A·R⁻¹ is computed as A is drawn a second time. With
    twice as many rows as columns A's condition is below 6, so that nothing is lost by that.
    """
    held = min(row_count, 2 * dim) * dim
    if held > ORTHOGONAL_ELEMENTS_MAX:
        raise InvalidArgument(
            f"orthogonal holds min(rows, 2 dim) x dim = {held} elements in memory, and at most "
            f"{ORTHOGONAL_ELEMENTS_MAX}; use glorot_normal for a table of this shape"
        )
    counts = [
        min(_block_rows(dim), row_count - start) for start in range(0, row_count, _block_rows(dim))
    ]
    if row_count < 2 * dim:
        shape = (max(row_count, dim), min(row_count, dim))
        normals = np.random.default_rng(seed).standard_normal(shape, np.float32)
        q, r = np.linalg.qr(normals.astype(np.float64))
        q *= np.where(np.diag(r) < 0, -1.0, 1.0)
        whole = q if row_count >= dim else q.T
        yield from np.split(whole, np.cumsum(counts)[:-1])
        return
    normals_again = partial(_normals, counts, dim, seed)
    gram = np.zeros((dim, dim))
    for block in normals_again():
        gram += block.T @ block
    inverse = np.linalg.inv(np.linalg.cholesky(gram).T)
    for block in normals_again():
        yield block @ inverse


def _next_block(
    blocks: Iterator[NDArray[np.float64]], gain: float, count: int
) -> NDArray[np.float32]:
    block = next(blocks)
    assert len(block) == count
    return (block * gain).astype(np.float32)


def _normals(counts: list[int], dim: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    for count in counts:
        yield rng.standard_normal((count, dim), np.float32).astype(np.float64)
