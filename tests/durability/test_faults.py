"""A disk that fails at one call, at each call of a history: what is told, and what is kept."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from durability.judge import judge
from durability.kernel import FilesOf, Kernel
from durability.oracle import State, check
from durability.trainer import LIMITS, Trainer
from gatherd import Client
from gatherd.errors import DiskFull, GatherdError, StorageError, UpdatesStopped
from gatherd.store.catalog import STAGING_NAME, TABLES_NAME
from gatherd.store.dtypes import DType
from gatherd_server.storage.wal_format import WAL_NAME, segment_paths
from gatherd_server.types import (
    VALUE_OPS,
    DeleteTable,
    OptimizerSpec,
    Publish,
    Rollback,
    SetOptimizer,
    UpdateOp,
)

SMALL = replace(LIMITS, segment_bytes=1_500)
Act = Callable[[Trainer], object]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "gatherd")


def _push(op: UpdateOp) -> Act:
    return lambda trainer: trainer.push(trainer.drawn(op, ["a"], 6))


STEPS: list[Act] = [
    *map(_push, VALUE_OPS),
    lambda trainer: trainer.create("b", 9, 2, DType.FLOAT32, "sgd"),
    lambda trainer: trainer.add("k", 12, 2, "rowwise", keyed=True),
    lambda trainer: trainer.writer.checkpoint(),
    _push(UpdateOp.APPLY_GRADIENTS),
    lambda trainer: trainer.change(Publish("a")),
    _push(UpdateOp.APPLY_GRADIENTS),
    lambda trainer: trainer.change(Rollback("a")),
    _push(UpdateOp.SCATTER_ADD),
    lambda trainer: trainer.snapshot("s1"),
    lambda trainer: trainer.change(SetOptimizer("a", OptimizerSpec("sgd", {}))),
    lambda trainer: trainer.change(SetOptimizer("a", OptimizerSpec("", {"lr": 0.25}))),
    lambda trainer: trainer.change(DeleteTable("k")),
    lambda trainer: trainer.writer.checkpoint(),
    _push(UpdateOp.SCATTER_ADD),
]


def _begun(root: Path, kernel: Kernel) -> Trainer:
    root.mkdir()
    trainer = Trainer(root, FilesOf(kernel), 3, SMALL)
    trainer.make()
    trainer.start()
    trainer.create("a", 40, 3, DType.FLOAT32, "adam")
    return trainer


def _calls(root: Path) -> tuple[range, range]:
    """The numbers of the syncs, and of the calls that take room, that the steps have."""
    with Kernel() as kernel:
        trainer = _begun(root, kernel)
        syncs, rooms = kernel.syncs, kernel.rooms
        for step in STEPS:
            step(trainer)
        numbers = range(syncs + 1, kernel.syncs + 1), range(rooms + 1, kernel.rooms + 1)
        trainer.stop()
    assert trainer.acknowledged == 15
    return numbers


def _run(
    root: Path, kernel: Kernel, what: str, failed: Callable[[Trainer, GatherdError], None]
) -> Trainer:
    """Do the steps up to what fails, and tell of that.

    What was refused with the writer at work wasn't done, and is done after it.
    """
    trainer = _begun(root, kernel)
    try:
        for number, step in enumerate(STEPS):
            try:
                step(trainer)
            except GatherdError as error:
                if not kernel.has_failed:
                    raise AssertionError(f"{what}: step {number} failed by itself") from error
                failed(trainer, error)
                if trainer.writer.stopped is not None:
                    return trainer
                trainer.coming = None
                del trainer.history[trainer.acknowledged :]
                _check_nothing_left(trainer)
                # What it was about has to be possible now, and so has what comes next.
                step(trainer)
                _push(UpdateOp.APPLY_GRADIENTS)(trainer)
                break
        trainer.stop()
    finally:
        trainer.abandon()
    return trainer


def _check_nothing_left(trainer: Trainer) -> None:
    check(trainer.data, trainer.state, is_settled=False)
    staging = trainer.data / STAGING_NAME
    strays = sorted(staging.iterdir()) if staging.exists() else []
    assert not strays, f"left in staging: {strays}"
    found = {path.name for path in (trainer.data / TABLES_NAME).glob("*/v*")}
    named = {f"v{n:06d}" for table in trainer.state.values() for n in table.versions}
    assert found == named, f"the versions {found} are there, not {named}"
    fresh = sorted(path.name for path in trainer.data.glob("*.new"))
    assert not fresh, f"{fresh} are left"


def _recovered(trainer: Trainer, what: str, *restarts: bool) -> None:
    """A writer that comes next has everything acknowledged: on the same machine, or anew."""
    for is_restart in restarts:
        copy = trainer.root.with_name(f"{trainer.root.name}-{is_restart}")
        shutil.copytree(trainer.root, copy)
        try:
            judge(copy, trainer.view(), is_restart=is_restart)
        except Exception as error:
            raise AssertionError(f"{what}, {is_restart=}: {error}") from error


def _looked_up(data: Path) -> dict[str, np.ndarray]:
    with Client(f"local:{data}") as client:
        return {
            info.name: client.lookup(info.name, np.arange(info.rows)) for info in client.tables()
        }


def _rows(state: State) -> dict[str, np.ndarray]:
    return {
        name: table.versions[table.live].weights.view(np.float32) for name, table in state.items()
    }


def _same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], rows) for name, rows in expected.items()
    )


def _check_stopped(trainer: Trainer, what: str) -> None:
    """Updates are refused, lookups go on, the log stays."""
    segments = segment_paths(trainer.data / WAL_NAME)
    states = trainer.view().states()
    # A change may be seen, or not, when its catalog couldn't be made durable.
    found = _looked_up(trainer.data)
    assert any(_same(found, _rows(state)) for state in states[trainer.acknowledged :]), what
    push = trainer.drawn(UpdateOp.ASSIGN, ["a"], 3, keyless=True)
    with pytest.raises(UpdatesStopped):
        trainer.writer.submit(push, b"").result(20)
    with pytest.raises(UpdatesStopped):
        trainer.changes.change(Publish("a")).result(20)
    trainer.abandon()
    assert segment_paths(trainer.data / WAL_NAME) == segments, f"{what}: the log didn't stay"
    assert _same(_looked_up(trainer.data), found), what


def test_a_failed_sync_stops_updates_or_refuses_one_change_and_loses_nothing(
    tmp_path: Path,
) -> None:
    syncs, _ = _calls(tmp_path / "whole")
    stops = []
    for number in syncs:
        what = f"sync {number} of {syncs}"

        def failed(trainer: Trainer, error: GatherdError, what: str = what) -> None:
            if trainer.writer.stopped is None:
                assert isinstance(error, StorageError), f"{what}: {error!r}"
            else:
                stops.append(what)
                assert isinstance(error, UpdatesStopped), f"{what}: {error!r}"
                _check_stopped(trainer, what)

        with Kernel(sync_at=number) as kernel:
            trainer = _run(tmp_path / str(number), kernel, what, failed)
            assert kernel.has_failed
        is_stopped = trainer.writer.stopped is not None
        _recovered(trainer, what, *((False, True) if is_stopped else (bool(number % 2),)))
        shutil.rmtree(trainer.root)
    assert len(stops) > 30


def test_a_full_disk_refuses_one_update_or_change_and_the_next_one_is_done(tmp_path: Path) -> None:
    _, rooms = _calls(tmp_path / "whole")
    refused = []
    for number in rooms:
        what = f"call {number} of {rooms}"

        def failed(trainer: Trainer, error: GatherdError, what: str = what) -> None:
            refused.append(what)
            assert isinstance(error, DiskFull), f"{what}: {error!r}"
            assert trainer.writer.stopped is None, what

        with Kernel(room_at=number) as kernel:
            trainer = _run(tmp_path / str(number), kernel, what, failed)
            assert kernel.has_failed
        _recovered(trainer, what, bool(number % 2))
        shutil.rmtree(trainer.root)
    assert len(refused) > 30


def test_short_writes_are_continued(tmp_path: Path) -> None:
    root = tmp_path / "short"
    with Kernel(is_short=True) as kernel:
        trainer = _begun(root, kernel)
        for step in STEPS:
            step(trainer)
        _check_nothing_left(trainer)
        _recovered(trainer, "short writes", False, True)
        trainer.stop()
    check(trainer.data, trainer.state, is_settled=True)


def test_pushes_are_refused_while_the_disk_is_full_and_done_when_it_has_room(
    tmp_path: Path,
) -> None:
    with Kernel() as kernel:
        trainer = _begun(tmp_path / "full", kernel)
        before = _looked_up(trainer.data)
        kernel.is_full = True
        for op in (*VALUE_OPS, *VALUE_OPS):
            # The open segment has room for some of them.
            try:
                _push(op)(trainer)
                before = _looked_up(trainer.data)
            except DiskFull:
                del trainer.history[trainer.acknowledged :]
            assert _same(_looked_up(trainer.data), before)
        done = trainer.acknowledged
        assert done < 7
        with pytest.raises(DiskFull):
            trainer.changes.change(Publish("a")).result(20)
        with pytest.raises(DiskFull):
            trainer.writer.checkpoint()
        kernel.is_full = False
        for op in VALUE_OPS:
            _push(op)(trainer)
        trainer.change(Publish("a"))
        assert trainer.acknowledged == done + 4
        _check_nothing_left(trainer)
        trainer.stop()
    check(trainer.data, trainer.state, is_settled=True)
