"""Arrays come in from .npy, .npz and safetensors, one or several as one table."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd_server.loaders.limits import UnpackLimits
from loaders.harness import run_import

ROWS = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)


def npy(array: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ml_dtypes.bfloat16])
def test_every_float_type_comes_in_from_every_container(tmp_path: Path, dtype: Any) -> None:
    rows = ROWS.astype(dtype)
    np.save(tmp_path / "a.npy", rows)
    (tmp_path / "a.npy.gz").write_bytes(gzip.compress(npy(rows)))
    np.savez(tmp_path / "a.npz", w=rows)
    np.savez_compressed(tmp_path / "c.npz", w=rows, other=np.zeros(3))
    save_file({"w": rows}, tmp_path / "a.safetensors")
    packed = gzip.compress((tmp_path / "a.safetensors").read_bytes())
    (tmp_path / "a.safetensors.gz").write_bytes(packed)
    for source in (
        "a.npy",
        "a.npy.gz",
        "a.npz",
        "c.npz#w",
        "a.safetensors",
        "a.safetensors#w",
        "a.safetensors.gz#w",
    ):
        done = run_import(tmp_path / "d", tmp_path / source)
        assert done.table.dtype is DType(rows.dtype.name), source
        np.testing.assert_array_equal(done.rows, rows.astype(np.float32))
        assert done.table.keys is None


def test_blocks_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", 50)
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "a.npy").rows, ROWS)


def test_the_array_has_to_be_named_when_there_are_several(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=ROWS, v=ROWS[0])
    save_file({"w": ROWS, "v": ROWS[0]}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidArgument, match=r"holds 2 arrays; .*\n  w  float32 \(40, 3\)\n  v "):
        run_import(tmp_path / "d", tmp_path / "a.npz")
    with pytest.raises(InvalidArgument, match=r"holds 2 tensors.*\n  v  F32 \(3,\)\n  w  F32 \(4"):
        run_import(tmp_path / "d", tmp_path / "a.safetensors")
    with pytest.raises(InvalidArgument, match="has no array 'x'; there are:\n  w"):
        run_import(tmp_path / "d", f"{tmp_path}/a.npz#x")
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(InvalidArgument, match="has no parts, so no 'x' to pick"):
        run_import(tmp_path / "d", f"{tmp_path}/a.npy#x")
    assert run_import(tmp_path / "d", f"{tmp_path}/a.npz#w").table.row_count == 40


def test_a_hash_sign_in_a_file_name_is_part_of_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a#b.npy", ROWS)
    assert run_import(tmp_path / "d", tmp_path / "a#b.npy").table.row_count == 40


def test_shards_make_one_table(tmp_path: Path) -> None:
    save_file({"w": ROWS[:15]}, tmp_path / "m-1.safetensors")
    save_file({"w": ROWS[15:], "v": ROWS}, tmp_path / "m-2.safetensors")
    done = run_import(tmp_path / "d", tmp_path / "m-1.safetensors", f"{tmp_path}/m-2.safetensors#w")
    np.testing.assert_array_equal(done.rows, ROWS)
    np.save(tmp_path / "other.npy", ROWS[:, :2])
    with pytest.raises(InvalidArgument, match="don't make one table: dim 3 and 2"):
        run_import(tmp_path / "d", tmp_path / "m-1.safetensors", tmp_path / "other.npy")


def test_the_index_of_a_sharded_model_leads_to_the_shard(tmp_path: Path) -> None:
    save_file({"w": ROWS, "v": ROWS[0]}, tmp_path / "m-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "m-1.safetensors", "v": "m-1.safetensors"}}))
    np.testing.assert_array_equal(run_import(tmp_path / "d", f"{index}#w").rows, ROWS)
    with pytest.raises(InvalidArgument, match="holds 2 tensors"):
        run_import(tmp_path / "d", index)
    for bad in ("../m-1.safetensors", "/etc/passwd", "", ".."):
        index.write_text(json.dumps({"weight_map": {"w": bad}}))
        with pytest.raises(BadFile, match="which isn't a file beside it"):
            run_import(tmp_path / "d", index)
    # An index that names itself doesn't go round.
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))
    with pytest.raises(BadFile):
        run_import(tmp_path / "d", index)
    for text in ('{"', "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"a":' * 100_000):
        index.write_text(text)
        with pytest.raises(BadFile, match="no index of safetensors or torch files"):
            run_import(tmp_path / "d", index)


@pytest.mark.parametrize("name", ["a.npy", "a.npy.gz", "a.npz", "a.safetensors", "c.npz"])
def test_a_truncated_file_is_refused_at_every_byte(tmp_path: Path, name: str) -> None:
    rows = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float16)
    whole = {
        "a.npy": lambda: npy(rows),
        "a.npy.gz": lambda: gzip.compress(npy(rows)),
        "a.npz": lambda: archive({"w.npy": npy(rows)}),
        "c.npz": lambda: archive({"w.npy": npy(rows)}, zipfile.ZIP_DEFLATED),
        "a.safetensors": lambda: save({"w": rows}),
    }[name]()
    for length in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises((BadFile, InvalidArgument)):
            run_import(tmp_path / "d", tmp_path / name)


def archive(members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([["a"]], object), allow_pickle=True), "holds Python objects"),
        (npy(ROWS[0]), "two dimensions"),
        (npy(ROWS.astype(int)), "dtype int64"),
        (npy(ROWS[:, :0]), "two dimensions"),
        (npy(np.full((2, 2), np.nan)), "row 0 has NaN or infinity"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "damaged .npy header"),
        (npy(ROWS)[:-1], "ends in row 39 of the 40"),
    ],
)
def test_what_is_in_an_archive_is_refused_as_a_file_would_be(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "a.npz").write_bytes(archive({"w.npy": data}))
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", tmp_path / "a.npz")
    (tmp_path / "a.npy.gz").write_bytes(gzip.compress(data))
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", tmp_path / "a.npy.gz")


def test_a_header_that_promises_the_world_reserves_nothing_for_long(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3)}
    )
    (tmp_path / "a.npy.gz").write_bytes(gzip.compress(header.getvalue() + bytes(24)))
    with pytest.raises(OSError, match=r"disk is full|File too large|ends in row 2"):
        run_import(tmp_path / "d", tmp_path / "a.npy.gz")


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    whole = bytearray(archive({"w.npy": npy(ROWS)}))
    whole[whole.index(ROWS.tobytes()) + 100] ^= 1
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(BadFile, match="Bad CRC-32"):
        run_import(tmp_path / "d", tmp_path / "a.npz")


def test_rows_without_keys_are_never_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2], [np.inf, 1]], np.float32))
    with pytest.raises(BadFile, match=r"row 1 has NaN or infinity \(--on-nonfinite keep\)"):
        run_import(tmp_path / "d", tmp_path / "a.npy")
    with pytest.raises(InvalidArgument, match="would change the ids of those after"):
        run_import(tmp_path / "d", tmp_path / "a.npy", on_nonfinite="skip")
    done = run_import(tmp_path / "d", tmp_path / "a.npy", on_nonfinite="keep")
    np.testing.assert_array_equal(done.rows, [[1, 2], [np.inf, 1]])


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_what_conversion_makes_infinite_is_told(tmp_path: Path, dtype: DType) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3e38, 1e300]]))
    with pytest.raises(BadFile, match=f"row 1 has a number too large for {dtype.value}"):
        run_import(tmp_path / "d", tmp_path / "a.npy", dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.tuples(st.integers(0, 30), st.integers(1, 9)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.floats(-9, 9, width=32))
    ),
    batch_bytes=st.integers(1, 400),
)
def test_any_shape_round_trips(
    tmp_path_factory: pytest.TempPathFactory, rows: NDArray[Any], batch_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "a.npy", rows)
    np.savez_compressed(folder / "a.npz", w=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", batch_bytes)
        for name in ("a.npy", "a.npz"):
            done = run_import(folder / "d", folder / name)
            np.testing.assert_array_equal(np.load(done.folder / "weights.npy"), rows)


def test_limits_hold_for_npz_members(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros((3_000_000, 4), np.float32))
    with pytest.raises(BadFile, match=r"more than 200 times its size .*--unpacked-ratio-max"):
        run_import(tmp_path / "d", tmp_path / "a.npz")
    limits = UnpackLimits(ratio_max=5000)
    done = run_import(tmp_path / "d", tmp_path / "a.npz", limits=limits)
    assert done.table.row_count == 3_000_000
