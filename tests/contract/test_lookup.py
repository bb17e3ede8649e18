"""The answers to lookups, on every surface, judged by NumPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from contract.conftest import IDS_MAX, Oracle, ServedTables
from contract.surfaces import Surface
from gatherd.errors import (
    GatherdError,
    IdOutOfRange,
    InvalidArgument,
    LimitExceeded,
    TableNotFound,
)

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
TABLES_WITH_ROWS = ["float32", "float16", "bfloat16", "float64", "one-row", "stored-default"]
EXAMPLES = settings(max_examples=12, deadline=None)

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def expected_vectors(oracle: Oracle, ids: NDArray[Any], dtype: str) -> NDArray[Any]:
    return as_reply(oracle.rows[ids.astype(np.int64)], dtype)


def as_reply(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rows as a lookup in `dtype` gives them, bfloat16 seen as float32."""
    if dtype == "bfloat16":
        import ml_dtypes

        return rows.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    return rows.astype(dtype)


@st.composite
def lookups(draw: st.DrawFn, served: ServedTables) -> tuple[str, NDArray[Any], str]:
    table = draw(st.sampled_from(TABLES_WITH_ROWS))
    dtype = draw(st.sampled_from(INTEGERS))
    last = min(len(served.oracles[table].rows) - 1, np.iinfo(dtype).max)
    ids = draw(hnp.arrays(dtype, shapes, elements=st.integers(0, last)))
    return table, ids, draw(st.sampled_from(["float32", "float16", "bfloat16"]))


