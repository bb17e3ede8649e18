"""Ids, keys, bags and values in the arrays of pandas, Polars, Arrow, torch, JAX and ml_dtypes."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from gatherd.errors import InvalidArgument
from gatherd.store.bags import check_weights, jagged
from gatherd.store.given import as_given_array
from gatherd.store.ids import as_id_array
from gatherd.store.keys import StringKeys, as_keys
from gatherd.store.query import Pooling


class Arrow:
    """An array of a library that has Arrow's C interface, and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._array.__arrow_c_array__(requested_schema)


class Stream:
    """A column of such a library."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._column.__arrow_c_stream__(requested_schema)


class Dlpack:
    """An array of a library that has DLPack, and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


INTEGERS = [3, 1, 2]
TEXTS = ["king", "ü", "queen"]


@pytest.mark.parametrize(
    "made",
    [
        pd.Series(INTEGERS),
        pd.Index(INTEGERS),
        pd.Series(INTEGERS, dtype="Int64"),
        pd.Series(INTEGERS, dtype="int64[pyarrow]"),
        pl.Series(INTEGERS),
        pa.array(INTEGERS),
        pa.chunked_array([INTEGERS[:1], INTEGERS[1:]]),
        pa.array(INTEGERS).dictionary_encode(),
        torch.tensor(INTEGERS),
        [torch.tensor(number) for number in INTEGERS],
        jnp.array(INTEGERS),
        np.array(INTEGERS, ml_dtypes.int4),
        Arrow(pa.array(INTEGERS)),
        Stream(pa.chunked_array([INTEGERS[:1], INTEGERS[1:]])),
        Dlpack(np.array(INTEGERS)),
        Dlpack(torch.tensor(INTEGERS)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_integers_are_ids_and_keys(made: Any) -> None:
    assert as_id_array(made).tolist() == INTEGERS
    keys = as_keys(made)
    assert not isinstance(keys, StringKeys)
    assert keys.tolist() == INTEGERS


@pytest.mark.parametrize(
    "made",
    [
        pd.Series(TEXTS),
        pd.Series(TEXTS, dtype=object),
        pd.Categorical(TEXTS),
        pl.Series(TEXTS),
        pl.Series(TEXTS, dtype=pl.Categorical),
        pa.array(TEXTS),
        pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).dictionary_encode(),
        Arrow(pa.array(TEXTS)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_texts_are_keys(made: Any) -> None:
    keys = as_keys(made)
    assert isinstance(keys, StringKeys)
    assert keys.texts() == TEXTS


@pytest.mark.parametrize(
    "made",
    [
        pd.Series([1, None, None], dtype="Int64"),
        pd.Series([1.0, None, None]),
        pd.Series(["a", None, None]),
        pl.Series([1, None, None]),
        pl.Series(["a", None, None]),
        pa.array([1, None, None]),
        Arrow(pa.array([1, None, None])),
        Stream(pa.chunked_array([[1], [None, None]])),
        np.ma.MaskedArray([1, 2, 3], mask=[False, True, True]),
    ],
    ids=lambda made: type(made).__name__,
)
def test_nulls_are_refused_by_position(made: Any) -> None:
    for take, name in ((as_id_array, "ids"), (as_keys, "keys")):
        with pytest.raises(InvalidArgument, match=rf"{name}\[1\], {name}\[2\] are"):
            take(made)


@pytest.mark.parametrize(
    "made",
    [
        pd.DataFrame([[1.0, 2.0], [None, 4.0]]),
        pl.DataFrame({"a": [1.0, None], "b": [2.0, 4.0]}),
        pa.table({"a": [1.0, None], "b": [2.0, 4.0]}),
        pa.array([[1.0, 2.0], [None, 4.0]], pa.list_(pa.float32(), 2)),
        pa.array([[1.0, 2.0], [None, 4.0]]),
        pl.Series([[1.0, 2.0], [None, 4.0]], dtype=pl.Array(pl.Float32, 2)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_nulls_in_frames_are_refused_by_position(made: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"rows\[1\]\[0\] is null"):
        as_given_array(made, "rows")


def test_a_bag_can_be_an_array_of_any_library() -> None:
    bags = [torch.tensor([1, 2]), pd.Series([3]), pl.Series([], dtype=pl.Int64), [4]]
    flat, offsets = jagged(bags)
    assert not isinstance(flat, StringKeys)
    assert flat.tolist() == [1, 2, 3, 4]
    assert offsets.tolist() == [0, 2, 3, 3]


def test_weights_can_be_of_any_library() -> None:
    for weights in (
        torch.tensor([0.5, 2.0], requires_grad=True),
        torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
        np.array([0.5, 2.0], ml_dtypes.bfloat16),
        jnp.array([0.5, 2.0], jnp.bfloat16),
        pl.Series([0.5, 2.0]),
    ):
        taken = check_weights(weights, 2, Pooling.SUM)
        assert taken is not None
        assert taken.dtype == np.float32
        assert taken.tolist() == [0.5, 2.0]


def test_a_tensor_on_another_device_is_refused_with_the_next_step() -> None:
    with pytest.raises(InvalidArgument, match="grads can't be made an array"):
        as_given_array(torch.empty(2, device="meta"), "grads")
