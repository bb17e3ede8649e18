"""Short histories, always the same, in which a missing sync can be seen.

A script works on the model of a disk and yields (disk, trainer) where it becomes interesting: at
its begin, or where a process goes on after another one was killed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from durability.power import Power
from durability.trainer import LIMITS, Trainer
from durability.uploading import begin_upload, commit_upload, send_rows
from gatherd.errors import DiskFull, GatherdError
from gatherd.store.catalog import version_dir
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEYS_JSON, KEYS_SLOTS
from gatherd_server.data_dir.verify import repair_keys
from gatherd_server.types import (
    VALUE_OPS,
    CloneTable,
    DeleteTable,
    OptimizerSpec,
    Publish,
    Push,
    RenameTable,
    ReplaceTable,
    Rollback,
    SetAlias,
    SetOptimizer,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)

Stage = tuple[Power, Trainer]
Script = Callable[[Path, str], Iterator[Stage]]
ROOT, AFTERWARDS = "disk", "afterwards"


def _begin(folder: Path, ignores: str, limits: WriterLimits = LIMITS) -> Stage:
    root = folder / ROOT
    root.mkdir()
    power = Power(root, 1, ignores)
    return power, Trainer(root, power, 1, limits)


def tables(folder: Path, ignores: str) -> Iterator[Stage]:
    """Tables are made and imported, trained, checkpointed, deleted; the writer stops and starts."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.create("a", 300, 4, DType.FLOAT32, "adam")
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 40))
    trainer.add("k", 30, 3, "rowwise", keyed=True)
    for _ in range(4):
        trainer.push(*(trainer.drawn(op, ["a", "k"], 12) for op in VALUE_OPS))
    trainer.writer.checkpoint()
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["k"], 12))
    trainer.change(DeleteTable("k"))
    for _ in range(3):
        trainer.push(*(trainer.drawn(op, ["a"], 30) for op in VALUE_OPS))
    trainer.writer.checkpoint()
    trainer.push(trainer.drawn(UpdateOp.ASSIGN, ["a"], 12))
    trainer.stop()


def versions(folder: Path, ignores: str) -> Iterator[Stage]:
    """Versions follow one another while pushes go on."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.create("a", 300, 4, DType.BFLOAT16, "momentum")
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 60))
    for _ in range(2):
        _during_copy(power, trainer, lambda: trainer.change(Publish("a")))
        trainer.writer.checkpoint()
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 60))
    trainer.change(Rollback("a"))
    trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 60))
    trainer.change(SetOptimizer("a", OptimizerSpec("ftrl", {})))
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 60))
    trainer.writer.checkpoint()


def grown(folder: Path, ignores: str) -> Iterator[Stage]:
    """A table gets more rows while pushes go on, is cloned, renamed, and gets an alias."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.add("a", 300, 4, "momentum", keyed=False)
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 60))
    for more in (20, -10):
        grow = partial(trainer.publish_new, "a", "momentum", more=more, keep_rows=True)
        _during_copy(power, trainer, grow)
    trainer.publish_new("a", "momentum", more=5)
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 60))
    trainer.change(CloneTable("b", "a"))
    trainer.change(RenameTable("a", "c"))
    trainer.change(SetAlias("a", "b"))
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["b"], 60))
    trainer.writer.checkpoint()
    trainer.change(ReplaceTable("c", "b"))


def open_tables(folder: Path, ignores: str) -> Iterator[Stage]:
    """Rows of an open table come and go, while versions follow and a snapshot is taken."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.create_open("o", 3, DType.FLOAT32, "adam")
    trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["o"], 30))
    trainer.writer.checkpoint()
    for _ in range(2):
        trainer.push(
            trainer.drawn(UpdateOp.DELETE_ROWS, ["o"], 12),
            trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["o"], 12),
        )
        trainer.writer.checkpoint()
    _during_copy(power, trainer, lambda: trainer.change(Publish("o")))
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["o"], 12))
    trainer.snapshot("s1")
    trainer.push(trainer.drawn(UpdateOp.DELETE_ROWS, ["o"], 30))
    trainer.writer.checkpoint()


def snapshots(folder: Path, ignores: str) -> Iterator[Stage]:
    """A snapshot is taken while pushes go on, and restored."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.add("k", 30, 3, "rowwise", keyed=True)
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["k"], 12))
    _during_copy(power, trainer, lambda: trainer.snapshot("s1"))
    trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["k"], 12))
    trainer.restore("s1")


def dropped(folder: Path, ignores: str) -> Iterator[Stage]:
    """Snapshots are taken and dropped."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.create("a", 30, 4, DType.FLOAT32, "sgd")
    for _ in range(3):
        trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 5))
        trainer.snapshot()
    trainer.drop_snapshots(1)
    trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 5))


def unsynced(folder: Path, ignores: str) -> Iterator[Stage]:
    """A writer that acknowledges before it syncs; it stops in good order, and another one comes."""
    power, trainer = _begin(folder, ignores, replace(LIMITS, syncs=False))
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.create("a", 300, 4, DType.FLOAT32, "momentum")
    for _ in range(4):
        trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 30))
    for _ in range(2):
        trainer.stop()
        # Somebody looks in, who starts no writer.
        trainer.make()
        trainer.start()
        trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 30))


def uploads(folder: Path, ignores: str) -> Iterator[Stage]:
    """Rows come in chunks before they are tables, while staging is there for something else."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.stage("never added", 3, 4, None, None)
    for name in ("one", "two"):
        upload = begin_upload(trainer, name, 176)
        for begin, end in ((0, 40), (40, 72), (72, 140), (140, 176)):
            send_rows(trainer, upload, begin, end)
        commit_upload(trainer, upload)


