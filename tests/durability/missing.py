"""Looks for a power cut that shows that a sync is missing; a program, for the whole table."""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from durability.power import Power
from durability.scripts import SCRIPTS
from durability.trainer import Trainer, View, judge, reproducible
from gatherd.errors import GatherdError

SEEDS = (0, 2, 3, 4, 5, 1, 6, 7)


def labels_of(name: str, folder: Path) -> dict[str, list[int]]:
    """The calls at which a script's syncs come, by label."""
    with reproducible(1):
        *_, (power, trainer) = SCRIPTS[name](folder, "")
        trainer.abandon()
    return power.labels


def run_to(name: str, folder: Path, ignores: str, call: int, cuts: dict[int, Path]) -> View | None:
    """Run a script until `call` of its last stage and write the cuts, by seed; what is known then.

    None when there are fewer calls.
    """
    views: list[View] = []

    def watch_of(power: Power, trainer: Trainer) -> None:
        def watch(method: str, path: Path) -> None:
            if power.calls == call and not views:
                views.append(trainer.view())
                for seed, target in cuts.items():
                    power.cut(target, seed)
                power.turn_off()

        power.watch = watch

    with reproducible(1):
        script = SCRIPTS[name](folder, ignores)
        trainer = None
        try:
            for power, trainer in script:
                watch_of(power, trainer)
        except GatherdError:
            if not views:
                raise
        finally:
            if trainer is not None:
                trainer.abandon()
    return views[0] if views else None


def violation(folder: Path, view: View) -> str:
    """What is wrong with a folder, or nothing."""
    try:
        judge(folder, view)
    except Exception as error:  # noqa: BLE001 - whatever it is, recovery failed
        return f"{type(error).__name__}: {error}"
    return ""


def search(
    label: str, name: str, calls: list[int], seconds: float
) -> Iterator[tuple[int, int, str]]:
    """Cuts of a script after the calls of a sync that show that it is missing: call, seed, what."""
    end = time.monotonic() + seconds
    tried = set()
    for step in (1, 2, 3, 5, 8, 13, 20, 30, 45, 70, 100, 140, 190, 250, 320, 400, 500):
        for call in calls[:3] + calls[-1:]:
            if call + step in tried or time.monotonic() > end:
                continue
            tried.add(call + step)
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                cuts = {seed: folder / f"cut-{seed}" for seed in SEEDS}
                view = run_to(name, folder, label, call + step, cuts)
                if view is None:
                    continue
                for seed, cut in cuts.items():
                    if what := violation(cut, view):
                        yield call + step, seed, what
                        return


def main() -> None:
    logging.disable(logging.CRITICAL)
    wanted = sys.argv[1:]
    labels: dict[str, dict[str, list[int]]] = {}
    for name in SCRIPTS:
        with tempfile.TemporaryDirectory() as temporary:
            for label, calls in labels_of(name, Path(temporary)).items():
                labels.setdefault(label, {})[name] = calls
    for label in sorted(labels):
        if wanted and not any(word in label for word in wanted):
            continue
        for name, calls in labels[label].items():
            found = next(search(label, name, calls, 60.0), None)
            if found:
                call, seed, what = found
                print(f'    "{label}": ("{name}", {call}, {seed}),  # {what[-120:]}', flush=True)
                break
        else:
            print(f"    NOT SHOWN {label} {list(labels[label].items())}", flush=True)


if __name__ == "__main__":
    from gatherd_server.storage import mapped_rows

    mapped_rows.warm()
    main()
