"""A lookup's rows, to be copied into a reply piece by piece.

A transport that writes each piece before it reads the next one holds little memory for a large
reply, lets other work run in between, and sends bytes that are still in the cache. All pieces are
of one version of the table; each row is whole.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import IdOutOfRange, KeyNotFound
from gatherd.store.dtypes import DType
from gatherd.store.ids import all_in_range, flat_ids, out_of_range_error
from gatherd.store.query import Asked, ByKey, Missing
from gatherd.store.table import Table
from gatherd_server.observe.metrics.telemetry import TableSeries


class Rows:
    """The rows of `asked`, ids or keys of shape S; every one has to exist."""

    __slots__ = (
        *("_asked", "_ids", "_missed"),
        *("count", "counted", "dtype", "nbytes", "row_bytes", "table"),
    )

    def __init__(
        self,
        table: Table,
        asked: Asked,
        dtype: DType,
        counted: TableSeries,
        missed: Callable[[IdOutOfRange | KeyNotFound], None],
    ) -> None:
        """Reads no row. KeyNotFound for a key without a row, NoKeys in a table without keys.

        `missed` is told of KeyNotFound and IdOutOfRange, to count them.
        """
        self.table = table
        self.counted = counted
        self._asked = asked
        self._missed = missed
        found: NDArray[np.integer[Any]]
        try:
            found = table.rows_of(asked, Missing.ERROR)[0] if isinstance(asked, ByKey) else asked
        except KeyNotFound as error:
            missed(error)
            raise
        self._ids = flat_ids(found)
        self.dtype = dtype
        self.count = self._ids.size
        self.row_bytes = table.dim * dtype.itemsize
        self.nbytes = self.count * self.row_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the reply, S + (dim,)."""
        return (*self._asked.shape, self.table.dim)

    @property
    def version(self) -> int:
        """The version that answers."""
        return self.table.version

    @property
    def is_as_stored(self) -> bool:
        """Whether the reply has the rows' own dtype, so that they are only copied."""
        return self.dtype is self.table.dtype

    def check(self) -> None:
        """IdOutOfRange when an id has no row; `read` checks the ids that it copies, too."""
        if not all_in_range(self._ids, self.table.row_count):
            self._raise_out_of_range()

    def read(self, start: int, stop: int, out: NDArray[np.uint8], begin: int) -> None:
        """Copy the rows of positions `start` up to `stop` to `out` from byte `begin` on.

        IdOutOfRange, with nothing copied; Unavailable when a row's writer died inside it.
        """
        table, ids = self.table, self._ids[start:stop]
        if self.is_as_stored:
            if not table.read_rows(ids, out, begin):
                self._raise_out_of_range()
            self.counted.gathered(start == 0, ids.size, ids.size * self.row_bytes)
            return
        if not all_in_range(ids, table.row_count):
            self._raise_out_of_range()
        if ids.size:
            bits = out[begin : begin + ids.size * self.row_bytes].view(self.dtype.storage)
            table.gather(ids, bits.reshape(ids.size, table.dim), self.dtype)
            self.counted.gathered(start == 0, ids.size, ids.size * self.row_bytes)

    def _raise_out_of_range(self) -> None:
        assert not isinstance(self._asked, ByKey)
        error = out_of_range_error(self.table.name, self._asked, self.table.row_count)
        self._missed(error)
        raise error
