"""Reads an optimizer's state beside the rows that it belongs to, while updates go on.

Slots have no counters, because no lookup reads them. So rows and slots are read between two
updates: the control page's LSNs say whether one was being stored. If so, they are read again, fewer
at a time. Unlike a lookup, this waits for updates of other tables too, each for as long as it is
being stored.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, Unavailable
from gatherd.store.control import ControlPage
from gatherd.store.dtypes import DType
from gatherd.store.format import open_readonly, read_npy_header
from gatherd.store.mapping import MappedFile, naming
from gatherd.store.stripes import CHECKED_ROWS, PAUSE_SECONDS, SHRINK, WAIT_SECONDS
from gatherd.store.table import Table

SLOT_PREFIX: Final = "slot_"
_RETRY_AFTER_SECONDS: Final = 0.2


class SlotFiles:
    """The slots of one version, mapped read-only. Safe to use from many threads."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], control: ControlPage) -> None:
        """`arrays` by the slots' names: (rows, …), or (1,) for one value of the whole table."""
        self._of_rows = {name: one for name, one in arrays.items() if one.ndim == 2}
        self._of_table = {name: one for name, one in arrays.items() if one.ndim != 2}
        self._control = control

    @classmethod
    def open(cls, folder: Path, row_count: int, control: ControlPage) -> Self:
        """Map the slots in a version's folder; none for a table without an optimizer's state.

        BadFile when a file is missing or isn't the array of a slot.
        """
        paths = sorted(folder.glob(f"{SLOT_PREFIX}*.npy"))
        arrays = {path.stem.removeprefix(SLOT_PREFIX): _mapped(path, row_count) for path in paths}
        return cls(arrays, control)

    @property
    def row_bytes(self) -> int:
        """What the slots of one row take."""
        return sum(one.itemsize * one.shape[1] for one in self._of_rows.values())

    def rows(
        self, table: Table, ids: NDArray[np.int64], dtype: DType
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """The vectors of `ids`, (n, dim) in the storage of `dtype`, and the slots by name.

        Each row's vector and slots are of one LSN; a slot of the whole table is read once, with the
        last rows. Unavailable when updates are stored for longer than WAIT_SECONDS.
        """
        vectors = np.empty((ids.size, table.dim), dtype.storage)
        slots: dict[str, NDArray[Any]] = {
            name: np.empty((ids.size, one.shape[1]), one.dtype)
            for name, one in self._of_rows.items()
        }
        begin, step = 0, CHECKED_ROWS
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            end = min(begin + step, ids.size)
            committed = self._control.committed_lsn
            if self._control.applied_lsn == committed:
                some = ids[begin:end]
                table.lookup(some, dtype, out=vectors[begin:end])
                for name, one in self._of_rows.items():
                    np.take(one, some, axis=0, out=slots[name][begin:end], mode="clip")
                slots |= {name: one.copy() for name, one in self._of_table.items()}
                if self._control.committed_lsn == committed:
                    begin = end
                    if begin == ids.size:
                        return vectors, dict(sorted(slots.items()))
                    deadline = time.monotonic() + WAIT_SECONDS
                    continue
                step = max(1, step // SHRINK)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"table {table.name!r}: updates were stored without a pause, so that rows and "
                    "slots couldn't be read between two of them; try again, or without slots",
                    {"table": table.name},
                    _RETRY_AFTER_SECONDS,
                )
            time.sleep(PAUSE_SECONDS)


def _mapped(path: Path, row_count: int) -> NDArray[Any]:
    fd = open_readonly(path)
    try:
        shape, is_fortran, dtype, offset = read_npy_header(fd, str(path))
        count = int(np.prod(shape, dtype=object))
        size = offset + count * dtype.itemsize
        is_slot = shape == (1,) or (len(shape) == 2 and shape[0] == row_count)
        if is_fortran or not is_slot or os.fstat(fd).st_size != size:
            raise BadFile(f"{path} isn't the array of a slot")
        if not count:
            return np.empty(shape, dtype)
        with naming(path):
            mapped = MappedFile(fd, size).array()
        return mapped[offset:].view(dtype).reshape(shape)
    finally:
        os.close(fd)
