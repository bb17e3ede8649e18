"""bfloat16 by hand equals ml_dtypes' bfloat16."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gatherd.store.dtypes import DType, bfloat16_to_float32, convert, float32_to_bfloat16

REAL = {
    DType.FLOAT32: np.dtype(np.float32),
    DType.FLOAT16: np.dtype(np.float16),
    DType.FLOAT64: np.dtype(np.float64),
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


def test_every_bfloat16_widens_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(2**16, np.float32)
    bfloat16_to_float32(bits, out)
    np.testing.assert_array_equal(out, bits.view(ml_dtypes.bfloat16).astype(np.float32))


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32)))
def test_rounding_to_bfloat16_agrees_with_ml_dtypes(values: NDArray[np.float32]) -> None:
    out = np.empty(values.shape, np.uint16)
    float32_to_bfloat16(values, out)
    # Compared as values: which NaN a NaN becomes is nobody's concern.
    np.testing.assert_array_equal(
        out.view(ml_dtypes.bfloat16).astype(np.float32),
        values.astype(ml_dtypes.bfloat16).astype(np.float32),
    )


def test_a_nan_whose_rounding_would_carry_stays_a_nan() -> None:
    nan = np.array([0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    out = np.empty(3, np.uint16)
    float32_to_bfloat16(nan, out)
    assert np.isnan(out.view(ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize(("source", "target"), list(itertools.product(DType, DType)))
def test_every_conversion_is_the_cast_of_numpy(source: DType, target: DType) -> None:
    drawn = np.random.default_rng(1).normal(scale=1000, size=(50, 3))
    given_values = drawn.astype(REAL[source])
    out = np.empty((50, 3), target.storage)
    convert(given_values.view(source.storage), source, out, target)
    wanted = given_values
    if target is DType.BFLOAT16 and source is DType.FLOAT64:
        wanted = given_values.astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = wanted.astype(REAL[target])
    np.testing.assert_array_equal(out, wanted.view(target.storage))
