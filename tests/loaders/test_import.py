"""`gatherd import` as a whole: its summary, full disks, kills, and the memory it takes."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from backports import zstd
from numpy.typing import NDArray

from gatherd.errors import DiskFull, StorageError
from gatherd.store.catalog import open_table, read_catalog
from gatherd_server.data_dir.importing import ImportOptions, import_rows
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.loaders.opening import OpenOptions, open_sources
from gatherd_server.storage.files import Files
from loaders.harness import text_file
from loaders.test_torch import mapping, program, storage, tensor
from support.server import clean_environment, run_cli

MB = 1_000_000


def test_the_summary_tells_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"a 1 2\nb 3\na 5 6\nc nan 1\ne 7 8\n")
    data_dir = tmp_path / "data"
    policies = ["--on-duplicate", "first", "--on-bad-row", "skip", "--on-nonfinite", "skip"]
    done = run_cli("import", "w", tmp_path / "v.txt", *policies, "--data-dir", data_dir)
    assert done.stdout.splitlines() == [
        f"w: 2 rows of 2 float32 (0.0 MB) from GloVe text in {data_dir}",
        "  left out: 1 row with a key that stood there before",
        "  left out: 1 row without a key and as many numbers as the others",
        "  left out: 1 row with NaN or infinity",
    ]
    assert done.stderr == ""
    table = open_table(data_dir, "w", 1)
    np.testing.assert_array_equal(table.lookup(np.arange(2)).vectors, [[1, 2], [7, 8]])


def test_an_error_is_a_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"a 1 2\nb 3\n")
    data_dir = tmp_path / "data"
    done = run_cli("import", "w", tmp_path / "v.txt", "--data-dir", data_dir, check=False)
    assert done.returncode > 1
    assert re.fullmatch(r"Error: .*: line 2: expected a token and 2 numbers.*\n", done.stderr)
    assert read_catalog(data_dir).tables == {}
    left = {str(path.relative_to(data_dir)) for path in data_dir.rglob("*")}
    assert left == {"lock", "control", "catalog.json", "staging"}


def pipe_in(data: bytes, *arguments: str | Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "gatherd_server", "import", "w", *map(str, arguments)],
        input=data, capture_output=True, env=clean_environment(), timeout=60,
    )  # fmt: skip


def test_standard_input_is_a_source_and_may_have_the_keys(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with tarfile.open(tmp_path / "v.tar.gz", "w:gz") as archive:
        (tmp_path / "v.txt").write_bytes(b"a 1 2\nb 3 4\nc 5 6\n")
        archive.add(tmp_path / "v.txt", "v.txt")
    packed = (tmp_path / "v.tar.gz").read_bytes()
    done = pipe_in(packed, "-", "--limit", "2", "--data-dir", data_dir)
    assert done.returncode == 0, done.stderr
    table = open_table(data_dir, "w", 1)
    np.testing.assert_array_equal(table.lookup(np.arange(2)).vectors, [[1, 2], [3, 4]])
    assert json.loads(table_manifest(data_dir))["origin"] == {"imported": ["-"]}
    np.save(tmp_path / "a.npy", np.eye(2))
    arguments = (tmp_path / "a.npy", "--keys", "-", "--data-dir", tmp_path / "keyed")
    assert pipe_in(b"x\ny\n", *arguments).returncode == 0
    done = pipe_in(b"x\ny\n", "-", "--keys", "-", "--data-dir", tmp_path / "other")
    assert done.returncode > 1
    assert b"standard input (-) can be read only once" in done.stderr


def test_a_terminal_is_no_source(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gatherd_server", "import", "w", "-", "--data-dir", tmp_path],
            stdin=theirs, capture_output=True, env=clean_environment(), timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode > 1
    assert b"standard input is a terminal; pipe a file into it" in done.stderr


def table_manifest(data_dir: Path) -> str:
    return (data_dir / "tables/w/v000001/manifest.json").read_text()


class FullAfter(Files):
    """A disk with room for so many bytes of writes and reservations."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def _step(self, path: Path) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise DiskFull(f"{path}: the disk is full")

    def write_new(
        self, path: Path, data: bytes, *, durable: bool = True, mode: int | None = None
    ) -> None:
        self._step(path)
        super().write_new(path, data, durable=durable, mode=mode)

    def allocate(self, fd: int, byte_count: int, path: Path, begin: int = 0) -> None:
        self._step(path)
        super().allocate(fd, byte_count, path, begin)

    def write_at(self, fd: int, data: memoryview, position: int, path: Path) -> int:
        self._step(path)
        return super().write_at(fd, data, position, path)


