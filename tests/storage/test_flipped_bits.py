"""A bit that flips on the disk is found, wherever it is, and its file named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd.errors import BadFile, StorageError
from gatherd.store.catalog import open_table, read_catalog, version_dir
from gatherd.store.checksums import read_document
from gatherd.store.key_index import KeyIndex
from gatherd.store.limits import LIVE_VERSION
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.data_dir.verify import verify_version
from gatherd_server.data_dir.verify_live import Coverage
from gatherd_server.snapshots.snapshot import read_snapshot
from gatherd_server.storage.files import Files
from gatherd_server.types import Publish, Push, TableUpdate, UpdateOp, WriterLimits
from gatherd_server.writer.checkpoint import checkpoint_path, read_checkpoint
from gatherd_server.writer.writer import Writer
from loaders.harness import run_import
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 2_000, 40


def push(ids: list[int]) -> Push:
    values = np.full((len(ids), DIM), 0.25, np.float32)
    return Push(
        UpdateOp.APPLY_GRADIENTS,
        (TableUpdate("items", np.array(ids, np.int64), values, None, LIVE_VERSION),),
        None,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained table with a superseded version, a table with keys, and a snapshot of it all."""
    root = tmp_path_factory.mktemp("flipped")
    data = root / "data"
    make_data_dir(data, drawn_table("items", ROWS, DIM, init="normal", optimizer="adam"))
    source = root / "words.txt"
    source.write_text("k\u00e4se 1 2 3\nbrot 4 5 6\n")
    run_import(data, source)
    with own_data_dir(data) as owned:
        owned.change(Publish("items"))
        owned.snapshot(root / "snaps", "one")
    writer = Writer(data, Files(), WriterLimits())
    writer.submit(push([3, 1_999]), b"").result(60)
    writer.close()
    return data


def documents(data: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    snapshot = data.parent / "snaps" / "one"
    keyed = next(name for name in read_catalog(data).tables if name != "items")
    items, words = version_dir(data, "items", 2), version_dir(data, keyed, 1)
    frozen = version_dir(data, "items", 1) / "frozen.json"
    return {
        "catalog": (data / "catalog.json", lambda: read_catalog(data)),
        "manifest": (items / "manifest.json", lambda: open_table(data, "items", 2)),
        "manifest with keys": (words / "manifest.json", lambda: open_table(data, keyed, 1)),
        "key index": (words / "keys.json", lambda: KeyIndex.open(words)),
        "frozen": (frozen, lambda: read_document(frozen)),
        "snapshot": (snapshot / "snapshot.json", lambda: read_snapshot(snapshot)),
        "checkpoint": (checkpoint_path(data), lambda: read_checkpoint(data)),
    }


@pytest.mark.parametrize(
    "what",
    ["catalog", "manifest", "manifest with keys", "key index", "frozen", "snapshot", "checkpoint"],
)
def test_every_bit_of_what_describes_a_data_dir_counts(data: Path, what: str) -> None:
    path, read = documents(data)[what]
    read()
    whole = path.read_bytes()
    try:
        # Each bit, or of what is long one of each byte.
        step = 1 if what in ("catalog", "manifest") else 9
        for bit in range(0, 8 * len(whole), step):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            # Never what Python says of its own accord, such as the name of a missing key alone.
            with pytest.raises(StorageError) as caught:
                read()
            assert str(path) in caught.value.message or str(path.parent) in caught.value.message
            assert len(caught.value.message) > len(str(path.parent)) + 10
    finally:
        path.write_bytes(whole)


def test_a_catalog_of_before_there_were_checksums_is_read_and_then_gets_one(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("items", 5, 2))
    path = tmp_path / "catalog.json"
    document = json.loads(path.read_bytes())
    del document["crc32"]
    path.write_text(json.dumps(document, indent=2))
    assert read_catalog(tmp_path).tables.keys() == {"items"}
    make_data_dir(tmp_path, drawn_table("more", 5, 2))
    assert "crc32" in json.loads(path.read_bytes())
    assert read_catalog(tmp_path).tables.keys() == {"items", "more"}


def verified(data: Path, version: int = 2) -> Coverage:
    coverage = Coverage()
    for _ in verify_version(data, "items", version, coverage):
        pass
    return coverage


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["weights.npy", "slot_exp_avg.npy", "slot_exp_avg_sq.npy", "slot_step.npy"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 7),
)
def test_a_flipped_bit_of_live_weights_or_slots_is_found(
    data: Path, name: str, place: float, bit: int
) -> None:
    path = version_dir(data, "items", 2) / name
    whole = path.read_bytes()
    position = int(place * len(whole))
    damaged = bytearray(whole)
    damaged[position] ^= 1 << bit
    try:
        path.write_bytes(damaged)
        with pytest.raises(BadFile) as caught:
            verified(data)
        assert str(path) in caught.value.message or "manifest" in caught.value.message
    finally:
        path.write_bytes(whole)
    assert verified(data).is_whole


def test_what_moved_since_the_checkpoint_is_said_and_no_damage(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("items", ROWS, DIM, init="normal", optimizer="adam"))
    limits = WriterLimits(checkpoint_seconds=86_400)
    writer = Writer(tmp_path, Files(), limits)
    try:
        writer.submit(push([7]), b"").result(60)
        writer.checkpoint()
        assert verified(tmp_path, 1).is_whole
        writer.submit(push([7, 1_500]), b"").result(60)
        coverage = verified(tmp_path, 1)
        assert 0 < coverage.held_bytes < coverage.byte_count
        # A bit that flips in a row that didn't move, while the writer is at work.
        path = version_dir(tmp_path, "items", 1) / "weights.npy"
        with open(path, "r+b") as file:
            file.seek(128 + 1_000 * DIM * 4)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 4]))
        with pytest.raises(BadFile, match=r"weights\.npy: bytes 131072 to 196608 aren't what"):
            verified(tmp_path, 1)
    finally:
        writer.close()
