"""A repeat, with other ids, of a lookup that was answered before."""

import numpy as np
from numpy.typing import NDArray

from gatherd.store.table import Table
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.rows import Rows
from gatherd_server.types import Lookup

_INT64 = np.dtype(np.int64)


class Repeated:
    """The meaning of a request that repeats an earlier one with different ids.

    It holds no table, so that waiting for a next request keeps no replaced version mapped.
    """

    __slots__ = ("_after", "_before", "_engine", "_key", "_lookup", "_shape", "_start", "_stop")

    def __init__(self, engine: Engine, lookup: Lookup, before: bytes, after: bytes) -> None:
        """For a lookup with int64 ids; its request has `before` and `after` around their bytes."""
        assert isinstance(lookup.asked, np.ndarray)
        self._engine = engine
        self._lookup = lookup._replace(asked=np.empty(0, _INT64))
        self._shape = lookup.asked.shape
        self._key = (lookup.table, lookup.version)
        self._before, self._after = before, after
        self._start = len(before)
        self._stop = len(before) + lookup.asked.nbytes

    def read(self, request: bytes) -> tuple[Table, NDArray[np.int64]] | None:
        """The table and the ids, (n,), of a request; None when it differs or isn't mapped.

        BadFile when the data dir can't be read.
        """
        if not (request.startswith(self._before) and request.endswith(self._after)):
            return None
        table = self._engine.mapped(self._key)
        if table is None:
            return None
        return table, np.frombuffer(request[self._start : self._stop], _INT64)

    def rows(self, ids: NDArray[np.int64]) -> Rows | None:
        """The rows of the reply, with its dtype, shape and limits; None and errors as `rows_of`."""
        return self._engine.rows_of(self._lookup._replace(asked=ids.reshape(self._shape)))
