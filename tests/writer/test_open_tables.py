"""Open tables under batches of pushes, against a dict: which rows there are, and what they hold."""

import filecmp
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durability.trainer import Quick
from gatherd.errors import (
    DiskFull,
    GatherdError,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    NonfiniteValues,
)
from gatherd.store.catalog import version_dir
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.open_files import map_index
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import ByKey
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.data_dir.verify import verify_version
from gatherd_server.snapshots.backups.contents import read_backup
from gatherd_server.snapshots.backups.copying import copy_snapshots
from gatherd_server.snapshots.backups.fetching import fetch
from gatherd_server.snapshots.backups.store import FolderStore
from gatherd_server.snapshots.restoring import restore
from gatherd_server.snapshots.snapshot import take_snapshot
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import (
    CreateTable,
    OptimizerSpec,
    Publish,
    Push,
    PushResult,
    Rollback,
    SetOptimizer,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer
from support.open_model import OpenModel, check_open

DIM = 3
LIMITS = WriterLimits(segment_bytes=1 << 16, checkpoint_seconds=3600.0)
WAIT_SECONDS = 60
OPTIMIZER = ("adam", {"lr": 0.5})


class Table:
    """A data dir with one open table, "t", and the model of it."""

    def __init__(self, folder: Path, kind: KeyKind, rows_max: int) -> None:
        self.data = folder / "data"
        with own_data_dir(self.data, create=True, files=Quick()):
            pass
        self.spec = OpenSpec(kind, rows_max, 7, Initializer.parse("normal"))
        self.model = OpenModel(self.spec, DType.FLOAT32, DIM, Optimizer.parse(*OPTIMIZER))
        self.start()
        change = CreateTable(
            "t", 0, DIM, DType.FLOAT32, self.spec.init, 7, OptimizerSpec(*OPTIMIZER), self.spec
        )
        self.changes.change(change).result(WAIT_SECONDS)

    def start(self) -> None:
        self.writer = Writer(self.data, Quick(), LIMITS)
        self.changes = Changes(self.writer, LIMITS)

    def stop(self) -> None:
        self.changes.close()
        self.writer.close()

    @property
    def folder(self) -> Path:
        return version_dir(self.data, "t", self.writer.versions().entry("t").live)

    def keys(self, numbers: list[int]) -> Keys:
        if self.spec.kind is KeyKind.BYTES:
            return StringKeys.of([key_of(number) for number in numbers])
        return np.array(numbers, np.int64) * 1_000_003 - 5_000_015  # with 0 and negative ones

    def push(
        self, op: UpdateOp, numbers: list[int], values: object = 1.0, *, creates: bool = True
    ) -> Push:
        is_deletion = op is UpdateOp.DELETE_ROWS
        shape = (len(numbers), 0 if is_deletion else DIM)
        array = np.broadcast_to(np.asarray(values, np.float32), shape)
        update = TableUpdate(
            "t", ByKey(self.keys(numbers)), array, creates=creates and not is_deletion
        )
        return Push(op, (update,))

    def submit(self, *pushes: Push) -> list[PushResult | GatherdError]:
        """Commit the pushes as one batch; the model follows those that aren't refused."""

        def submitted() -> "list[Future[PushResult]]":
            return [self.writer.submit(push, push_digest(push)) for push in pushes]

        outcomes: list[PushResult | GatherdError] = []
        for push, future in zip(pushes, self.writer.between(submitted), strict=True):
            try:
                result = future.result(WAIT_SECONDS)
            except GatherdError as error:
                outcomes.append(error)
                continue
            outcomes.append(result)
            (update,) = push.updates
            assert isinstance(update.asked, ByKey)
            before = self.model
            self.model = before.pushed(push.op, update.asked.keys, update.values)
            new, old = self.model.rows.keys(), before.rows.keys()
            assert sum(result.created) == len(new - old)
            assert sum(result.removed) == len(old - new)
        return outcomes

    def check(self) -> None:
        check_open(self.folder, self.model)
        assert map_index(self.folder, self.spec.kind).live_rows == len(self.model.rows)
        version = int(self.folder.name[1:])
        for _ in verify_version(self.data, "t", version):
            pass


def key_of(number: int) -> bytes:
    """Keys of one to 1,024 bytes."""
    return b"%d" % number if number % 3 else (b"%d-" % number) * (number % 7 * 20 + 1)


@pytest.fixture(params=[KeyKind.BYTES, KeyKind.INT64])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path, request.param, 40)
    yield made
    made.stop()


