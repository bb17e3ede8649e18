"""Publishing files of other rows or dims: whose state stays, and what becomes of pushes meanwhile.

NumPy and dicts are the model. Values are multiples of an eighth, so that float32 adds them exactly
in any order.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.errors import FailedPrecondition, GatherdError, Unavailable, VersionMismatch
from gatherd.store.catalog import STAGING_NAME, open_table, version_dir
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import StringKeys
from gatherd.store.query import ByKey
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import Block, TableFiles, stage_table
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    Publish,
    Push,
    SessionSequence,
    StateOutcome,
    TableChange,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer

DIM = 4
Rows = NDArray[np.float32]


class Dir:
    """A data dir with its writer, in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with own_data_dir(path, create=True):
            pass
        self.writer = Writer(path, Files(), WriterLimits(keep_versions=50))
        self.changes = Changes(self.writer, WriterLimits(keep_versions=50))
        self.changes.begin()

    def change(self, change: TableChange) -> ChangeResult:
        return self.changes.change(change).result(60)

    def stage(
        self,
        rows: Rows,
        keys: Sequence[str] | None = None,
        optimizer: str = "adam",
        dtype: DType = DType.FLOAT32,
    ) -> str:
        kind = None if keys is None else KeyKind.BYTES
        named = None if keys is None else StringKeys.of([key.encode() for key in keys])
        block = Block(rows.astype(dtype.storage), named)
        files = TableFiles(
            "t", dtype, len(rows), rows.shape[1], [block], {}, key_kind=kind,
            optimizer=Optimizer.parse(optimizer, {}),
        )  # fmt: skip
        return stage_table(Files(), self.path / STAGING_NAME, files).folder.name

    def push(
        self, op: UpdateOp, asked: Any, values: Any, request_id: SessionSequence | None = None
    ) -> int:
        if isinstance(asked, list):
            asked = np.array(asked)
        update = TableUpdate("t", asked, np.asarray(values, np.float32))
        push = Push(op, (update,), request_id)
        return self.writer.submit(push, push_digest(push)).result(60).lsn

    def rows(self, version: int) -> Rows:
        return np.asarray(np.load(version_dir(self.path, "t", version) / "weights.npy"))

    def slot(self, version: int, name: str) -> NDArray[Any]:
        return np.asarray(np.load(version_dir(self.path, "t", version) / f"slot_{name}.npy"))

    def close(self) -> None:
        self.changes.close()
        self.writer.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Dir]:
    made = Dir(tmp_path / "data")
    yield made
    made.close()


def drawn(rows: int, seed: int, dim: int = DIM) -> Rows:
    rng = np.random.default_rng(seed)
    return rng.integers(-800, 800, (rows, dim)).astype(np.float32) / np.float32(8)


def trained(opened: Dir, keys: Sequence[str] | None = None, rows: int = 10) -> None:
    opened.change(AddStaged("t", opened.stage(drawn(rows, 1), keys)))
    rng = np.random.default_rng(2)
    for _ in range(5):
        opened.push(UpdateOp.APPLY_GRADIENTS, rng.integers(0, rows, 6), drawn(6, 3))


@pytest.mark.parametrize("rows", [7, 10, 19])
def test_rows_that_stay_keep_their_state_by_id(opened: Dir, rows: int) -> None:
    trained(opened)
    new = drawn(rows, 5)
    done = opened.change(Publish("t", opened.stage(new)))
    assert (done.version, done.state) == (2, StateOutcome.KEPT)
    np.testing.assert_array_equal(opened.rows(2), new)
    stay = min(rows, 10)
    for name in ("exp_avg", "exp_avg_sq"):
        slot = opened.slot(2, name)
        np.testing.assert_array_equal(slot[:stay], opened.slot(1, name)[:stay])
        assert opened.slot(1, name)[:stay].any()
        assert not slot[stay:].any()
    assert opened.slot(2, "step") == opened.slot(1, "step") == 5


