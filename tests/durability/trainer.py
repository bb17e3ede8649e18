"""Does things to a data dir through a writer, and keeps what was done and what was acknowledged.

`View` is what is known at one moment, as at a cut; `judge` holds a folder against it.
"""

import mmap
import os
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from durability.oracle import Did, State, Version, check, first_slots, states_after
from gatherd.errors import GatherdError, TableNotFound
from gatherd.store.catalog import STAGING_NAME
from gatherd.store.dtypes import DType
from gatherd.store.keys import StringKeys
from gatherd.store.query import ByKey
from gatherd_server.storage.files import Files
from gatherd_server.storage.slots import Optimizer
from gatherd_server.storage.table_writer import Block, TableFiles, stage_table
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    CreateTable,
    DeleteTable,
    OptimizerSpec,
    Publish,
    Push,
    PushResult,
    RequestId,
    SessionSequence,
    TableChange,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.changes import Changes
from gatherd_server.writer.publish import own_data_dir, sweep_staging
from gatherd_server.writer.snapshot import restore, take_snapshot, verify_snapshot
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer

WAIT_SECONDS = 20.0
LIMITS = WriterLimits(segment_bytes=6_000, checkpoint_seconds=3600.0, keep_versions=2)
KEYS = tuple(f"key-{i}".encode() for i in range(30))
OPTIMIZERS: dict[str, tuple[str, dict[str, float]]] = {
    "adam": ("adam", {}),
    "momentum": ("sgd", {"momentum": 0.9}),
    "sgd": ("sgd", {}),
    "rowwise": ("rowwise-adagrad", {"initial_accumulator": 0.5}),
    "ftrl": ("ftrl", {}),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot, or what was restored of one, that was acknowledged, by its path in the root."""

    path: str
    lsn: int


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What is known at one moment: of `history`, the first `acknowledged` were acknowledged."""

    begin: State
    history: tuple[Did, ...]
    acknowledged: int
    is_made: bool
    snapshots: tuple[Snapshot, ...]
    restored: tuple[Snapshot, ...]
    limits: WriterLimits

    def states(self) -> list[State]:
        return states_after(self.begin, self.history, self.limits.keep_versions)


class Quick(Files):
    """Syncs nothing, which nobody notices as long as the machine runs."""

    def sync(self, fd: int, path: Path) -> None:
        pass

    def sync_data(self, fd: int, path: Path) -> None:
        pass

    def sync_dir(self, path: Path, of: Path | None = None) -> None:
        pass

    def msync(self, mapping: mmap.mmap, path: Path) -> None:
        pass


class Trainer:
    """Works on `root`/data, with snapshots in `root`/snaps."""

    def __init__(
        self, root: Path, files: Files, seed: int = 0, limits: WriterLimits = LIMITS
    ) -> None:
        self.root = root
        self.data = root / "data"
        self.files = files
        self.limits = limits
        self.history: list[Did] = []
        self.acknowledged = 0
        self.is_made = False
        self.snapshots: list[Snapshot] = []
        self.restored: list[Snapshot] = []
        self.coming: Did | None = None
        self.begin: State = {}
        self.random = random.Random(seed)
        self._rng = np.random.default_rng(seed)
        self._sequence = 0
        self._session = self._rng.bytes(16)
        self._writer: Writer | None = None
        self._changes: Changes | None = None

    @property
    def writer(self) -> Writer:
        assert self._writer is not None
        return self._writer

    @property
    def changes(self) -> Changes:
        assert self._changes is not None
        return self._changes

    @property
    def state(self) -> State:
        """What the tables hold now."""
        return states_after(self.begin, self.history, self.limits.keep_versions)[-1]

    def view(self) -> View:
        history = (*self.history, *([self.coming] if self.coming else []))
        return View(
            self.begin,
            history,
            self.acknowledged,
            self.is_made,
            tuple(self.snapshots),
            tuple(self.restored),
            self.limits,
        )

    # ------------------------------------------------------------------ life of a writer

    def make(self) -> None:
        """Make the data dir."""
        with own_data_dir(self.data, create=True, files=self.files):
            pass
        self.is_made = True

    def start(self, *, is_restart: bool = False) -> int:
        """Recover; the last LSN."""
        sweep_staging(self.files, self.data)
        self._writer = Writer(self.data, self.files, self.limits, is_restart=is_restart)
        self._changes = Changes(self._writer, self.limits)
        self._changes.begin()
        # Behind what `begin` does, on the one thread for changes.
        with suppress(TableNotFound):
            self._changes.change(DeleteTable("none")).result(WAIT_SECONDS)
        return self._writer.applied_lsn

    def stop(self) -> None:
        self.changes.close()
        self.writer.close()

    def abandon(self) -> None:
        """Let its threads end after everything else failed."""
        with suppress(GatherdError):
            if self._changes is not None:
                self._changes.close()
        with suppress(GatherdError):
            if self._writer is not None:
                self._writer.close()

    # ---------------------------------------------------------------------------- pushes

    def drawn(
        self, op: UpdateOp, table_names: Sequence[str], count: int = 5, *, keyless: bool = False
    ) -> Push:
        """A push of some rows of the tables."""
        updates = []
        for name in table_names:
            table = self.state[name]
            version = table.versions[table.live]
            ids = self._rng.integers(0, len(version.weights), count)
            values = self._rng.normal(size=(count, version.dim)).astype(np.float32)
            if table.keys is not None and self.random.random() < 0.5:
                some = [table.keys[i] for i in ids.tolist()]
                updates.append(TableUpdate(name, ByKey(StringKeys.of(some)), values))
            else:
                updates.append(TableUpdate(name, ids, values))
        request_id: RequestId = None
        match 0 if keyless else self.random.randrange(4):
            case 1:
                request_id = f"key-{self._rng.integers(1 << 40)}"
            case 2 | 3:
                self._sequence += 1
                request_id = SessionSequence(self._session, self._sequence)
        return Push(op, tuple(updates), request_id)

    def push(self, *pushes: Push) -> None:
        """Commit the pushes as one batch."""
        dids = [Did(push, push_digest(push)) for push in pushes]
        self.history += dids
        submit = self.writer.submit

        def submitted() -> list[Future[PushResult]]:
            return [submit(push, did.digest) for push, did in zip(pushes, dids, strict=True)]

        # While the committer does this it takes nothing.
        futures = self.writer.between(submitted)
        for did, future in zip(dids, futures, strict=True):
            did.result = future.result(WAIT_SECONDS)
            self.acknowledged += 1
            assert did.result.lsn == self.acknowledged

    def push_some(self, count: int = 1) -> None:
        """A batch of drawn pushes of all ops."""
        names = self.trainable()
        if not names:
            return
        pushes = []
        for _ in range(count):
            some = self.random.sample(names, min(len(names), self.random.choice((1, 1, 2))))
            op = self.random.choice(list(UpdateOp))
            pushes.append(self.drawn(op, sorted(some), self.random.randint(1, 12)))
        self.push(*pushes)

    def trainable(self) -> list[str]:
        return sorted(
            name for name, table in self.state.items() if table.versions[table.live].optimizer
        )

    # --------------------------------------------------------------------------- changes

    def change(self, change: TableChange, did: Did | None = None) -> ChangeResult:
        did = did or Did(change)
        self.coming = did
        result = self.changes.change(change).result(WAIT_SECONDS)
        self.coming = None
        self.history.append(did)
        self.acknowledged += 1
        assert result.lsn == self.acknowledged
        did.result = PushResult(result.lsn, (result.version,))
        return result

    def create(self, name: str, rows: int, dim: int, dtype: DType, optimizer: str | None) -> None:
        """A table of zeros."""
        made = None if optimizer is None else Optimizer.parse(*OPTIMIZERS[optimizer])
        weights = np.zeros((rows, dim * dtype.itemsize), np.uint8)
        slots = {} if made is None else first_slots(made, rows, dim)
        spec = None if optimizer is None else OptimizerSpec(*OPTIMIZERS[optimizer])
        change = CreateTable(name, rows, dim, dtype, "zeros", None, spec)
        self.change(change, Did(change, rows=Version(dtype, dim, made, weights, slots)))

    def stage(
        self, name: str, rows: int, dim: int, optimizer: str | None, *, keyed: bool
    ) -> tuple[str, Version]:
        """The files of a version, where nobody looks."""
        made = None if optimizer is None else Optimizer.parse(*OPTIMIZERS[optimizer])
        array = self._rng.normal(size=(rows, dim)).astype(np.float32)
        block = Block(array, StringKeys.of(list(KEYS[:rows])) if keyed else None)
        from gatherd.store.key_index import KeyKind

        table = TableFiles(
            name,
            DType.FLOAT32,
            rows,
            dim,
            [block],
            {"made": "by a test"},
            default_vector=np.ones(dim, np.float32) if keyed else None,
            key_kind=KeyKind.BYTES if keyed else None,
            optimizer=made,
        )
        staged = stage_table(self.files, self.data / STAGING_NAME, table)
        weights = array.view(np.uint8).reshape(rows, -1)
        slots = {} if made is None else first_slots(made, rows, dim)
        return staged.folder.name, Version(DType.FLOAT32, dim, made, weights, slots)

    def add(self, name: str, rows: int, dim: int, optimizer: str | None, *, keyed: bool) -> None:
        """An imported table."""
        staged, version = self.stage(name, rows, dim, optimizer, keyed=keyed)
        change = AddStaged(name, staged)
        self.change(change, Did(change, rows=version, keys=KEYS[:rows] if keyed else None))

    def publish_new(self, name: str, optimizer: str | None) -> None:
        """Another version of a table, imported."""
        table = self.state[name]
        live = table.versions[table.live]
        keyed = table.keys is not None
        staged, version = self.stage(name, len(live.weights), live.dim, optimizer, keyed=keyed)
        change = Publish(name, staged)
        self.change(change, Did(change, rows=version))

    def snapshot(self, name: str) -> None:
        result = take_snapshot(self.writer, self.root / "snaps", name)
        self.snapshots.append(Snapshot(f"snaps/{name}", result.lsn))

    def restore(self, name: str) -> None:
        """Make a data dir of a snapshot, beside the first."""
        lsn = restore(self.files, self.root / "snaps" / name, self.root / f"again-{name}")
        self.restored.append(Snapshot(f"again-{name}", lsn))

    def goes_on_from(self, view: View, lsn: int) -> None:
        """What was found to be there is what was done."""
        self.begin, self.history = view.begin, list(view.history[:lsn])
        for number, did in enumerate(self.history, 1):
            if did.result is None:
                versions: tuple[int, ...] = ()
                if isinstance(did.what, Push):
                    state = states_after(self.begin, self.history[: number - 1], 2)[-1]
                    versions = tuple(state[update.table].live for update in did.what.updates)
                did.result = PushResult(number, versions)
        self.acknowledged = lsn
        self.is_made = True
        self.snapshots, self.restored = list(view.snapshots), list(view.restored)


def judge(root: Path, view: View, *, files: Files | None = None, is_restart: bool = False) -> None:
    """Recover what the disk had and hold it against what is known. AssertionError if it isn't so.

    Anything else that is raised is a failure too: recovery may refuse nothing of this.
    """
    files = files or Quick()
    states = view.states()
    trainer = Trainer(root, files, seed=999, limits=view.limits)
    _judge_copies(root, view, states)
    if not view.is_made:
        trainer.make()
    try:
        lsn = trainer.start(is_restart=is_restart)
        assert view.acknowledged <= lsn <= len(view.history), (
            f"recovered up to LSN {lsn}; {view.acknowledged} of {len(view.history)} acknowledged"
        )
        trainer.goes_on_from(view, lsn)
        check(trainer.data, states[lsn], is_settled=True)
        _retry(trainer, view.history[:lsn])
        check(trainer.data, states[lsn], is_settled=True)
        trainer.push_some(2)
        final = trainer.state
        check(trainer.data, final, is_settled=True)
        trainer.stop()
        again = Trainer(root, files, limits=view.limits)
        assert again.start() == trainer.acknowledged
        check(again.data, final, is_settled=True)
        again.stop()
    finally:
        trainer.abandon()


def _retry(trainer: Trainer, history: Sequence[Did]) -> None:
    """Every push that was done gets its first answer."""
    for did in history:
        if isinstance(did.what, Push) and did.what.request_id is not None:
            answer = trainer.writer.submit(did.what, did.digest).result(WAIT_SECONDS)
            assert answer == did.result, f"the retry got {answer}, not {did.result}"


def _judge_copies(root: Path, view: View, states: Sequence[State]) -> None:
    """What was acknowledged of snapshots, and of what was restored, is whole."""
    for snapshot in view.snapshots:
        for _ in verify_snapshot(root / snapshot.path):
            pass
        check(root / snapshot.path, states[snapshot.lsn], is_settled=False)
    for restored in view.restored:
        other = Trainer(root, Quick(), limits=view.limits)
        other.data = root / restored.path
        try:
            assert other.start() == restored.lsn
            check(other.data, states[restored.lsn], is_settled=True)
            other.stop()
        finally:
            other.abandon()
    # One that wasn't acknowledged is whole or isn't one.
    known = {restored.path for restored in view.restored}
    for folder in root.glob("again-*"):
        if folder.name not in known and (folder / "catalog.json").exists():
            lsn = next(s.lsn for s in view.snapshots if s.path.endswith(folder.name[6:]))
            check(folder, states[lsn], is_settled=False)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Names and salts are drawn from `seed`, so that the same calls come in the same order."""
    rng = random.Random(seed)
    with (
        mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=rng.getrandbits(128), version=4)),  # noqa: PT008 - anew each time
        mock.patch.object(os, "urandom", rng.randbytes),
    ):
        yield


def once(action: Callable[[], None], method: str, times: int = 1) -> Callable[[str, Path], None]:
    """A watch that does `action` at the first `times` calls of `method`, and not inside itself."""
    left = [times]

    def watch(called: str, path: Path) -> None:
        if called == method and left[0]:
            left[0] -= 1
            action()

    return watch
