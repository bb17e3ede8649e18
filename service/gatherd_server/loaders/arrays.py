"""Rows from .npy and safetensors files, for `gatherd import`: read through a mapping, in blocks."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType, convert
from gatherd.store.format import RowLayout, read_layout
from gatherd.store.table import Table, open_readonly

BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ArrayRows:
    """The rows of one array in a file, to be read once, in order."""

    path: Path
    tensor: str | None
    layout: RowLayout

    def blocks(self, dtype: DType) -> Iterator[NDArray[Any]]:
        """Blocks of rows, (n, dim) in `dtype`'s storage; BadFile when the file shrank meanwhile."""
        fd = open_readonly(self.path)
        try:
            table = Table.map("import", 1, fd, self.layout)
        finally:
            os.close(fd)
        rows_per_block = max(1, BLOCK_BYTES // self.layout.row_bytes)
        for start in range(0, self.layout.row_count, rows_per_block):
            stored = table.stored_rows(start, start + rows_per_block)
            block = np.empty(stored.shape, dtype.storage)
            convert(stored, self.layout.dtype, block, dtype)
            yield block


def open_array(path: Path, tensor: str | None) -> ArrayRows:
    """Find the rows of a .npy or safetensors file; BadFile or InvalidArgument if there are none."""
    fd = open_readonly(path)
    try:
        return ArrayRows(path, tensor, read_layout(fd, str(path), tensor))
    finally:
        os.close(fd)