def test_rows_that_stay_keep_their_state_by_key_wherever_they_are(opened: Dir) -> None:
    before = [f"w{i}" for i in range(10)]
    trained(opened, before)
    after = ["new", *reversed(before[3:]), "newer"]
    done = opened.change(Publish("t", opened.stage(drawn(9, 5), after)))
    assert done.state is StateOutcome.KEPT
    old = opened.slot(1, "exp_avg")
    expected = {key: old[i] for i, key in enumerate(before)}
    zeros = np.zeros(DIM, np.float32)
    np.testing.assert_array_equal(
        opened.slot(2, "exp_avg"), [expected.get(key, zeros) for key in after]
    )


def test_new_rows_begin_with_the_optimizers_first_state(opened: Dir) -> None:
    opened.change(AddStaged("t", opened.stage(drawn(4, 1), optimizer="ftrl")))
    opened.push(UpdateOp.APPLY_GRADIENTS, np.arange(4), drawn(4, 2) + 1)
    opened.change(Publish("t", opened.stage(drawn(6, 3), optimizer="ftrl")))
    slot = opened.slot(2, "accumulator")
    np.testing.assert_array_equal(slot[:4], opened.slot(1, "accumulator"))
    np.testing.assert_array_equal(slot[4:], np.full((2, DIM), 0.1, np.float32))


@pytest.mark.parametrize("why", ["dim", "optimizer", "asked"])
def test_the_answer_says_that_state_begins_anew(opened: Dir, why: str) -> None:
    trained(opened)
    dim = 6 if why == "dim" else DIM
    staged = opened.stage(drawn(10, 5, dim), optimizer="adagrad" if why == "optimizer" else "adam")
    change = Publish("t", staged, reset_state=why == "asked", allow_dim_change=why == "dim")
    assert opened.change(change).state is StateOutcome.NEW
    assert not opened.slot(2, "sum" if why == "optimizer" else "exp_avg").any()
    assert opened.rows(2).shape == (10, dim)
    opened.push(UpdateOp.APPLY_GRADIENTS, [0], np.ones((1, dim)))


def test_another_dim_has_to_be_allowed_and_other_keys_never_are(opened: Dir) -> None:
    trained(opened)
    wide = opened.stage(drawn(10, 5, 6))
    with pytest.raises(FailedPrecondition, match="allow_dim_change"):
        opened.change(Publish("t", wide))
    keyed = opened.stage(drawn(3, 5), ["a", "b", "c"])
    with pytest.raises(FailedPrecondition, match="bytes keys"):
        opened.change(Publish("t", keyed, allow_dim_change=True))
    _check_as_before(opened)


def test_kept_rows_take_only_new_ones_from_the_files(opened: Dir) -> None:
    before = [f"w{i}" for i in range(10)]
    trained(opened, before)
    new = drawn(4, 5)
    after = ["w7", "new", "w0", "newer"]
    assert opened.change(Publish("t", opened.stage(new, after), keep_rows=True)).state is (
        StateOutcome.KEPT
    )
    old = opened.rows(1)
    np.testing.assert_array_equal(opened.rows(2), [old[7], new[1], old[0], new[3]])
    slot = opened.slot(1, "exp_avg_sq")
    np.testing.assert_array_equal(opened.slot(2, "exp_avg_sq")[[0, 2]], slot[[7, 0]])


@pytest.mark.parametrize("why", ["dim", "dtype", "frozen"])
def test_rows_that_cant_be_kept_are_refused(opened: Dir, why: str) -> None:
    trained(opened)
    how = {"dim": (drawn(3, 5, 6), DType.FLOAT32), "dtype": (drawn(3, 5), DType.FLOAT16)}
    rows, dtype = how.get(why, (drawn(3, 5), DType.FLOAT32))
    staged = opened.stage(rows, dtype=dtype)
    if why == "frozen":
        staged = _staged_frozen(opened, rows)
    with pytest.raises(FailedPrecondition):
        opened.change(Publish("t", staged, keep_rows=True))
    _check_as_before(opened)


