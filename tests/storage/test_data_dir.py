"""A data dir shows a table whole or not at all, whenever the writer dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.errors import (
    AlreadyExists,
    BadFile,
    DataDirInUse,
    DataDirVersion,
    InvalidArgument,
    StorageError,
    TableNotFound,
)
from gatherd.store.catalog import open_table, read_catalog
from gatherd.store.checksums import encode_document
from gatherd.store.control import ControlPage
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd_server.cli.exit_codes import ExitCode
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.loaders.initializers import initial_blocks
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import Block, TableFiles
from gatherd_server.types import DeleteTable
from support.cli import invoke
from support.server import clean_environment

ROWS = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)


def table_files(name: str, blocks: Iterator[NDArray[Any]] | None = None) -> TableFiles:
    rows = map(Block, blocks or iter([ROWS]))
    return TableFiles(name, DType.FLOAT32, 50, 8, rows, {"made": "by a test"})


def names(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*")}


def test_a_table_is_read_back_and_is_plain_npy(tmp_path: Path) -> None:
    with own_data_dir(tmp_path / "data", create=True) as owned:
        owned.add_table(table_files("words"))
    entry = read_catalog(tmp_path / "data").tables["words"]
    table = open_table(tmp_path / "data", "words", entry.live)
    np.testing.assert_array_equal(table.lookup(np.arange(50)).vectors, ROWS)
    plain = np.load(tmp_path / "data/tables/words/v000001/weights.npy", mmap_mode="r")
    np.testing.assert_array_equal(plain, ROWS)


def test_readers_notice_a_new_table_by_the_generation(tmp_path: Path) -> None:
    with own_data_dir(tmp_path, create=True) as owned:
        owned.add_table(table_files("a"))
        page = ControlPage(tmp_path)
        before = page.generation
        owned.add_table(table_files("b"))
        assert page.generation == before + 1 == read_catalog(tmp_path).generation
        page.close()


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with own_data_dir(tmp_path, create=True) as owned:
        owned.add_table(table_files("words"))
        with pytest.raises(AlreadyExists, match="has a table 'words' already"):
            owned.add_table(table_files("words"))


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "ä", "a" * 129, "a b"])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with own_data_dir(tmp_path, create=True) as owned:
        with pytest.raises(InvalidArgument, match="can't name a table"):
            owned.add_table(table_files(name))


def test_a_data_dir_has_one_owner(tmp_path: Path) -> None:
    with own_data_dir(tmp_path, create=True):
        with pytest.raises(DataDirInUse, match=f"in use by process {os.getpid()}"):
            with own_data_dir(tmp_path):
                pass
    with own_data_dir(tmp_path):
        pass


def test_a_folder_with_other_things_is_not_made_a_data_dir(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadFile, match="isn't a data dir of gatherd"):
        with own_data_dir(tmp_path, create=True):
            pass
    assert names(tmp_path) == {"thesis.txt"}


def test_a_data_dir_of_another_format_is_refused(tmp_path: Path) -> None:
    with own_data_dir(tmp_path, create=True):
        pass
    catalog = json.loads((tmp_path / "catalog.json").read_text())
    fresh = encode_document({**catalog, "format": 2}, indent=2)
    (tmp_path / "catalog.json").write_bytes(fresh)
    with pytest.raises(DataDirVersion, match="has format 2; this release reads 1"):
        with own_data_dir(tmp_path):
            pass


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "generation": 0, "tables": 3}']
)
def test_a_damaged_catalog_is_refused(tmp_path: Path, content: str) -> None:
    with own_data_dir(tmp_path, create=True):
        pass
    (tmp_path / "catalog.json").write_text(content)
    with pytest.raises(BadFile, match=r"catalog.json is damaged"):
        read_catalog(tmp_path)


def test_files_that_contradict_the_manifest_are_refused(tmp_path: Path) -> None:
    with own_data_dir(tmp_path, create=True) as owned:
        owned.add_table(table_files("words"))
    np.save(tmp_path / "tables/words/v000001/weights.npy", ROWS[:-1])
    with pytest.raises(BadFile, match=r"isn't the .* array of its manifest"):
        open_table(tmp_path, "words", 1)


class FullDisk(Files):
    """A disk that is full from the n-th allocation or write on."""

    def write_at(self, fd: int, data: memoryview, position: int, path: Path) -> int:
        raise StorageError(f"{path}: the disk is full")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with own_data_dir(tmp_path, create=True, files=FullDisk()) as owned:
        before = names(tmp_path)
        with pytest.raises(StorageError, match="the disk is full"):
            owned.add_table(table_files("words"))
        assert names(tmp_path) - {"staging"} == before
        assert owned.catalog.tables == {}


def test_a_source_that_fails_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[NDArray[Any]]:
        yield ROWS[:10]
        raise BadFile("the source ends here")

    with own_data_dir(tmp_path, create=True) as owned:
        with pytest.raises(BadFile, match="ends here"):
            owned.add_table(table_files("words", failing()))
        assert not list((tmp_path / "staging").iterdir())


KILLED_IMPORT = """
import os, signal, sys
from pathlib import Path
from gatherd_server.storage.files import Files
from gatherd_server.data_dir.owning import own_data_dir
from storage.test_data_dir import table_files

