"""The writer's counters of commits, checkpoints and snapshots, and the gauges of its progress."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gatherd.errors import GatherdError
from gatherd_server.observe.metrics import names
from gatherd_server.observe.metrics.recorder import Recorder
from gatherd_server.observe.tracing import Spans
from gatherd_server.types import Push, PushResult, SnapshotResult, UpdateOp


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the writer is at one moment."""

    queued_pushes: int
    queued_bytes: int
    log_bytes: int
    log_segments: int
    committed_lsn: int
    applied_lsn: int
    checkpoint_lsn: int


class Measures:
    """The writer's counters. Safe to use from many threads."""

    def __init__(
        self,
        recorder: Recorder | None = None,
        spans: Spans | None = None,
        *,
        is_per_table: bool = True,
    ) -> None:
        """Counts into `recorder`, or into one that nobody reads; traces with `spans`.

        `is_per_table` as in Telemetry.
        """
        self._is_per_table = is_per_table
        self._spans = spans
        self._recorder = recorder or Recorder()
        # The counters start at zero, so that an alert sees the first failure.
        self._recorder.first(names.CHECKPOINT_FAILURES)
        self._recorder.first(names.SNAPSHOTS, "failed")
        self._recorder.first(names.BACKUPS, "failed")
        self._checkpoint_ns = time.time_ns()
        self._snapshot_ns: int | None = None
        self._backup_ns: int | None = None

    def committed(
        self, pushes: Sequence[Push], outcomes: Sequence[PushResult | GatherdError], seconds: float
    ) -> None:
        """Count a batch that took `seconds`."""
        recorder = self._recorder
        recorder.observe(names.COMMIT_DURATION, value=int(1e9 * seconds))
        recorder.observe(names.COMMIT_PUSHES, value=len(pushes))
        for push, outcome in zip(pushes, outcomes, strict=True):
            if not isinstance(outcome, PushResult):
                recorder.add(names.PUSHES, "refused")
                continue
            recorder.add(names.PUSHES, "committed")
            for update in push.updates:
                recorder.add(
                    names.TABLE_UPDATED_ROWS, self._named(update.table), value=update.asked.size
                )
            if outcome.counts:
                self._counted(push, outcome)
        if self._spans is not None:
            lsns = [outcome.lsn for outcome in outcomes if isinstance(outcome, PushResult)]
            told = {"gatherd.pushes": len(pushes), "gatherd.lsn": max(lsns, default=0)}
            traces = [push.traceparent for push in pushes if push.traceparent]
            self._spans.work("commit", int(1e9 * seconds), told, traces)

    def _named(self, table: str) -> str:
        return table if self._is_per_table else ""

    def _counted(self, push: Push, outcome: PushResult) -> None:
        """Count the rows of open tables that a push created or removed."""
        cause = "deleted" if push.op is UpdateOp.DELETE_ROWS else "evicted"
        for update, (created, removed, not_admitted) in zip(
            push.updates, outcome.counts, strict=True
        ):
            table = self._named(update.table)
            self._recorder.add(names.TABLE_CREATED_ROWS, table, value=created)
            self._recorder.add(names.TABLE_REMOVED_ROWS, table, cause, value=removed)
            self._recorder.add(names.TABLE_NOT_ADMITTED_KEYS, table, value=not_admitted)

    def expired(self, table: str, rows: int) -> None:
        """Count rows of an open table that were removed because their TTL was over."""
        self._recorder.add(names.TABLE_REMOVED_ROWS, self._named(table), "expired", value=rows)

    def logged(self, byte_count: int) -> None:
        """Count a frame of the log."""
        self._recorder.add(names.LOG_WRITTEN_BYTES, value=byte_count)

    def shed(self) -> None:
        """Count a push that was refused because the queue is full."""
        self._recorder.add(names.SHED_REQUESTS, "queued_pushes_max")

    def checkpointed(self, lsn: int, seconds: float) -> None:
        """Count a checkpoint up to `lsn` that took `seconds`."""
        if self._spans is not None:
            self._spans.work("checkpoint", int(1e9 * seconds), {"gatherd.lsn": lsn})
        self._checkpoint_ns = time.time_ns()
        self._recorder.observe(names.CHECKPOINT_DURATION, value=int(1e9 * seconds))

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that failed."""
        self._recorder.add(names.CHECKPOINT_FAILURES)

    def newest_snapshot(self, age_seconds: float | None) -> None:
        """Start to report the newest snapshot's age; None when there is no snapshot yet."""
        self._snapshot_ns = 0 if age_seconds is None else time.time_ns() - int(1e9 * age_seconds)

    def snapshot(self, take: Callable[[], SnapshotResult]) -> SnapshotResult:
        """Take a snapshot, and count it."""
        outcome = "failed"
        try:
            taken = take()
            outcome = "taken"
            self._snapshot_ns = time.time_ns()
            return taken
        finally:
            self._recorder.add(names.SNAPSHOTS, outcome)

    def newest_backup(self, taken: float | None) -> None:
        """Start to report when the newest backup was taken, in Unix time; None: there is none."""
        self._backup_ns = int(1e9 * taken) if taken is not None else 0

    def backed_up(self) -> None:
        """Count a snapshot that was copied to the backups."""
        self._recorder.add(names.BACKUPS, "copied")

    def backup_failed(self) -> None:
        """Count a round of copying in which something failed."""
        self._recorder.add(names.BACKUPS, "failed")

    def tell(self, progress: Progress) -> None:
        """Set the gauges."""
        gauges = [
            (names.QUEUED_PUSHES, progress.queued_pushes),
            (names.QUEUED_BYTES, progress.queued_bytes),
            (names.LOG_BYTES, progress.log_bytes),
            (names.LOG_SEGMENTS, progress.log_segments),
            (names.COMMITTED_LSN, progress.committed_lsn),
            (names.APPLIED_LSN, progress.applied_lsn),
            (names.CHECKPOINT_LSN, progress.checkpoint_lsn),
            (names.CHECKPOINT_TIMESTAMP, self._checkpoint_ns),
        ]
        if self._snapshot_ns is not None:
            gauges.append((names.SNAPSHOT_TIMESTAMP, self._snapshot_ns))
        if self._backup_ns is not None:
            gauges.append((names.BACKUP_TIMESTAMP, self._backup_ns))
        for metric, value in gauges:
            self._recorder.set(metric, value=value)
