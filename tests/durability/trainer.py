"""Does things to a data dir through a writer, and keeps what was done and what was acknowledged.

`View` is what is known at one moment, as at a cut; judge.py holds a folder against it.
"""

import os
import random
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

from durability.oracle import Did, Sent, State, Version, after, first_slots, meant, states_after
from gatherd.errors import DiskFull, GatherdError, TableNotFound
from gatherd.store.catalog import STAGING_NAME
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import StringKeys
from gatherd.store.mapping import MappedFile
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import Asked, ByKey
from gatherd_server.access.callers import Grant, Scope
from gatherd_server.access.token_file import add_token, revoke_token
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir, sweep_staging
from gatherd_server.snapshots.restoring import restore
from gatherd_server.snapshots.snapshot import drop_snapshots, take_snapshot
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import Block, TableFiles, stage_table
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import (
    VALUE_OPS,
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
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer
from support.open_model import OpenModel

WAIT_SECONDS = 120.0
LIMITS = WriterLimits(segment_bytes=6_000, checkpoint_seconds=3600.0, keep_versions=2)
OPEN_KEYS = 40
# So many that the index never grows, which would take an LSN that no history has.
OPEN_ROWS_MAX = 100
KEYS = tuple(f"key-{i}".encode() for i in range(45))
GRANT = Grant("anybody", frozenset((Scope.READ,)), ("*",), None, None)
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
    """What is known at one moment: of `history`, the first `acknowledged` were acknowledged.

    `is_stopped` says that no writer is at work, and the last one stopped in good order.
    `is_damaged` says that a key index is damaged, and not yet mended.
    """

    begin: State
    history: tuple[Did, ...]
    acknowledged: int
    is_made: bool
    snapshots: tuple[Snapshot, ...]
    restored: tuple[Snapshot, ...]
    limits: WriterLimits
    is_stopped: bool
    is_damaged: bool
    tokens: tuple[frozenset[str], ...]
    """Whose tokens the file of tokens may have: as acknowledged, and as it will be."""
    uploads: dict[str, Sent]

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

    def msync(self, mapping: MappedFile, path: Path) -> None:
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
        self.is_stopped = True
        self.is_damaged = False
        self.snapshots: list[Snapshot] = []
        self.restored: list[Snapshot] = []
        self.coming: Did | None = None
        self.uploads: dict[str, Sent] = {}
        self._tokens = [frozenset[str]()]
        self.begin: State = {}
        self.random = random.Random(seed)
        self._rng = np.random.default_rng(seed)
        self._known: tuple[list[Did], State] = ([], {})
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
        done, state = self._known
        if done != self.history[: len(done)] or not done:
            done, state = [], self.begin
        for did in self.history[len(done) :]:
            state = after(state, did, self.limits.keep_versions)
        self._known = list(self.history), state
        return state

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
            self.is_stopped,
            self.is_damaged,
            tuple(self._tokens),
            dict(self.uploads),
        )

    # ------------------------------------------------------------------ life of a writer

    def make(self) -> None:
        """Make the data dir."""
        with own_data_dir(self.data, create=True, files=self.files):
            pass
        self.is_made = True

    def start(self, *, is_restart: bool = False) -> int:
        """Recover; the last LSN."""
        self.is_stopped = False
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
        self.is_stopped = True

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
            table = self.state[meant(self.state, name)]
            version = table.versions[table.live]
            if version.opened is not None:
                called = min(table.aliases) if table.aliases else name
                updates.append(self._open_update(called, op, version, count))
                continue
            ids = self._rng.integers(0, len(version.weights), count)
            values = self._rng.normal(size=(count, version.dim)).astype(np.float32)
            if table.keys is not None and self.random.random() < 0.5:
                asked: Asked = ByKey(StringKeys.of([table.keys[i] for i in ids.tolist()]))
            else:
                asked = ids
            called = min(table.aliases) if table.aliases else name
            updates.append(TableUpdate(called, asked, values))
        request_id: RequestId = None
        match 0 if keyless else self.random.randrange(4):
            case 1:
                request_id = f"key-{self._rng.integers(1 << 40)}"
            case 2 | 3:
                self._sequence += 1
                request_id = SessionSequence(self._session, self._sequence)
        return Push(op, tuple(updates), request_id)

    def _open_update(self, name: str, op: UpdateOp, version: Version, count: int) -> TableUpdate:
        """An update of an open table, which has room for every key that is drawn."""
        numbers = self._rng.integers(0, OPEN_KEYS, count).tolist()
        keys = StringKeys.of([b"key-%d" % number * (number % 5 + 1) for number in numbers])
        is_deletion = op is UpdateOp.DELETE_ROWS
        values = self._rng.normal(size=(count, 0 if is_deletion else version.dim))
        return TableUpdate(name, ByKey(keys), values.astype(np.float32), creates=not is_deletion)

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

    def push_on_full_disk(self, push: Push) -> None:
        """A push that is refused, which the disk may have as long as nobody was told."""
        did = Did(push, push_digest(push))
        self.history.append(did)
        with suppress(DiskFull):
            did.result = self.writer.submit(push, did.digest).result(WAIT_SECONDS)
        assert did.result is None, "there was room"
        self.history.remove(did)

    def push_some(self, count: int = 1) -> None:
        """A batch of drawn pushes of all ops."""
        names = self.trainable()
        if not names:
            return
        pushes = []
        for _ in range(count):
            some = self.random.sample(names, min(len(names), self.random.choice((1, 1, 2))))
            if all(self.is_open(name) for name in some) and self.random.random() < 0.4:
                size = self.random.randint(1, 12)
                pushes.append(self.drawn(UpdateOp.DELETE_ROWS, sorted(some), size))
                continue
            op = self.random.choice(VALUE_OPS)
            pushes.append(self.drawn(op, sorted(some), self.random.randint(1, 12)))
        self.push(*pushes)

    def is_open(self, name: str) -> bool:
        table = self.state[name]
        return table.versions[table.live].opened is not None

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
        change = CreateTable(
            name, rows, dim, dtype, Initializer.parse("zeros"), None, spec, frozen=spec is None
        )
        self.change(change, Did(change, rows=Version(dtype, dim, made, weights, slots)))

    def create_open(self, name: str, dim: int, dtype: DType, optimizer: str) -> None:
        """An open table."""
        made = Optimizer.parse(*OPTIMIZERS[optimizer])
        spec = OpenSpec(KeyKind.BYTES, OPEN_ROWS_MAX, 7, Initializer.parse("normal"))
        change = CreateTable(
            name, 0, dim, dtype, spec.init, 7, OptimizerSpec(*OPTIMIZERS[optimizer]), spec
        )
        none = np.empty((0, dim * dtype.itemsize), np.uint8)
        model = OpenModel(spec, dtype, dim, made)
        self.change(change, Did(change, rows=Version(dtype, dim, made, none, {}, opened=model)))

    def stage(
        self,
        name: str,
        rows: int,
        dim: int,
        optimizer: str | None,
        keys: tuple[bytes, ...] | None,
    ) -> tuple[str, Version]:
        """The files of a version, where nobody looks."""
        made = None if optimizer is None else Optimizer.parse(*OPTIMIZERS[optimizer])
        array = self._rng.normal(size=(rows, dim)).astype(np.float32)
        block = Block(array, StringKeys.of(list(keys)) if keys else None)
        table = TableFiles(
            name,
            DType.FLOAT32,
            rows,
            dim,
            [block],
            {"made": "by a test"},
            default_vector=np.ones(dim, np.float32) if keys else None,
            key_kind=KeyKind.BYTES if keys else None,
            optimizer=made,
        )
        staged = stage_table(self.files, self.data / STAGING_NAME, table)
        weights = array.view(np.uint8).reshape(rows, -1)
        slots = {} if made is None else first_slots(made, rows, dim)
        return staged.folder.name, Version(DType.FLOAT32, dim, made, weights, slots, keys)

    def add(self, name: str, rows: int, dim: int, optimizer: str | None, *, keyed: bool) -> None:
        """An imported table."""
        staged, version = self.stage(name, rows, dim, optimizer, KEYS[:rows] if keyed else None)
        change = AddStaged(name, staged)
        with self._staged(staged):
            self.change(change, Did(change, rows=version))

    def publish_new(
        self, name: str, optimizer: str | None, *, more: int = 0, keep_rows: bool = False
    ) -> None:
        """Another version of a table, imported, with `more` rows, or with fewer."""
        table = self.state[name]
        live = table.versions[table.live]
        rows = max(1, len(live.weights) + more)
        keys = None
        if table.keys is not None:
            rows = min(rows, len(KEYS))
            keys = tuple(self.random.sample(KEYS, rows))
        staged, version = self.stage(name, rows, live.dim, optimizer, keys)
        change = Publish(name, staged, keep_rows=keep_rows)
        with self._staged(staged):
            self.change(change, Did(change, rows=version))

    @contextmanager
    def _staged(self, staged: str) -> Iterator[None]:
        """Who staged a folder takes it away again when it is refused."""
        try:
            yield
        except GatherdError:
            folder = self.data / STAGING_NAME / staged
            if self.writer.stopped is None and folder.exists():
                self.files.remove_tree(folder)
            raise

    def snapshot(self, name: str = "") -> None:
        """Take a snapshot; without a name it gets one from the time."""
        result = take_snapshot(self.writer, self.root / "snaps", name)
        self.snapshots.append(Snapshot(f"snaps/{Path(result.path).name}", result.lsn))

    def drop_snapshots(self, keep: int) -> None:
        self.snapshots = self.snapshots[-keep:]
        drop_snapshots(self.files, self.root / "snaps", keep)

    def restore(self, name: str) -> None:
        """Make a data dir of a snapshot, beside the first."""
        lsn = restore(self.files, self.root / "snaps" / name, self.root / f"again-{name}")
        self.restored.append(Snapshot(f"again-{name}", lsn))

    def add_token(self, name: str) -> None:
        """Enter a token into `root`/tokens."""
        with self._tokens_become(self._tokens[0] | {name}):
            add_token(self.root / "tokens", replace(GRANT, name=name), self.files)

    def revoke_token(self, name: str) -> None:
        with self._tokens_become(self._tokens[0] - {name}):
            revoke_token(self.root / "tokens", name, self.files)

    @contextmanager
    def _tokens_become(self, names: frozenset[str]) -> Iterator[None]:
        self._tokens.append(names)
        yield
        del self._tokens[0]

    def expects(self, view: View) -> None:
        """Know what is known of a data dir, before it is recovered."""
        self.begin, self.history = view.begin, list(view.history)
        self.acknowledged, self.is_made = view.acknowledged, True
        self.snapshots, self.restored = list(view.snapshots), list(view.restored)
        self.is_stopped, self.is_damaged = view.is_stopped, view.is_damaged

    def goes_on_from(self, view: View, lsn: int) -> None:
        """What was found to be there is what was done."""
        self.expects(view)
        self.history = self.history[:lsn]
        for number, did in enumerate(self.history, 1):
            if did.result is None:
                did.result = PushResult(number, ())
                if isinstance(did.what, Push):
                    before, later = states_after(self.begin, self.history[:number], 2)[-2:]
                    did.result = result_of(did.what, number, before, later)
        self.acknowledged, self.is_stopped = lsn, False


def result_of(push: Push, lsn: int, before: State, later: State) -> PushResult:
    """The answer to a push that led from one state to another."""
    versions, counts = [], []
    for update in push.updates:
        name = meant(before, update.table)
        live = before[name].live
        versions.append(live)
        old, new = (state[name].versions[live].opened for state in (before, later))
        if old is None or new is None:
            counts.append((0, 0, 0))
        else:
            created, removed = new.rows.keys() - old.rows, old.rows.keys() - new.rows
            counts.append((len(created), len(removed), 0))
    return PushResult.of(lsn, tuple(versions), counts)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Names and salts are drawn from `seed`, so that the same calls come in the same order."""
    rng = random.Random(seed)
    with (
        mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=rng.getrandbits(128), version=4)),  # noqa: PT008 - anew each time
        mock.patch.object(os, "urandom", rng.randbytes),
    ):
        yield
