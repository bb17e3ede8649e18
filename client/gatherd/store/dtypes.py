"""Element types: how they are named, stored, and converted to the type that a caller asks for.

bfloat16 has no NumPy type. Its bits, the upper half of a float32, are stored as uint16.
"""

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._suggestions import did_you_mean, near
from gatherd.errors import InvalidArgument


class DType(Enum):
    """The element type of a table or a reply."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"

    # Attributes, set below, because every lookup reads them and a property costs a call.
    storage: np.dtype[Any]
    """The little-endian NumPy dtype of the stored bits (uint16 for bfloat16)."""
    itemsize: int
    """Bytes per element."""

    # A member equals only itself. Enum's own hash costs a call, to hash the name.
    __hash__ = object.__hash__


for _dtype, _storage in zip(DType, ("<f4", "<f2", "<u2", "<f8"), strict=True):
    _dtype.storage = np.dtype(_storage)
    _dtype.itemsize = _dtype.storage.itemsize

REPLY_DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


def parse_reply_dtype(name: str) -> DType:
    """The dtype called `name` if a lookup can be answered in it, else InvalidArgument."""
    for dtype in REPLY_DTYPES:
        if dtype.value == name:
            return dtype
    known = [dtype.value for dtype in REPLY_DTYPES]
    raise InvalidArgument(
        f"a lookup can't be answered in dtype {name!r}; it can in {', '.join(known)}"
        f"{did_you_mean(near(name, known, 1))}"
    )


def bfloat16_to_float32(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """Widen bfloat16 bits into `out`, of the same shape; exact."""
    wide = out.view(np.uint32)
    # In two passes: one that casts as well goes by way of NumPy's buffers, and takes longer.
    np.copyto(wide, bits)
    np.left_shift(wide, 16, out=wide)


def float32_to_bfloat16(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Round `values` to bfloat16 bits in `out`, of the same shape: to nearest, ties to even.

    A NaN stays a NaN: its quiet bit is set, because rounding could clear its mantissa.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    rounded >>= 16
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16) | 0x40
    np.copyto(out, rounded, casting="unsafe")


def convert(source: NDArray[Any], source_dtype: DType, out: NDArray[Any], out_dtype: DType) -> None:
    """Convert `source` into `out`, of the same shape, both in their storage dtypes.

    A value too large for the target becomes infinity, as a cast in NumPy does.
    """
    if source_dtype is out_dtype:
        np.copyto(out, source)
    elif source_dtype is DType.BFLOAT16:
        if out_dtype is DType.FLOAT32:
            bfloat16_to_float32(source, out)
        else:
            wide = np.empty(source.shape, np.float32)
            bfloat16_to_float32(source, wide)
            _cast(wide, out)
    elif out_dtype is DType.BFLOAT16:
        # float64 is rounded twice, through float32, as in every framework.
        wide = np.empty(source.shape, np.float32)
        _cast(source, wide)
        float32_to_bfloat16(wide, out)
    else:
        _cast(source, out)


def _cast(source: NDArray[Any], out: NDArray[Any]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, source, casting="unsafe")
