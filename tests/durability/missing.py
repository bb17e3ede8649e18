"""Runs the scripts with one sync missing, and looks for a power cut that shows it.

As a program it finds one for every sync there is, for the table in test_missing_syncs.py:
`PYTHONPATH=tests python -m durability.missing [part of a label …]`.
"""

import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from durability.judge import violation
from durability.power import Power
from durability.scripts import SCRIPTS
from durability.trainer import Trainer, View, reproducible
from gatherd.errors import GatherdError

SEEDS = (0, 2, 3, 1, 4, 5, 6, 7)
ALL_SEEDS = tuple(range(4, 40))
MORE_CALLS = 30

Labels = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the power goes: `later` calls after the label's `occurrence`-th sync in `script`."""

    script: str
    occurrence: int
    later: int
    seed: int


def run(
    name: str, folder: Path, ignores: str, cuts: Mapping[int, Mapping[int, Path]], *, to_end: bool
) -> tuple[dict[int, View], Labels]:
    """Run a script, and write cuts by call and seed; what was known at each, and the syncs.

    Unless `to_end`, the power stays off after the last.
    """
    views: dict[int, View] = {}
    last = max(cuts, default=0)
    labels: Labels = {}

    def watched(power: Power, trainer: Trainer) -> None:
        def watch(method: str, path: Path) -> None:
            if power.calls in cuts and power.calls not in views:
                views[power.calls] = trainer.view()
                for seed, target in cuts[power.calls].items():
                    power.cut(target, seed)
                if power.calls == last and not to_end:
                    power.turn_off()

        power.watch = watch

    with reproducible(1):
        trainer = None
        try:
            for power, trainer in SCRIPTS[name](folder, ignores):
                watched(power, trainer)
                labels = power.labels
        except GatherdError:
            if last not in views:
                raise
        finally:
            if trainer is not None:
                trainer.abandon()
    return views, labels


def labels_of(name: str) -> Labels:
    """The calls at which a script's syncs come, by label."""
    with tempfile.TemporaryDirectory() as folder:
        return run(name, Path(folder), "", {}, to_end=True)[1]


def shown(
    name: str, ignores: str, points: Iterable[tuple[int, int]], *, to_end: bool = False
) -> Iterator[tuple[tuple[int, int], str]]:
    """What the judge has to say to the cuts at (call, seed), of those that were come to.

    With `to_end` that needn't be all of them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = {point: folder / f"cut-{point[0]}-{point[1]}" for point in points}
        cuts: dict[int, dict[int, Path]] = {}
        for (call, seed), path in paths.items():
            cuts.setdefault(call, {})[seed] = path
        views, _ = run(name, folder, ignores, cuts, to_end=to_end)
        for point, path in paths.items():
            if point[0] in views:
                yield point, violation(path, views[point[0]])


def search(label: str, name: str, calls: list[int]) -> tuple[Cut, str] | None:
    """A cut that shows that a sync is missing, and none when it is there; what goes wrong."""
    end = 1 + max(call for found in labels_of(name).values() for call in found)
    near = sorted({call + later for call in calls[:3] for later in range(1, MORE_CALLS)})
    far = range(calls[0] + MORE_CALLS, end + 1)
    for seeds, where in ((SEEDS[:4], near), (ALL_SEEDS, near), (SEEDS, far)):
        points = [(call, seed) for call in where for seed in seeds]
        for (call, seed), what in shown(name, label, points, to_end=True):
            if what and not next(shown(name, "", [(call, seed)]))[1]:
                occurrence = max(i for i, begin in enumerate(calls) if begin < call)
                return Cut(name, occurrence, call - calls[occurrence], seed), what
    return None


def main() -> None:
    logging.disable(logging.CRITICAL)
    wanted = sys.argv[1:]
    labels: dict[str, Labels] = {}
    for name in SCRIPTS:
        for label, calls in labels_of(name).items():
            labels.setdefault(label, {})[name] = calls
    for label in sorted(labels):
        if wanted and not any(word in label for word in wanted):
            continue
        for name, calls in labels[label].items():
            if found := search(label, name, calls):
                cut, what = found
                where = f'"{cut.script}", {cut.occurrence}, {cut.later}, {cut.seed}'
                sys.stdout.write(f'    "{label}": Cut({where}),  # {what[-120:]}\n')
                break
        else:
            sys.stdout.write(f"    NOT SHOWN {label} {list(labels[label].items())}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    from gatherd_server.storage import mapped_rows

    mapped_rows.warm()
    main()
