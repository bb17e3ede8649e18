"""`local:/data`: reads the mapped files of a data dir itself; no server takes part in a lookup.

store/live.py explains how the next call sees a publish or rollback, and how a lookup of many tables
gets one version set. Tables are mapped when they are first used, and their pages come in as rows
are read: the process is the caller's, and may want three rows of a table larger than memory.

A deadline is checked before each table's gather; a gather itself can't be interrupted.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._plans.answering import Answering
from gatherd._plans.effects import Computation, Deadline, Plan
from gatherd._plans.retry import Tries
from gatherd._requests.keys import KeysSpec
from gatherd._requests.lookups import (
    REPLY_TYPES,
    Answer,
    KeysOfSpec,
    LookupSpec,
    TableInfo,
    check_dim,
    key_array,
)
from gatherd._requests.neighbors import Neighbors, NeighborsSpec
from gatherd._requests.scans import PageOfRows, RowBatch, ScanSpec, as_asked
from gatherd.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidArgument,
    TableNotFound,
    VersionNotFound,
)
from gatherd.store import forms
from gatherd.store.dtypes import DType, bfloat16_to_float32
from gatherd.store.key_pages import find_ids, find_keys
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.live import LiveTables, View
from gatherd.store.neighbors import Norms, search
from gatherd.store.query import ByKey, FoundKeys, Missing
from gatherd.store.scans import PAGE_BYTES_MAX, ScanPage, version_is_gone
from gatherd.store.table import Gathered, Table

# The first keyed lookup and the first bags of a process load numba, or compile: no event loop
# should wait for that, however small the lookup.
FIRST_USE_BYTES = sys.maxsize
# A str of a few characters and the reference to it.
KEY_BYTES_GUESS = 64


class LocalAnswering(Answering):
    """Answers from the files of a data dir."""

    def __init__(self, path: str, tries: Tries) -> None:
        super().__init__(tries)
        self._data_dir = Path(path)
        self._live: LiveTables | None = LiveTables(self._data_dir)
        self._norms = Norms()
        # Those of "keys" and "bags" that were used, and so are compiled.
        self._compiled: set[str] = set()

    def quick(
        self,
        table: str,
        ids: NDArray[Any],
        dtype: Any,
        out: NDArray[Any] | None,
        version: int | None,
        timeout: float | None,
        nbytes_max: int = sys.maxsize,
    ) -> NDArray[Any] | None:
        """The answer to a lookup that needs no plan, of `nbytes_max` at most; None for any other.

        Such a lookup has a C-contiguous array of ids, none of which may be missing, a dtype named
        by a str, and a live version that is mapped.
        """
        live = self._live
        if live is None or timeout is not None or version is not None or type(dtype) is not str:
            return None
        reply, mapped = REPLY_TYPES.get(dtype), live.current().mapped
        found = mapped.get((table, LIVE_VERSION)) if type(table) is str else None
        if found is None or reply is None or reply.widened or ids.dtype.kind not in "iu":
            return None
        if ids.size * found.dim * reply.array.itemsize > nbytes_max:
            return None
        if out is not None and not (
            out.__class__ is np.ndarray
            and out.dtype is reply.array
            and out.shape == (*ids.shape, found.dim)
            and out.flags.carray
        ):
            return None
        if reply.wire is found.dtype:
            return found.take(ids, out)
        return found.lookup(ids, reply.wire, out=out).vectors

    def gather(self, specs: Sequence[LookupSpec], deadline: Deadline) -> Plan[list[Answer]]:
        """Each table in its turn; after an error the arrays of earlier tables stay filled."""
        live = self._open()
        tables = live.take([(spec.table, spec.version) for spec in specs])
        for spec, table in zip(specs, tables, strict=True):
            if spec.form is not None:
                forms.check_form(table, spec.form)
            check_dim(spec, spec.dims or table.dim)
        lsn = live.applied_lsn  # before the rows, which may have later updates
        answers = []
        for spec, table in zip(specs, tables, strict=True):
            self._check(deadline)
            run = partial(_gather, spec, table)
            answer: Answer = yield Computation(run, self._nbytes(spec, table))
            answers.append(replace(answer, version=table.version, lsn=lsn))
            self._compiled |= _kernels_of(spec)
        return answers

    def find_keys(self, spec: KeysOfSpec, deadline: Deadline) -> Plan[NDArray[Any]]:
        """Reads the key index."""
        (table,) = self._open().take([(spec.table, spec.version)])
        self._check(deadline)
        nbytes = spec.asked.size * KEY_BYTES_GUESS

        def run() -> NDArray[Any]:
            return key_array(table.keys_of(spec.asked))

        found: NDArray[Any] = yield Computation(run, nbytes)
        return found

    def list_keys(self, spec: KeysSpec, deadline: Deadline) -> Plan[FoundKeys]:
        """Reads the key index."""
        (table,) = self._open().take([(spec.table, spec.version)])
        self._check(deadline)
        nbytes = spec.query.scanned_max * KEY_BYTES_GUESS
        found: FoundKeys = yield Computation(partial(find_keys, table, spec.query), nbytes)
        return found

    def scan_page(self, spec: ScanSpec, deadline: Deadline) -> Plan[PageOfRows]:
        """Reads the rows, and the files of the slots."""
        live, query = self._open(), spec.query
        self._check(deadline)
        slots = None
        try:
            if query.with_slots:
                table, slots = live.take_with_slots(spec.table, query.answering)
            else:
                (table,) = live.take([(spec.table, query.answering)])
        except VersionNotFound as error:
            raise version_is_gone(error) if query.cursor else error from None

        def run() -> PageOfRows:
            page = ScanPage.of(table, query, slots)
            keys = None if page.keys is None else key_array(page.keys)
            rows = RowBatch(page.ids, keys, as_asked(page.vectors, spec), page.slots)
            return PageOfRows(rows, page.cursor)

        found: PageOfRows = yield Computation(run, PAGE_BYTES_MAX)
        return found

    def find_ids(self, spec: LookupSpec, deadline: Deadline) -> Plan[NDArray[np.int64]]:
        """Asks the key index."""
        assert isinstance(spec.asked, ByKey)
        (table,) = self._open().take([(spec.table, spec.version)])
        self._check(deadline)
        allow_missing = spec.missing is not Missing.ERROR
        run = partial(find_ids, table, spec.asked.keys, allow_missing=allow_missing)
        nbytes = spec.asked.size * KEY_BYTES_GUESS if "keys" in self._compiled else FIRST_USE_BYTES
        found: NDArray[np.int64] = yield Computation(run, nbytes)
        self._compiled.add("keys")
        return found

    def find_neighbors(self, spec: NeighborsSpec, deadline: Deadline) -> Plan[Neighbors]:
        """Compares on one thread, and NumPy's own; ends when the deadline or the plan does."""
        (table,) = self._open().take([(spec.table, spec.version)])
        is_given_up = False

        def check() -> None:
            if is_given_up:
                raise ClientClosed("the search was given up")
            self._check(deadline)

        def run() -> Neighbors:
            found = search(table, spec.query, self._norms, check)
            keys = None if table.keys is None else key_array(table.keys_of(found.ids))
            return Neighbors(found.ids, found.scores, keys, table.version)

        try:
            neighbors: Neighbors = yield Computation(run, FIRST_USE_BYTES)
        finally:
            is_given_up = True
        return neighbors

    def tables(self, deadline: Deadline) -> Plan[list[TableInfo]]:
        """Maps every table; one that can't be mapped is listed with the reason."""
        live = self._open()
        infos = []
        for name in live.current().names():
            self._check(deadline)
            try:
                infos.append((yield Computation(partial(_info, live, name), 0)))
            except TableNotFound:
                continue  # deleted meanwhile
        return infos

    def table(self, name: str, deadline: Deadline) -> Plan[TableInfo]:
        """Maps the table, if that is possible."""
        self._check(deadline)
        if not isinstance(name, str):
            raise InvalidArgument(f"a table's name is a str, not {name!r}")
        info: TableInfo = yield Computation(partial(_info, self._open(), name), 0)
        return info

    def close(self) -> None:
        """Let go of the maps; they are unmapped when the last call that reads them ends."""
        self._live = None

    def _nbytes(self, spec: LookupSpec, table: Table) -> int:
        """About how many bytes a gather writes, or pooling reads, as a measure of its time."""
        if not _kernels_of(spec) <= self._compiled:
            return FIRST_USE_BYTES
        if spec.bags is not None:
            return spec.asked.size * table.row_bytes
        return spec.asked.size * table.dim * spec.reply.array.itemsize

    def _check(self, deadline: Deadline) -> None:
        if time.monotonic() >= deadline.at:
            raise DeadlineExceeded(
                f"reading {self._data_dir} took longer than the call's timeout "
                f"of {deadline.timeout_seconds:g} seconds"
            )

    def _open(self) -> LiveTables:
        if self._live is None:
            raise ClientClosed("the client was closed")
        return self._live