@EXAMPLES
@given(data=st.data())
def test_a_lookup_gathers_the_rows_that_numpy_would(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    table, ids, dtype = data.draw(lookups(served))
    assume(surface.can_tell(ids.shape))
    vectors, status = surface.lookup(table, ids, dtype=dtype)
    wanted = expected_vectors(served.oracles[table], ids, dtype)
    assert vectors.dtype == wanted.dtype
    assert vectors.shape == (*ids.shape, served.oracles[table].rows.shape[1])
    np.testing.assert_array_equal(vectors, wanted)
    np.testing.assert_array_equal(status, np.zeros(ids.shape, np.uint8))


@EXAMPLES
@given(data=st.data())
def test_missing_ids_get_the_filler_and_a_status(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    table = data.draw(st.sampled_from([*TABLES_WITH_ROWS, "no-rows"]))
    oracle = served.oracles[table]
    missing = data.draw(st.sampled_from(["zero", "default"]))
    rows = len(oracle.rows)
    near = st.integers(-2, rows + 2)
    far = st.sampled_from([2**63 - 1, -(2**63), 2**32 + 1, 2**31, -1])
    ids = data.draw(hnp.arrays(np.int64, shapes, elements=near | far))
    assume(surface.can_tell(ids.shape))
    vectors, status = surface.lookup(table, ids, missing=missing)
    is_missing = (ids < 0) | (ids >= rows)
    np.testing.assert_array_equal(status, is_missing.astype(np.uint8))
    wanted = np.empty((*ids.shape, oracle.rows.shape[1]), np.float32)
    wanted[~is_missing] = oracle.rows[ids[~is_missing]]
    wanted[is_missing] = 0 if missing == "zero" else oracle.default
    np.testing.assert_allclose(vectors, wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(vectors[~is_missing], wanted[~is_missing])


def test_a_lookup_equals_the_one_hot_product(surface: Surface, served: ServedTables) -> None:
    rows = served.oracles["float32"].rows
    ids = np.array([[0, 299, 7], [7, 7, 150]])
    vectors, _ = surface.lookup("float32", ids)
    np.testing.assert_array_equal(vectors, np.eye(len(rows), dtype=np.float32)[ids] @ rows)


def test_nested_lists_keep_their_shape(surface: Surface, served: ServedTables) -> None:
    vectors, _ = surface.lookup("float32", [[4], [20]])
    assert vectors.shape == (2, 1, 24)
    np.testing.assert_array_equal(vectors, served.oracles["float32"].rows[[[4], [20]]])


def test_an_empty_batch_is_answered(surface: Surface) -> None:
    vectors, _ = surface.lookup("float32", np.empty((0,), np.int64))
    assert vectors.shape == (0, 24)


def test_many_tables_are_answered_in_one_request(surface: Surface, served: ServedTables) -> None:
    if not surface.answers_many:
        pytest.skip("this media type carries one array: many tables go as JSON or by Connect")
    requests = {"float32": np.array([[1, 2]]), "float16": np.array([3]), "one-row": np.array([0])}
    answers = surface.lookup_many(requests)
    assert list(answers) == list(requests)
    for table, ids in requests.items():
        np.testing.assert_array_equal(
            answers[table], expected_vectors(served.oracles[table], ids, "float32")
        )


def test_one_bad_id_fails_all_of_many_tables(surface: Surface) -> None:
    if not surface.answers_many:
        pytest.skip("this media type carries one array: many tables go as JSON or by Connect")
    with pytest.raises(IdOutOfRange, match=r"'float16' has 129 rows; ids\[1\]=129 is out of range"):
        surface.lookup_many({"float32": np.array([1]), "float16": np.array([0, 129])})


def fails(
    surface: Surface, error: type[GatherdError], match: str, ids: Any, **options: str
) -> None:
    table = options.pop("table", "float32")
    with pytest.raises(error, match=match):
        surface.lookup(table, ids, **options)


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ([300], r"ids\[0\]=300 is out of range: valid ids are 0 to 299"),
        ([5, -1], r"ids\[1\]=-1 is out of range"),
        ([[0, 1], [2, 301]], r"ids\[1\]\[1\]=301 is out of range"),
        ([2**63 - 1], r"ids\[0\]=9223372036854775807 is out of range"),
        ([-(2**63)], r"ids\[0\]=-9223372036854775808 is out of range"),
        (list(range(295, 310)), r"ids\[5\]=300, .*, ids\[9\]=304 \(and 5 more\) are out of range"),
    ],
)
def test_an_id_without_a_row_is_named(surface: Surface, ids: Any, named: str) -> None:
    fails(surface, IdOutOfRange, r"table 'float32' has 300 rows; " + named, ids)


def test_an_unsigned_id_past_int64_is_out_of_range(surface: Surface) -> None:
    fails(surface, IdOutOfRange, "9223372036854775808 is out of range", np.array([2**63], "u8"))


def test_no_id_of_an_empty_table_is_valid(surface: Surface) -> None:
    fails(surface, IdOutOfRange, "it has no valid id", [0], table="no-rows")


def test_floats_are_not_ids(surface: Surface) -> None:
    fails(surface, InvalidArgument, "integers", np.array([1.0, 2.0]))


def test_bools_are_not_ids(surface: Surface) -> None:
    fails(surface, InvalidArgument, "integers", np.array([True, False]))


def test_an_unknown_table_is_not_found(surface: Surface) -> None:
    fails(surface, TableNotFound, "no table 'float23'; did you mean", [1], table="float23")


def test_an_unknown_reply_dtype_is_refused(surface: Surface) -> None:
    fails(surface, InvalidArgument, "dtype", [1], dtype="float8")


def test_a_float64_reply_is_refused(surface: Surface) -> None:
    fails(surface, InvalidArgument, "dtype", [1], dtype="float64")


def test_an_unknown_missing_policy_is_refused(surface: Surface) -> None:
    fails(surface, InvalidArgument, "missing", [1], missing="clip")


def test_more_ids_than_the_limit_are_split_by_the_sdk_and_refused_elsewhere(
    surface: Surface, served: ServedTables
) -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 300, (3, IDS_MAX))
    if surface.name.startswith(("sdk", "async")):
        vectors, _ = surface.lookup("float32", ids)
        np.testing.assert_array_equal(vectors, served.oracles["float32"].rows[ids])
    else:
        fails(surface, LimitExceeded, f"ids; this server takes at most {IDS_MAX}", ids)


def test_a_reply_over_the_limit_is_split_by_the_sdk_and_refused_elsewhere(
    surface: Surface, served: ServedTables
) -> None:
    ids = np.arange(IDS_MAX) % 300
    if surface.name.startswith(("sdk", "async")):
        vectors, _ = surface.lookup("float32", ids)
        np.testing.assert_array_equal(vectors, served.oracles["float32"].rows[ids])
    else:
        fails(surface, LimitExceeded, "the reply would have", ids)
