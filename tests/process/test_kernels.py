"""Kernels are compiled ahead: all of them, once, by `gatherd kernels` or by the first start."""

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gatherd
import gatherd_server
from gatherd_server.processes import compiling
from support.server import RunningServer, run_cli
from support.tables import drawn_table, make_data_dir

FEW = ("gatherd.store.kernels.gather", "gatherd_server.storage.compiled_rows")
COMPILED = """
import importlib, sys
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
    for module in sys.argv[1:]:
        importlib.import_module(module)
print(sum(one.is_start for _, one in compiled.buffer))
print(*sorted(name for name in sys.modules if name.startswith("gatherd")))
"""


def imported(*modules: str) -> tuple[int, set[str]]:
    """How many kernels a process compiled to import `modules`, and what it has imported then."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, *modules], capture_output=True, text=True, check=True
    )
    count, names = done.stdout.splitlines()
    return int(count), set(names.split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kernels"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    monkeypatch.setattr(compiling, "MODULES", FEW)
    return folder


def test_what_was_compiled_ahead_is_compiled_by_nobody_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not compiling.are_compiled()
    assert [one.done for one in compiling.compile_kernels()] == [0, 1, 2]
    assert compiling.are_compiled()
    assert imported(*FEW)[0] == 0
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert not compiling.are_compiled()


@pytest.mark.parametrize("done", [0, 1])
def test_a_compilation_that_nobody_wants_any_more_ends_and_counts_for_nothing(
    folder: Path, done: int
) -> None:
    seen: list[int] = []
    for progress in compiling.compile_kernels(lambda: len(seen) <= done):
        seen.append(progress.done)
    assert seen[: done + 1] == list(range(done + 1))
    assert len(FEW) not in seen
    assert not compiling.are_compiled()


def test_a_module_that_cannot_be_compiled_is_told_of_and_left_to_those_who_need_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "MODULES", ("gatherd_server.no_such",))
    with caplog.at_level(logging.WARNING, "gatherd.supervisor"):
        assert [one.done for one in compiling.compile_kernels()] == [0]
    assert "No module named 'gatherd_server.no_such'" in caplog.text
    assert not compiling.are_compiled()


def test_a_folder_that_is_only_read_is_left_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHERD_BUILT_KERNELS", str(folder))
    assert compiling.cache_folder() is None
    assert compiling.are_compiled()


def sources() -> Iterator[tuple[str, str]]:
    for package in (gatherd, gatherd_server):
        root = Path(package.__path__[0])
        for path in root.rglob("*.py"):
            yield ".".join(path.relative_to(root.parent).with_suffix("").parts), path.read_text()


def test_every_module_with_kernels_is_compiled_ahead() -> None:
    _, known = imported(*compiling.MODULES)
    decorated = re.compile(r"^@(?:numba\.|kernel\(|compiled\(|inlined|unit\()", re.MULTILINE)
    with_kernels = {name for name, text in sources() if decorated.search(text)}
    assert set(compiling.MODULES) - {"gatherd_server.wire.compiled.answering"} <= with_kernels
    assert with_kernels <= known


def test_a_first_start_tells_that_it_compiles_and_the_next_one_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    data, folder, log = tmp_path / "data", tmp_path / "kernels", tmp_path / "log"
    make_data_dir(data, drawn_table("items", 5, 2))
    kept = run_cli("kernels").stdout.strip().rpartition(", in ")[2]
    # What a start finds is as good as what it compiles, and sooner there.
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns("compiled-*"))
    environment = {"NUMBA_CACHE_DIR": str(folder)}
    with RunningServer("--data-dir", data, environment=environment, log_path=log):
        pass
    total = len(compiling.MODULES)
    assert f"compiling kernels (once): {total} of {total} modules" in log.read_text()
    log.unlink()
    with RunningServer("--data-dir", data, environment=environment, log_path=log):
        pass
    assert "compiling kernels" not in log.read_text()