def _staged_frozen(opened: Dir, rows: Rows) -> str:
    files = TableFiles("t", DType.FLOAT32, len(rows), DIM, [Block(rows)], {})
    return stage_table(Files(), opened.path / STAGING_NAME, files).folder.name


def _check_as_before(opened: Dir) -> None:
    """Version 1 is live and the only one, and takes pushes."""
    opened.push(UpdateOp.SCATTER_ADD, [0], np.ones((1, DIM)))
    assert sorted(path.name for path in (opened.path / "tables" / "t").iterdir()) == ["v000001"]


def test_a_push_after_the_lsn_that_is_named_refuses_the_publish(opened: Dir) -> None:
    trained(opened)
    read_at = opened.writer.applied_lsn
    opened.change(Publish("t", opened.stage(drawn(11, 5)), if_lsn=read_at))
    pushed_at = opened.push(UpdateOp.SCATTER_ADD, [0], np.ones((1, DIM)))
    staged = opened.stage(drawn(12, 5))
    with pytest.raises(FailedPrecondition, match=f"has at most LSN {pushed_at}; .*keep_rows"):
        opened.change(Publish("t", staged, if_lsn=pushed_at - 1))
    with pytest.raises(VersionMismatch):
        opened.change(Publish("t", opened.stage(drawn(12, 5)), if_version=1, if_lsn=pushed_at))
    assert len(opened.rows(2)) == 11
    opened.change(Publish("t", opened.stage(drawn(12, 5)), if_version=2, if_lsn=pushed_at))


def test_after_a_start_a_push_that_isnt_known_of_counts_as_one(opened: Dir, tmp_path: Path) -> None:
    trained(opened)
    read_at = opened.writer.applied_lsn
    opened.push(UpdateOp.SCATTER_ADD, [0], np.ones((1, DIM)))
    opened.close()
    again = Dir.__new__(Dir)
    again.path = opened.path
    again.writer = Writer(opened.path, Files(), WriterLimits())
    again.changes = Changes(again.writer, WriterLimits())
    try:
        with pytest.raises(FailedPrecondition, match="or may have"):
            again.change(Publish("t", again.stage(drawn(9, 5)), if_lsn=read_at))
        now = again.writer.applied_lsn
        assert again.change(Publish("t", again.stage(drawn(9, 5)), if_lsn=now)).version == 2
    finally:
        again.close()


class Pushers:
    """Threads that push eighths to random rows, each push until it is done, and some twice.

    `done` are the pushes that were acknowledged: LSN, key or id, and delta.
    """

    def __init__(self, opened: Dir, names: Sequence[str] | None, rows: int) -> None:
        self.done: list[tuple[int, Any, Rows]] = []
        self.refused = 0
        self._opened, self._names, self._rows = opened, names, rows
        self._stop = threading.Event()

    def _run(self, number: int) -> None:
        rng = np.random.default_rng(number)
        session = rng.bytes(16)
        sequence = 0
        while not self._stop.is_set():
            sequence += 1
            row = int(rng.integers(self._rows))
            delta = rng.integers(-8, 8, (1, DIM)).astype(np.float32) / np.float32(8)
            asked: Any = np.array([row])
            if self._names is not None:
                asked = ByKey(StringKeys.of([self._names[row].encode()]))
            request_id = SessionSequence(session, sequence)
            for _ in range(1 + int(rng.random() < 0.2)):
                lsn = self._until_done(asked, delta, request_id)
            self.done.append((lsn, row, delta[0]))

    def _until_done(self, asked: Any, delta: Rows, request_id: SessionSequence) -> int:
        while True:
            try:
                return self._opened.push(UpdateOp.SCATTER_ADD, asked, delta, request_id)
            except Unavailable as error:
                self.refused += 1
                time.sleep(error.retry_after_seconds or 60)

    @contextmanager
    def running(self, threads: int = 4) -> Iterator[None]:
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(self._run, number) for number in range(threads)]
            try:
                yield
            finally:
                self._stop.set()
                for one in running:
                    one.result(60)

    def wait_for(self, count: int) -> None:
        end = time.monotonic() + 60
        while len(self.done) < count and time.monotonic() < end:
            time.sleep(0.001)
        assert len(self.done) >= count


