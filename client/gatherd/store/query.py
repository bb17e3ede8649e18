"""What is asked of a table: rows, pooled or not; the policy for missing ones; keys; neighbors."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._suggestions import did_you_mean, near
from gatherd.errors import InvalidArgument
from gatherd.store.keys import Keys

STATUS_MISSING = 1
PAGE_KEYS_DEFAULT = 1_000
PAGE_KEYS_MAX = 65_536
# About 60 ms, if the keys are in memory.
SCANNED_KEYS_MAX = 4 << 20
K_DEFAULT = 10


class Missing(Enum):
    """The policies for an id or key that has no row."""

    ERROR = "error"
    ZERO = "zero"
    DEFAULT = "default"
    SKIP = "skip"
    INIT = "init"
    """The vector that the row of an open table would be created with."""

    __hash__ = object.__hash__  # as in dtypes.DType


BAG_POLICIES = tuple(Missing)
ROW_POLICIES = (Missing.ERROR, Missing.ZERO, Missing.DEFAULT, Missing.INIT)


def parse_missing(name: str, policies: tuple[Missing, ...] = ROW_POLICIES) -> Missing:
    """The policy called `name`; InvalidArgument when it isn't one of `policies`."""
    for policy in policies:
        if policy.value == name:
            return policy
    known = [policy.value for policy in policies]
    only_bags = "; only bags can skip" if name == Missing.SKIP.value else ""
    hint = only_bags or did_you_mean(near(name, known, 1))
    raise InvalidArgument(f"unknown missing policy {name!r}; known are {', '.join(known)}{hint}")


@dataclass(frozen=True, slots=True, eq=False)
class ByKey:
    """A request for rows by key instead of by id."""

    keys: Keys

    @property
    def shape(self) -> tuple[int, ...]:
        """The batch's shape S."""
        return self.keys.shape

    @property
    def size(self) -> int:
        """The number of keys."""
        return self.keys.size


Asked = NDArray[np.integer[Any]] | ByKey
"""The rows of a request, of any shape S: ids of any integer dtype, or keys."""


@dataclass(frozen=True, slots=True)
class VectorForm:
    """The form of the vectors in a reply: their first `dims` elements, 0 for all of them.

    With `normalize` what is left of each is divided by its length (L2), in float32.
    """

    dims: int = 0
    normalize: bool = False


class Pooling(Enum):
    """How the rows of a bag become one vector; bags.py has the formulas."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    SQRTN = "sqrtn"


def parse_pooling(name: str) -> Pooling:
    """The mode called `name`; InvalidArgument for any other name."""
    try:
        return Pooling(name)
    except ValueError:
        known = [mode.value for mode in Pooling]
        raise InvalidArgument(
            f"unknown pooling mode {name!r}; known are {', '.join(known)}"
            f"{did_you_mean(near(name, known, 1))}"
        ) from None


@dataclass(frozen=True, slots=True, eq=False)
class BagsQuery:
    """How the rows of a request, of shape (n,), are pooled.

    `offsets`: int64 (bags,), from `bags.check_offsets`. `weights`: float32 (n,) or None.
    `padding_id`: an id that is never pooled.
    """

    offsets: NDArray[np.int64]
    pooling: Pooling = Pooling.SUM
    weights: NDArray[np.float32] | None = None
    padding_id: int | None = None


@dataclass(frozen=True, slots=True)
class KeyQuery:
    """Which keys are asked for: those that begin with `prefix`, from the id `start` on.

    `limit` is the most that are given, 0 for PAGE_KEYS_DEFAULT.
    """

    prefix: bytes = b""
    limit: int = 0
    start: int = 0

    @property
    def count_max(self) -> int:
        """The most keys that a page may have."""
        return min(self.limit or PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX)

    @property
    def scanned_max(self) -> int:
        """The most keys that are read for a page."""
        return SCANNED_KEYS_MAX if self.prefix else self.count_max


@dataclass(frozen=True, slots=True, eq=False)
class FoundKeys:
    """One page: keys and their ids, (n,), ascending by id, and where the next page begins.

    `next` is None when no keys are left. Otherwise there may be none, however few the page has.
    """

    keys: Keys
    ids: NDArray[np.int64]
    next: int | None
    version: int


class Metric(Enum):
    """How near two vectors are."""

    COSINE = "cosine"
    """The cosine of the angle between them, 0 if one is zeros; higher is nearer."""
    DOT = "dot"
    """The dot product; higher is nearer."""
    L2 = "l2"
    """The Euclidean distance; lower is nearer."""


def parse_metric(name: object) -> Metric:
    """The metric called `name`; InvalidArgument for any other name."""
    for metric in Metric:
        if metric.value == name:
            return metric
    known = [metric.value for metric in Metric]
    raise InvalidArgument(
        f"unknown metric {name!r}; known are {', '.join(known)}{did_you_mean(near(name, known, 1))}"
    )


@dataclass(frozen=True, slots=True, eq=False)
class NeighborsQuery:
    """Queries of shape S: rows of the table (`asked`), or `vectors`, float32, of S + (dim,).

    One of the two is None. With `includes_self` a row that is a query may be its own neighbor.
    """

    asked: Asked | None
    vectors: NDArray[np.float32] | None
    k: int = K_DEFAULT
    metric: Metric = Metric.COSINE
    includes_self: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """S."""
        if self.asked is not None:
            return self.asked.shape
        assert self.vectors is not None
        return self.vectors.shape[:-1]

    @property
    def count(self) -> int:
        """The number of queries."""
        return math.prod(self.shape)
