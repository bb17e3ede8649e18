"""Bags against the formulas in NumPy; tests/peers has torch as the judge."""

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.bags import FILL, SKIP, bag_index, check_offsets, check_weights, jagged, pool
from gatherd.store.dtypes import DType, convert
from gatherd.store.keys import StringKeys
from gatherd.store.query import Pooling

F32 = np.float32


def oracle(
    rows: NDArray[np.float32],
    index: NDArray[np.int64],
    offsets: NDArray[np.int64],
    weights: NDArray[np.float32] | None,
    mode: Pooling,
    filler: NDArray[np.float32],
) -> NDArray[np.float64]:
    """The module's formulas, a bag at a time, in float64."""
    out = np.zeros((offsets.size, rows.shape[1]))
    for bag, begin in enumerate(offsets):
        end = offsets[bag + 1] if bag + 1 < offsets.size else index.size
        taken = [i for i in range(begin, end) if index[i] != SKIP]
        if not taken:
            continue
        x = np.array([filler if index[i] == FILL else rows[index[i]] for i in taken], np.float64)
        w = np.ones(len(taken)) if weights is None else weights[taken].astype(np.float64)
        if mode is Pooling.MAX:
            out[bag] = x.max(axis=0)
            continue
        divisor = {
            Pooling.SUM: 1.0,
            Pooling.MEAN: w.sum(),
            Pooling.SQRTN: np.sqrt((w**2).sum()),
        }[mode]
        out[bag] = (w[:, None] * x).sum(axis=0) / divisor
    return out


def stored(values: NDArray[np.float32], dtype: DType) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """`values` in a table's storage, and what they have become there."""
    bits = np.empty(values.shape, dtype.storage)
    convert(values, DType.FLOAT32, bits, dtype)
    wide = np.empty(values.shape, np.float32)
    convert(bits, dtype, wide, DType.FLOAT32)
    return bits, wide


def misaligned(rows: NDArray[Any]) -> NDArray[Any]:
    """The same rows, read-only, at an odd address: as in a mapped safetensors file."""
    raw = b"x" + rows.tobytes()
    view: NDArray[Any] = np.frombuffer(raw, np.uint8)[1:].view(rows.dtype).reshape(rows.shape)
    return view


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(Pooling)),
    st.sampled_from(list(DType)),
    st.lists(st.integers(0, 9), max_size=12),
    st.sampled_from([1, 3, 8, 17, 64, 100]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_bag_is_what_the_formula_says(
    mode: Pooling,
    dtype: DType,
    lengths: list[int],
    dim: int,
    weighted: bool,
    odd: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    rows, values = stored(rng.normal(size=(20, dim)).astype(F32), dtype)
    offsets = np.cumsum([0, *lengths])[:-1].astype(np.int64)
    index = rng.integers(FILL, 20, sum(lengths))
    weighted = weighted and mode is not Pooling.MAX
    # Not near a sum of zero, where float32 and float64 legitimately disagree.
    weights = rng.uniform(0.5, 2, index.size).astype(F32) if weighted else None
    filler = rng.normal(size=dim).astype(F32)
    out = np.full((offsets.size, dim), np.nan, F32)
    pool(misaligned(rows) if odd else rows, index, offsets, weights, mode, filler, out)
    expected = oracle(values, index, offsets, weights, mode, filler)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", list(Pooling))
def test_empty_and_wholly_skipped_bags_are_zeros(mode: Pooling) -> None:
    rows = np.full((3, 5), 7, F32)
    out = np.full((4, 5), np.nan, F32)
    index = np.array([SKIP, SKIP, 1])
    pool(rows, index, np.array([0, 0, 2, 3]), None, mode, np.ones(5, F32), out)
    np.testing.assert_array_equal(out, [[0] * 5, [0] * 5, [7] * 5, [0] * 5])


@pytest.mark.parametrize("mode", [Pooling.MEAN, Pooling.SQRTN])
def test_a_bag_whose_weights_add_up_to_nothing_is_zeros(mode: Pooling) -> None:
    out = np.full((1, 2), np.nan, F32)
    weights = np.zeros(2, F32) if mode is Pooling.SQRTN else np.array([1, -1], F32)
    rows = np.array([[1, 2], [3, 4]], F32)
    pool(rows, np.array([0, 1]), np.array([0]), weights, mode, np.zeros(2, F32), out)
    np.testing.assert_array_equal(out, [[0, 0]])


@pytest.mark.parametrize("mode", [Pooling.SUM, Pooling.MEAN, Pooling.SQRTN])
@pytest.mark.parametrize("bag_length", [1, 3, 4, 9])
def test_nan_goes_through_sums(mode: Pooling, bag_length: int) -> None:
    rows = np.ones((9, 2), F32)
    rows[bag_length - 1, 0] = np.nan
    out = np.zeros((1, 2), F32)
    pool(rows, np.arange(bag_length), np.array([0]), None, mode, np.zeros(2, F32), out)
    assert np.isnan(out[0, 0])
    assert np.isfinite(out[0, 1])


def test_every_float16_is_widened_exactly() -> None:
    rows = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, -1)
    out = np.empty((1, 65536), F32)
    one = np.zeros(1, np.int64)
    pool(rows, one, one, None, Pooling.MAX, np.zeros(65536, F32), out)
    np.testing.assert_array_equal(out, rows.astype(F32))


@pytest.mark.parametrize("bad", [3, 2**40, -3, -(2**63)])
@pytest.mark.parametrize("mode", list(Pooling))
def test_an_index_without_a_row_is_refused_and_never_read(bad: int, mode: Pooling) -> None:
    out = np.zeros((1, 2), F32)
    index = np.array([0, 1, bad, 1])
    with pytest.raises(InvalidArgument, match=r"index\[2\]=-?\d+: the table has 3 rows"):
        pool(np.zeros((3, 2), F32), index, np.array([0]), None, mode, np.zeros(2, F32), out)


def test_a_table_without_rows_pools_only_skipped_ids() -> None:
    out = np.ones((1, 2), F32)
    rows, filler = np.empty((0, 2), F32), np.full(2, 3, F32)
    pool(rows, np.array([SKIP, FILL]), np.array([0]), None, Pooling.SUM, filler, out)
    np.testing.assert_array_equal(out, [[3, 3]])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "uint32", "uint64"])
