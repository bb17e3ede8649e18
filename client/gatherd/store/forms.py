"""Lookups of a part of each vector, or of vectors of length 1; see query.VectorForm.

The dims of a row are copied alone. NumPy's `take` would first copy a table whose rows aren't one
behind the other; indexing an array of one opaque element a row copies as many bytes as are wanted.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType, convert
from gatherd.store.norms import normalize
from gatherd.store.query import Asked, BagsQuery, Missing, VectorForm
from gatherd.store.table import CONVERT_BLOCK_BYTES, Gathered, Table, status_of


def check_form(table: Table, form: VectorForm) -> None:
    """InvalidArgument when the table's vectors can't have this form."""
    if form.dims > table.dim:
        raise InvalidArgument(
            f"table {table.name!r} has dim {table.dim}; dims={form.dims} isn't from 1 to "
            f"{table.dim}"
        )


def lookup(
    table: Table,
    asked: Asked,
    form: VectorForm,
    dtype: DType = DType.FLOAT32,
    missing: Missing = Missing.ERROR,
    out: NDArray[Any] | None = None,
) -> Gathered:
    """As `Table.lookup`, with vectors in `form`: a default vector, too. InvalidArgument."""
    check_form(table, form)
    dims = form.dims or table.dim
    vectors = np.empty((*asked.shape, dims), dtype.storage) if out is None else out
    copy = partial(_copy, table, dims, form, dtype)
    found = table.fill(asked, missing, vectors.reshape(asked.size, dims), copy)
    if found is not None and missing is not Missing.INIT:
        filler = np.zeros((1, dims), np.float32)
        if missing is Missing.DEFAULT:
            filler[0] = table.default_vector()[:dims]
        converted = np.empty((1, dims), dtype.storage)
        _finish(filler, form, converted, dtype)
        vectors[~found] = converted[0]
    status = status_of(asked.shape, found, missing)
    return Gathered(vectors, dtype, status, table.version, is_normalized=form.normalize)


def lookup_bags(
    table: Table,
    asked: Asked,
    query: BagsQuery,
    form: VectorForm,
    dtype: DType = DType.FLOAT32,
    missing: Missing = Missing.ERROR,
    out: NDArray[Any] | None = None,
) -> Gathered:
    """As `Table.lookup_bags`, with pooled vectors in `form`. InvalidArgument."""
    check_form(table, form)
    pooled = table.lookup_bags(asked, query, DType.FLOAT32, missing)
    dims = form.dims or table.dim
    wide = np.ascontiguousarray(pooled.vectors[:, :dims])
    vectors = np.empty(wide.shape, dtype.storage) if out is None else out
    _finish(wide, form, vectors, dtype)
    return Gathered(vectors, dtype, pooled.status, table.version, is_normalized=form.normalize)


def _cut(table: Table, rows: NDArray[np.uint8], dims: int) -> NDArray[np.void]:
    """The first `dims` elements of each of the stored `rows` as one opaque element, (rows,)."""
    nbytes = dims * table.dtype.itemsize
    part = np.dtype(
        {"names": ["_"], "formats": [f"V{nbytes}"], "offsets": [0], "itemsize": table.row_bytes}
    )
    cut: NDArray[np.void] = rows.view(part)["_"][:, 0]
    return cut


def _copy(
    table: Table,
    dims: int,
    form: VectorForm,
    dtype: DType,
    rows: NDArray[np.uint8],
    index: NDArray[np.intp],
    out: NDArray[Any],
) -> None:
    """Fill `out`, (n, dims), with those of the stored `rows` that `index`, (n,), has, in `form`."""
    cut = _cut(table, rows, dims)
    step = max(1, CONVERT_BLOCK_BYTES // max(1, cut.dtype.itemsize))
    for start in range(0, index.size, step):
        some = out[start : start + step]
        stored = cut[index[start : start + step]].view(table.dtype.storage).reshape(some.shape)
        if not form.normalize:
            convert(stored, table.dtype, some, dtype)
            continue
        wide = some if dtype is DType.FLOAT32 else np.empty(some.shape, np.float32)
        convert(stored, table.dtype, wide, DType.FLOAT32)
        _finish(wide, form, some, dtype)


def _finish(
    vectors: NDArray[np.float32], form: VectorForm, out: NDArray[Any], dtype: DType
) -> None:
    """Fill `out` from `vectors`, which are normalized in place if the form says so."""
    if form.normalize:
        normalize(vectors)
    if vectors is not out:
        convert(vectors, DType.FLOAT32, out, dtype)
