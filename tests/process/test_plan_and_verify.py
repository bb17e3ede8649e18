"""`gatherd plan` tells what then happens; `gatherd verify` finds damage wherever it is."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cli import invoke
from support.server import RunningServer, pss_bytes

ROWS = np.random.default_rng(4).normal(size=(60_000, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    np.save(folder / "rows.npy", ROWS)
    np.save(folder / "keys.npy", np.arange(60_000) * 7)
    lines = (f"word{i} " + " ".join(f"{x:.5f}" for x in ROWS[i, :6]) for i in range(20_000))
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    return folder


def planned(*arguments: str | Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(invoke("plan", *arguments, "--json").stdout)
    return document


def npy_bytes(version: Path) -> int:
    return sum(path.stat().st_size for path in version.glob("*.npy"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("rows.npy",),
        ("rows.npy", "--dtype", "float16"),
        ("rows.npy", "--keys", "keys.npy"),
        ("rows.npy", "--optimizer", "adam"),
        ("words.txt", "--optimizer", "ftrl"),
        ("words.txt",),
        ("words.txt", "--dtype", "bfloat16"),
    ],
)
def test_the_disk_that_a_plan_tells_is_what_the_import_takes(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    placed = [folder / a if a.endswith((".npy", ".txt")) else a for a in arguments]
    plan = planned(*placed)
    invoke("import", "t", *placed, "--data-dir", tmp_path / "data")
    version = tmp_path / "data/tables/t/v000001"
    assert plan["disk_bytes"] == npy_bytes(version)
    manifest = json.loads((version / "manifest.json").read_text())
    assert plan["rows"] == manifest["rows"]
    assert plan["keys"] == manifest["keys"]


def test_a_plan_without_a_file_is_that_of_create(tmp_path: Path) -> None:
    shape = ("--rows", "1234", "--dim", "56", "--dtype", "float64")
    invoke("create", "t", *shape, "--data-dir", tmp_path)
    assert planned(*shape)["disk_bytes"] == npy_bytes(tmp_path / "tables/t/v000001")


def test_the_memory_and_start_that_a_plan_tells_are_what_a_server_takes(
    folder: Path, tmp_path: Path
) -> None:
    sources = (folder / "rows.npy", "--keys", folder / "keys.npy")
    plan = planned(*sources)
    invoke("import", "t", *sources, "--data-dir", tmp_path / "data")
    with RunningServer("--data-dir", tmp_path / "data"):
        pass  # compiles the kernels, where that wasn't done before
    begin = time.monotonic()
    with RunningServer("--data-dir", tmp_path / "data", "--workers", "2") as server:
        seconds = time.monotonic() - begin
        workers = server.worker_pids()
        mapped = sum(pss_bytes(pid, "/tables/t/") for pid in workers)
        private = [private_bytes(pid) for pid in workers]
    assert 0.95 * plan["mapped_bytes"] < mapped <= plan["mapped_bytes"]
    for used in private:
        assert (
            plan["private_bytes_per_worker"] / 1.5 < used < plan["private_bytes_per_worker"] * 1.5
        )
    # A busy machine may take many times as long; nothing takes much less.
    assert plan["start_seconds"] / 5 < seconds < plan["start_seconds"] * 30


def private_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"Private_Dirty: +(\d+)", text)[0]) * 1024


def test_a_plan_needs_a_source_or_a_shape() -> None:
    assert invoke("plan", check=False).returncode == 2
    assert "mapped" in invoke("plan", "--rows", "10", "--dim", "3").stdout


@pytest.fixture(scope="module")
def imported(folder: Path) -> Path:
    keys = ("--keys", folder / "keys.npy")
    frozen = ("--frozen", "--data-dir", folder / "data")
    invoke("import", "rows", folder / "rows.npy", *keys, *frozen)
    invoke("import", "words", folder / "words.txt", "--data-dir", folder / "data")
    return folder / "data"


@pytest.fixture
def data_dir(imported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(imported, tmp_path / "data"))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


def test_sound_tables_are_ok_also_while_they_are_served(data_dir: Path) -> None:
    with RunningServer("--data-dir", data_dir):
        shown = invoke("verify", "--data-dir", data_dir).stdout
    tables, log = shown.splitlines()[:-1], shown.splitlines()[-1]
    assert tables == ["rows v1: ok", "words v1: ok"]
    # Nothing came after the two imports, so nothing is above the checkpoint.
    assert re.fullmatch(r"log: ok, LSN (\d+), checkpoint at \1", log)


@pytest.mark.parametrize(
    ("name", "position", "where"),
    [
        ("weights.npy", 5_000_000, "weights.npy: bytes 4194304 to 8388608 aren't what was"),
        ("weights.npy", 50, "weights.npy: bytes 0 to 4194304"),
        ("keys.npy", 1000, "keys.npy"),
        ("keys.slots.npy", 1000, "keys.slots.npy"),
        ("keys.json", 30, "keys.json"),
        ("manifest.json", 20, "manifest.json"),
    ],
)
def test_a_flipped_bit_is_found_and_placed(
    data_dir: Path, name: str, position: int, where: str
) -> None:
    flip(data_dir / "tables/rows/v000001" / name, position)
    done = invoke("verify", "--data-dir", data_dir, check=False)
    assert done.returncode > 1
    assert where in done.stderr
    assert "words v1: ok" in done.stdout
    only = invoke("verify", "words", "--data-dir", data_dir)
    assert only.returncode == 0


def test_a_damaged_key_index_is_repaired_from_its_keys(data_dir: Path) -> None:
    slots = data_dir / "tables/words/v000001/keys.slots.npy"
    sound = slots.read_bytes()
    flip(slots, 500)
    done = invoke("verify", "--repair", "--data-dir", data_dir)
    assert "its key index was built anew" in done.stdout
    assert slots.read_bytes() == sound


def test_weights_cannot_be_repaired(data_dir: Path) -> None:
    flip(data_dir / "tables/words/v000001/weights.npy", 500)
    done = invoke("verify", "--repair", "--data-dir", data_dir, check=False)
    assert done.returncode > 1
    assert "weights.npy" in done.stderr


def test_a_table_that_is_not_there_is_named(data_dir: Path) -> None:
    done = invoke("verify", "word", "--data-dir", data_dir, check=False)
    assert done.returncode > 1
    assert "no table 'word'; did you mean 'words'?" in done.stderr