def test_an_id_without_a_row_is_passed_over_or_filled_in_every_dtype(dtype: str) -> None:
    ids = np.array([1, 100, 2], dtype)
    for absent in (SKIP, FILL):
        index, found = bag_index(ids, 3, absent, padding_id=2)
        np.testing.assert_array_equal(index, [1, absent, SKIP])
        np.testing.assert_array_equal(found, [True, False, True])


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([[0, 1]], r"shape \(1, 2\); they are a flat list"),
        (0, r"shape \(\); they are a flat list"),
        ([], r"3 ids and no bag"),
        ([1, 2], r"offsets\[0\]=1; the first bag begins at 0"),
        ([-1], r"offsets\[0\]=-1"),
        ([0, 2, 1], r"offsets\[2\]=1 is before offsets\[1\]=2"),
        ([0, -1], r"offsets\[1\]=-1 is before"),
        ([0, 4], r"offsets\[1\]=4 is past the end of 3 ids"),
        (np.array([0, 2**64 - 1], np.uint64), r"offsets\[1\]=18446744073709551615 is past"),
        ([0, 2**70], "offsets must be integers"),
        ([0.0, 1.0], "offsets must be integers, not float64"),
        ([False], "offsets must be integers, not bool"),
        (["0"], "offsets must be integers"),
        ([[0], [1, 2]], "offsets are ragged"),
        (None, "a flat list"),
    ],
)
def test_bad_offsets_are_named(offsets: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_offsets(offsets, 3)


@pytest.mark.parametrize("offsets", [[0], [0, 3], [0, 0, 1, 3, 3], np.array([0, 1], np.uint8)])
def test_good_offsets_are_int64(offsets: object) -> None:
    checked = check_offsets(offsets, 3)
    assert checked.dtype == np.int64
    np.testing.assert_array_equal(checked, np.asarray(offsets))


def test_no_ids_need_no_bag() -> None:
    assert check_offsets([], 0).size == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "3 ids and 2 weights"),
        ([[1.0, 2.0, 3.0]], "flat list"),
        (["a", "b", "c"], "must be numbers"),
        ([True, False, True], "must be numbers"),
        ([1j, 0, 0], "must be numbers"),
        ([[1], [2, 3]], "ragged"),
    ],
)
def test_bad_weights_are_refused(weights: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_weights(weights, 3, Pooling.SUM)


def test_max_takes_no_weights() -> None:
    with pytest.raises(InvalidArgument, match="'max' takes no weights"):
        check_weights([1.0], 1, Pooling.MAX)
    assert check_weights(None, 1, Pooling.MAX) is None


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=8))
def test_a_list_of_lists_is_flat_ids_and_offsets(bags: list[list[int]]) -> None:
    flat, offsets = jagged(bags)
    assert isinstance(flat, np.ndarray)
    assert flat.tolist() == list(chain.from_iterable(bags))
    bounds = [*offsets.tolist(), flat.size] if bags else []
    assert [flat[a:b].tolist() for a, b in pairwise(bounds)] == bags


def test_a_list_of_lists_of_words_is_keys() -> None:
    flat, offsets = jagged([["the", "king"], [], ("œuf",)], "keys")
    assert isinstance(flat, StringKeys)
    assert flat.texts() == ["the", "king", "œuf"]
    assert offsets.tolist() == [0, 2, 2]


def test_bags_can_be_arrays() -> None:
    flat, offsets = jagged([np.array([3, 1]), np.array([], np.int64), np.array([2])])
    assert isinstance(flat, np.ndarray)
    assert flat.tolist() == [3, 1, 2]
    assert offsets.tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("bags", "message"),
    [
        ([[1], [2, 3.5]], r"ids\[1\]\[1\] is the float 3.5"),
        ([[1], [], [True]], r"ids\[2\]\[0\] is the bool True"),
        ([[1], [None]], r"ids\[1\]\[0\] is null"),
        ([[1], ["a"]], r"ids\[0\]\[0\] is an integer and ids\[1\]\[0\] a string"),
        ([["a"], [""]], r"ids\[1\]\[0\] is empty"),
        ([[1], 2], r"ids\[1\] is a int; each bag is a list"),
        (["ab"], r"ids\[0\] is a str; each bag is a list"),
        ([[[1]]], r"ids\[0\]\[0\] is a list"),
        ("ab", "a list of lists"),
        ([[2**64]], r"ids\[0\]\[0\]=18446744073709551616 doesn't fit"),
    ],
)
def test_what_is_no_bag_is_named(bags: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        jagged(bags)
