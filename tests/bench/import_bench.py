"""How long gensim and `gatherd import` take over the same word2vec text file, turn by turn.

    make test-peers && PYTHONPATH=tests .venv-peers/bin/python tests/bench/import_bench.py

200,000 x 100 numbers of six decimals, 192 MB. gensim reads into memory; gatherd writes a table and
its key index, and syncs both. Read the ratios of the medians: the machine is noisy.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gensim.models import KeyedVectors

from loaders.harness import run_import
from support.server import run_cli

ROW_COUNT = 200_000
DIM = 100
ROUNDS = 5


def write(path: Path) -> None:
    """The file, in the form of `word 0.123456 -0.654321 …`."""
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        file.write(f"{ROW_COUNT} {DIM}\n")
        for start in range(0, ROW_COUNT, 1000):
            rows = rng.normal(size=(1000, DIM)) * 0.3
            file.writelines(
                f"word{start + index} {' '.join(f'{x:.6f}' for x in row)}\n"
                for index, row in enumerate(rows)
            )


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "v.txt"
        write(path)
        theirs = KeyedVectors.load_word2vec_format(str(path))
        ours = run_import(folder / "check", path)
        assert np.array_equal(ours.rows, theirs.vectors)
        assert ours.keys == [key.encode() for key in theirs.index_to_key]
        del theirs
        times: dict[str, list[float]] = {}
        for turn in range(ROUNDS):
            for what, work in (
                ("gensim load_word2vec_format", lambda: KeyedVectors.load_word2vec_format(path)),
                ("gatherd, the import", lambda: run_import(folder / "data", path)),
                (
                    "gatherd import, the command",
                    lambda: run_cli("import", f"t{turn}", path, "--data-dir", folder / "cli"),  # noqa: B023
                ),
            ):
                times.setdefault(what, []).append(seconds(work))
        base = statistics.median(times["gensim load_word2vec_format"])
        print(f"{path.stat().st_size / 1e6:.0f} MB, {ROW_COUNT} x {DIM}, {ROUNDS} rounds")
        for what, taken in times.items():
            median = statistics.median(taken)
            spread = f"{min(taken):.2f} to {max(taken):.2f}"
            print(f"{what:30}  {median:6.2f} s  ({spread})  {base / median:5.1f} x")


if __name__ == "__main__":
    main()
