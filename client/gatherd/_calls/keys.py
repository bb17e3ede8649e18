"""The blocking client's calls about keys: those of rows, and those of a whole table.

Client and AsyncClient inherit them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._calls.short import short, trimmed
from gatherd._plans.answering import Answering
from gatherd._plans.effects import Plan, T
from gatherd._requests.keys import KeyPage
from gatherd._requests.names import Ids, Keys, Vectors
from gatherd.errors import GatherdError
from gatherd.store.query import PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX


class KeyCalls(ABC):
    """The calls; the class that inherits them runs the plans."""

    _answering: Answering

    @abstractmethod
    def _run(self, plan: Plan[T]) -> T: ...

    @short
    def keys_of(
        self, table: str, ids: Ids, *, version: int | None = None, timeout: float | None = None
    ) -> Vectors:
        """The keys of the rows `ids`, integers of any shape S: an array of shape S.

        int64 or uint64 for a table of integer keys; for one of strings, objects of str, in which
        bytes that aren't UTF-8 are lone surrogates (`surrogateescape`) and so can be given as keys
        again. IdOutOfRange for an id without a row, NoKeys for a table without keys.
        """
        return self._run(self._answering.keys_of(table, ids, version=version, timeout=timeout))

    @short
    def ids_of(
        self,
        table: str,
        keys: Keys,
        *,
        allow_missing: bool = False,
        version: int | None = None,
        timeout: float | None = None,
    ) -> NDArray[np.int64]:
        """The ids of the rows that have `keys`, strings or integers of any shape S: shape S.

        allow_missing: give −1 for a key without a row, which no lookup takes for an id, instead of
        KeyNotFound. NoKeys for a table without keys, InvalidArgument for keys of another kind.
        """
        plan = self._answering.ids_of(
            table, keys, allow_missing=allow_missing, version=version, timeout=timeout
        )
        return self._run(plan)

    @short
    def keys(
        self,
        table: str,
        *,
        prefix: str | bytes | None = None,
        limit: int = PAGE_KEYS_DEFAULT,
        start: int = 0,
        version: int | None = None,
        timeout: float | None = None,
    ) -> KeyPage:
        """A page of a table's keys with their ids, in the order of the ids.

        prefix: only keys that begin with it; for string keys. There is no index of prefixes: the
        time grows with the keys from `start` on, about 60 ms for 4 million.
        limit: the most keys of the page. It may have fewer and not be the last: at most 65,536, and
        2 MiB. Only the last one is empty.
        start: the id to begin at, as `next` of the page before; give that one's `version`, too.

        NoKeys for a table without keys. `iter_keys` asks for one page after the other.
        """
        given = (table, prefix, limit, start, version)
        return self._run(self._answering.keys(*given, timeout=timeout))

    def iter_keys(
        self,
        table: str,
        *,
        prefix: str | bytes | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[tuple[Any, int]]:
        """Every key of a table with its id, as `keys` has them; asks for a page when it needs one.

        All are of one version: VersionNotFound when that is dropped meanwhile. A key is a str or an
        int. timeout: seconds for each page.
        """
        try:
            start: int | None = 0
            while start is not None:
                page = self.keys(
                    table,
                    prefix=prefix,
                    limit=PAGE_KEYS_MAX,
                    start=start,
                    version=version,
                    timeout=timeout,
                )
                yield from page
                start, version = page.next, page.version
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error
