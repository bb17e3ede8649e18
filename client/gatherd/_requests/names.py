"""The types of arguments and results, as signatures name them.

Names are Literals, so that a type checker finds a misspelled one; at run time the server and the
enums of store/query.py and store/dtypes.py decide. Arrays have aliases, because `help()` would show
all of what NumPy's `ArrayLike` is made of.
"""

import sys
from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if sys.version_info >= (3, 12):
    from typing import TypeAliasType
else:
    from typing_extensions import TypeAliasType

Ids = TypeAliasType("Ids", ArrayLike)
"""Integers of any shape: lists, or arrays of NumPy, torch, JAX, pandas, Polars or Arrow."""
Keys = TypeAliasType("Keys", ArrayLike)
"""Strings or 64-bit integers, in the same forms."""
Bags = TypeAliasType("Bags", ArrayLike | tuple[ArrayLike, ArrayLike])
"""A list of lists of ids or keys, or flat ones with offsets."""
Values = TypeAliasType("Values", ArrayLike)
"""Numbers in the same forms: gradients, deltas, rows, weights."""
Batches = TypeAliasType("Batches", Iterable[ArrayLike | tuple[ArrayLike, ArrayLike]])
"""Arrays of rows one after the other, or pairs of their keys and such an array."""
Query = TypeAliasType("Query", ArrayLike)
"""Strings (keys), integers (ids) or floats (vectors), in the same forms."""
Vectors = TypeAliasType("Vectors", NDArray[Any])
"""A NumPy array of the shape of the ids, and dim."""
Status = TypeAliasType("Status", NDArray[np.uint8])
"""A NumPy array of the shape of the ids: 0 found, 1 missing."""

MissingRow: TypeAlias = Literal["error", "zero", "default", "init"]
MissingOfBag: TypeAlias = Literal["error", "zero", "default", "skip", "init"]
Mode: TypeAlias = Literal["sum", "mean", "sqrtn", "max"]
MetricName: TypeAlias = Literal["cosine", "dot", "l2"]
OnDuplicate: TypeAlias = Literal["error", "first", "last"]
Init: TypeAlias = Literal[
    "zeros", "ones", "constant", "uniform", "normal", "truncated_normal",
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal",
    "variance_scaling", "orthogonal", "identity",
    "glorot", "random_uniform", "random_normal",
]  # fmt: skip
OptimizerName: TypeAlias = Literal["none", "sgd", "adagrad", "rowwise-adagrad", "adam", "ftrl"]


class HasDType(Protocol):
    """An object that NumPy takes for a dtype because it has one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype."""


# The types are those of NumPy and ml_dtypes, np.float16 and the like.
ReplyDType = TypeAliasType(
    "ReplyDType", Literal["float32", "float16", "bfloat16"] | np.dtype[Any] | type[Any] | HasDType
)
# A table's dtype may also have one of NumPy's other names.
StoredDType = TypeAliasType(
    "StoredDType",
    Literal[
        "float32", "float16", "bfloat16", "float64",
        "f2", "f4", "f8", "<f2", "<f4", "<f8", "half", "single", "double",
    ]
    | np.dtype[Any] | type[Any] | HasDType,
)  # fmt: skip
