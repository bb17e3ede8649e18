"""The usual push, ready to be sent: ids of one table and float32 values in ordinary arrays.

All of such a request but its id, ids and values is the same every time, and so are the checks that
depend on shapes and dtypes. A `ForeseenPush` has the bytes and stands for the checks. Every other
push, and every push that is wrong, takes the way of _requests/updates.py and _wire/updates.py,
which makes the same bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.updates import UpdateSpec
from gatherd._wire.updates import Body, Framing, framing_of
from gatherd.store.dtypes import DType
from gatherd.store.query import ByKey

# How many kinds of pushes a client has ready.
KINDS_MAX = 1_024
_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ForeseenPush:
    """One push of a kind that was sent before."""

    spec: UpdateSpec
    framing: Framing

    def body(self, request_id: bytes) -> Body:
        """The request's body, with the id as its bytes are."""
        asked: Any = self.spec.asked
        values: Any = self.spec.values
        return self.framing.body(request_id, asked, values)


class ForeseenPushes:
    """The kinds of pushes that a client makes. Safe to use from many threads."""

    def __init__(self) -> None:
        self._kinds: dict[Any, tuple[UpdateSpec, Framing]] = {}

    def find(
        self, table: Any, ids: Any, values: Any, lr: Any, if_version: Any
    ) -> ForeseenPush | None:
        """The push, when one of its kind was learnt and its values are finite."""
        kind = _kind_of(table, ids, values, lr, if_version)
        found = None if kind is None else self._kinds.get(kind)
        if found is None or not np.isfinite(values).all():
            return None
        like, framing = found
        spec = UpdateSpec(
            like.table, like.table_bytes, ids, values, DType.FLOAT32, like.lr, like.if_version
        )
        return ForeseenPush(spec, framing)

    def learn(
        self, spec: UpdateSpec, table: Any, ids: Any, values: Any, lr: Any, if_version: Any
    ) -> None:
        """Take from a push that can be sent what the next of its kind will be like."""
        kind = _kind_of(table, ids, values, lr, if_version)
        if kind is None or isinstance(spec.asked, ByKey):
            return
        if spec.values is None or not spec.values.size:
            return
        if not (_is_same(spec.asked, ids) and _is_same(spec.values, values)):
            return
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()
        # Without the arrays, which are the caller's.
        none = UpdateSpec(
            spec.table, spec.table_bytes, _NO_IDS, _NO_VALUES, spec.dtype, spec.lr, spec.if_version
        )
        self._kinds[kind] = none, framing_of(spec)


_NO_IDS, _NO_VALUES = np.empty(0, np.int64), np.empty((0, 0), np.float32)


def _is_same(array: NDArray[Any], given: NDArray[Any]) -> bool:
    return array.dtype == given.dtype and array.shape == given.shape


def _kind_of(table: Any, ids: Any, values: Any, lr: Any, if_version: Any) -> Any:
    """What tells its kind, None when it isn't that plain."""
    if (
        ids.__class__ is not np.ndarray
        or values.__class__ is not np.ndarray
        or ids.dtype is not _INT64
        or values.dtype is not _FLOAT32
        or table.__class__ is not str
        or not (ids.flags.c_contiguous and values.flags.c_contiguous)
        or not (lr is None or lr.__class__ is float)
        or not (if_version is None or if_version.__class__ is int)
    ):
        return None
    return table, ids.shape, values.shape, lr, if_version
