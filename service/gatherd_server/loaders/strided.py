"""Rows of an array that isn't row-major: transposed, sliced, repeated, in Fortran order.

They are gathered in batches, with plain reads of at most a batch's bytes; arrays.py says why not
through a mapping.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.format import file_bytes, open_readonly
from gatherd_server.loaders.batches import RowBatch, RowSource, array_rows, rows_per_batch
from gatherd_server.loaders.limits import BATCH_BYTES, RATIO_FREE_BYTES, UnpackLimits
from gatherd_server.loaders.streams import Opened, reading

# Up to this size, a gap between two pieces is read with them, instead of two reads.
GAP_BYTES_MAX = 32 << 10


@dataclass(frozen=True, slots=True)
class StridedLayout:
    """A (row_count, dim) array in a file.

    Element [i, j] is `i * strides[0] + j * strides[1]` elements after byte `offset`, never before.
    """

    dtype: DType
    row_count: int
    dim: int
    strides: tuple[int, int]
    offset: int
    is_big_endian: bool = False

    @property
    def storage(self) -> np.dtype[Any]:
        """The elements' dtype in the file."""
        storage = np.dtype(self.dtype.storage)
        return storage.newbyteorder(">") if self.is_big_endian else storage

    @property
    def is_row_major(self) -> bool:
        """Whether the rows are contiguous, one after the other."""
        by_row = self.row_count < 2 or self.strides[0] == self.dim
        return by_row and (self.dim < 2 or self.row_count < 1 or self.strides[1] == 1)

    @property
    def end(self) -> int:
        """The end of the last element, in bytes from the beginning of the file."""
        if not self.row_count:
            return self.offset
        last = (self.row_count - 1) * self.strides[0] + (self.dim - 1) * self.strides[1]
        return self.offset + (last + 1) * self.dtype.itemsize


def strided_source(
    name: str, format_name: str, opened: Opened, layout: StridedLayout, limits: UnpackLimits
) -> RowSource:
    """The rows of `layout` in `opened`, which is copied to a local file if it isn't one.

    BadFile when they reach past the file's end, or are many more bytes than it has: a stride of 0
    repeats a row without storing it again.
    """
    file = opened.closing.enter_context(os.fdopen(open_readonly(opened.as_file()), "rb", 0))
    size = file_bytes(file.fileno())
    if layout.end > size:
        raise BadFile(
            f"{name} is truncated: its header promises {layout.end} bytes, the file has {size}"
        )
    unpacked = layout.row_count * layout.dim * layout.dtype.itemsize
    if unpacked > max(RATIO_FREE_BYTES, size * limits.ratio_max) or unpacked > limits.bytes_max:
        raise BadFile(
            f"{name} repeats its elements: {unpacked} bytes of rows from {size} "
            "(raise --unpacked-ratio-max or --unpacked-bytes-max if that is meant)"
        )

    def read() -> Iterator[RowBatch]:
        step = rows_per_batch(layout.dim, layout.dtype.itemsize)
        for start in range(0, layout.row_count, step):
            count = min(step, layout.row_count - start)
            rows = np.empty((count, layout.dim), layout.dtype.storage)
            _gather(name, file.fileno(), layout, start, rows)
            yield RowBatch(rows, None, np.arange(start, start + count), start + count)

    shape = (layout.row_count, layout.dim)
    return array_rows(name, format_name, layout.dtype, shape, read)


def _gather(
    name: str, fd: int, layout: StridedLayout, start: int, rows: NDArray[np.generic]
) -> None:
    """Fill `rows`, (n, dim), with the rows from `start` on."""
    itemsize = layout.dtype.itemsize
    begin = layout.offset + start * layout.strides[0] * itemsize
    out, strides = rows, layout.strides
    if strides[0] < strides[1]:
        # The outer axis gets the longer stride: fewer and longer reads.
        out, strides = rows.T, (strides[1], strides[0])
    _fill(name, fd, layout.storage, begin, strides, out)


def _fill(
    name: str,
    fd: int,
    storage: np.dtype[Any],
    begin: int,
    strides: tuple[int, ...],
    out: NDArray[np.generic],
) -> None:
    span = storage.itemsize * (
        1 + sum((n - 1) * stride for n, stride in zip(out.shape, strides, strict=True))
    )
    if span <= max(BATCH_BYTES, out.nbytes) or not strides:
        with reading(name):
            data = os.pread(fd, span, begin)
        if len(data) < span:
            raise BadFile(f"{name} is truncated: it ends at byte {begin + len(data)}")
        steps = [stride * storage.itemsize for stride in strides]
        out[...] = np.ndarray(out.shape, storage, data, 0, steps)
        return
    if len(out) == 1:
        _fill(name, fd, storage, begin, strides[1:], out.reshape(out.shape[1:]))
        return
    stride_bytes = strides[0] * storage.itemsize
    step = BATCH_BYTES // stride_bytes if stride_bytes <= GAP_BYTES_MAX else 1
    step = step if step < len(out) else 1
    for index in range(0, len(out), step):
        where = begin + index * stride_bytes
        _fill(name, fd, storage, where, strides, out[index : index + step])
