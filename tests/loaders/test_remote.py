"""A URI is as good as a path: read as it comes where that will do, else fetched to a file."""

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders.limits import UnpackLimits
from loaders.harness import run_import

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
TEXT = b"".join(b"t%d %d %d %d\n" % (i, *row) for i, row in enumerate(ROWS.astype(int)))


@pytest.fixture
def memory() -> Iterator[Any]:
    file_system = fsspec.filesystem("memory")
    yield file_system
    file_system.store.clear()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, ROWS)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("w.npy", npy())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [TEXT, gzip.compress(TEXT, mtime=0), npy(), gzip.compress(npy()), npz(), save({"w": ROWS})],
    ids=["text", "text.gz", "npy", "npy.gz", "npz", "safetensors"],
)
def test_every_format_comes_in_from_a_uri(tmp_path: Path, memory: Any, content: bytes) -> None:
    memory.pipe("/bucket/file", content)
    done = run_import(tmp_path / "d", "memory://bucket/file")
    np.testing.assert_array_equal(done.rows, ROWS)


def test_parts_keys_and_indexes_are_found_beside_it(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/b/1.safetensors", save({"w": ROWS, "v": ROWS}))
    memory.pipe("/b/index.json", json.dumps({"weight_map": {"w": "1.safetensors"}}).encode())
    memory.pipe("/b/keys", b"a\nb\nc\nd\n")
    for source in ("memory://b/1.safetensors#w", "memory://b/index.json"):
        done = run_import(tmp_path / "d", source, keys="memory://b/keys")
        np.testing.assert_array_equal(done.rows, ROWS)
        assert done.keys == [b"a", b"b", b"c", b"d"]


def test_what_is_not_there_or_breaks_off_is_told(tmp_path: Path, memory: Any) -> None:
    with pytest.raises(BadFile, match=r"memory://b/none isn't there"):
        run_import(tmp_path / "d", "memory://b/none")
    memory.pipe("/b/a.npy", npy()[:-1])
    with pytest.raises(BadFile, match="is truncated"):
        run_import(tmp_path / "d", "memory://b/a.npy")
    with pytest.raises(InvalidArgument, match=r"fsspec can't open nosuch:// here"):
        run_import(tmp_path / "d", "nosuch://b/none")


def test_a_fetched_file_has_a_limit(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/b/w", save({"w": np.zeros((100_000, 4))}))
    with pytest.raises(BadFile, match=r"is longer than 1000000 bytes \(raise --unpacked-bytes"):
        run_import(tmp_path / "d", "memory://b/w", limits=UnpackLimits(bytes_max=1_000_000))


@pytest.mark.parametrize(
    ("package", "extra", "content"),
    [("fsspec", "remote", b""), ("h5py", "formats", b"\x89HDF\r\n\x1a\n" + bytes(100)),
     ("pyarrow", "formats", b"PAR1" + bytes(100))],
)  # fmt: skip
def test_a_missing_package_says_what_to_install(
    tmp_path: Path, package: str, extra: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "f").write_bytes(content)
    source = "memory://b/w" if package == "fsspec" else str(tmp_path / "f")
    with pytest.raises(InvalidArgument, match=rf"pip install 'gatherd\[{extra}\]'"):
        run_import(tmp_path / "d", source)
