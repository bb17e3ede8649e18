"""The checks of a chunk, against what its upload is to become."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import FailedPrecondition, InvalidArgument, NonfiniteValues
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEYED_ROWS_MAX, KeyKind, key_bits
from gatherd.store.keys import StringKeys
from gatherd_server.data_dir.uploads.crc import combine, crc_of_parts
from gatherd_server.data_dir.uploads.spec import Chunk, UploadSpec

# Of these dtypes the bits without the sign; from the second number on, they are NaN or infinity.
_NONFINITE_BITS: Final = {DType.FLOAT16: 0x7C00, DType.BFLOAT16: 0x7F80}


def check_chunk(spec: UploadSpec, chunk: Chunk, rows_crc: int) -> None:
    """InvalidArgument or NonfiniteValues when `chunk`, whose rows have `rows_crc`, can't be taken.

    The checksum is compared first: after that, what is wrong is the sender's.
    """
    if chunk.checksum is not None:
        found = combine(crc_of_parts(chunk.key_bytes), rows_crc, chunk.rows.nbytes)
        if found != chunk.checksum:
            raise _about(
                chunk,
                f"the chunk at row {chunk.offset} has crc32 {found}, and was sent with "
                f"{chunk.checksum}: it was damaged on its way; send it again",
            )
    if chunk.dtype is not spec.dtype or chunk.rows.ndim != 2 or chunk.rows.shape[1] != spec.dim:
        raise _about(
            chunk,
            f"the chunk at row {chunk.offset} is {chunk.dtype.value} of shape {chunk.rows.shape}; "
            f"the upload is of {spec.dtype.value} rows of {spec.dim} elements",
        )
    end = chunk.offset + len(chunk.rows)
    rows_max = KEYED_ROWS_MAX if spec.row_count is None else spec.row_count
    if (spec.row_count is not None or spec.key_kind is not None) and end > rows_max:
        what = "a table with keys can have" if spec.row_count is None else "were announced"
        raise _about(
            chunk, f"the chunk at row {chunk.offset} ends at row {end}; {rows_max} rows {what}"
        )
    _check_keys(spec, chunk)
    if not spec.allows_nonfinite:
        _check_finite(chunk)


def _check_keys(spec: UploadSpec, chunk: Chunk) -> None:
    keys, kind = chunk.keys, spec.key_kind
    at = f"the chunk at row {chunk.offset}"
    if keys is None or kind is None:
        if keys is None and kind is None:
            return
        given = "no keys" if keys is None else "keys"
        raise _about(chunk, f"{at} has {given}; the upload is of {_told(kind)}")
    if len(keys.shape) != 1 or keys.size != len(chunk.rows):
        raise _about(
            chunk,
            f"{at} has keys of shape {keys.shape} for {len(chunk.rows)} rows; it takes one a row",
        )
    if isinstance(keys, StringKeys) is not (kind is KeyKind.BYTES):
        given = "strings" if isinstance(keys, StringKeys) else "integers"
        raise _about(chunk, f"{at} has keys that are {given}; the upload is of {_told(kind)}")
    if not isinstance(keys, StringKeys):
        fits = key_bits(keys.reshape(-1), kind)[1]
        if fits is not None and not fits.all():
            first = int(keys[np.flatnonzero(~fits)[0]])
            raise _about(chunk, f"{at} has key {first}, which isn't {kind.value}")


def _check_finite(chunk: Chunk) -> None:
    rows = chunk.rows
    if not rows.size or _is_finite(rows, chunk.dtype):
        return
    bad = next(i for i in range(len(rows)) if not _is_finite(rows[i : i + 1], chunk.dtype))
    row = chunk.offset + bad
    raise NonfiniteValues(
        f"row {row} of the upload has NaN or infinity; leave it out, or begin the upload with "
        "allow_nonfinite",
        {"upload": chunk.upload, "rows": str(row)},
    )


def _is_finite(rows: NDArray[Any], dtype: DType) -> bool:
    """Whether there is neither NaN nor infinity; the reductions take no memory of their size."""
    if dtype in _NONFINITE_BITS:
        bits = rows.view(np.uint16) & np.uint16(0x7FFF)
        return bool(bits.max() < _NONFINITE_BITS[dtype])
    return bool(np.isfinite(rows.max()) and np.isfinite(rows.min()))


def gap(chunk: Chunk, count: int, expected: int) -> FailedPrecondition:
    """The error for a chunk that begins elsewhere than at the next row."""
    return FailedPrecondition(
        f"the chunk has rows {chunk.offset} to {chunk.offset + count - 1}; the upload has "
        f"{expected} rows, so the next chunk begins at row {expected}",
        {"upload": chunk.upload, "expected": str(expected)},
    )


def not_the_same(chunk: Chunk, count: int, expected: int) -> FailedPrecondition:
    """The error for a chunk of rows that are there, and are others."""
    return FailedPrecondition(
        f"rows {chunk.offset} to {chunk.offset + count - 1} are there already, and aren't these; "
        f"the next chunk begins at row {expected}",
        {"upload": chunk.upload, "expected": str(expected)},
    )


def duplicate(upload: str, row: int, key: str, earlier: int) -> InvalidArgument:
    """The error for a key that an earlier row has."""
    return InvalidArgument(
        f"row {row} has key {key}, as row {earlier} has; keys are unique, so begin the upload with "
        "on_duplicate first or last, or leave one of them out",
        {"upload": upload, "rows": f"{earlier}, {row}"},
    )


def _about(chunk: Chunk, message: str) -> InvalidArgument:
    return InvalidArgument(message, {"upload": chunk.upload})


def _told(kind: KeyKind | None) -> str:
    return "rows without keys" if kind is None else f"rows with {kind.value} keys"
