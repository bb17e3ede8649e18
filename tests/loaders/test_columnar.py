"""A column of vectors, and one of keys, comes in from Parquet and Arrow files."""

import resource
from collections.abc import Callable
from decimal import Decimal
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
    with pytest.raises(InvalidArgument, match="the column 'word' is string: no list"):
        run_import(tmp_path / "d", f"{tmp_path}/t#word")
    with pytest.raises(InvalidArgument, match="has no key column 'vector'; there are:\n  id"):
        run_import(tmp_path / "d", f"{tmp_path}/t#vector", key_column="vector")
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "t")
    with pytest.raises(InvalidArgument, match="holds no column of vectors"):
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


def columns_table(**more: Any) -> Any:
    return pa.table(
        {"id": range(60), "d_0": ROWS[:, 0], "d_1": ROWS[:, 1], "name": WORDS, "d_2": ROWS[:, 2]}
        | more
    )


@pytest.mark.parametrize("write", WRITERS)
def test_a_column_a_dimension_makes_rows(
    tmp_path: Path, write: Callable[[Any, Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", 200)
    write(columns_table(), tmp_path / "t")
    for spec, order in (("d_*", [0, 1, 2]), ("d_2,d_0", [2, 0]), ("d_1", [1]),
                        ("d_2,d_[01]", [2, 0, 1])):  # fmt: skip
        done = run_import(tmp_path / "d", tmp_path / "t", vector_columns=spec, key_column="name")
        np.testing.assert_array_equal(done.rows, ROWS[:, order])
        assert done.keys == [word.encode() for word in WORDS]
    # The widest type has every number of the others.
    write(columns_table(d_1=ROWS[:, 1].astype(float), d_2=ROWS[:, 2].astype("f2")), tmp_path / "t")
    done = run_import(tmp_path / "d", tmp_path / "t", vector_columns="d_*")
    assert done.table.dtype is DType.FLOAT64
    np.testing.assert_array_equal(done.rows[:, :2], ROWS[:, :2])


def test_a_null_in_one_of_the_columns_is_a_bad_row(tmp_path: Path) -> None:
    holes = pa.array([None if row % 7 == 3 else 1.0 for row in range(60)], pa.float32())
    pa.parquet.write_table(columns_table(d_1=holes), tmp_path / "t")
    with pytest.raises(BadFile, match="#d_0…d_2: row 3: expected 3 numbers"):
        run_import(tmp_path / "d", tmp_path / "t", vector_columns="d_*")
    done = run_import(
        tmp_path / "d", tmp_path / "t", vector_columns="d_*", key_column="id", on_bad_row="skip"
    )
    assert done.keys == [row for row in range(60) if row % 7 != 3]


def test_a_file_without_lists_says_what_it_has_and_why_none_fits(tmp_path: Path) -> None:
    table = columns_table(small=pa.array([[1]] * 60, pa.list_(pa.int8())))
    pa.parquet.write_table(table, tmp_path / "t")
    with pytest.raises(InvalidArgument) as refused:
        run_import(tmp_path / "d", tmp_path / "t")
    for line in ("t holds no column of vectors; name those of one number each by --vector-columns",
                 "id  int64: no list", "d_0  float: a number each",
                 "int8>: a table is of float16, float32, float64"):  # fmt: skip
        assert line in refused.value.message
    for spec, message in (
        ("d_*,name", "takes 'name', which is string"),
        ("e_*", "has no column 'e_\\*'; there are: id, d_0"),
        ("d_*,d_0", "a column twice"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            run_import(tmp_path / "d", tmp_path / "t", vector_columns=spec)


def tensors(rows: np.ndarray[Any, Any]) -> Any:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows))


@pytest.mark.parametrize("write", WRITERS)
def test_tensors_of_one_shape_are_rows(
    tmp_path: Path, write: Callable[[Any, Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", 200)
    write(pa.table({"k": WORDS, "v": tensors(ROWS)}), tmp_path / "t")
    done = run_import(tmp_path / "d", tmp_path / "t", key_column="k")
    np.testing.assert_array_equal(done.rows, ROWS)
    write(pa.table({"v": tensors(ROWS.reshape(30, 3, 2))}), tmp_path / "t")
    np.testing.assert_array_equal(run_import(tmp_path / "d", tmp_path / "t").rows,
                                  ROWS.reshape(30, 6))  # fmt: skip


def test_permuted_tensors_are_refused(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), [3, 2], permutation=[1, 0])
    arrow(pa.table({"v": pa.ExtensionArray.from_storage(kind, fixed(ROWS.reshape(30, 6)))}),
          tmp_path / "t")  # fmt: skip
    with pytest.raises(InvalidArgument, match=r"v  .*its dimensions are permuted"):
        run_import(tmp_path / "d", tmp_path / "t")


@pytest.mark.parametrize("kind", [pa.list_view, pa.large_list_view])
@pytest.mark.parametrize("step", [8, 16, 1000])
def test_views_of_lists_are_as_good(
    tmp_path: Path, kind: Callable[[Any], Any], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", step)
    lists = [[1, 2], None, [3, 4], [5, None], [6, 7], [8]]
    vectors = pa.array(lists, kind(pa.float32()))
    arrow(pa.table({"v": vectors, "k": range(6)}), tmp_path / "t")
    with pytest.raises(BadFile, match="row 1: expected 2 numbers"):
        run_import(tmp_path / "d", tmp_path / "t")
    done = run_import(tmp_path / "d", tmp_path / "t", key_column="k", on_bad_row="skip")
    np.testing.assert_array_equal(done.rows, [[1, 2], [3, 4], [6, 7]])
    assert done.keys == [0, 2, 4]
    # Overlapping, and not in order.
    made = (pa.ListViewArray if kind is pa.list_view else pa.LargeListViewArray).from_arrays(
        pa.array([4, 0, 2, 1]), pa.array([2, 2, 2, 2]), pa.array(range(6), pa.float32())
    )
    arrow(pa.table({"v": made}), tmp_path / "t")
    done = run_import(tmp_path / "d", tmp_path / "t")
    np.testing.assert_array_equal(done.rows, made.to_pylist())


def test_many_views_of_one_list_are_a_bomb(tmp_path: Path) -> None:
    count = 100_000
    views = pa.ListViewArray.from_arrays(
        pa.array(np.zeros(count), pa.int32()), pa.array(np.full(count, 4096), pa.int32()),
        pa.array(np.zeros(4096, np.float32)),
    )  # fmt: skip
    with pa.ipc.new_file(tmp_path / "t", pa.schema({"v": views.type})) as writer:
        writer.write_table(pa.table({"v": views}))
    with pytest.raises(BadFile, match="raise --unpacked-ratio-max"):
        run_import(tmp_path / "d", tmp_path / "t", limits=UnpackLimits(ratio_max=20))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (pa.array(WORDS, pa.string_view()), [word.encode() for word in WORDS]),
        (pa.array([b"k%d" % n for n in range(60)], pa.binary_view()),
         [b"k%d" % n for n in range(60)]),
        (pa.array([b"k%02d" % n for n in range(60)], pa.binary(3)),
         [b"k%02d" % n for n in range(60)]),
        (pa.array([n.to_bytes(16, "big") for n in range(60)], pa.uuid()),
         [n.to_bytes(16, "big") for n in range(60)]),
        (pa.array([Decimal(n - 5) for n in range(60)], pa.decimal128(38, 0)),
         [n - 5 for n in range(60)]),
        (pa.array([Decimal(n) for n in range(60)], pa.decimal256(50, 0)), list(range(60))),
    ],
    ids=["string views", "binary views", "fixed bytes", "uuids", "decimals", "wide decimals"],
)  # fmt: skip
def test_rarer_kinds_of_key_come_in(
    tmp_path: Path, keys: Any, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", 200)
    arrow(whole_table(key=keys), tmp_path / "t")
    assert run_import(tmp_path / "d", tmp_path / "t", key_column="key").keys == expected


def test_decimals_that_are_no_int64_have_no_key(tmp_path: Path) -> None:
    keys = pa.array([Decimal(1), Decimal(2**63), None, Decimal(-(2**63))], pa.decimal128(38, 0))
    pa.parquet.write_table(pa.table({"v": fixed(ROWS[:4]), "k": keys}), tmp_path / "t")
    with pytest.raises(BadFile, match="row 1: expected 3 numbers and a key"):
        run_import(tmp_path / "d", tmp_path / "t", key_column="k")
    done = run_import(tmp_path / "d", tmp_path / "t", key_column="k", on_bad_row="skip")
    assert done.keys == [1, -(2**63)]
    cents = pa.array([Decimal("1.5")] * 4, pa.decimal128(10, 2))
    pa.parquet.write_table(pa.table({"v": fixed(ROWS[:4]), "k": cents}), tmp_path / "t")
    with pytest.raises(InvalidArgument, match="has no key column 'k'"):
        run_import(tmp_path / "d", tmp_path / "t", key_column="k")


def test_a_folder_of_parts_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "table.parquet"
    (folder / "day=2").mkdir(parents=True)
    whole = whole_table()
    pa.parquet.write_table(whole.slice(0, 20), folder / "part-0.parquet")
    pa.parquet.write_table(whole.slice(20, 20), folder / "part-1.snappy.parquet")
    pa.parquet.write_table(whole.slice(40, 20), folder / "day=2" / "part-0.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    done = run_import(tmp_path / "d", folder, key_column="word")
    order = [*range(40, 60), *range(40)]  # by path
    np.testing.assert_array_equal(done.rows, ROWS[order])
    assert done.keys == [WORDS[row].encode() for row in order]
    done = run_import(tmp_path / "d", f"{folder}#vector")
    np.testing.assert_array_equal(done.rows, ROWS[order])
    pa.parquet.write_table(pa.table({"vector": fixed(ROWS[:, :2])}), folder / "part-2.parquet")
    with pytest.raises(InvalidArgument, match=r"part-2.*don't make one table: dim 3 and 2"):
        run_import(tmp_path / "d", folder)


def test_a_folder_of_more_parts_than_a_process_has_files(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(150):
        pa.parquet.write_table(whole_table().slice(0, 2), folder / f"{part:04}.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        done = run_import(tmp_path / "d", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert done.table.row_count == 300