def test_a_disk_that_fills_up_at_any_step_leaves_nothing(tmp_path: Path) -> None:
    tokens = [b"t%d" % number for number in range(3000)]
    path = text_file(tmp_path / "v", tokens, np.ones((3000, 4)), header=True)
    outcomes = set()
    for steps in range(100):
        data_dir = tmp_path / f"data{steps}"
        with own_data_dir(data_dir, create=True) as owned:
            pass
        files = FullAfter(1000)
        with own_data_dir(data_dir, files=files) as owned:
            files.steps = steps
            try:
                with owned.scratch() as spool, open_sources([str(path)], OpenOptions(spool)) as one:
                    import_rows(owned, "w", one, ImportOptions(), {}, lambda done: None)
            except StorageError as error:
                assert "the disk is full" in error.message  # noqa: PT017
            else:
                break
        # It is in the log before it is in the catalog: the next owner has all of it or none.
        with own_data_dir(data_dir) as owned:
            owned.recover()
            outcomes.add("w" in owned.catalog.tables)
            if "w" in owned.catalog.tables:
                assert open_table(data_dir, "w", 1).row_count == 3000
    assert steps > 10
    assert False in outcomes
    assert open_table(data_dir, "w", 1).row_count == 3000


PEAK = """
import resource, sys
from gatherd_server.cli.main import cli
try:
    cli(sys.argv[1:], prog_name="gatherd")
finally:
    status = open("/proc/self/status").read()
    print("peak", status.split("VmHWM:")[1].split()[0])
"""


