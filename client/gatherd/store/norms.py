"""Lengths (L2) of rows, and rows of length 1, in float32.

Where squares would be too large or too small for float32, they are summed in float64.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Between them squares of norms are neither too large nor too small for float32.
NORM_MIN: Final = 1e-15
NORM_MAX: Final = 1e15


def norms_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The length of each row; infinity or NaN for a row that has one."""
    with np.errstate(all="ignore"):
        norms, far, exact = _norms(rows)
        norms[far] = exact
    return norms


def normalize(rows: NDArray[np.float32]) -> None:
    """Divide each row by its length, in place; a row of zeros stays as it is."""
    with np.errstate(all="ignore"):
        norms, far, exact = _norms(rows)
        if far.size:
            exact[exact == 0] = 1
            rows[far] = rows[far] / exact[:, None]
            norms[far] = 1
        rows /= norms[:, None]


def is_far(norms: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which norms are outside of what float32 can square, zeros and NaN among them."""
    return ~((norms >= NORM_MIN) & (norms <= NORM_MAX))


def _norms(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float64]]:
    """The norms, the rows whose norms aren't right, and those norms."""
    norms: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    far = np.flatnonzero(is_far(norms))
    wide: NDArray[Any] = rows[far].astype(np.float64)
    return norms, far, np.sqrt(np.einsum("ij,ij->i", wide, wide))
