"""Random histories, and power cuts at random calls of the fault seam.

Each cut is recovered and held against a replay of the history on arrays (oracle.py). What a disk
can have after a cut is said in power.py. POWER_CUTS is how many cuts are judged, POWER_SEED is the
first history: a failure names its own.
"""

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from durability.judge import violation
from durability.power import Power
from durability.trainer import LIMITS, OPTIMIZERS, Trainer, View, reproducible
from gatherd.errors import GatherdError
from gatherd.store.dtypes import DType
from gatherd_server.types import (
    CloneTable,
    DeleteAlias,
    DeleteTable,
    OptimizerSpec,
    Publish,
    RenameTable,
    ReplaceTable,
    Rollback,
    SetAlias,
    SetOptimizer,
)

CUTS = int(os.environ.get("POWER_CUTS", "240"))
FIRST_SEED = int(os.environ.get("POWER_SEED", "1"))
CUTS_OF_A_HISTORY = 20
CUT_SHARE = 0.05
"""Of the calls of a history, how many a cut is drawn at."""
STEPS = 22
PARTS = 4
DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Cut:
    """What the disk had, and what was known."""

    folder: Path
    view: View
    at: str


class History:
    """A random history over a modelled disk, with cuts written on the way."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.cuts: list[Cut] = []
        self._folder = folder
        self._seed = seed
        self._disks = 0
        root = folder / "disk"
        root.mkdir()
        self._power = Power(root, seed)
        self._trainer = Trainer(root, self._power, seed)
        self._random = self._trainer.random
        self._names = 0
        self._power.watch = self._watch

    def _watch(self, method: str, path: Path) -> None:
        if len(self.cuts) < CUTS_OF_A_HISTORY and self._random.random() < CUT_SHARE:
            number = len(self.cuts)
            seed = self._random.randrange(1 << 20)
            folder = self._folder / f"cut-{number}"
            self._power.cut(folder, seed)
            at = f"history {self._seed}, cut {number} at call {self._power.calls}, {method} {path}"
            self.cuts.append(Cut(folder, self._trainer.view(), at))

    def run(self) -> None:
        """Do what is drawn, until there are cuts enough."""
        trainer = self._trainer
        trainer.make()
        trainer.start()
        self._create()
        for _ in range(STEPS):
            self._step()
            if len(self.cuts) == CUTS_OF_A_HISTORY:
                break
        self._trainer.stop()

    def close(self) -> None:
        self._trainer.abandon()

    def _step(self) -> None:
        trainer, draw = self._trainer, self._random
        some = draw.choice(sorted(trainer.state)) if trainer.state else ""
        match draw.randrange(26):
            case 0 | 1 if len(trainer.state) < 3:
                self._create()
            case 2 if some:
                trainer.change(DeleteTable(some, force=True))
            case 3 | 4 if some:
                trainer.change(Publish(some))
            case 5 | 22 | 23 | 24 if some:
                self._name(some)
            case 6 | 7 if some and min(trainer.state[some].versions) < trainer.state[some].live:
                trainer.change(Rollback(some))
            case 8 | 17 if some:
                trainer.change(SetOptimizer(some, self._optimizer(some)))
            case 9 | 10 | 15 | 16:
                self._keep_house()
            case 11:
                self._names += 1
                trainer.snapshot(f"s{self._names}")
                if draw.random() < 0.3:
                    trainer.restore(f"s{self._names}")
            case 12:
                trainer.stop()
                trainer.start()
            case 13 | 14:
                self._kill()
            case _:
                trainer.push_some(draw.choice((1, 1, 2, 4)))

    def _optimizer(self, name: str) -> OptimizerSpec:
        """Another rate, which is set in place, or perhaps another kind."""
        if name in self._trainer.trainable() and self._random.random() < 0.5:
            return OptimizerSpec("", {"lr": self._random.choice((0.25, 0.0625))})
        return OptimizerSpec(self._random.choice(("sgd", "adam", "rowwise-adagrad")), {})

    def _grow(self, name: str) -> None:
        """Another version with more rows, or fewer, of which those that stay keep their state."""
        trainer, draw = self._trainer, self._random
        live = trainer.state[name].versions[trainer.state[name].live]
        assert live.optimizer is not None
        keep_rows = live.dtype is DType.FLOAT32 and draw.random() < 0.7
        kind = live.optimizer.name.value if draw.random() < 0.8 else "ftrl"
        known = {spec[0]: key for key, spec in OPTIMIZERS.items()}
        trainer.publish_new(
            name, known.get(kind, "ftrl"), more=draw.choice((-3, 0, 5)), keep_rows=keep_rows
        )

    def _name(self, some: str) -> None:
        """A name changes, or a table becomes a copy of another."""
        trainer, draw = self._trainer, self._random
        self._names += 1
        other = draw.choice(sorted(trainer.state))
        aliases = sorted(alias for table in trainer.state.values() for alias in table.aliases)
        match draw.randrange(8):
            case 0:
                trainer.change(RenameTable(some, f"r{self._names}", keep_alias=draw.random() < 0.5))
            case 1:
                trainer.change(SetAlias(f"a{self._names}", some))
            case 2 if aliases:
                trainer.change(SetAlias(draw.choice(aliases), some))
            case 3 if aliases:
                trainer.change(DeleteAlias(draw.choice(aliases)))
            case 4 if len(trainer.state) < 4:
                trainer.change(CloneTable(f"c{self._names}", some))
            case 5 if other != some:
                kinds = {
                    (trainer.is_open(name), trainer.state[name].keys is None)
                    for name in (some, other)
                }
                if len(kinds) == 1:
                    trainer.change(ReplaceTable(some, other, allow_dim_change=True))
            case 6 | 7 if any(not trainer.is_open(name) for name in trainer.trainable()):
                closed = [name for name in trainer.trainable() if not trainer.is_open(name)]
                self._grow(draw.choice(closed))

    def _keep_house(self) -> None:
        writer, draw = self._trainer.writer, self._random
        if draw.random() < 0.5:
            writer.checkpoint()
        else:
            writer.prepare_segment(draw.choice((3_000, LIMITS.segment_bytes)))

    def _create(self) -> None:
        trainer, draw = self._trainer, self._random
        self._names += 1
        optimizer = draw.choice(("adam", "momentum", "sgd", "rowwise", "ftrl"))
        if draw.random() < 0.4:
            trainer.create_open(f"o{self._names}", draw.choice((2, 5)), DType.FLOAT32, optimizer)
        elif draw.random() < 0.4:
            trainer.add(f"k{self._names}", 30, draw.choice((2, 5)), optimizer, keyed=True)
        else:
            rows, dim = draw.choice(((7, 3), (700, 4), (2_000, 2)))
            trainer.create(f"t{self._names}", rows, dim, draw.choice(DTYPES), optimizer)

    def _kill(self) -> None:
        """The process is killed amid a push; another one begins, on the same machine."""
        before, at = self._trainer, self._random.randint(1, 12)
        power, watch = self._power, self._power.watch
        assert watch is not None
        views: list[View] = []
        self._disks += 1
        folder = self._folder / f"disk-{self._disks}"
        killed: list[Power] = []

        def killing(method: str, path: Path) -> None:
            nonlocal at
            watch(method, path)
            at -= 1
            if at == 0:
                views.append(before.view())
                killed.append(power.killed(folder))
                power.turn_off()

        power.watch = killing
        for _ in range(8):
            if killed or not before.trainable():
                break
            with suppress(GatherdError):
                before.push_some(2)
        if not killed:
            power.watch = watch
            return
        before.abandon()
        self._power = killed[0]
        self._trainer = trainer = Trainer(folder, self._power, self._random.randrange(1 << 20))
        trainer.random = self._random
        trainer.expects(views[0])
        self._power.watch = self._watch
        trainer.goes_on_from(views[0], trainer.start(is_restart=self._random.random() < 0.6))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(60 + CUTS)
def test_what_was_acknowledged_survives_any_power_cut(
    part: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1, "gatherd")
    judged, seed = 0, FIRST_SEED + part
    wrong: list[str] = []
    while judged < CUTS // PARTS and not wrong:
        folder = tmp_path / str(seed)
        folder.mkdir()
        history = History(folder, seed)
        with reproducible(seed):
            try:
                history.run()
            finally:
                history.close()
        for cut in history.cuts:
            if what := violation(cut.folder, cut.view):
                wrong.append(f"{cut.at}: {what}")
        judged += len(history.cuts)
        seed += PARTS
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)
