"""No reader gets another key's row, however fast rows are given to other keys."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.open_spec import OpenSpec
from support.open_races import DIM, NAME, ROWS_MAX
from support.open_rows import make_open_table

PROGRAM = Path(__file__).parents[1] / "support/open_races.py"
# With those over the wires, 10 million in all.
ROWS = {
    "lookup": 1_500_000,
    "converted": 250_000,
    "mean": 500_000,
    "max": 250_000,
    "answer": 1_000_000,
}
BLIND_ROWS = 300_000
SPECS = {
    kind: OpenSpec(kind, ROWS_MAX, 1, Initializer.parse("constant", {"value": -1.0}))
    for kind in (KeyKind.INT64, KeyKind.BYTES)
}


@contextmanager
def writing(folder: Path, kind: KeyKind) -> Iterator[None]:
    """A process that gives the version's rows to other keys for the length of a `with` block."""
    process = subprocess.Popen(
        [sys.executable, PROGRAM, "write", folder, kind.value],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "storing\n"
        yield
        assert process.poll() is None
        process.stdin.close()
        assert int(process.stdout.readline()) >= 10 * ROWS_MAX
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def reading(data_dir: Path, kind: KeyKind, rows: dict[str, int], *more: str) -> dict[str, Any]:
    """What a reader in a process of its own found, by the way in which it read so many rows."""
    arguments = [sys.executable, PROGRAM, "read", data_dir, kind.value, json.dumps(rows), *more]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", list(SPECS))
def test_no_reader_gets_another_key_s_row(tmp_path: Path, kind: KeyKind) -> None:
    folder = make_open_table(tmp_path, NAME, SPECS[kind], DIM)
    with writing(folder, kind):
        for way, found in reading(tmp_path, kind, ROWS).items():
            assert (found["wrong"], found["lost"]) == (0, 0), (way, found)
            assert found["missing"] > found["rows"] // 10


def test_who_doesn_t_look_a_second_time_gets_other_keys_rows(tmp_path: Path) -> None:
    kind = KeyKind.INT64
    folder = make_open_table(tmp_path, NAME, SPECS[kind], DIM)
    with writing(folder, kind):
        found = reading(tmp_path, kind, {"lookup": BLIND_ROWS}, "blind")["lookup"]
    assert found["wrong"] > 0
