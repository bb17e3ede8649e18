"""The keywords that the overloads of a call have in common, for type checkers."""

from collections.abc import Mapping
from typing import TypedDict

from gatherd._requests.names import (
    Bags,
    Keys,
    MissingOfBag,
    MissingRow,
    Mode,
    ReplyDType,
    Values,
    Vectors,
)


class LookupOptions(TypedDict, total=False):
    """Keywords of `lookup`."""

    keys: Keys | None
    dtype: ReplyDType
    missing: MissingRow
    out: Vectors | None
    normalize: bool
    dims: int | None
    version: int | None
    dedup: bool
    timeout: float | None


class LookupManyOptions(TypedDict, total=False):
    """Keywords of `lookup_many`."""

    keys: Mapping[str, Keys] | None
    dtype: ReplyDType
    missing: MissingRow
    normalize: bool
    dims: int | None
    version: Mapping[str, int] | None
    dedup: bool
    timeout: float | None


class BagsOptions(TypedDict, total=False):
    """Keywords of `lookup_bags`."""

    keys: Bags | None
    mode: Mode
    weights: Values | None
    padding_id: int | None
    dtype: ReplyDType
    missing: MissingOfBag
    out: Vectors | None
    normalize: bool
    dims: int | None
    version: int | None
    timeout: float | None


class BagsManyOptions(TypedDict, total=False):
    """Keywords of `lookup_bags_many`."""

    keys: Mapping[str, Bags] | None
    mode: Mode
    weights: Mapping[str, Values] | None
    padding_id: int | None
    dtype: ReplyDType
    missing: MissingOfBag
    normalize: bool
    dims: int | None
    version: Mapping[str, int] | None
    timeout: float | None


class UpsertOptions(TypedDict, total=False):
    """Keywords of `upsert`, and of every push."""

    if_version: int | None
    idempotency_key: str | None
    timeout: float | None


class PushOptions(UpsertOptions, total=False):
    """Keywords of `scatter_add` and `assign`."""

    create: bool


class StepOptions(PushOptions, total=False):
    """Keywords of `apply_gradients`."""

    lr: float | None
