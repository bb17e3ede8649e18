"""The names that arguments may be, so that a type checker finds a misspelled one.

At run time the server and the enums of store/query.py and store/dtypes.py decide.
"""

from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

MissingRow: TypeAlias = Literal["error", "zero", "default"]
MissingOfBag: TypeAlias = Literal["error", "zero", "default", "skip"]
Mode: TypeAlias = Literal["sum", "mean", "sqrtn", "max"]
MetricName: TypeAlias = Literal["cosine", "dot", "l2"]
Init: TypeAlias = Literal["zeros", "uniform", "normal", "glorot"]
OptimizerName: TypeAlias = Literal["sgd", "adagrad", "rowwise-adagrad", "adam", "ftrl"]


class HasDType(Protocol):
    """An object that NumPy takes for a dtype because it has one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype."""


# The types are those of NumPy and ml_dtypes, np.float16 and the like.
ReplyDType: TypeAlias = (
    Literal["float32", "float16", "bfloat16"] | np.dtype[Any] | type[Any] | HasDType
)
# A table's dtype may also have one of NumPy's other names.
StoredDType: TypeAlias = (
    Literal[
        "float32", "float16", "bfloat16", "float64",
        "f2", "f4", "f8", "<f2", "<f4", "<f8", "half", "single", "double",
    ]
    | np.dtype[Any] | type[Any] | HasDType
)  # fmt: skip
