"""Ids are checked, never coerced."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gatherd.errors import IdOutOfRange, InvalidArgument
from gatherd.store.ids import all_in_range, as_id_array, ids_from_bytes, in_range

nested_integers = st.recursive(
    st.integers(-(2**63), 2**63 - 1), lambda inner: st.lists(inner, max_size=3), max_leaves=12
)


@given(nested_integers)
def test_nested_lists_become_the_array_numpy_makes_or_are_ragged(ids: Any) -> None:
    try:
        wanted = np.asarray(ids)
    except ValueError:
        with pytest.raises(InvalidArgument, match="ragged"):
            as_id_array(ids)
        return
    array = as_id_array(ids)
    assert array.shape == wanted.shape
    assert array.dtype.kind in "iu"
    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, True], r"ids\[1\] is the bool True"),
        ([[1], [2.5]], r"ids\[1\]\[0\] is the float 2.5"),
        ([1, None], r"ids\[1\] is null"),
        ([1, "2"], r"ids\[1\] is a str"),
        (True, "ids is the bool True"),
        (1.0, "ids is the float 1.0"),
        ({}, "ids is a dict"),
        (None, "ids is null"),
        (np.array(["a"]), "ids must be integers, not <U1"),
        (np.array([1.0]), "ids must be integers, not float64"),
        (np.array([1], object), "ids must be integers, not object"),
        ([[1], [2, 3]], "ragged"),
        ([1, [2]], "ragged"),
    ],
)
def test_what_is_no_integer_is_named(ids: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        as_id_array(ids)


@pytest.mark.parametrize("ids", [[2**64], [1, -(2**63) - 1], [-1, 2**63]])
def test_integers_that_no_64_bit_type_holds_are_out_of_range(ids: list[int]) -> None:
    with pytest.raises(IdOutOfRange):
        as_id_array(ids)


def test_deep_nesting_is_an_error_and_no_recursion() -> None:
    ids: Any = 1
    for _ in range(5000):
        ids = [ids]
    with pytest.raises(InvalidArgument, match="nested deeper"):
        as_id_array(ids)


def test_big_endian_and_strided_ids_become_native_and_contiguous() -> None:
    array = as_id_array(np.arange(10, dtype=">i4")[::2])
    assert array.dtype == np.dtype(np.int32)
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, [0, 2, 4, 6, 8])


def test_an_empty_list_is_an_empty_batch() -> None:
    assert as_id_array([]).shape == (0,)
    assert as_id_array([[], []]).shape == (2, 0)


@given(
    hnp.arrays(hnp.integer_dtypes(endianness="="), hnp.array_shapes(min_dims=0, min_side=0)),
    st.integers(0, 2**40),
)
def test_the_one_pass_range_check_agrees_with_the_plain_one(ids: Any, row_count: int) -> None:
    assert all_in_range(ids, row_count) == all(0 <= int(i) < row_count for i in ids.reshape(-1))
    assert all_in_range(ids, row_count) == bool(in_range(ids, row_count).all())


@pytest.mark.parametrize(
    ("count", "shape", "message"),
    [
        (15, None, "15 bytes"),
        (16, (3,), r"of shape \(3,\) and dtype int64 are 24 bytes; 16 were sent"),
        (8, (-1,), "negative"),
        (0, (2**62, 2**62), "bytes; 0 were sent"),
        (8, (1,) * 32, "32 dimensions"),
    ],
)
def test_bytes_that_are_not_the_shape_are_refused(
    count: int, shape: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ids_from_bytes(b"\0" * count, np.dtype("<i8"), shape)
