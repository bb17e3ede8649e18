"""The keywords that the overloads of a call have in common, for type checkers."""

from collections.abc import Mapping
from typing import Any, TypedDict

from numpy.typing import ArrayLike, NDArray

from gatherd._requests.bags import BagsGiven
from gatherd._requests.lookups import KeysGiven
from gatherd._requests.names import MissingOfBag, MissingRow, Mode, ReplyDType


class LookupOptions(TypedDict, total=False):
    """Keywords of `lookup`."""

    keys: KeysGiven | None
    dtype: ReplyDType
    missing: MissingRow
    out: NDArray[Any] | None
    version: int | None
    dedup: bool
    timeout: float | None


class LookupManyOptions(TypedDict, total=False):
    """Keywords of `lookup_many`."""

    keys: Mapping[str, KeysGiven] | None
    dtype: ReplyDType
    missing: MissingRow
    version: Mapping[str, int] | None
    dedup: bool
    timeout: float | None


class BagsOptions(TypedDict, total=False):
    """Keywords of `lookup_bags`."""

    keys: ArrayLike | None
    mode: Mode
    weights: ArrayLike | None
    padding_id: int | None
    dtype: ReplyDType
    missing: MissingOfBag
    out: NDArray[Any] | None
    version: int | None
    timeout: float | None


class BagsManyOptions(TypedDict, total=False):
    """Keywords of `lookup_bags_many`."""

    keys: Mapping[str, BagsGiven] | None
    mode: Mode
    weights: Mapping[str, ArrayLike] | None
    padding_id: int | None
    dtype: ReplyDType
    missing: MissingOfBag
    version: Mapping[str, int] | None
    timeout: float | None


class PushOptions(TypedDict, total=False):
    """Keywords of `scatter_add` and `assign`."""

    if_version: int | None
    idempotency_key: str | None
    timeout: float | None


class StepOptions(PushOptions, total=False):
    """Keywords of `apply_gradients`."""

    lr: float | None
