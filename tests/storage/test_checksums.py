"""A table's checksums are written with it, and place the first damage."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd.errors import BadFile
from gatherd.store import checksums
from gatherd.store.checksums import (
    BLOCK_BYTES,
    BlockChecksums,
    FileChecksums,
    block_crcs,
    checksums_of,
    document_crc,
    verify_blocks,
    verify_folder,
)
from gatherd.store.dtypes import DType
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.storage.table_writer import Block, TableFiles

ROWS = np.random.default_rng(2).normal(size=(2_500, 1_000)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with own_data_dir(tmp_path, create=True) as owned:
        # The number of rows shows at their end, and they come in odd pieces.
        blocks = (Block(ROWS[start : start + 7]) for start in range(0, len(ROWS), 7))
        default = np.arange(1_000, dtype=np.float32)
        owned.add_table(TableFiles("w", DType.FLOAT32, None, 1_000, blocks, {}, default))
    return tmp_path / "tables/w/v000001"


def test_a_manifest_has_the_checksums_of_its_files(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["keys"] is None
    assert set(manifest["checksums"]) == {"weights.npy", "default.npy"}
    np.testing.assert_array_equal(np.load(folder / "weights.npy"), ROWS)
    size = (folder / "weights.npy").stat().st_size
    assert manifest["checksums"]["weights.npy"]["bytes"] == size
    with open(folder / "weights.npy", "rb") as file:
        assert manifest["checksums"]["weights.npy"]["crc32"] == block_crcs(file.fileno())
    sizes = [BLOCK_BYTES, 2 * BLOCK_BYTES, size]
    default_bytes = (folder / "default.npy").stat().st_size
    assert list(verify_folder(folder, manifest)) == [
        default_bytes,
        *(default_bytes + done for done in sizes),
    ]


@pytest.mark.parametrize("position", [0, 100, BLOCK_BYTES, 2 * BLOCK_BYTES + 5, -1])
def test_damage_is_placed(folder: Path, position: int) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / "weights.npy"
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)
    begin = position % len(data) // BLOCK_BYTES * BLOCK_BYTES
    end = min(begin + BLOCK_BYTES, len(data))
    with pytest.raises(BadFile, match=rf"weights.npy: bytes {begin} to {end} aren't what was"):
        list(verify_folder(folder, manifest))


def test_another_size_is_told(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / "weights.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFile, match=r"weights.npy has 10000127 bytes; 10000128 were published"):
        list(verify_folder(folder, manifest))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"weights.npy": 3},
        {"weights.npy": {"bytes": 9, "block_bytes": 0, "crc32": []}},
        {"weights.npy": {"bytes": 9, "block_bytes": 4, "crc32": [1, 2]}},
        {"weights.npy": {"bytes": 9, "block_bytes": 9, "crc32": ["x"]}},
        {"../weights.npy": {"bytes": 9, "block_bytes": 9, "crc32": [1]}},
    ],
)
def test_damaged_checksums_are_refused(folder: Path, entry: object) -> None:
    manifest = {"checksums": entry}
    manifest["crc32"] = document_crc(manifest)
    if entry == {}:
        assert list(verify_folder(folder, manifest)) == []
        return
    with pytest.raises(BadFile, match="checksums"):
        list(verify_folder(folder, manifest))


def test_a_manifest_that_was_changed_is_refused(folder: Path) -> None:
    with pytest.raises(BadFile, match=r"manifest.json isn't what was published"):
        list(verify_folder(folder, {"checksums": {}, "crc32": 1}))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 50))
def test_however_bytes_are_cut_the_checksums_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], block_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("sums") / "file"
    path.write_bytes(b"".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "BLOCK_BYTES", block_bytes)
        blocks = BlockChecksums()
        for part in parts:
            blocks.update(memoryview(part))
        found = blocks.finish()
        assert found == checksums_of(b"".join(parts))
        with open(path, "rb") as file:
            assert list(found.crcs) == block_crcs(file.fileno())
    assert FileChecksums.from_json(found.to_json(), "file") == found
    assert list(verify_blocks(path, found))[-1:] == ([path.stat().st_size] if found.crcs else [])
