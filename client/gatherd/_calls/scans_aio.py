# Written by client/generate_async.py from _calls/scans.py: change that, then `make calls`.
"""The awaited client's call that reads a whole table.

Client and AsyncClient inherit it.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from gatherd._calls.short import trimmed
from gatherd._plans.answering import Answering
from gatherd._plans.effects import Plan, T
from gatherd._requests.names import ReplyDType
from gatherd._requests.scans import BATCH_DEFAULT, Rebatched, RowBatch, prepare_scan
from gatherd.errors import GatherdError


class AsyncScanCalls(ABC):
    """The call; the class that inherits it runs the plans."""

    _answering: Answering

    @abstractmethod
    async def _run(self, plan: Plan[T]) -> T: ...

    async def rows(
        self,
        table: str,
        *,
        batch: int = BATCH_DEFAULT,
        slots: bool = False,
        prefix: str | bytes | None = None,
        dtype: ReplyDType = "float32",
        version: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[RowBatch]:
        """Every row of a table in the order of the ids, as batches of ids, keys and vectors.

            for ids, keys, vectors in client.rows("items"):
                ...

        batch: rows of each batch but the last, which may have fewer; a table without rows has no
        batch. The arrays are the caller's.
        slots: give the optimizer's state as well, each batch's `slots`: {"sum": (n, dim)} and the
        like. A row and its slots are of one instant.
        prefix: only rows whose string keys begin with it; see `keys`.
        timeout: seconds for each page that is asked for.

        All batches are of one version, the one that is live at the first page or the one given:
        VersionNotFound if that is dropped meanwhile. Each row is whole, as in a lookup, and of the
        time when its page was read: an update meanwhile is in some rows and not in others. A scan
        holds nothing on the server.
        """
        try:
            scan = Rebatched(prepare_scan(table, batch, slots, prefix, dtype, version))
            is_over = False
            while not is_over:
                while (wanted := scan.wanted()) is not None:
                    scan.add(await self._run(self._answering.scan(wanted, timeout=timeout)))
                found = scan.take()
                is_over = found is None
                if found is not None:
                    yield found
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error