def summed(rows: Rows, pushes: Sequence[tuple[int, Any, Rows]]) -> Rows:
    rows = rows.copy()
    for _, row, delta in pushes:
        rows[row] += delta
    return rows


@pytest.mark.parametrize("keyed", [False, True], ids=["by id", "by key"])
def test_pushes_that_go_on_while_rows_are_kept_are_all_in_the_grown_table(
    opened: Dir, keyed: bool
) -> None:
    """The way of the issue's trial, in which 208 of 478 acknowledged pushes were lost."""
    first = 40
    names = [f"w{i}" for i in range(first + 50)]
    begin = drawn(first, 1)
    opened.change(AddStaged("t", opened.stage(begin, names[:first] if keyed else None)))
    pushers = Pushers(opened, names if keyed else None, first)
    order, rows, at = list(range(first)), begin, []
    rng = np.random.default_rng(7)
    with pushers.running():
        for grown in range(first + 10, first + 60, 10):
            pushers.wait_for(len(pushers.done) + 20)
            # Somebody exported, and adds rows to what is old by now.
            new = np.concatenate([rows, drawn(10, grown)])
            order = rng.permutation(grown).tolist() if keyed else list(range(grown))
            staged = opened.stage(new[order], [names[i] for i in order] if keyed else None)
            done = opened.change(Publish("t", staged, keep_rows=True))
            at.append(done.lsn)
            rows = new
        pushers.wait_for(len(pushers.done) + 20)
    assert pushers.refused == 0
    assert any(at[0] < lsn < at[-1] for lsn, _, _ in pushers.done)
    expected = summed(rows, pushers.done)
    np.testing.assert_array_equal(opened.rows(6), expected[order])


def test_pushes_while_rows_are_replaced_are_refused_until_then_and_none_is_lost(
    opened: Dir,
) -> None:
    begin = drawn(40, 1)
    opened.change(AddStaged("t", opened.stage(begin)))
    held = threading.Event()

    def slowly(_table: str, _version: int) -> list[Any]:
        """A worker that takes its time to map the new version, until a push was refused."""
        end, refused = time.monotonic() + 60, pushers.refused
        while pushers.refused == refused and time.monotonic() < end:
            time.sleep(0.001)
        held.set()
        return []

    pushers = Pushers(opened, None, 40)
    opened.changes.prepare = slowly
    contents: list[tuple[int, Rows]] = []
    with pushers.running():
        for seed in range(3):
            pushers.wait_for(len(pushers.done) + 20)
            new = drawn(40, 10 + seed)
            done = opened.change(Publish("t", opened.stage(new)))
            contents.append((done.lsn, new))
        pushers.wait_for(len(pushers.done) + 20)
    assert held.is_set()
    assert pushers.refused >= 3
    bounds = [0, *(lsn for lsn, _ in contents), 1 << 62]
    every = [begin, *(new for _, new in contents)]
    for version, rows in enumerate(every, 1):
        low, high = bounds[version - 1], bounds[version]
        own = [push for push in pushers.done if low < push[0] < high]
        assert own
        np.testing.assert_array_equal(opened.rows(version), summed(rows, own))


def test_a_publish_that_fails_lets_pushes_go_on(opened: Dir) -> None:
    trained(opened)

    def broken(_table: str, _version: int) -> list[Any]:
        raise FailedPrecondition("a worker can't map it")

    opened.changes.prepare = broken
    with pytest.raises(GatherdError, match="can't map it"):
        opened.change(Publish("t", opened.stage(drawn(9, 5))))
    opened.changes.prepare = lambda _table, _version: []
    _check_as_before(opened)
    assert open_table(opened.path, "t", 1).row_count == 10
