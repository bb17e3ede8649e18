"""A column of vectors, and one of keys, comes in from Parquet and Arrow files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd_server.loaders.limits import UnpackLimits
from loaders.harness import run_import

ROWS = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
WORDS = [f"wörd {number}" for number in range(60)]


def arrow(table: Any, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=17)


WRITERS: list[Callable[[Any, Path], Any]] = [
    lambda table, path: pa.parquet.write_table(table, path, row_group_size=17),
    lambda table, path: pa.parquet.write_table(table, path, store_schema=False),
    lambda table, path: pa.feather.write_feather(table, path, compression="zstd", chunksize=17),
    arrow,
]


def fixed(rows: np.ndarray[Any, Any]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def whole_table(**columns: Any) -> Any:
    return pa.table({"id": pa.array(range(60)), "word": WORDS, "vector": fixed(ROWS), **columns})


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_and_keys_come_in(
    tmp_path: Path,
    write: Callable[[Any, Path], Any],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", 200)
    rows = ROWS.astype(dtype)
    write(whole_table(vector=fixed(rows)), tmp_path / "t")
    plain = run_import(tmp_path / "d", tmp_path / "t")
    np.testing.assert_array_equal(plain.rows, rows.astype(np.float32))
    assert plain.table.dtype is DType(dtype)
    assert plain.table.keys is None
    words = run_import(tmp_path / "d", f"{tmp_path}/t#vector", key_column="word")
    assert words.keys == [word.encode() for word in WORDS]
    ids = run_import(tmp_path / "d", tmp_path / "t", key_column="id")
    assert ids.keys == list(range(60))
    np.testing.assert_array_equal(ids.rows, rows.astype(np.float32))


@pytest.mark.parametrize(
    "keys",
    [
        pa.array(WORDS, pa.large_string()),
        pa.array([word.encode() for word in WORDS]),
        pa.array(WORDS).dictionary_encode(),
        pa.array(range(60), pa.uint64()),
        pa.array(range(60), pa.int16()),
        pa.array(range(60), pa.uint8()),
    ],
)
def test_every_kind_of_key_comes_in(tmp_path: Path, keys: Any) -> None:
    for write in WRITERS:
        write(whole_table(key=keys), tmp_path / "t")
        wanted = [key.encode() if isinstance(key, str) else key for key in keys.to_pylist()]
        assert run_import(tmp_path / "d", tmp_path / "t", key_column="key").keys == wanted


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_lists_of_one_length_are_as_good(tmp_path: Path, kind: Callable[[Any], Any]) -> None:
    for write in WRITERS:
        write(pa.table({"v": pa.array(ROWS.tolist(), kind(pa.float32()))}), tmp_path / "t")
        np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "t").rows, ROWS)


@pytest.mark.parametrize(
    "vectors",
    [
        pa.array([[1, 2], None, [3, 4], [5, None], [6, 7]], pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], None, [3, 4], [5, None], [6, 7]], pa.list_(pa.float32())),
        pa.array([[1, 2], [1], [3, 4], [], [6, 7]], pa.list_(pa.float32())),
        pa.array([[1, 2], [1, 2, 3], [3, 4], [None, 3, 4], [6, 7]], pa.list_(pa.float64())),
    ],
)
@pytest.mark.parametrize("step", [8, 16, 1000])
def test_ragged_rows_and_nulls_are_refused_or_left_out(
    tmp_path: Path, vectors: Any, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", step)
    for write in WRITERS:
        write(pa.table({"v": vectors, "k": ["a", "b", "c", "d", "e"]}), tmp_path / "t")
        with pytest.raises(BadFile, match="row 1: expected 2 numbers"):
            run_import(tmp_path / "d", tmp_path / "t")
        done = run_import(tmp_path / "d", tmp_path / "t", key_column="k", on_bad_row="skip")
        np.testing.assert_array_equal(done.rows, [[1, 2], [3, 4], [6, 7]])
        assert done.keys == [b"a", b"c", b"e"]
        assert done.summary.bad_rows == 2


def test_keys_that_are_none_are_refused_or_left_out(tmp_path: Path) -> None:
    for keys in (["a", None, "c", "", "x" * 2000], [1, None, 3, None, None]):
        for write in WRITERS:
            write(pa.table({"v": fixed(ROWS[:5]), "k": keys}), tmp_path / "t")
            with pytest.raises(BadFile, match="row 1: expected 3 numbers and a key"):
                run_import(tmp_path / "d", tmp_path / "t", key_column="k")
            done = run_import(tmp_path / "d", tmp_path / "t", key_column="k", on_bad_row="skip")
            np.testing.assert_array_equal(done.rows, ROWS[[0, 2]])


def test_rows_without_keys_are_left_out_only_where_asked(tmp_path: Path) -> None:
    vectors = pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    pa.parquet.write_table(pa.table({"v": vectors}), tmp_path / "t")
    with pytest.raises(InvalidArgument, match="would change the ids of those after"):
        run_import(tmp_path / "d", tmp_path / "t", on_bad_row="skip")


def test_columns_have_to_be_there_and_to_fit(tmp_path: Path) -> None:
    pa.parquet.write_table(whole_table(other=fixed(ROWS)), tmp_path / "t")
    with pytest.raises(InvalidArgument, match=r"holds 2 columns; .*\n  vector  fixed_size_list"):
        run_import(tmp_path / "d", tmp_path / "t")
    with pytest.raises(InvalidArgument, match="has no column 'word'"):
        run_import(tmp_path / "d", f"{tmp_path}/t#word")
    with pytest.raises(InvalidArgument, match="has no key column 'vector'; there are:\n  id"):
        run_import(tmp_path / "d", f"{tmp_path}/t#vector", key_column="vector")
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "t")
    with pytest.raises(BadFile, match="holds no column"):
        run_import(tmp_path / "d", tmp_path / "t")
    empty = pa.table({"v": pa.array([], pa.list_(pa.float32()))})
    pa.parquet.write_table(empty, tmp_path / "t")
    with pytest.raises(BadFile, match="has no rows to know its dim by"):
        run_import(tmp_path / "d", tmp_path / "t")


@pytest.mark.parametrize("write", WRITERS)
def test_a_truncated_file_is_refused(tmp_path: Path, write: Callable[[Any, Path], Any]) -> None:
    write(whole_table(), tmp_path / "t")
    whole = (tmp_path / "t").read_bytes()
    for length in range(0, len(whole), 61):
        (tmp_path / "t").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            run_import(tmp_path / "d", tmp_path / "t")


def test_a_bomb_is_stopped(tmp_path: Path) -> None:
    rows = np.zeros((2_000_000, 4), np.float32)
    pa.parquet.write_table(pa.table({"v": fixed(rows)}), tmp_path / "t", compression="zstd")
    with pytest.raises(BadFile, match="raise --unpacked-ratio-max"):
        run_import(tmp_path / "d", tmp_path / "t", limits=UnpackLimits(ratio_max=2))
    with pytest.raises(BadFile, match="--unpacked-bytes-max"):
        run_import(tmp_path / "d", tmp_path / "t", limits=UnpackLimits(bytes_max=1000))


@settings(max_examples=30, deadline=None)
@given(
    keys=st.lists(st.text(min_size=1, max_size=5).filter(lambda t: t.isprintable()), min_size=1,
                  max_size=20, unique=True),
    dim=st.integers(1, 5),
    write=st.sampled_from(WRITERS),
)  # fmt: skip
def test_any_key_and_shape_round_trips(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[str],
    dim: int,
    write: Callable[[Any, Path], Any],
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    rows = np.arange(len(keys) * dim, dtype=np.float32).reshape(-1, dim)
    write(pa.table({"v": fixed(rows), "k": keys}), folder / "t")
    done = run_import(folder / "d", folder / "t", key_column="k")
    assert done.keys == [key.encode() for key in keys]
    np.testing.assert_array_equal(done.rows, rows)
