"""The tables that can be looked up: files served where they lie, and a data dir's as they change.

gatherd.store.live gives each request one set of versions. A server adds this: versions are mapped
when they become live, not at their first lookup, and their pages are brought in. A prepared version
costs the requests at the switch nothing. In a worker that restarted between the two a version isn't
prepared: the first request after the switch maps it, and brings its pages in only if they are few.
"""

import logging
import math
import random
import resource
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gatherd.errors import FailedPrecondition, GatherdError, TooManyFiles
from gatherd.store import memory
from gatherd.store.catalog import read_default_vector
from gatherd.store.format import read_layout
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.live import LiveTables, View
from gatherd.store.table import Preload, Table
from gatherd_server.types import TableInfo, TableSource

# Up to this many bytes are populated by the request that sees a version first: about 1 ms when they
# are in the page cache. Above, another thread does it, and requests fault in their pages.
POPULATE_AT_REQUEST_BYTES_MAX = 64 << 20
# Unmapping takes 4 ms a GB. Dropped tables are held until the requests that read them have most
# likely ended, so that none of them waits for that.
RETIRE_SECONDS = 5.0
# Asking for the memory's state, and adding up a thousand tables, takes a millisecond.
ROOM_SECONDS = 0.1

# A superseded version that lookups named this recently isn't deleted.
USED_SECONDS = 10.0
# Superseded versions whose last lookup is known.
READS_MAX = 4096

# With so many page faults that waited for a disk, between two looks, tables may be evicted.
FAULTS_MIN = 16
# Tables looked at then, in a millisecond each.
LOOKED_AT_MAX = 32

logger = logging.getLogger("gatherd")


class _Room:
    """The memory that tables are brought into. Safe to use from many threads."""

    def __init__(self, tables: Iterable[Table]) -> None:
        """Holds `tables` that were brought in already."""
        self._tables = weakref.WeakSet(tables)
        self._lock = threading.Lock()
        self._asked_at = -math.inf
        self._available_bytes = self._taken_bytes = 0

    def bring_in(self, table: Table, preload: Preload) -> None:
        """Preload a table into what the others leave. BadFile when it can't be."""
        with self._lock:
            if time.monotonic() - self._asked_at > ROOM_SECONDS:
                self._asked_at = time.monotonic()
                self._available_bytes = memory.available_bytes()
                others = [one for one in self._tables if one.is_populated and one is not table]
                self._taken_bytes = sum(one.nbytes for one in others)
            available_bytes, taken_bytes = self._available_bytes, self._taken_bytes
        table.preload(preload, taken_bytes, available_bytes)
        with self._lock:
            self._tables.add(table)
            self._taken_bytes += table.nbytes * table.is_populated


