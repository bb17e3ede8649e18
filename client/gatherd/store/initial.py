"""Initial vectors: what the row of an open table begins with, a pure function of its key.

Every process, machine and retry computes the same bits, before the row exists and when it is
created again. With mix and the hash of key_index.py, and the table's seed (the index has another):

    h    = the key's hash with the table's seed
    x_j  = mix(h + (j + 1) · 0x9E3779B97F4A7C15 mod 2**64), j = 0 … dim − 1       (splitmix64)
    u_j  = ⌊x_j / 2**11⌋ · 2**−53                      in [0, 1)
    p_j  = (⌊x_j / 2**12⌋ + ½) · 2**−52                in (0, 1)

    constant           v_j = a
    uniform            v_j = a + u_j · (b − a)
    normal             v_j = a + b · Q(p_j)
    truncated normal   v_j = a + b · Q(t + p_j · w)    t = 0.022750131948179207, Φ(−2), and
                                                       w = 0.9544997361036416, Φ(2) − Φ(−2)

v_j is float64, rounded to float32 once; a table of another dtype stores that as it stores any
value. The laws, a and b are those of initializer.py, of a table of rows_max rows.

Q is the normal quantile function, PPND16 of Wichura, "Algorithm AS 241" (1988), to 16 digits. Its
logarithm is ln(2**e · m) = e · 0.6931471805599453 + 2 · f · (1 + s/3 + s²/5 + … + s¹⁰/21), in
Horner's order, with √½ < m ≤ √2 (1.4142135623730951), f = (m − 1) / (m + 1) and s = f². Every
operation is +, −, ×, ÷ or √ of float64, which IEEE 754 rounds in one way only, and none are fused:
a C library's own logarithm differs from another's in the last bit.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Distribution, Law
from gatherd.store.kernels import compiled
from gatherd.store.keys import Keys, StringKeys

# Numbers that kernels/initial.py branches on.
_LAWS: Final = {Law.CONSTANT: 0, Law.UNIFORM: 1, Law.NORMAL: 2, Law.TRUNCATED_NORMAL: 3}
# No normal that is drawn is farther from the mean, in deviations.
_FARTHEST: Final = {Law.NORMAL: 8.3, Law.TRUNCATED_NORMAL: 2.0}
_FLOAT16_MAX: Final = 65504.0


@dataclass(frozen=True, slots=True, eq=False)
class Initial:
    """The initial vectors of one table. Safe to use from many threads."""

    seed: int
    dim: int
    distribution: Distribution
    words: NDArray[np.int64] = field(init=False)
    """The law, and the bits of a and b, for the kernels."""

    def __post_init__(self) -> None:
        """InvalidArgument for a law that draws no row by itself."""
        law = _LAWS.get(self.distribution.law)
        if law is None:
            raise InvalidArgument(
                f"{self.distribution.law.value} draws a whole table at once, and no row by itself"
            )
        bits = np.array([self.distribution.a, self.distribution.b]).view(np.int64)
        object.__setattr__(self, "words", np.array([law, *bits], np.int64))

    def check_fits(self, dtype: DType) -> None:
        """InvalidArgument when values that may be drawn are too large for `dtype`."""
        law, a, b = self.distribution.law, self.distribution.a, self.distribution.b
        largest = max(abs(a), abs(b)) if law is Law.UNIFORM else abs(a) + b * _FARTHEST.get(law, 0)
        if dtype is DType.FLOAT16 and largest > _FLOAT16_MAX:
            raise InvalidArgument(
                f"the initializer draws values up to {largest:g}, and float16 ends at "
                f"{_FLOAT16_MAX:g}; make its parameters smaller, or store the table as bfloat16 or "
                "float32"
            )

    def vectors(self, keys: Keys) -> NDArray[np.float32]:
        """The initial vector of each key, float32, of the keys' shape S + (dim,).

        Unimplemented without numba.
        """
        hashes = hashes_of(keys, self.seed)
        drawn = np.empty((hashes.size, self.dim), np.float32)
        compiled.draw(hashes, self.words, drawn)
        return drawn.reshape(*keys.shape, self.dim)


def hashes_of(keys: Keys, seed: int) -> NDArray[np.uint64]:
    """The hash of each key with `seed`, (n,), as key_index.py defines it."""
    hashes = np.empty(keys.size, np.uint64)
    if isinstance(keys, StringKeys):
        compiled.hash_strings(keys.offsets, keys.data, seed, hashes)
    else:
        compiled.hash_ints(integer_bits(keys), seed, hashes)
    return hashes


def integer_bits(keys: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """Integer keys as 64 bits each, (n,)."""
    wide = np.int64 if keys.dtype.kind == "i" else np.uint64
    return np.require(keys.reshape(-1), wide, ["C", "A"]).view(np.uint64)