OPS = st.sampled_from([*UpdateOp, UpdateOp.DELETE_ROWS, UpdateOp.ASSIGN])
PUSHES = st.tuples(
    OPS, st.lists(st.integers(0, 30), max_size=8), st.sampled_from([1.0, -2.0, np.inf])
)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([KeyKind.BYTES, KeyKind.INT64]),
    st.lists(st.one_of(st.lists(PUSHES, min_size=1, max_size=5), st.just("restart")), max_size=8),
)
def test_batches_of_pushes_leave_what_a_dict_would_hold(
    tmp_path_factory: pytest.TempPathFactory, kind: KeyKind, steps: list[object]
) -> None:
    table = Table(tmp_path_factory.mktemp("open"), kind, 40)
    for step in steps:
        if step == "restart":
            table.stop()
            table.start()
        else:
            assert isinstance(step, list)
            outcomes = table.submit(*(table.push(*drawn) for drawn in step))
            for (op, numbers, value), outcome in zip(step, outcomes, strict=True):
                refused = bool(numbers) and value == np.inf and op is not UpdateOp.DELETE_ROWS
                assert isinstance(outcome, NonfiniteValues) is refused, outcome
        table.check()
    table.stop()
    table.start()
    table.check()
    table.stop()


def test_a_push_builds_on_rows_that_an_earlier_one_of_its_batch_created(table: Table) -> None:
    add, delete = UpdateOp.SCATTER_ADD, UpdateOp.DELETE_ROWS
    results = table.submit(
        table.push(add, [1, 2, 1]),
        table.push(add, [2, 3], creates=False),  # 3 has no row
        table.push(add, [2, 1], creates=False),
        table.push(delete, [1, 9]),
        table.push(add, [1], creates=False),  # it has none any more
        table.push(UpdateOp.APPLY_GRADIENTS, [1, 4]),
    )
    kinds = [type(result) for result in results]
    assert kinds == [PushResult, KeyNotFound, PushResult, PushResult, KeyNotFound, PushResult]
    table.check()
    assert len(table.model.rows) == 3


def test_what_a_refused_push_would_have_created_isnt_there(table: Table) -> None:
    results = table.submit(
        table.push(UpdateOp.ASSIGN, [5, 6], np.nan), table.push(UpdateOp.SCATTER_ADD, [6, 7])
    )
    assert isinstance(results[0], NonfiniteValues)
    assert "key" in results[0].message
    assert isinstance(results[1], PushResult)
    table.check()


def test_ids_keys_of_another_kind_and_keys_that_dont_fit_are_refused(table: Table) -> None:
    values = np.ones((1, DIM), np.float32)
    by_id = Push(UpdateOp.ASSIGN, (TableUpdate("t", np.zeros(1, np.int64), values),))
    is_text = table.spec.kind is KeyKind.BYTES
    other: Keys = np.array([1]) if is_text else StringKeys.of([b"one"])
    wrong = Push(UpdateOp.ASSIGN, (TableUpdate("t", ByKey(other), values, creates=True),))
    refused = [by_id, wrong]
    if not is_text:
        large = TableUpdate("t", ByKey(np.array([2**63], np.uint64)), values, creates=True)
        refused.append(Push(UpdateOp.ASSIGN, (large,)))
    for push in refused:
        with pytest.raises(InvalidArgument):
            table.writer.submit(push, push_digest(push)).result(WAIT_SECONDS)
    table.check()


