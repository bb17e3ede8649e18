"""`local:/data`: reads the mapped files of a data dir itself; no server takes part in a lookup.

A publish or rollback is seen at the next call, by the generation in the control page. The state is
an immutable view that a call takes as a whole, so a lookup of many tables has one version set, and
nothing here holds a lock, which a fork could leave locked.

A deadline is checked before each table's gather; a gather itself can't be interrupted.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._effects import Deadline, Plan, Work
from gatherd._lookup import Answer, KeysOfSpec, LookupSpec, TableInfo, check_dim, key_array
from gatherd._session import Session
from gatherd.errors import (
    BadFile,
    ClientClosed,
    DeadlineExceeded,
    InvalidArgument,
    TableRefused,
)
from gatherd.store.catalog import Catalog, CatalogEntry, open_table, read_catalog, table_not_found
from gatherd.store.control import ControlPage
from gatherd.store.dtypes import DType, bfloat16_to_float32
from gatherd.store.query import ByKey, Missing
from gatherd.store.table import Gathered, Table

# How often the catalog is read anew when its versions are dropped faster than they are opened.
CATALOG_READS_MAX = 3
# The first keyed lookup and the first bags of a process load numba, or compile: no event loop
# should wait for that, however small the lookup.
FIRST_USE_BYTES = sys.maxsize
# A str of a few characters and the reference to it.
KEY_BYTES_GUESS = 64


@dataclass(frozen=True, slots=True)
class _View:
    """The data dir at one generation. `tables` is filled as tables are first asked for."""

    generation: int
    catalog: Catalog
    tables: dict[str, tuple[CatalogEntry, Table]] = field(default_factory=dict)


class LocalSession(Session):
    """Answers from the files of a data dir."""

    def __init__(self, path: str, *, timeout: float, retries: int) -> None:
        super().__init__(timeout=timeout, retries=retries)
        self._data_dir = Path(path)
        self._control: ControlPage | None = None
        self._view: _View | None = None
        self._closed = False
        # Which of "keys" and "bags" were used, and so are compiled.
        self._compiled: set[str] = set()

    def gather(self, specs: Sequence[LookupSpec], deadline: Deadline) -> Plan[list[Answer]]:
        """Each table in its turn; an error leaves what was filled before it."""
        tables = self._open_all([spec.table for spec in specs])
        for spec, table in zip(specs, tables, strict=True):
            check_dim(spec, table.dim)
        answers = []
        for spec, table in zip(specs, tables, strict=True):
            self._check(deadline)
            answers.append((yield Work(partial(_gather, spec, table), self._nbytes(spec, table))))
            self._compiled |= _kernels_of(spec)
        return answers

    def find_keys(self, spec: KeysOfSpec, deadline: Deadline) -> Plan[NDArray[Any]]:
        """Reads the key index."""
        (table,) = self._open_all([spec.table])
        self._check(deadline)
        nbytes = spec.asked.size * KEY_BYTES_GUESS

        def run() -> NDArray[Any]:
            return key_array(table.keys_of(spec.asked))

        found: NDArray[Any] = yield Work(run, nbytes)
        return found

    def tables(self, deadline: Deadline) -> Plan[list[TableInfo]]:
        """Maps every table; one that can't be is listed with the reason."""
        view = self._current()
        infos = []
        for name, entry in sorted(view.catalog.tables.items()):
            self._check(deadline)
            infos.append((yield Work(partial(self._info, view, name, entry), 0)))
        return infos

    def table(self, name: str, deadline: Deadline) -> Plan[TableInfo]:
        """Maps the table, if it can be."""
        self._check(deadline)
        if not isinstance(name, str):
            raise InvalidArgument(f"a table's name is a str, not {name!r}")
        view = self._current()
        entry = _entry(view, name)
        info: TableInfo = yield Work(partial(self._info, view, name, entry), 0)
        return info

    def close(self) -> None:
        """Let go of the maps; they are unmapped when the last call that reads them ends."""
        self._closed = True
        self._control = self._view = None

    def _nbytes(self, spec: LookupSpec, table: Table) -> int:
        """About what a gather writes, or what pooling reads: how long it takes."""
        if not _kernels_of(spec) <= self._compiled:
            return FIRST_USE_BYTES
        if spec.bags is not None:
            return spec.asked.size * table.row_bytes
        return spec.asked.size * table.dim * spec.reply.array.itemsize

    def _check(self, deadline: Deadline) -> None:
        if self._clock() >= deadline.at:
            raise DeadlineExceeded(
                f"reading {self._data_dir} took longer than the call's timeout "
                f"of {deadline.timeout_seconds:g} seconds"
            )

    def _current(self) -> _View:
        """The view of the generation that the control page shows."""
        control, view = self._control, self._view
        if self._closed:
            raise ClientClosed("the client was closed")
        if control is None:
            control = self._control = ControlPage(self._data_dir)
        generation = control.generation
        if view is not None and view.generation == generation:
            return view
        catalog = read_catalog(self._data_dir)
        # A catalog that is older than the page is read again at the next call.
        seen = min(generation, catalog.generation)
        kept = {
            name: (entry, table)
            for name, (entry, table) in (view.tables.copy() if view else {}).items()
            if (now := catalog.tables.get(name)) and (now.uid, now.live) == (entry.uid, entry.live)
        }
        # Two threads may both get here; they read the same files, and either's view is right.
        view = self._view = _View(seen, catalog, kept)
        return view

    def _open_all(self, names: Sequence[str]) -> list[Table]:
        """The live tables called `names`, all of one catalog."""
        for _ in range(CATALOG_READS_MAX - 1):
            view = self._current()
            try:
                return [self._open(view, name, _entry(view, name)) for name in names]
            except BadFile:
                if self._current() is view:
                    break  # not dropped meanwhile, but damaged
        view = self._current()
        try:
            return [self._open(view, name, _entry(view, name)) for name in names]
        except BadFile as error:
            raise TableRefused(f"a table can't be served: {error}") from None

    def _open(self, view: _View, name: str, entry: CatalogEntry) -> Table:
        known = view.tables.get(name)
        if known is None:
            table = open_table(self._data_dir, name, entry.live)
            known = view.tables.setdefault(name, (entry, table))
        return known[1]

    def _info(self, view: _View, name: str, entry: CatalogEntry) -> TableInfo:
        try:
            table = self._open(view, name, entry)
        except BadFile as error:
            return TableInfo(name, 0, 0, "", entry.live, False, str(error))
        keys = table.keys
        return TableInfo(
            name=name,
            rows=table.row_count,
            dim=table.dim,
            dtype=table.dtype.value,
            version=entry.live,
            trainable=table.is_trainable,
            refused="",
            key_kind="" if keys is None else keys.kind.value,
            rows_bytes=table.nbytes,
            keys_bytes=0 if keys is None else keys.nbytes,
            resident_bytes=table.resident_bytes(),
        )


