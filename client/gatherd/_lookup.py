"""A lookup as the caller asked for it: checked, before anything is sent.

Only what can't be sent is refused here; whether an id has a row is the server's to say.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType, parse_reply_dtype
from gatherd.store.ids import as_id_array
from gatherd.store.table import Missing, parse_missing

Ids: TypeAlias = ArrayLike
IdArray: TypeAlias = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """What a server says of a table. `refused` is empty, or why the table can't be looked up."""

    name: str
    rows: int
    dim: int
    dtype: str
    version: int
    trainable: bool
    refused: str


@dataclass(frozen=True, slots=True)
class ReplyType:
    """The dtype on the wire and the one of the array that the caller gets.

    They differ for "bfloat16", which NumPy doesn't have: it is sent as such and widened to float32.
    """

    wire: DType
    array: np.dtype[Any]

    @property
    def widened(self) -> bool:
        """Whether bfloat16 bits become float32 numbers."""
        return self.wire is DType.BFLOAT16 and self.array == np.float32


@dataclass(frozen=True, slots=True)
class LookupSpec:
    """One lookup: `ids` is a contiguous integer array of any shape S."""

    table: str
    table_bytes: bytes
    ids: IdArray
    reply: ReplyType
    missing: Missing
    out: NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """`vectors` of shape S + (dim,) and `status` of shape S, None when no id may be missing."""

    vectors: NDArray[Any]
    status: NDArray[np.uint8] | None


_BY_NAME = {
    "float32": ReplyType(DType.FLOAT32, np.dtype(np.float32)),
    "float16": ReplyType(DType.FLOAT16, np.dtype(np.float16)),
    "bfloat16": ReplyType(DType.BFLOAT16, np.dtype(np.float32)),
}
_MISSING_BY_NAME = {policy.value: policy for policy in Missing}


def parse_reply_type(dtype: DTypeLike) -> ReplyType:
    """What a caller's `dtype=` asks for; InvalidArgument when a lookup can't be answered in it."""
    if isinstance(dtype, str):
        known = _BY_NAME.get(dtype)
        return known or _BY_NAME[parse_reply_dtype(dtype).value]
    try:
        array = np.dtype(dtype)
    except TypeError:
        raise InvalidArgument(f"dtype={dtype!r} isn't a dtype") from None
    if not array.isnative:
        raise InvalidArgument(f"a lookup is answered in native byte order, not as {array.str!r}")
    return ReplyType(parse_reply_dtype(array.name), array)


def prepare(
    table: object, ids: Ids, reply: ReplyType, missing: str, out: NDArray[Any] | None = None
) -> LookupSpec:
    """Check a lookup's arguments. InvalidArgument for what can't be sent or can't be filled."""
    if not isinstance(table, str):
        raise InvalidArgument(f"a table's name is a str, not {table!r}")
    try:
        table_bytes = table.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"table {table!r}: the name can't be written as UTF-8") from None
    policy = _MISSING_BY_NAME.get(missing) or parse_missing(missing)
    array = as_id_array(ids)
    if out is not None:
        _check_out(out, array.shape, reply.array)
    return LookupSpec(table, table_bytes, array, reply, policy, out)


def _check_out(out: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise InvalidArgument(f"out is a NumPy array, not a {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise InvalidArgument(f"out has dtype {out.dtype}; this lookup fills one of {dtype}")
    if out.shape[:-1] != shape or out.ndim != len(shape) + 1:
        wanted = ", ".join([*map(str, shape), "dim"])
        raise InvalidArgument(f"out has shape {out.shape}; this lookup fills one of ({wanted})")
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise InvalidArgument("out must be C-contiguous, aligned and writable")


def check_dim(spec: LookupSpec, dim: int) -> None:
    """InvalidArgument when `out` was made for another dim than the table has."""
    if spec.out is not None and spec.out.shape[-1] != dim:
        raise InvalidArgument(
            f"table {spec.table!r} has dim {dim}; out has shape {spec.out.shape}, "
            f"it must be {(*spec.ids.shape, dim)}"
        )