def test_a_full_table_takes_a_new_key_once_another_is_removed(table: Table) -> None:
    table.submit(table.push(UpdateOp.ASSIGN, list(range(40))))
    (outcome,) = table.submit(table.push(UpdateOp.ASSIGN, [40, 0]))
    assert isinstance(outcome, LimitExceeded)
    assert "rows_max" in outcome.message
    both = table.push(UpdateOp.DELETE_ROWS, [7, 8]), table.push(UpdateOp.ASSIGN, [40, 41])
    assert all(isinstance(outcome, PushResult) for outcome in table.submit(*both))
    table.check()


def test_places_of_removed_keys_are_joined_when_the_heap_is_at_its_end(tmp_path: Path) -> None:
    table = Table(tmp_path, KeyKind.BYTES, 8)
    rng = np.random.default_rng(3)
    for round_number in range(60):
        numbers = (rng.integers(0, 21, 8) * 3 + 300 * round_number).tolist()
        table.submit(table.push(UpdateOp.ASSIGN, sorted(set(numbers))))
        table.submit(table.push(UpdateOp.DELETE_ROWS, numbers[: int(rng.integers(1, 9))]))
        table.submit(table.push(UpdateOp.DELETE_ROWS, numbers))
    table.submit(table.push(UpdateOp.ASSIGN, list(range(0, 24, 3))))
    table.check()
    table.stop()


def test_the_index_grows_beside_the_pushes_and_finds_every_key(tmp_path: Path) -> None:
    table = Table(tmp_path, KeyKind.INT64, 1 << 19)
    generation = table.writer.versions().catalog.generation
    count, step = 300_000, 20_000
    for begin in range(0, count, step):
        push = table.push(UpdateOp.ASSIGN, list(range(begin, begin + step)))
        table.writer.submit(push, b"").result(WAIT_SECONDS)
    gone = table.push(UpdateOp.DELETE_ROWS, list(range(0, count, 2)))
    table.writer.submit(gone, b"").result(WAIT_SECONDS)
    assert table.writer.versions().catalog.generation > generation
    left = table.push(UpdateOp.ASSIGN, list(range(1, count, 2)), creates=False)
    table.writer.submit(left, b"").result(WAIT_SECONDS)
    back = table.push(UpdateOp.ASSIGN, [0], creates=False)
    with pytest.raises(KeyNotFound):
        table.writer.submit(back, b"").result(WAIT_SECONDS)
    for _ in verify_version(table.data, "t", 1):
        pass
    table.stop()


def test_replay_on_another_copy_gives_the_same_bytes(table: Table, tmp_path: Path) -> None:
    table.submit(table.push(UpdateOp.SCATTER_ADD, [1, 2, 3]))
    table.writer.checkpoint()
    shutil.copytree(table.data, tmp_path / "copy")
    table.submit(table.push(UpdateOp.DELETE_ROWS, [2]), table.push(UpdateOp.ASSIGN, [4, 5]))
    table.submit(table.push(UpdateOp.APPLY_GRADIENTS, [5, 2, 6, 6]))
    for path in (table.data / "wal").iterdir():
        shutil.copy(path, tmp_path / "copy/wal" / path.name)
    shutil.copy(table.data / "control", tmp_path / "copy/control")
    other = Writer(tmp_path / "copy", Quick(), LIMITS)
    other.close()
    copy = version_dir(tmp_path / "copy", "t", 1)
    names = {path.name for path in table.folder.iterdir()} - {"keys.index", "seq"}
    _, differing, errors = filecmp.cmpfiles(table.folder, copy, names, shallow=False)
    assert (differing, errors) == ([], [])
    check_open(copy, table.model)


