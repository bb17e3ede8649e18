"""Predicts a table before its import: disk, mapped and private memory, start time.

Bytes are exact: they follow from the layouts of .npy files and of the key index. The private
memory and the start time of a worker are measured constants. They are the same for every table,
because rows and keys are mapped and never copied into a process.
"""

import mmap
from dataclasses import dataclass

import numpy as np

from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyKind, KeysInfo
from gatherd.store.keys import StringKeys
from gatherd.store.stripes import seq_bytes
from gatherd_server.loaders.batches import RowSource
from gatherd_server.storage.key_index_writer import slots_for
from gatherd_server.storage.table_writer import weights_header_bytes
from gatherd_server.training.optimizer import Optimizer

# Measured on a 2-core virtual machine, Python 3.11; docs/performance.md has the runs.
WORKER_PRIVATE_BYTES = 120_000_000
START_SECONDS = 1.8
POPULATE_BYTES_PER_SECOND = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one table will take. `key_bytes` is the sum of its string keys' lengths."""

    row_count: int
    dim: int
    dtype: DType
    key_kind: KeyKind | None = None
    key_bytes: int = 0
    optimizer: Optimizer | None = None

    @property
    def counters_bytes(self) -> int:
        """Bytes of the counters that keep rows whole; a table that is made frozen has none."""
        takes_updates = Optimizer.for_new_table(self.optimizer, self.dtype, frozen=False)
        return seq_bytes(self.row_count) if takes_updates is not None else 0

    @property
    def slots_bytes(self) -> int:
        """Bytes of the optimizer's slots, which lookups don't map."""
        slots = self.optimizer.slots if self.optimizer else ()
        return sum(slot.file_bytes(self.row_count, self.dim) for slot in slots)

    @property
    def rows_bytes(self) -> int:
        """Bytes of weights.npy."""
        return weights_header_bytes(self.dtype, self.dim) + self._data_bytes

    @property
    def keys_bytes(self) -> int:
        """Bytes of the key index's arrays."""
        return sum(self._key_files())

    @property
    def disk_bytes(self) -> int:
        """Bytes of the version's .npy files, without its two small .json files and the counters."""
        return self.rows_bytes + self.keys_bytes + self.slots_bytes

    @property
    def mapped_bytes(self) -> int:
        """Bytes mapped, in whole pages; all workers share them."""
        rows_bytes = self.rows_bytes if self._data_bytes else 0
        files = [rows_bytes, *self._key_files(), self.counters_bytes]
        return sum(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in files)

    @property
    def start_seconds(self) -> float:
        """From the command until the server is ready, with the files in the page cache."""
        return START_SECONDS + self.mapped_bytes / POPULATE_BYTES_PER_SECOND

    @property
    def _data_bytes(self) -> int:
        return self.row_count * self.dim * self.dtype.itemsize

    def _key_files(self) -> list[int]:
        if self.key_kind is None:
            return []
        slots = slots_for(self.row_count)
        info = KeysInfo(self.key_kind, self.row_count, 0, self.key_bytes, slots, {})
        return [info.file_bytes(name) for name in info.arrays()]


def estimate_source(
    source: RowSource, dtype: DType | None, optimizer: Optimizer | None = None
) -> Estimate:
    """The estimate of a table imported from `source`, in `dtype` or the source's own.

    Reads the source to its end if only that shows its row count or the lengths of its keys. Counts
    the rows that the import would leave out as duplicates.
    """
    target = dtype or source.stored_dtype
    if source.row_count is not None and source.key_kind is None:
        return Estimate(source.row_count, source.dim, target, optimizer=optimizer)
    row_count = key_bytes = 0
    for batch in source.read():
        row_count += len(batch.rows)
        if isinstance(batch.keys, StringKeys):
            key_bytes += int(np.diff(batch.keys.offsets).sum())
    return Estimate(row_count, source.dim, target, source.key_kind, key_bytes, optimizer)