def _info(live: LiveTables, name: str) -> TableInfo:
    return live.read(lambda view: _info_of(view, name, live.applied_lsn))


def _info_of(view: View, name: str, lsn: int) -> TableInfo:
    table = view.live_or_reason(name)
    version, versions = view.live_version(name), view.versions(name)
    if isinstance(table, str):
        return TableInfo(name, 0, 0, "", version, False, table, versions=versions)
    keys = table.keys
    return TableInfo(
        name=name,
        rows=table.live_rows,
        dim=table.dim,
        dtype=table.dtype.value,
        version=version,
        trainable=table.is_trainable,
        refused="",
        key_kind="" if keys is None else keys.kind.value,
        rows_bytes=table.nbytes,
        keys_bytes=0 if keys is None else keys.nbytes,
        resident_bytes=table.resident_bytes(),
        versions=versions,
        optimizer=view.optimizer_of(name, table),
        lsn=lsn,
        open=None if table.open_spec is None else table.open_spec.described(),
    )


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
        # Widened bfloat16 bits are the float32 of the same number: straight into the result.
        found = _answer(spec, table, DType.FLOAT32, spec.out)
        return Answer(found.vectors, found.status)
    found = _answer(spec, table, DType.BFLOAT16, None)
    wide: NDArray[Any] = (
        spec.out if spec.out is not None else np.empty(found.vectors.shape, np.float32)
    )
    bfloat16_to_float32(found.vectors, wide)
    return Answer(wide, found.status)


def _answer(spec: LookupSpec, table: Table, dtype: DType, out: NDArray[Any] | None) -> Gathered:
    if spec.form is not None and spec.bags is None:
        return forms.lookup(table, spec.asked, spec.form, dtype, spec.missing, out)
    if spec.form is not None and spec.bags is not None:
        return forms.lookup_bags(table, spec.asked, spec.bags, spec.form, dtype, spec.missing, out)
    if spec.bags is None:
        return table.lookup(spec.asked, dtype, spec.missing, out)
    return table.lookup_bags(spec.asked, spec.bags, dtype, spec.missing, out)


def _is_exact(spec: LookupSpec, table: Table) -> bool:
    """Whether every vector of the reply is exactly bfloat16; a default vector may not be."""
    return (
        table.dtype is DType.BFLOAT16
        and (spec.form is None or not spec.form.normalize)
        and spec.asked.size > 0
        and spec.missing is not Missing.DEFAULT
    )
