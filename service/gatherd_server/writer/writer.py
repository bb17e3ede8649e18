"""The writer: the one owner of a data dir's updates.

Only one thread, the committer, changes anything. It takes all waiting pushes as one batch, computes
it, appends it to the log, syncs, stores it into the mapped rows and only then answers. While it
syncs, the next batch gathers. It also runs jobs between two batches, for work that must not overlap
one: a publish, or the instant of a snapshot.

A disk failure stops the writer: updates are refused, lookups go on, the log stays as it is, and the
next start finds out what was durable.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from gatherd.errors import (
    DiskFull,
    GatherdError,
    Overloaded,
    StorageError,
    TooManyFiles,
    Unavailable,
    UpdatesStopped,
)
from gatherd.store.catalog import Catalog
from gatherd.store.catalog_text import compact_catalog
from gatherd_server.errors import unexpected
from gatherd_server.storage.catalog_writer import discard_prepared, prepare_catalog, put_prepared
from gatherd_server.storage.control_writer import ControlWriter
from gatherd_server.storage.files import Files
from gatherd_server.storage.records import pack_json
from gatherd_server.storage.trained_version import TrainedVersion
from gatherd_server.storage.wal_format import WAL_NAME, FrameKind
from gatherd_server.storage.wal_writer import LogWriter
from gatherd_server.types import Push, PushResult, WriterLimits
from gatherd_server.writer.checkpoint import encode_checkpoint, with_sums, write_checkpoint
from gatherd_server.writer.commit import Submitted, compute, store
from gatherd_server.writer.expiring import Expiring
from gatherd_server.writer.growing import Growing
from gatherd_server.writer.measures import Measures, Progress
from gatherd_server.writer.queue import PushQueue, Waiting
from gatherd_server.writer.recovery import recover
from gatherd_server.writer.versions import Summed, Versions, held_lsns

logger = logging.getLogger("gatherd.writer")

RETRY_AFTER_SECONDS = 0.2
# How often the housekeeper checks whether a checkpoint is due.
HOUSEKEEPING_SECONDS = 0.25
# A full disk is reported for this long after it refused an update, unless one was done since.
FULL_SECONDS = 60.0
# The next segment of the log is made ahead this fast, so that pushes keep the disk.
SPARE_BYTES = 4 << 20
# A checkpoint reads this much to sum it up; the next one goes on. It takes 0.1 s from memory.
SUMMED_BYTES_MAX = 128 << 20

# Errors after which nothing was changed: steps that need space or a descriptor are done first.
NO_ROOM = (DiskFull, TooManyFiles)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Collected:
    """The state that a checkpoint records, taken between two batches."""

    lsn: int
    encoded: bytes
    dirty: list[TrainedVersion]
    summed: Summed


class Writer:
    """Commits pushes to a data dir whose lock this process holds. Safe to use from many threads."""

    def __init__(
        self,
        data_dir: Path,
        files: Files,
        limits: WriterLimits,
        *,
        is_restart: bool = False,
        measures: Measures | None = None,
    ) -> None:
        """Recover the data dir, and begin to commit.

        `is_restart` says that another writer of this data dir ended while the machine stayed up
        and readers went on. BadFile when the data dir is damaged.
        """
        self.measures = measures or Measures()
        """Its counters."""
        self._data_dir = data_dir
        self._files = files
        self._limits = limits
        self._control = ControlWriter(files, data_dir)
        recovered = recover(files, data_dir, self._control, is_restart=is_restart)
        self._versions = recovered.versions
        self._window = recovered.window
        self._checkpoint_lsn = self._known_from_lsn = recovered.checkpoint_lsn
        wal = data_dir / WAL_NAME
        self._log = LogWriter(
            files, wal, recovered.lsn + 1, limits.segment_bytes, syncs=limits.syncs
        )
        self._log.held = held_lsns(self._versions.catalog)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._queue = PushQueue(limits, self._wake)
        self._jobs: deque[Callable[[], None]] = deque()
        self._pins: dict[object, int] = {}
        self._stopped: UpdatesStopped | None = None
        self._closing = False
        self._steps = 0
        self._is_busy = False
        self._measured_step: int | None = None
        self._full_at: float | None = None
        self._log_size = (0, 0)
        self._checkpointing = threading.Lock()
        self._is_summed_up = False
        self._no_spare_until = 0.0
        self._house_closes = threading.Event()
        self._growing = Growing(self)
        self._expiring = Expiring(self, self._committed)
        if self._control.has_failed:
            # The disk may lack what a failed sync left in memory, whatever the kernel says of it.
            # On a full disk the log, which recovery wrote anew, stays instead.
            with suppress(DiskFull):
                self._checkpoint(lambda collect: collect())
        self._control.open(is_unsynced=not limits.syncs)
        self._committer = threading.Thread(target=self._run, name="committer", daemon=True)
        self._housekeeper = threading.Thread(
            target=self._keep_house, name="housekeeper", daemon=True
        )
        self._committer.start()
        self._housekeeper.start()

    @property
    def data_dir(self) -> Path:
        """The data dir that it owns."""
        return self._data_dir

    @property
    def files(self) -> Files:
        """The fault seam through which it writes."""
        return self._files

    @property
    def applied_lsn(self) -> int:
        """The last LSN that every lookup sees."""
        return self._control.applied_lsn

    @property
    def stopped(self) -> UpdatesStopped | None:
        """Why no more updates are taken, or None."""
        return self._stopped

    @property
    def step(self) -> int | None:
        """The number of the committer's current step, None while it waits for work."""
        return self._steps if self._is_busy else None

    @property
    def is_full(self) -> bool:
        """Whether an update found no room a short time ago, and none succeeded since."""
        full_at = self._full_at
        return full_at is not None and time.monotonic() - full_at < FULL_SECONDS

    def measure(self) -> None:
        """Set the gauges of its progress. On any thread, as often as they are read."""
        with self._lock:
            queued, queued_bytes = len(self._queue), self._queue.byte_count
        step = self.step
        if step is None or step != self._measured_step:
            # A long step may hang in the disk, and asking for sizes would hang there too.
            self._log_size = self._log.size()
        self._measured_step = step
        control = self._control
        self.measures.tell(
            Progress(
                queued,
                queued_bytes,
                *self._log_size,
                control.committed_lsn,
                control.applied_lsn,
                self._checkpoint_lsn,
            )
        )

    def submit(
        self, push: Push, digest: bytes, future: "Future[PushResult] | None" = None
    ) -> "Future[PushResult]":
        """Commit a push; the future ends when it is durable and visible, or refused.

        `future` is the caller's own, if given, and the caller may end it before. A push that was
        done already gets its first answer; one under way is joined. Raises Overloaded at once when
        too many wait, UpdatesStopped when no updates are taken.
        """
        if future is None:
            future = Future()
        request_id = push.request_id
        byte_count = sum(update.values.nbytes + 8 * update.asked.size for update in push.updates)
        with self._lock:
            self._check_open()
            done = self._window.find(request_id, digest)
            if done is not None:
                future.set_result(done)
                return future
            if not self._queue.join(request_id, digest, future):
                self._check_room(byte_count)
                self._queue.add(push, digest, byte_count, future)
        return future

    def between(self, job: Callable[[], T]) -> T:
        """Run `job` on the committer, between two batches, and return its result."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - passed on to the caller
                future.set_exception(error)

        with self._lock:
            self._check_open()
            self._jobs.append(run)
            self._wake.notify()
        return future.result()

    def pin_log(self, owner: object) -> int:
        """Keep the log above the applied LSN until `unpin_log`; returns that LSN."""

        def pin() -> int:
            lsn = self._control.applied_lsn
            with self._lock:
                self._pins[owner] = lsn
            return lsn

        return self.between(pin)

    def unpin_log(self, owner: object) -> None:
        """Release the log for `owner`."""
        with self._lock:
            self._pins.pop(owner, None)

    @contextmanager
    def holding(self, uid: str) -> Iterator[None]:
        """Refuse pushes to a table in the block, with Unavailable: they are to be sent again."""
        held = self._versions.held
        self.between(lambda: held.add(uid))
        try:
            yield
        finally:
            held.discard(uid)

    def last_push(self, uid: str) -> int:
        """An LSN above which a table took no push; its last push's, unless that is long ago.

        What isn't in the log at the start isn't known any more.
        """
        return self._versions.pushed_lsn(uid) or self._known_from_lsn

    def versions(self) -> Versions:
        """The catalog's versions; only jobs given to `between` may use them."""
        return self._versions

    def change_catalog(
        self,
        catalog: Catalog,
        adopted: Mapping[tuple[str, int], TrainedVersion] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> int:
        """Log a new catalog and show it to readers; returns its LSN. Only in `between`'s jobs.

        Durable on return. After DiskFull nothing has changed: steps that need space come first.
        `adopted` are new versions, by uid and number, that are mapped already. `before` is called
        when nothing can be refused any more, before readers see the catalog.
        """
        catalog = replace(catalog, generation=self._versions.catalog.generation + 1)
        lsn = self._log.next_lsn
        prepare_catalog(self._files, self._data_dir, catalog)
        try:
            record = pack_json({"catalog": compact_catalog(catalog)})
            self._append(FrameKind.CATALOG, lsn, lsn, record)
        except NO_ROOM:
            discard_prepared(self._files, self._data_dir)
            raise
        with self._stopping():
            before()
            put_prepared(self._files, self._data_dir)
        self._control.set_generation(catalog.generation)
        self._versions.adopt(adopted or {})
        self._versions.switch(catalog)
        self._log.held = held_lsns(catalog)
        self._control.applied_lsn = lsn
        return lsn

    def encoded_window(self) -> bytes:
        """The checkpoint of this moment, encoded, without sums. Only in `between`'s jobs."""
        with self._lock:
            return encode_checkpoint(
                self._control.applied_lsn, self._window, self._versions.policies
            )

    def checkpoint(self) -> int:
        """Make every table durable in its present state, and delete the log up to the LSN returned.

        Pushes go on meanwhile. DiskFull when the checkpoint itself finds no room: the log stays.
        """
        with self._checkpointing:
            return self._checkpoint(self.between)

    def _checkpoint(self, run: Callable[[Callable[[], _Collected]], _Collected]) -> int:
        def collect() -> _Collected:
            dirty = self._versions.take_dirty()
            return _Collected(
                self._control.applied_lsn, self.encoded_window(), dirty, self._versions.summed()
            )

        begin = time.monotonic()
        collected = run(collect)
        with self._stopping():
            for mapped in collected.dirty:
                mapped.sync()
        encoded = with_sums(collected.encoded, collected.summed.sum_up(SUMMED_BYTES_MAX))
        self._is_summed_up = collected.summed.is_whole
        # The pages are durable: if the disk is full now, only the log is kept longer.
        with self._stopping(but=(DiskFull,)):
            write_checkpoint(self._files, self._data_dir, encoded)
        self._checkpoint_lsn = collected.lsn
        with self._lock:
            keep_from = min([collected.lsn, *self._pins.values()])
        self._log.drop_until(keep_from)
        self.measures.checkpointed(collected.lsn, time.monotonic() - begin)
        return collected.lsn

    def prepare_segment(self, byte_count: int) -> None:
        """Go on making the log's next segment ahead, by up to `byte_count` bytes.

        DiskFull when there is no room for it; nothing has changed. Not from two threads at once.
        """
        self._log.prepare(byte_count)

    def close(self) -> None:
        """Commit the waiting pushes, make everything durable in the tables, and release them."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake.notify_all()
        self._house_closes.set()
        self._housekeeper.join()
        self._committer.join()
        self._growing.close()
        is_clean = False
        if self._stopped is None:
            with suppress(StorageError), self._checkpointing:
                self._checkpoint(lambda collect: collect())
                self._log.drop_all()
                is_clean = True
        self._log.close()
        self._versions.close()
        self._control.close(is_clean=is_clean)

    def _check_open(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self._closing:
            raise Unavailable("the server is stopping", retry_after_seconds=RETRY_AFTER_SECONDS)

    def _check_room(self, byte_count: int) -> None:
        if not self._queue.has_room(byte_count):
            self.measures.shed()
            raise Overloaded(
                f"{len(self._queue)} updates wait to be written, as many as the server takes",
                {"limit": "queued_pushes_max"},
                RETRY_AFTER_SECONDS,
            )

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._queue or self._jobs or self._closing):
                    self._wake.wait()
                self._queue.gather(lambda: bool(self._jobs) or self._closing)
                job = self._jobs.popleft() if self._jobs else None
                batch = [] if job else self._queue.take_batch()
                if job is None and not batch:
                    return
                self._steps += 1
                self._is_busy = True
            if job is not None:
                job()
            else:
                self._commit(batch)
            self._is_busy = False

    def _commit(self, batch: list[Waiting]) -> None:
        outcomes: list[PushResult | GatherdError] = []
        begin = time.monotonic()
        while len(outcomes) < len(batch):
            rest = [waiting.submitted for waiting in batch[len(outcomes) :]]
            try:
                outcomes += self._committed(rest)
            except GatherdError as error:
                outcomes += [error] * len(rest)
            except Exception as error:  # noqa: BLE001 - logged, and answered to each caller
                outcomes += [unexpected(error)] * len(rest)
        with self._lock:
            seconds = time.monotonic() - begin
            self._queue.settle(batch, seconds)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, PushResult):
                    submitted = waiting.submitted
                    self._window.add(submitted.push.request_id, submitted.digest, outcome)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            for future in waiting.futures:
                with suppress(InvalidStateError):  # its caller has ended it
                    if isinstance(outcome, PushResult):
                        future.set_result(outcome)
                    else:
                        future.set_exception(outcome)
        # After the answers, so that nobody waits for the counting.
        pushes = [waiting.submitted.push for waiting in batch]
        self.measures.committed(pushes, outcomes, seconds)

    def _committed(self, batch: list[Submitted]) -> list[PushResult | GatherdError]:
        """Compute, log, sync and store a batch: the one order in which nothing gets lost.

        The outcomes may be those of its first pushes only: the others need another commit.
        """
        if self._stopped is not None:
            raise self._stopped
        self._growing.make_room([submitted.push for submitted in batch])
        commit = compute(batch, self._versions, self._log.next_lsn)
        if commit.is_empty:
            return commit.outcomes
        try:
            self._append(FrameKind.PUSHES, commit.first_lsn, commit.last_lsn, commit.record)
        except NO_ROOM as full:
            return [full if isinstance(one, PushResult) else one for one in commit.outcomes]
        try:
            store(commit, self._versions)
        except BaseException as error:
            raise self._stop(error) from error
        self._control.applied_lsn = commit.last_lsn
        if commit.opened:
            with self._stopping():
                self._growing.look([(live.uid, live.version) for live, _ in commit.images])
        return commit.outcomes

    def _append(
        self, kind: FrameKind, first_lsn: int, last_lsn: int, payload: list[bytes | memoryview]
    ) -> None:
        try:
            self._log.append(kind, first_lsn, last_lsn, payload)
        except NO_ROOM as full:
            if isinstance(full, DiskFull):
                self._full_at = time.monotonic()
            raise
        except BaseException as error:
            raise self._stop(error) from error
        self._full_at = None
        self.measures.logged(sum(map(len, payload)))
        self._control.committed_lsn = last_lsn

    @contextmanager
    def _stopping(self, but: tuple[type[GatherdError], ...] = ()) -> Iterator[None]:
        """Take no more updates if the block fails: the files may have half of its work."""
        try:
            yield
        except but:
            raise
        except BaseException as error:
            raise self._stop(error) from error

    def _stop(self, error: BaseException) -> UpdatesStopped:
        """Take no more updates after `error`; the answer to them."""
        # A disk's error says everything in its message.
        unforeseen = None if isinstance(error, StorageError) else error
        logger.critical("updates are stopped: %s", error, exc_info=unforeseen)
        self._control.set_failed()
        self._stopped = UpdatesStopped(
            f"updates are stopped until the server is restarted: {error}; lookups go on"
        )
        return self._stopped

    def _prepare_in_time(self) -> None:
        """Go on making the log's next segment, unless there was no room for it lately."""
        is_over = time.monotonic() >= self._no_spare_until
        if is_over and self._stopped is None and self._log.wants_spare:
            try:
                self.prepare_segment(SPARE_BYTES)
            except StorageError as error:
                logger.warning("the log's next segment isn't made ahead: %s", error)
                self._no_spare_until = time.monotonic() + FULL_SECONDS

    def _expire(self) -> None:
        """Remove rows whose TTL is over, unless no update is taken."""
        if self._stopped is None:
            with suppress(
                GatherdError
            ):  # it was logged where it happened, or the writer is closing
                self._expiring.step()

    def _keep_house(self) -> None:
        """Checkpoint when it is due, or the log has grown; prepare the log's next segment."""
        limits = self._limits
        last = time.monotonic()
        while not self._house_closes.wait(HOUSEKEEPING_SECONDS):
            self._prepare_in_time()
            self._expire()
            is_new = self._control.applied_lsn != self._checkpoint_lsn
            if self._stopped is not None or not (is_new or not self._is_summed_up):
                continue
            is_due = time.monotonic() - last >= limits.checkpoint_seconds
            if is_due or self._log.byte_count() >= limits.checkpoint_bytes:
                try:
                    self.checkpoint()
                except GatherdError as error:
                    self.measures.checkpoint_failed()
                    logger.error("the checkpoint failed: %s", error)  # noqa: TRY400 - the message says it all
                last = time.monotonic()