def peak_bytes(name: str, path: Path, *arguments: str | Path) -> int:
    """Peak resident memory of an import, all of it: libraries and mapped pages too.

    What is packed comes in by standard input.
    """
    source = "-" if path.suffix == ".zst" else path
    with open(path, "rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "import", name, *map(str, (source, *arguments))],
            stdin=file, capture_output=True, text=True, env=clean_environment(), timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak")[1]) * 1024


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What an import compiles the first time is no memory that it takes."""
    folder = tmp_path_factory.mktemp("warm")
    write(folder / "small.npy", 1)
    peak_bytes("warm", folder / "small.npy", "--data-dir", folder / "d")


@pytest.mark.parametrize(
    "suffix",
    ["npy", "txt", "h5", "parquet", "columns", "npz", "bin.zst", "tar.zst", "ft", "pt"],
)
def test_memory_stays_the_same_however_large_the_table(
    tmp_path: Path, warm: None, suffix: str
) -> None:
    del warm
    small, large = tmp_path / f"small.{suffix}", tmp_path / f"large.{suffix}"
    write(small, 20)
    write(large, 120)
    options: list[str | Path] = ["--data-dir", tmp_path / "d"]
    options += ["--vector-columns", "v*"] if suffix == "columns" else []
    base = peak_bytes("small", small, *options)
    peak = peak_bytes("large", large, *options)
    # Decimals are a good two bytes for one of the table.
    table_bytes = (tmp_path / "d/tables/large/v000001/weights.npy").stat().st_size
    assert table_bytes >= (48 if suffix == "txt" else 120) * MB
    assert peak < base + 40 * MB, (base / MB, peak / MB)
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            path.unlink()


def write_fasttext(path: Path, rows: NDArray[np.float32], mb: int) -> None:
    """A model of `mb` MB of words, and as many of n-grams' buckets."""
    count = len(rows) * (mb + 1)
    with open(path, "wb") as file:
        file.write(struct.pack("<ii", 793712314, 12))
        file.write(struct.pack("<12id", 512, 5, 5, 1, 5, 1, 2, 2, count, 3, 6, 100, 1e-4))
        file.write(struct.pack("<iiiqq", count, count, 0, 0, -1))
        file.writelines(b"word%d\0" % word + bytes(9) for word in range(count))
        file.write(struct.pack("<?qq", False, 2 * count, 512))
        file.writelines(rows.tobytes() for _ in range(2 * mb + 2))


def write_transposed(path: Path, rows: NDArray[np.float32], mb: int) -> None:
    """A torch tensor of `mb` MB whose columns lie one after the other."""
    shape = (len(rows) * (mb + 1), rows.shape[1])
    body = tensor(shape, (1, shape[0]), stored=storage(count=shape[0] * shape[1]))
    column = rows.tobytes()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", program(mapping({"w": body})))
        with file.open("model/data/0", "w") as data:
            for _ in range(mb + 1):
                data.write(column)


def write_columns(path: Path, rows: NDArray[np.float32], mb: int) -> None:
    """Parquet of `mb` MB with a column a dimension, in row groups as pandas makes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = np.tile(rows, (20, 1))
    table = pa.table({f"v{column}": part[:, column] for column in range(part.shape[1])})
    with pq.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
        for _ in range(mb // 20 + 1):
            writer.write_table(table)


WRITERS = {".ft": write_fasttext, ".pt": write_transposed,
           ".columns": write_columns}  # fmt: skip


def write(path: Path, mb: int) -> None:
    """A file of `mb` MB of float32, or of text."""
    rows = np.random.default_rng(0).normal(size=(MB // 2048, 512)).astype(np.float32)
    if path.suffix == ".npy":
        array = np.lib.format.open_memmap(path, "w+", np.float32, (len(rows) * mb + mb, 512))
        for start in range(0, len(array), len(rows)):
            array[start : start + len(rows)] = rows[: len(array) - start]
        array.flush()
    elif path.suffix == ".zst":
        inner = path.with_suffix("")
        write(inner, mb)
        with open(inner, "rb") as file, zstd.open(path, "wb", level=1) as packed:
            shutil.copyfileobj(file, packed)
    elif path.suffix == ".tar":
        write(path.with_suffix(".bin"), mb)
        with tarfile.open(path, "w") as archive:
            archive.add(path.with_suffix(".bin"), "v.bin")
    elif path.suffix in WRITERS:
        WRITERS[path.suffix](path, rows, mb)
    elif path.suffix == ".npz":
        write(path.with_suffix(".npy"), mb)
        with zipfile.ZipFile(path, "w") as file:
            file.write(path.with_suffix(".npy"), "w.npy")
    elif path.suffix == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("w", ((len(rows) + 1) * mb, 512), "f4", chunks=(64, 512))
            for start in range(0, len(dataset), len(rows)):
                dataset[start : start + len(rows)] = rows[: len(dataset) - start]
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = pa.array(np.tile(rows, (51, 1)).reshape(-1))
        table = pa.table({"v": pa.FixedSizeListArray.from_arrays(values, 512)})
        with pq.ParquetWriter(path, table.schema) as writer:
            for _ in range(mb // 50 + 1):
                writer.write_table(table)
    else:
        tokens = iter(range(10**9))
        is_text = path.suffix == ".txt"
        lines = [
            (" " + " ".join(f"{x:.6f}" for x in row) + "\n").encode()
            if is_text
            else b" " + row.tobytes()
            for row in rows
        ]
        repeats = mb // (2 if is_text else 1) + 1
        with open(path, "wb") as file:
            file.write(b"%d 512\n" % (repeats * len(lines)))
            for _ in range(repeats):
                file.writelines(b"t%d%s" % (next(tokens), line) for line in lines)
