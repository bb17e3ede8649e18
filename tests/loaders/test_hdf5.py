"""Datasets come in from HDF5 and Keras files; what leads out of the file isn't followed."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd_server.loaders.limits import UnpackLimits
from loaders.harness import run_import

ROWS = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)


def h5_file(path: Path, fill: Callable[[Any], Any]) -> Path:
    with h5py.File(path, "w") as file:
        fill(file)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("options", [{}, {"chunks": (7, 2)}, {"compression": "gzip"},
                                     {"compression": "lzf", "shuffle": True}])  # fmt: skip
def test_every_float_type_and_layout_comes_in(
    tmp_path: Path, dtype: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", 100)
    rows = ROWS.astype(dtype)
    path = h5_file(tmp_path / "w.h5", lambda f: f.create_dataset("a/b", data=rows, **options))
    for source in (str(path), f"{path}#a/b", f"{path}#/a/b"):
        done = run_import(tmp_path / "d", source)
        np.testing.assert_array_equal(done.rows, rows.astype(np.float32))
    assert done.table.dtype is DType(rows.dtype.newbyteorder("=").name)


def test_a_keras_file_is_a_zip_with_weights(tmp_path: Path) -> None:
    h5_file(tmp_path / "w.h5", lambda f: f.create_dataset("layers/embedding/vars/0", data=ROWS))
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", (tmp_path / "w.h5").read_bytes())
    done = run_import(tmp_path / "d", f"{tmp_path}/m.keras#layers/embedding/vars/0")
    np.testing.assert_array_equal(done.rows, ROWS)
    assert done.summary.format == "Keras"


def test_the_dataset_has_to_be_named_when_there_are_several(tmp_path: Path) -> None:
    path = h5_file(tmp_path / "w.h5", lambda f: (f.create_dataset("a", data=ROWS),
                                                f.create_dataset("g/b", data=ROWS[0])))  # fmt: skip
    with pytest.raises(InvalidArgument, match=r"holds 2 dat.*\n  a  float32 \(60, 3\)\n  g/b  flo"):
        run_import(tmp_path / "d", path)
    with pytest.raises(BadFile, match=r"#g/b has shape \(3,\)"):
        run_import(tmp_path / "d", f"{path}#g/b")
    with pytest.raises(InvalidArgument, match="has no dataset 'g'"):
        run_import(tmp_path / "d", f"{path}#g")


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((60, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "w", (60, 3))
    file.create_virtual_dataset("w", layout)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda f: f.__setitem__("w", h5py.ExternalLink("other.h5", "w")), "which isn't followed"),
        (lambda f: f.__setitem__("w", h5py.SoftLink("/elsewhere")), "which isn't followed"),
        (lambda f: f.create_dataset("w", (60, 3), "f4", external="other.bin"), "in other files"),
        (_virtual, "in other files"),
        (lambda f: f.create_dataset("w", data=["a"], dtype=h5py.string_dtype()), "has shape"),
        (lambda f: f.create_dataset("w", (2, 2), h5py.string_dtype()), "dtype object"),
        (lambda f: f.create_dataset("w", (2, 2), h5py.vlen_dtype(np.float32)), "dtype object"),
        (lambda f: f.create_dataset("w", data=ROWS.astype(int)), "dtype int64"),
        (lambda f: f.create_dataset("w", (2, 2), [("a", "f4")]), "a table is of"),
        (lambda f: f.create_dataset("w", data=h5py.Empty("f4")), "has shape None"),
        (lambda f: f.create_dataset("w", data=3.0), r"has shape \(\)"),
        (lambda f: f.create_dataset("w", (4, 0), "f4"), "has shape"),
        (lambda f: f.create_dataset("w", (9, 3), "f4"), "was never written"),
        (lambda f: f.create_dataset("w", (10**9, 10**6), "f4", chunks=(10, 10)), "of which the fi"),
        (lambda f: f.create_dataset("w", (10**6, 100), "f4", chunks=(10**6, 100)), "has chunks of"),
        (lambda f: f.create_group("w"), "holds no dataset"),
        (lambda f: f.create_group("w").__setitem__("again", f), "holds no dataset"),
    ],
)
def test_what_is_no_table_or_leads_elsewhere_is_refused(
    tmp_path: Path, fill: Callable[[Any], Any], message: str
) -> None:
    path = h5_file(tmp_path / "w.h5", fill)
    h5_file(tmp_path / "other.h5", lambda f: f.create_dataset("w", data=ROWS))
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", path)


def test_a_dataset_of_little_but_fill_is_a_bomb(tmp_path: Path) -> None:
    path = h5_file(
        tmp_path / "w.h5",
        lambda f: f.create_dataset("w", data=np.zeros((2_000_000, 4), "f4"), compression="gzip"),
    )
    with pytest.raises(BadFile, match="raise --unpacked-ratio-max"):
        run_import(tmp_path / "d", path)
    done = run_import(tmp_path / "d", path, limits=UnpackLimits(ratio_max=10_000))
    assert done.table.row_count == 2_000_000


def test_a_truncated_or_damaged_file_is_refused(tmp_path: Path) -> None:
    path = h5_file(tmp_path / "w.h5", lambda f: f.create_dataset("w", data=ROWS))
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(BadFile):
            run_import(tmp_path / "d", path)


def test_a_packed_file_comes_in(tmp_path: Path) -> None:
    path = h5_file(tmp_path / "w.h5", lambda f: f.create_dataset("w", data=ROWS))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("w.h5", path.read_bytes())
    (tmp_path / "w.zip").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(run_import(tmp_path / "d", f"{tmp_path}/w.zip#w").rows, ROWS)