def _entry(view: _View, name: str) -> CatalogEntry:
    entry = view.catalog.tables.get(name)
    if entry is None:
        raise table_not_found(name, view.catalog.tables)
    return entry


def _kernels_of(spec: LookupSpec) -> set[str]:
    """The compiled loops that a lookup needs."""
    needed = set()
    if isinstance(spec.asked, ByKey):
        needed.add("keys")
    if spec.bags is not None:
        needed.add("bags")
    return needed


def _gather(spec: LookupSpec, table: Table) -> Answer:
    reply = spec.reply
    if not reply.widened:
        bits = spec.out.view(reply.wire.storage) if spec.out is not None else None
        found = _answer(spec, table, reply.wire, bits)
        vectors = spec.out if spec.out is not None else found.vectors.view(reply.array)
        return Answer(vectors, found.status)
    if spec.bags is None and _is_exact(spec, table):
        # bfloat16 bits widened are the float32 of the same number: straight into the result.
        found = _answer(spec, table, DType.FLOAT32, spec.out)
        return Answer(found.vectors, found.status)
    found = _answer(spec, table, DType.BFLOAT16, None)
    wide: NDArray[Any] = (
        spec.out if spec.out is not None else np.empty(found.vectors.shape, np.float32)
    )
    bfloat16_to_float32(found.vectors, wide)
    return Answer(wide, found.status)


def _answer(spec: LookupSpec, table: Table, dtype: DType, out: NDArray[Any] | None) -> Gathered:
    if spec.bags is None:
        return table.lookup(spec.asked, dtype, spec.missing, out)
    return table.lookup_bags(spec.asked, spec.bags, dtype, spec.missing, out)


def _is_exact(spec: LookupSpec, table: Table) -> bool:
    """Whether every vector of the reply is of bfloat16; a default vector isn't."""
    return (
        table.dtype is DType.BFLOAT16
        and spec.asked.size > 0
        and spec.missing is not Missing.DEFAULT
    )