def tokens(folder: Path, ignores: str) -> Iterator[Stage]:
    """Tokens are made and revoked."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    for name in ("one", "two", "three"):
        trainer.add_token(name)
    trainer.revoke_token("two")
    trainer.add_token("four")


def full(folder: Path, ignores: str) -> Iterator[Stage]:
    """The disk is full amid the append of frames that are whole but for zeros at their end."""
    power, trainer = _begin(folder, ignores)
    yield power, trainer
    trainer.make()
    trainer.start()
    trainer.create("a", 30, 64, DType.FLOAT32, "sgd")
    trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 5))
    zeros = np.zeros((5, 64), np.float32)
    for number in range(3):
        update = TableUpdate("a", np.arange(5), zeros)
        with _filling(power):
            trainer.push_on_full_disk(Push(UpdateOp.ASSIGN, (update,), f"refused-{number}"))
    trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 5))


@contextmanager
def _filling(power: Power) -> Iterator[None]:
    """The disk is full inside the next write."""
    watch, left = power.watch, [1]

    def filling(method: str, path: Path) -> None:
        if watch is not None:
            watch(method, path)
        if method == "in write_at" and left[0]:
            left[0] -= 1
            raise DiskFull(f"{path}: the disk is full")

    power.watch = filling
    try:
        yield
    finally:
        power.watch = watch


def _mended(name: str) -> Script:
    """A file of a key index is damaged, on the disk too, and mended."""

    def script(folder: Path, ignores: str) -> Iterator[Stage]:
        power, trainer = _begin(folder, ignores)
        trainer.make()
        trainer.start()
        trainer.add("k", 30, 3, "rowwise", keyed=True)
        trainer.stop()
        path = version_dir(trainer.data, "k", 1) / name
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 0x55
        path.write_bytes(damaged)
        power = Power(trainer.root, 2, ignores)
        trainer.files = power
        trainer.is_damaged = True
        yield power, trainer
        repair_keys(trainer.data, "k", 1, power)
        trainer.is_damaged = False
        trainer.start()
        trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["k"], 12))
        trainer.stop()

    return script


def _during_copy(power: Power, trainer: Trainer, action: Callable[[], object]) -> None:
    """Do it, with pushes in between when a file was copied."""
    watch, left = power.watch, [2]

    def pushing(method: str, path: Path) -> None:
        if watch is not None:
            watch(method, path)
        if method == "sync_path" or (method == "copy" and left[0] and path.name == "weights.npy"):
            left[0] -= 1
            name = path.parents[1].name
            coming, trainer.coming = trainer.coming, None
            trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, [name], 60))
            trainer.coming = coming

    power.watch = pushing
    try:
        action()
    finally:
        power.watch = watch


def _killed_at(method: str, name: str, action: Callable[[Trainer], object]) -> Script:
    """The process is killed in `action` when it comes to `method` of the path called `name`.

    Another one comes, answers retries, makes a checkpoint and goes on.
    """

    def script(folder: Path, ignores: str) -> Iterator[Stage]:
        power, trainer = _begin(folder, ignores)
        trainer.make()
        trainer.start()
        trainer.create("a", 300, 4, DType.FLOAT32, "sgd")
        trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["a"], 40))
        found: list[Power] = []
        views = []

        def killing(called: str, path: Path) -> None:
            if (called, path.name) == (method, name) and not found:
                found.append(power.killed(folder / AFTERWARDS))
                views.append(trainer.view())
                power.turn_off()

        power.watch = killing
        try:
            action(trainer)
        except GatherdError:
            trainer.abandon()
        power, view = found[0], views[0]
        trainer = Trainer(folder / AFTERWARDS, power, 2)
        trainer.expects(view)
        yield power, trainer
        lsn = trainer.start()
        trainer.goes_on_from(view, lsn)
        trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 9))
        trainer.writer.checkpoint()
        trainer.push(trainer.drawn(UpdateOp.SCATTER_ADD, ["a"], 9))

    return script


def _one_push(trainer: Trainer) -> None:
    trainer.push(trainer.drawn(UpdateOp.ASSIGN, ["a"], 9))


def _publish(trainer: Trainer) -> None:
    trainer.change(Publish("a"))


SCRIPTS: dict[str, Script] = {
    "tables": tables,
    "versions": versions,
    "open tables": open_tables,
    "grown": grown,
    "snapshots": snapshots,
    "dropped": dropped,
    "unsynced": unsynced,
    "full": full,
    "tokens": tokens,
    "uploads": uploads,
    "slots of keys mended": _mended(KEYS_SLOTS),
    "description of keys mended": _mended(KEYS_JSON),
    "killed before the log is synced": _killed_at("sync_data", f"{1:020d}.log", _one_push),
    "killed before the catalog is replaced": _killed_at("put", "catalog.json", _publish),
    "killed before the catalog's name is synced": _killed_at("sync_dir", "data", _publish),
}
