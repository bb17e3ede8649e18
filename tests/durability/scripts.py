"""Short histories, always the same, in which a missing sync can be seen.

A script works on the model of a disk and yields each (disk, trainer) that it goes on with: the
first, and the one of each process after that one was killed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from durability.power import Power
from durability.trainer import Trainer
from gatherd.errors import GatherdError
from gatherd.store.dtypes import DType
from gatherd_server.types import (
    DeleteTable,
    OptimizerSpec,
    Publish,
    Rollback,
    SetOptimizer,
    UpdateOp,
)

Stage = tuple[Power, Trainer]
Script = Callable[[Path, str], Iterator[Stage]]
ROOT, AFTERWARDS = "disk", "afterwards"


def _begin(folder: Path, ignores: str) -> Stage:
    root = folder / ROOT
    root.mkdir()
    power = Power(root, 1, ignores)
    return power, Trainer(root, power, 1)


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
        trainer.push(*(trainer.drawn(op, ["a", "k"], 12) for op in UpdateOp))
    trainer.writer.checkpoint()
    trainer.push(trainer.drawn(UpdateOp.APPLY_GRADIENTS, ["k"], 12))
    trainer.change(DeleteTable("k"))
    for _ in range(3):
        trainer.push(*(trainer.drawn(op, ["a"], 30) for op in UpdateOp))
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
        trainer.goes_on_from(view, view.acknowledged)
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
    "snapshots": snapshots,
    "killed before the log is synced": _killed_at("sync_data", f"{1:020d}.log", _one_push),
    "killed before the catalog is replaced": _killed_at("replace", "catalog.json", _publish),
    "killed before the catalog's name is synced": _killed_at("sync_dir", "data", _publish),
}
