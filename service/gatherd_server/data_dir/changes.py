"""The thread that changes tables and takes snapshots, one after the other, beside the pushes.

A snapshot copies a catalog that must not change meanwhile, so it waits its turn like a change.
`catalog_changes.py` makes each change.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from gatherd.errors import FailedPrecondition, Overloaded, StorageError, Unavailable
from gatherd_server.data_dir.catalog_changes import AskReaders, CatalogChanges
from gatherd_server.snapshots.backups.keeper import Keeper
from gatherd_server.snapshots.schedule import Schedule
from gatherd_server.snapshots.snapshot import (
    delete_snapshot,
    drop_partials,
    drop_snapshots,
    list_snapshots,
    snapshot_age_seconds,
    take_snapshot,
)
from gatherd_server.types import (
    ChangeResult,
    SnapshotList,
    SnapshotResult,
    TableChange,
    WriterLimits,
)
from gatherd_server.writer.writer import RETRY_AFTER_SECONDS, Writer

logger = logging.getLogger("gatherd.writer")

CHANGES_WAITING_MAX = 16

T = TypeVar("T")


class Changes:
    """Makes changes through a writer, one at a time. Safe to use from many threads."""

    def __init__(self, writer: Writer, limits: WriterLimits) -> None:
        self._writer = writer
        self._limits = limits
        self._executor = ThreadPoolExecutor(1, "changes")
        self._lister = ThreadPoolExecutor(1, "snapshots list")
        self._waiting = 0
        self._lock = threading.Lock()
        self._schedule: Schedule | None = None
        self._keeper: Keeper | None = None
        self._tables = CatalogChanges(writer, limits, self._prepare, self._check_unused)
        self.prepare: AskReaders = lambda _table, _version: []
        """Has every reader map a version before it becomes live; one future for each reader."""
        self.check_unused: AskReaders = lambda _table, _version: []
        """Asks every reader whether lookups name a version; FailedPrecondition if so."""

    def begin(self) -> None:
        """Finish what a crash interrupted, and take snapshots when they are due."""
        self._executor.submit(self._tables.sweep)
        self._executor.submit(self._tables.freeze)
        self._executor.submit(self._sweep_snapshots)
        folder, interval = self._limits.snapshot_dir, self._limits.snapshot_seconds
        if folder is not None and interval > 0:
            take = partial(self._scheduled_snapshot, folder)
            self._schedule = Schedule(folder, interval, take)
            self._schedule.begin()
        if folder is not None and self._limits.backup_url:
            limits = self._limits
            self._keeper = Keeper(
                folder, limits.backup_url, limits.backup_keep, self._writer.measures
            )
            self._keeper.begin()

    def change(self, change: TableChange) -> "Future[ChangeResult]":
        """See Engine.change."""
        return self._submit(lambda: self._tables.make(change))

    def snapshot(self, name: str) -> "Future[SnapshotResult]":
        """See Engine.snapshot."""
        folder = self._snapshot_dir()
        return self._submit(lambda: self._taken(folder, name))

    def snapshots(self) -> "Future[SnapshotList]":
        """See Engine.snapshots."""
        folder = self._snapshot_dir()
        # On a thread of its own: a snapshot that is under way may take minutes.
        return self._submit(lambda: list_snapshots(folder), self._lister)

    def delete_snapshot(self, name: str) -> "Future[None]":
        """See Engine.delete_snapshot."""
        folder = self._snapshot_dir()

        def delete() -> None:
            delete_snapshot(self._writer.files, folder, name)
            self._writer.measures.newest_snapshot(snapshot_age_seconds(folder))

        return self._submit(delete)

    def _snapshot_dir(self) -> Path:
        folder = self._limits.snapshot_dir
        if folder is None:
            raise FailedPrecondition(
                "the server has no folder for snapshots; start it with --snapshot-dir"
            )
        return folder

    def _taken(self, folder: Path, name: str) -> SnapshotResult:
        taken = self._writer.measures.snapshot(lambda: take_snapshot(self._writer, folder, name))
        if self._keeper is not None:
            self._keeper.wake()
        return taken

    def _scheduled_snapshot(self, folder: Path) -> "Future[SnapshotResult]":
        def take() -> SnapshotResult:
            taken = self._taken(folder, "")
            drop_snapshots(self._writer.files, folder, self._limits.snapshot_keep)
            return taken

        return self._submit(take)

    def close(self) -> None:
        """Wait for the change that is under way; changes that wait get Unavailable."""
        if self._schedule is not None:
            self._schedule.close()
        if self._keeper is not None:
            self._keeper.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._lister.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, table: str, version: int) -> "list[Future[None]]":
        return self.prepare(table, version)

    def _check_unused(self, table: str, version: int) -> "list[Future[None]]":
        return self.check_unused(table, version)

    def _submit(
        self, work: Callable[[], T], executor: ThreadPoolExecutor | None = None
    ) -> "Future[T]":
        with self._lock:
            if self._waiting >= CHANGES_WAITING_MAX:
                raise Overloaded(
                    f"{self._waiting} changes of tables wait already", None, RETRY_AFTER_SECONDS
                )
            self._waiting += 1

        def run() -> T:
            try:
                return work()
            finally:
                with self._lock:
                    self._waiting -= 1

        try:
            return (executor or self._executor).submit(run)
        except RuntimeError:
            raise Unavailable(
                "the server is stopping", retry_after_seconds=RETRY_AFTER_SECONDS
            ) from None

    def _sweep_snapshots(self) -> None:
        """Delete the remains of a snapshot that a kill cut short."""
        if self._limits.snapshot_dir is not None:
            try:
                drop_partials(self._writer.files, self._limits.snapshot_dir)
                age_seconds = snapshot_age_seconds(self._limits.snapshot_dir)
                self._writer.measures.newest_snapshot(age_seconds)
            except (StorageError, OSError) as error:
                logger.warning("an unfinished snapshot can't be deleted: %s", error)