class Dying(Files):
    steps = int(sys.argv[2])
    def _step(self):
        type(self).steps -= 1
        if type(self).steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def dying(name):
    real = getattr(Files, name)
    def method(self, *args, **options):
        self._step()
        return real(self, *args, **options)
    return method

for name in (
    "write_new", "replace", "rename", "make_dirs", "sync", "sync_dir", "allocate", "write_at"
):
    setattr(Dying, name, dying(name))

with own_data_dir(Path(sys.argv[1]), create=True, files=Dying()) as owned:
    owned.add_table(table_files("words"))
"""


def test_an_import_killed_at_any_step_is_whole_or_invisible_and_swept(tmp_path: Path) -> None:
    seen = {"invisible": 0, "whole": 0}
    for steps in range(100):
        data_dir = tmp_path / str(steps)
        done = subprocess.run(
            [sys.executable, "-c", KILLED_IMPORT, str(data_dir), str(steps)],
            env={**clean_environment(), "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        with own_data_dir(data_dir, create=True) as owned:
            with pytest.raises(TableNotFound):
                owned.change(DeleteTable("none"))  # recovers, and sweeps
            present = owned.catalog.tables
            if present:
                table = open_table(data_dir, "words", 1)
                np.testing.assert_array_equal(table.lookup(np.arange(50)).vectors, ROWS)
                seen["whole"] += 1
            else:
                left = {name for name in names(data_dir) if not name.startswith("wal")}
                assert not left - {"lock", "control", "catalog.json", "staging", "tables"}
                owned.add_table(table_files("words"))
                seen["invisible"] += 1
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    else:
        raise AssertionError("the import never came to its end")
    assert seen["invisible"] >= 10
    assert seen["whole"] >= 2


def test_import_converts_and_create_draws_from_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    data_dir = tmp_path / "data"
    invoke("import", "half", tmp_path / "a.npy", "--dtype", "float16", "--data-dir", data_dir)
    invoke("create", "new", "--rows", "10", "--dim", "4", "--seed", "3", "--data-dir", data_dir)
    half = open_table(data_dir, "half", 1)
    assert half.dtype is DType.FLOAT16
    np.testing.assert_array_equal(
        half.lookup(np.arange(50)).vectors, ROWS.astype(np.float16).astype(np.float32)
    )
    wanted = next(initial_blocks(Initializer.parse("uniform"), 10, 4, DType.FLOAT32, 3))
    np.testing.assert_array_equal(
        open_table(data_dir, "new", 1).lookup(np.arange(10)).vectors, wanted
    )
    again = invoke(
        "create", "new", "--rows", "1", "--dim", "1", "--data-dir", data_dir, check=False
    )
    assert again.returncode == ExitCode.REFUSED
    assert "has a table 'new' already" in again.stderr