def test_versions_and_snapshots_have_the_rows_and_go_on_with_them(
    table: Table, tmp_path: Path
) -> None:
    table.submit(table.push(UpdateOp.APPLY_GRADIENTS, [1, 2, 3]))
    table.changes.change(Publish("t")).result(WAIT_SECONDS)
    first = table.model
    table.submit(table.push(UpdateOp.DELETE_ROWS, [1]), table.push(UpdateOp.APPLY_GRADIENTS, [9]))
    table.check()
    take_snapshot(table.writer, tmp_path / "snaps", "s")
    snapped = table.model
    table.changes.change(SetOptimizer("t", OptimizerSpec("ftrl", {}))).result(WAIT_SECONDS)
    table.model = table.model.with_optimizer(Optimizer.parse("ftrl", {}))
    table.submit(table.push(UpdateOp.APPLY_GRADIENTS, [9, 10]))
    table.check()
    table.changes.change(Rollback("t", 1)).result(WAIT_SECONDS)
    table.model = first
    table.submit(table.push(UpdateOp.APPLY_GRADIENTS, [1, 11]))
    table.check()
    restore(Quick(), tmp_path / "snaps/s", tmp_path / "again")
    check_open(version_dir(tmp_path / "again", "t", 2), snapped)
    Writer(tmp_path / "again", Quick(), LIMITS).close()
    check_open(version_dir(tmp_path / "again", "t", 2), snapped)


def test_a_backup_has_the_rows_and_not_the_holes(table: Table, tmp_path: Path) -> None:
    table.submit(table.push(UpdateOp.APPLY_GRADIENTS, [1, 2, 3]))
    take_snapshot(table.writer, tmp_path / "snaps", "s")
    store = FolderStore(tmp_path / "backups", Quick())
    assert [one.error for one in copy_snapshots(tmp_path / "snaps", store, None).copied] == [""]
    weights = version_dir(Path("s"), "t", 1) / "weights.npy"
    sizes = [(tmp_path / root / weights).stat().st_size for root in ("snaps", "backups")]
    assert sizes[1] <= sizes[0]
    fetch(Quick(), store, read_backup(store, "s"), tmp_path / "again")
    check_open(version_dir(tmp_path / "again", "t", 1), table.model)
    assert (version_dir(tmp_path / "again", "t", 1) / "weights.npy").stat().st_size == sizes[0]
    Writer(tmp_path / "again", Quick(), LIMITS).close()
    check_open(version_dir(tmp_path / "again", "t", 1), table.model)


class NoRoom(Quick):
    """Reserves no more blocks once it is told so."""

    is_full = False

    def allocate(self, fd: int, byte_count: int, path: Path, begin: int = 0) -> None:
        if self.is_full and "tables" in path.parts:
            raise DiskFull(f"{path}: the disk is full")
        super().allocate(fd, byte_count, path, begin)


def test_a_push_that_finds_no_blocks_changes_nothing(tmp_path: Path) -> None:
    table = Table(tmp_path, KeyKind.BYTES, 1 << 12)
    table.stop()
    files = NoRoom()
    table.writer = Writer(table.data, files, LIMITS)
    table.changes = Changes(table.writer, LIMITS)
    table.submit(table.push(UpdateOp.ASSIGN, [1, 2]))
    files.is_full = True
    # More bytes than are reserved ahead.
    long_keys = StringKeys.of([b"%1024d" % number for number in range(2_000)])
    values = np.ones((2_000, DIM), np.float32)
    many = Push(UpdateOp.ASSIGN, (TableUpdate("t", ByKey(long_keys), values, creates=True),))
    with pytest.raises(DiskFull):
        table.writer.submit(many, b"").result(WAIT_SECONDS)
    table.submit(table.push(UpdateOp.ASSIGN, [2]), table.push(UpdateOp.DELETE_ROWS, [1]))
    check_open(table.folder, table.model)
    files.is_full = False
    table.submit(table.push(UpdateOp.ASSIGN, [1, 7]))
    check_open(table.folder, table.model)
    table.stop()
