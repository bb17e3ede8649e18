"""A table of one file, for tests that need no data dir."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd.store.format import read_layout
from gatherd.store.shards import open_rows
from gatherd.store.table import Table


def open_file_table(
    name: str, path: Path, tensor: str | None, default_vector: NDArray[np.float32] | None = None
) -> Table:
    """Open the rows of a .npy, safetensors or GGUF file as version 1 of a table."""
    fd = open_rows(path, tensor)
    try:
        return Table.map(name, 1, fd, read_layout(fd, str(path), tensor), default_vector)
    finally:
        os.close(fd)