class ServedTables:
    """Names to tables, and to the reason for those that had to be refused.

    Safe to use from many threads. `tables` and `refused` are those outside the data dir.
    """

    def __init__(
        self,
        tables: Mapping[str, Table],
        refused: Mapping[str, str],
        data_dir: Path | None = None,
        preload: Preload = Preload.NONE,
    ) -> None:
        """Opens no file; the first call that needs a table does."""
        self._preload = preload
        self._is_serving = False
        self._looks = self._faults = 0
        self._files = frozenset((*tables, *refused))
        self._room = _Room(tables.values())
        self._reads: dict[tuple[str, int], float] = {}
        self._reads_lock = threading.Lock()
        self._live = LiveTables(
            data_dir,
            fixed=tables,
            refused=refused,
            at_open=self._at_open,
            at_drop=self._at_drop,
            # Locked pages are released with the mapping.
            keep_superseded=preload is not Preload.LOCK,
        )
        self.current = self._live.current
        """See LiveTables.current."""
        self.take = self._live.take
        """See LiveTables.take."""
        self.take_with_slots = self._live.take_with_slots
        """See LiveTables.take_with_slots."""

    def start(self) -> None:
        """Map and preload the data dir's live versions. BadFile when it can't be read."""
        self._live.current()
        self._is_serving = True

    @property
    def writer_has_failed(self) -> bool:
        """Whether the disk failed under the data dir's writer."""
        control = self._live.current().control
        return control is not None and control.writer_has_failed

    @property
    def lsn(self) -> int:
        """The last update that every lookup sees."""
        return self._live.applied_lsn

    def is_file(self, name: str) -> bool:
        """Whether `name` is a file served where it lies, and not a table of the data dir."""
        return name in self._files

    def get(self, name: str, version: int = LIVE_VERSION) -> Table:
        """One table; see `take`."""
        return self.take([(name, version)])[0]

    def prepare_version(self, name: str, version: int) -> None:
        """Map and preload a version that is to become live; see LiveTables.prepare."""
        self._live.prepare(name, version, self._bring_in)

    def map_file(self, source: TableSource, fd: int, version: int) -> Table:
        """Map and preload a file that is to replace the one served as `source.name`.

        BadFile or InvalidArgument when it can't be served. Takes as long as reading it.
        """
        table = open_source(source, fd, version)
        self._bring_in(table)
        return table

    def replace_files(self, tables: Iterable[Table]) -> None:
        """Serve `tables` instead of the files of the same names, from the next request on."""
        self._live.replace_fixed({table.name: table for table in tables})

    def note_superseded(self, name: str, version: int) -> None:
        """A lookup was answered by a version that isn't live. On any thread."""
        with self._reads_lock:
            if len(self._reads) >= READS_MAX:
                self._reads.clear()
            self._reads[name, version] = time.monotonic()

    def check_unused(self, name: str, version: int) -> None:
        """FailedPrecondition when lookups of the last USED_SECONDS named a superseded version."""
        with self._reads_lock:
            read_at = self._reads.get((name, version), -math.inf)
        ago = time.monotonic() - read_at
        if ago < USED_SECONDS:
            raise FailedPrecondition(
                f"version {version} of table {name!r} is in use: it was looked up {ago:.1f} s ago; "
                f"it can be deleted once it wasn't for {USED_SECONDS:g} s",
                {"table": name, "version": str(version)},
            )

    def info(self, name: str) -> TableInfo:
        """A description of `name`, refused or not. TableNotFound when it isn't there."""
        return self._live.read(lambda view: self._info(view, name))

    def look_at_residency(self) -> None:
        """Find out which tables are in memory, when there is reason to; not on an event loop.

        Tables thought to be in memory are looked at when the process had to wait for pages. Of the
        others one is looked at each time.
        """
        self._looks += 1
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        is_evicted, self._faults = faults - self._faults >= FAULTS_MIN, faults
        with suppress(GatherdError):  # a request for a table gets the error
            tables = list({*self._live.current().mapped.copy().values()})
            warm = [table for table in tables if table.is_populated]
            cold = [table for table in tables if not table.is_populated]
            looked_at = random.sample(warm, min(len(warm), LOOKED_AT_MAX)) if is_evicted else []
            if cold:
                looked_at.append(cold[self._looks % len(cold)])
            for table in looked_at:
                table.look_at_residency()

    def infos(self) -> list[TableInfo]:
        """Every table, by name."""
        return self._live.read(lambda view: [self._info(view, name) for name in view.names()])

    def states(self) -> dict[str, str]:
        """Every table's name, in order, and why it is refused, or "" when it is served."""
        view = self._live.current()
        return {name: view.refused.get(name, "") for name in view.names()}

    def _info(self, view: View, name: str) -> TableInfo:
        table = view.live_or_reason(name)
        version, versions = view.live_version(name), view.versions(name)
        if isinstance(table, str):
            return TableInfo(name, 0, 0, None, version, refused=table, versions=versions)
        return TableInfo(
            name,
            table.live_rows,
            table.dim,
            table.dtype,
            version,
            trainable=table.is_trainable,
            key_kind=table.keys.kind.value if table.keys else "",
            rows_bytes=table.nbytes,
            keys_bytes=table.keys.nbytes if table.keys else 0,
            resident_bytes=table.resident_bytes(),
            versions=versions,
            optimizer=view.optimizer_of(name, table),
            lsn=self.lsn,
            open=table.open_spec,
        )

    def _at_open(self, table: Table) -> None:
        """Preload a version that wasn't prepared. At the start, GatherdError when that fails."""
        if not self._is_serving:
            self._bring_in(table)
            return
        keys_bytes = table.keys.nbytes if table.keys else 0
        if table.nbytes + keys_bytes <= POPULATE_AT_REQUEST_BYTES_MAX:
            self._bring_in(table)
            return
        threading.Thread(target=self._preload_later, args=(table,), daemon=True).start()

    def _bring_in(self, table: Table) -> None:
        """Preload a table into the memory that the others leave."""
        self._room.bring_in(table, self._preload)

    def _preload_later(self, table: Table) -> None:
        try:
            self._bring_in(table)
        except GatherdError as error:
            logger.warning("%s; it is served as it is", error)

    def _at_drop(self, dropped: Sequence[Table]) -> None:
        timer = threading.Timer(RETIRE_SECONDS, _let_go, dropped)
        timer.daemon = True
        timer.start()


def _let_go(*_tables: Table) -> None:
    """Does nothing: the timer's references were the last ones."""


def open_sources(
    sources: Mapping[int, TableSource],
    data_dir: Path | None,
    preload: Preload,
    versions: Sequence[int] = (),
) -> ServedTables:
    """Open a worker's tables: files by their descriptors, and the data dir's live versions.

    `versions` are those of the files, in their order; without them all have version 1.

    A table that can't be opened is refused with the reason, and the others are served: a worker
    that comes back after a file was truncated has to answer for the rest.
    """
    tables: dict[str, Table] = {}
    refused: dict[str, str] = {}
    numbers = versions or [1] * len(sources)
    for (fd, source), version in zip(sources.items(), numbers, strict=True):
        try:
            table = open_source(source, fd, version)
            table.preload(preload, sum(one.nbytes for one in tables.values() if one.is_populated))
        except TooManyFiles:
            raise  # the file itself is sound
        except GatherdError as error:
            refused[source.name] = error.message
        else:
            tables[source.name] = table
    served = ServedTables(tables, refused, data_dir, preload)
    served.start()
    return served


def open_source(source: TableSource, fd: int, version: int = 1) -> Table:
    """Map a file where it lies. BadFile or InvalidArgument when it can't be."""
    layout = read_layout(fd, str(source.path), source.tensor, source.name)
    default = read_default_vector(source.default_vector) if source.default_vector else None
    return Table.map(source.name, version, fd, layout, default)
