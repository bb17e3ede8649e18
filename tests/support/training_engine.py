"""A small engine whose tables take updates: a double of the writer, with its tables in NumPy.

It does what the engine's docstrings promise, as plainly as NumPy can: the step of every optimizer
is that of SGD. It has no log, window or versions; it keeps the requests for tests to look at.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import IdOutOfRange, InvalidArgument, NonfiniteValues, VersionMismatch
from gatherd.store.catalog import Catalog, table_not_found
from gatherd.store.dtypes import DType
from gatherd.store.live import View
from gatherd.store.table import Gathered
from gatherd_server.access.admission import Admission
from gatherd_server.engine.engine import Engine
from gatherd_server.http.offload import Offload
from gatherd_server.types import (
    ChangeResult,
    Limits,
    Lookup,
    Push,
    PushResult,
    SnapshotResult,
    TableChange,
    TableInfo,
    TableUpdate,
    UpdateOp,
    UpdatesState,
)
from support.small_engine import LIMITS, THREADS

VERSION = 3
LR = 0.5


@dataclass
class Recorded:
    """The requests to an engine, in order."""

    pushes: list[Push] = field(default_factory=list)
    changes: list[TableChange] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    """The thread that handed over each push."""


class TrainingEngine(Engine):
    """Tables "items" (100, 4) and "users" (40, 2) of zeros, at VERSION."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        # The tables of an engine are files; these are arrays.
        self.limits = limits
        self.rows = {
            "items": np.zeros((100, 4), np.float32),
            "users": np.zeros((40, 2), np.float32),
        }
        self.asked = Recorded()
        self.fails_with: Exception | None = None
        """The error that futures end with, instead of a result."""
        self.waits_for = 1
        """How many pushes have to wait before any is answered."""
        self._waiting: list[tuple[Push, Future[PushResult]]] = []
        self._lsn = 0
        self._lock = threading.Lock()

    def view(self) -> View:
        """No name is an alias."""
        return View(Catalog(0, {}), {}, {}, {}, None, None)

    def table(self, name: str) -> TableInfo:
        if name not in self.rows:
            raise table_not_found(name, self.rows)
        rows, dim = self.rows[name].shape
        return TableInfo(
            name,
            rows,
            dim,
            DType.FLOAT32,
            VERSION,
            trainable=True,
            versions=(1, VERSION),
            optimizer={"name": "sgd", "lr": LR, "clip": None},
            lsn=self._lsn,
        )

    def tables(self) -> list[TableInfo]:
        return [self.table(name) for name in self.rows]

    def table_states(self) -> dict[str, str]:
        return dict.fromkeys(self.rows, "")

    def updates_state(self) -> UpdatesState:
        return UpdatesState.RUNNING

    def lookup(self, lookup: Lookup) -> Gathered:
        ids: Any = lookup.asked
        return Gathered(self.rows[lookup.table][ids], DType.FLOAT32, None, VERSION)

    def push(self, push: Push) -> "Future[PushResult]":
        for update in push.updates:
            self._check(update)
        future: Future[PushResult] = Future()
        with self._lock:
            self.asked.pushes.append(push)
            self.asked.threads.append(threading.get_ident())
            self._waiting.append((push, future))
            ready = self._waiting if len(self._waiting) >= self.waits_for else []
            if ready:
                self._waiting = []
        self._do(ready)
        return future

    def let_go(self) -> None:
        """Answer the pushes that wait."""
        with self._lock:
            ready, self._waiting = self._waiting, []
        self._do(ready)

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        self.asked.changes.append(change)
        return self._ended(ChangeResult(VERSION + 1, 77))

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        self.asked.snapshots.append(name)
        return self._ended(SnapshotResult(f"/snapshots/{name or 'unnamed'}", 78))

    def _check(self, update: TableUpdate) -> None:
        info = self.table(update.table)
        assert update.values.dtype == np.float32
        assert update.values.flags.aligned
        assert update.values.shape[:-1] == update.asked.shape
        if update.values.shape[-1] != info.dim:
            raise InvalidArgument(f"table {update.table!r} has dim {info.dim}")
        ids: Any = update.asked
        if ids.size and (ids.min() < 0 or ids.max() >= info.row_count):
            raise IdOutOfRange(f"table {update.table!r} has {info.row_count} rows")
        if not np.isfinite(update.values).all():
            raise NonfiniteValues(f"table {update.table!r}: values aren't finite")
        if update.if_version not in (0, VERSION):
            raise VersionMismatch(f"version {VERSION} of table {update.table!r} is live")

    def _do(self, ready: Sequence[tuple[Push, "Future[PushResult]"]]) -> None:
        for push, future in ready:
            assert not future.cancelled(), "an update can't be called back"
            if self.fails_with is not None:
                future.set_exception(self.fails_with)
                continue
            with self._lock:
                self._lsn += 1
                for update in push.updates:
                    apply(push.op, self.rows[update.table], update)
                result = PushResult(self._lsn, (VERSION,) * len(push.updates))
            future.set_result(result)

    def _ended(self, result: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if self.fails_with is None:
            future.set_result(result)
        else:
            future.set_exception(self.fails_with)
        return future


def apply(op: UpdateOp, rows: NDArray[np.float32], update: TableUpdate) -> None:
    """The update, in NumPy."""
    ids: Any = update.asked
    flat = ids.reshape(-1).astype(np.int64)
    values = update.values.reshape(flat.size, rows.shape[1])
    match op:
        case UpdateOp.SCATTER_ADD:
            np.add.at(rows, flat, values)
        case UpdateOp.ASSIGN:
            for row, value in zip(flat, values, strict=True):
                rows[row] = value
        case UpdateOp.APPLY_GRADIENTS:
            np.add.at(rows, flat, -np.float32(LR if update.lr is None else update.lr) * values)


@dataclass(frozen=True)
class Training:
    """The parts that a transport needs, as small_engine.SmallEngine has them."""

    engine: TrainingEngine
    admission: Admission
    offload: Offload


def training(**limits: Any) -> Training:
    """A fresh engine, with the given limits in place of the usual ones."""
    narrowed = replace(LIMITS, **limits)
    return Training(TrainingEngine(narrowed), Admission(narrowed), Offload(THREADS))
