"""Larger indexes for open tables, built while pushes and lookups go on.

At LOAD_MAX of its slots an index is to be replaced. The committer does that at once for a small
table, in milliseconds. For others a thread builds the next index beside the present one, which goes
on taking keys. Then it takes in the rows that changed meanwhile, until few are left; those, and the
switch, fall between two batches. Lookups never wait. A push that creates rows waits only if the
present index is full (FULL_LOAD) before the next one is there.

The switch is a change of the catalog in which nothing but the generation changes: by that readers
learn that keys.index is another file.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import GatherdError, StorageError
from gatherd.store.catalog import Catalog
from gatherd.store.query import ByKey
from gatherd_server.storage.files import Files
from gatherd_server.storage.open_index import (
    BUILD_ROWS,
    SEEDS_MAX,
    OpenIndex,
    begin_index,
    discard_index,
    new_header,
    put_index,
)
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.types import Push
from gatherd_server.writer.versions import Versions

logger = logging.getLogger("gatherd.writer")

# So many rows are entered in about 20 ms.
SMALL_ROWS: Final = 1 << 17
# The last rows that changed are taken in between two batches: in about a millisecond.
FEW_ROWS: Final = 1 << 13
ROUNDS_MAX: Final = 20
# On a full disk the next attempt comes after this time.
RETRY_SECONDS: Final = 30.0


class Owner(Protocol):
    """What of the writer is needed here."""

    @property
    def files(self) -> Files:
        """Its fault seam."""

    def versions(self) -> Versions:
        """Its versions."""

    def between(self, job: Callable[[], None]) -> None:
        """Run a job between two batches."""

    def change_catalog(
        self, catalog: Catalog, adopted: None = None, before: Callable[[], None] = ...
    ) -> int:
        """Log a catalog and show it to readers."""


@dataclass(slots=True, eq=False)
class _Growth:
    """An index that is being built for a version."""

    key: tuple[str, int]
    version: OpenVersion
    built: "Future[OpenIndex]" = field(default_factory=Future)
    is_over: bool = False


class Growing:
    """Replaces the indexes of a writer's open versions. Its thread is begun when it is needed.

    Everything but the builds happens on the committer.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._executor: ThreadPoolExecutor | None = None
        self._growths: dict[tuple[str, int], _Growth] = {}
        self._failed: dict[tuple[str, int], float] = {}
        self._is_closing = False

    def make_room(self, pushes: Iterable[Push]) -> None:
        """Before a batch: see to it that the indexes take every key that it may create.

        If the disk is full they don't, and the batch finds out (OpenBatch).
        """
        needed: dict[tuple[str, int], int] = {}
        for push in pushes:
            for update in push.updates:
                found = self._open_version(update.table)
                if found is None or not isinstance(update.asked, ByKey):
                    continue
                needed[found] = needed.get(found, 0) + update.asked.size
        for key, count in needed.items():
            opened = self._mapped(key)
            if opened is not None and opened.index is not None and count > opened.index.room():
                self._hurry(key, opened, count)

    def look(self, keys: Sequence[tuple[str, int]]) -> None:
        """After a batch that changed the open versions `keys`: replace indexes that are due.

        Raises when an index lacks a key that was committed and can't be built anew.
        """
        for key in keys:
            version = self._mapped(key)
            if version is None or version.index is None:
                continue
            if version.needs_index:
                self._end(self._growths.pop(key, None))
                self._replace_now(key, version, 0)
            elif version.index.wants_growth and key not in self._growths and self._may_try(key):
                if version.space.used_rows <= SMALL_ROWS:
                    self._try(key, version, 0)
                else:
                    self._begin(key, version)

    def close(self) -> None:
        """Give up what is being built. The committer has ended."""
        self._is_closing = True
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    # ---------------------------------------------------------------------------- helpers

    def _open_version(self, table: str) -> tuple[str, int] | None:
        """The key of a table's live version, if that is open."""
        entry = self._owner.versions().catalog.tables.get(table)
        if entry is None or self._mapped((entry.uid, entry.live)) is None:
            return None
        return entry.uid, entry.live

    def _mapped(self, key: tuple[str, int]) -> OpenVersion | None:
        found = self._owner.versions().mapped_already(key)
        return found if isinstance(found, OpenVersion) else None

    def _may_try(self, key: tuple[str, int]) -> bool:
        return time.monotonic() >= self._failed.get(key, 0.0)

    def _try(self, key: tuple[str, int], version: OpenVersion, count: int) -> None:
        """Replace an index now, if there is room on the disk."""
        try:
            self._replace_now(key, version, count)
        except GatherdError as error:
            if version.needs_index:
                raise
            logger.warning("%s: its index of keys can't grow: %s", version.folder, error)
            self._failed[key] = time.monotonic() + RETRY_SECONDS

    def _hurry(self, key: tuple[str, int], version: OpenVersion, count: int) -> None:
        """Have room for `count` more rows now, if possible."""
        growth = self._growths.get(key)
        if growth is not None:
            try:
                growth.built.result()
                self._switch(growth)
            except GatherdError:
                self._end(self._growths.pop(key, None))
        assert version.index is not None
        if count > version.index.room():
            self._try(key, version, count)

    # ---------------------------------------------------------------------------- building

    def _replace_now(self, key: tuple[str, int], version: OpenVersion, count: int) -> None:
        """Build the next index, with room for `count` more rows, and switch to it."""
        growth = _Growth(key, version)
        try:
            growth.built.set_result(self._build(version, count))
            self._switch(growth)
        except BaseException:
            self._end(growth)
            raise

    def _begin(self, key: tuple[str, int], version: OpenVersion) -> None:
        """Build the next index in the thread."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "index builder")
        self._growths[key] = growth = _Growth(key, version)
        version.changed = deque()
        used_rows = version.space.used_rows
        self._executor.submit(self._run, growth, used_rows)

    def _run(self, growth: _Growth, used_rows: int) -> None:
        try:
            index = self._build(growth.version, 0, used_rows)
            for _ in range(ROUNDS_MAX):
                rows = _taken(growth.version)
                if not index.catch_up(growth.version.keys, rows):
                    raise StorageError(f"{growth.version.folder}: a key finds no slot")  # noqa: TRY301
                if rows.size <= FEW_ROWS:
                    break
            growth.built.set_result(index)
        except BaseException as error:  # noqa: BLE001 - passed on
            growth.built.set_exception(error)
            logger.warning("%s: its index of keys can't grow: %s", growth.version.folder, error)
        # When the writer is stopping, the next start builds an index.
        with suppress(GatherdError):
            self._owner.between(lambda: self._settle(growth))

    def _settle(self, growth: _Growth) -> None:
        """Switch to a built index, or forget it, unless the committer did so before."""
        if growth.is_over:
            return
        try:
            self._switch(growth)
        except GatherdError as error:
            logger.warning("%s: its index of keys can't grow: %s", growth.version.folder, error)
            self._failed[growth.key] = time.monotonic() + RETRY_SECONDS
            self._end(self._growths.pop(growth.key, None))

    def _build(self, version: OpenVersion, count: int, used_rows: int | None = None) -> OpenIndex:
        """The next index, with the rows up to `used_rows`, and with room for `count` more."""
        files, store = self._owner.files, version.keys
        rows = version.space.live_rows + count
        end = version.space.used_rows if used_rows is None else used_rows
        for _ in range(SEEDS_MAX):
            header = new_header(store.kind, rows, version.row_count)
            index = begin_index(files, version.folder, header)
            if all(self._build_part(index, version, begin, end) for begin in _parts(end)):
                return index
        raise StorageError(f"{version.folder}: {rows} keys find no place in an index")

    def _build_part(self, index: OpenIndex, version: OpenVersion, begin: int, end: int) -> bool:
        if self._is_closing:
            raise StorageError("the writer is stopping")
        return index.build(version.keys, begin, min(begin + BUILD_ROWS, end))

    def _switch(self, growth: _Growth) -> None:
        """Take in the last rows, and put the built index in the old one's place."""
        version, owner = growth.version, self._owner
        index = growth.built.result()
        if self._mapped(growth.key) is not version:
            self._end(self._growths.pop(growth.key, None))
            return  # it isn't the live version any more
        if not index.catch_up(version.keys, _taken(version)):
            raise StorageError(f"{version.folder}: a key finds no slot")
        index.publish_counts(version.space.live_rows, version.space.used_rows)
        catalog = owner.versions().catalog
        owner.change_catalog(catalog, before=lambda: put_index(owner.files, version.folder))
        version.index, version.needs_index = index, False
        self._end(self._growths.pop(growth.key, None) or growth, is_used=True)

    def _end(self, growth: _Growth | None, *, is_used: bool = False) -> None:
        if growth is not None:
            growth.is_over = True
            growth.version.changed = None
            if not is_used:
                discard_index(self._owner.files, growth.version.folder)


def _parts(end: int) -> range:
    return range(0, end, BUILD_ROWS)


def _taken(version: OpenVersion) -> NDArray[np.int64]:
    """The rows that changed since the last call."""
    changed: list[NDArray[np.int64]] = []
    while version.changed:
        changed.append(version.changed.popleft())
    return np.concatenate(changed) if changed else np.empty(0, np.int64)
