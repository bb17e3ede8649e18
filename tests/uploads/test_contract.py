"""What is uploaded is what NumPy has, bit for bit, by every client; errors change nothing."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.errors import (
    AlreadyExists,
    FailedPrecondition,
    GatherdError,
    InvalidArgument,
    LimitExceeded,
    NonfiniteValues,
    NotFound,
    TableNotFound,
    VersionMismatch,
)
from uploads.conftest import REQUEST_BYTES_MAX, Call, Uploading

RNG = np.random.default_rng(20261128)
DTYPES = ("float32", "float16", "float64", "bfloat16")


def vectors(rows: int, dim: int, dtype: str = "float32") -> NDArray[Any]:
    drawn = RNG.normal(size=(rows, dim))
    return drawn.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def stored(call: Call, name: str, rows: int) -> NDArray[Any]:
    """The rows as float32, which all dtypes but float64 have exactly."""
    found: NDArray[Any] = call("lookup", name, np.arange(rows))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_becomes_a_table_of_its_dtype(
    call: Call, names: Iterator[str], dtype: str
) -> None:
    name, given = next(names), vectors(1000, 37, dtype)
    done = call("create_table", name, given, chunk_bytes=10_000)
    assert (done.version, done.rows, done.duplicates) == (1, 1000, 0)
    info = call("table", name)
    assert (info.rows, info.dim, info.dtype, info.key_kind) == (1000, 37, dtype, "")
    np.testing.assert_array_equal(stored(call, name, 1000), given.astype(np.float32))


@pytest.mark.parametrize("target", DTYPES)
def test_rows_are_converted_as_they_go(call: Call, names: Iterator[str], target: str) -> None:
    name, given = next(names), vectors(300, 5, "float64")
    call("create_table", name, given[::-2], dtype=target, chunk_bytes=999)
    wanted = given[::-2].astype(np.float32) if target == "bfloat16" else given[::-2]
    wanted = wanted.astype(ml_dtypes.bfloat16 if target == "bfloat16" else target)
    np.testing.assert_array_equal(stored(call, name, 150), wanted.astype(np.float32))


@pytest.mark.parametrize("kind", ["bytes", "int64", "uint64"])
def test_each_key_has_its_row(call: Call, names: Iterator[str], kind: str) -> None:
    name, given = next(names), vectors(700, 9)
    if kind == "bytes":
        keys: Any = [f"word {i} é" * (1 + i % 20) for i in range(700)]
    else:
        keys = RNG.permutation(np.arange(700) * 7).astype(kind)
        keys[0] = np.iinfo(kind).max
    call("create_table", name, given, keys=keys, optimizer="adagrad", chunk_bytes=4_321)
    assert call("table", name).key_kind == kind
    order = RNG.permutation(700)
    asked = [keys[i] for i in order] if kind == "bytes" else keys[order]
    np.testing.assert_array_equal(call("lookup", name, keys=asked), given[order])
    call("scatter_add", name, keys=asked[:1], deltas=np.ones((1, 9), np.float32))


def test_batches_of_any_size_are_put_together(call: Call, names: Iterator[str]) -> None:
    name, given = next(names), vectors(500, 11, "float16")
    keys = [f"k{i}" for i in range(500)]
    cuts = [0, 1, 1, 3, 120, 400, 500]
    batches = ((keys[a:b], given[a:b]) for a, b in pairwise(cuts))
    assert call("create_table", name, batches, chunk_bytes=2_000).rows == 500
    np.testing.assert_array_equal(call("lookup", name, keys=keys), given.astype(np.float32))
    plain = next(names)
    call("create_table", plain, iter([given[:3], given[3:]]), dtype="float32")
    np.testing.assert_array_equal(stored(call, plain, 500), given.astype(np.float32))


def test_a_new_version_keeps_the_optimizer(call: Call, names: Iterator[str]) -> None:
    name, first, second = next(names), vectors(40, 4), vectors(40, 4)
    call("create_table", name, first, optimizer={"name": "adagrad", "lr": 0.5})
    with pytest.raises(VersionMismatch):
        call("publish", name, second, if_version=7)
    done = call("publish", name, second, if_version=1, chunk_bytes=100)
    info = call("table", name)
    assert done.version == info.version == 2
    assert info.optimizer["name"] == "adagrad"
    assert info.optimizer["lr"] == 0.5
    np.testing.assert_array_equal(stored(call, name, 40), second)
    np.testing.assert_array_equal(call("lookup", name, [3], version=1), first[3:4])


@pytest.mark.parametrize("policy", ["first", "last"])
def test_of_duplicates_one_is_kept(call: Call, names: Iterator[str], policy: str) -> None:
    name, given = next(names), vectors(600, 3)
    keys = RNG.integers(0, 200, 600)
    done = call("create_table", name, given, keys=keys, on_duplicate=policy, chunk_bytes=1_000)
    model: dict[int, NDArray[Any]] = {}
    for key, row in zip(keys.tolist(), given, strict=True):
        if policy == "last" or key not in model:
            model[key] = row
    assert (done.rows, done.duplicates) == (len(model), 600 - len(model))
    found = call("lookup", name, keys=[*model])
    np.testing.assert_array_equal(found, np.stack([*model.values()]))


def test_missing_ids_have_the_default_vector(call: Call, names: Iterator[str]) -> None:
    name, given = next(names), vectors(5, 2)
    call("create_table", name, given, default_vector=[7.5, -1])
    found = call("lookup", name, [99], missing="default", return_status=False)
    np.testing.assert_array_equal(found, [[7.5, -1]])


def _with(value: float) -> NDArray[Any]:
    rows = vectors(400, 6)
    rows[321, 4] = value
    return rows


WRONG: dict[str, tuple[Any, dict[str, Any], type[GatherdError], str]] = {
    "NaN": (_with(np.nan), {}, NonfiniteValues, "row 321"),
    "infinity": (_with(-np.inf), {}, NonfiniteValues, "row 321"),
    "too large": (_with(1e30), {"dtype": "float16"}, NonfiniteValues, "row 321"),
    "another dim": (
        lambda: iter([vectors(300, 6), vectors(3, 5)]),
        {},
        InvalidArgument,
        "batch 1 has rows of 5 elements",
    ),
    "keys twice": (
        vectors(400, 6),
        {"keys": [*range(399), 7]},
        InvalidArgument,
        "row 399 has key 7, as row 7 has",
    ),
    "another kind of keys": (
        vectors(400, 6),
        {"keys": [*range(399), 2**63]},
        InvalidArgument,
        "isn't int64",
    ),
    "mixed keys": (
        lambda: iter([([1, 2], vectors(2, 6)), (["a"], vectors(1, 6))]),
        {},
        InvalidArgument,
        "keys",
    ),
    "too few keys": (vectors(4, 6), {"keys": [1, 2, 3]}, InvalidArgument, "3 keys for 4 vectors"),
    "no such optimizer": (vectors(4, 6), {"optimizer": "sdg"}, InvalidArgument, "sgd"),
    "one number a row": (np.arange(4.0), {}, InvalidArgument, "shape (4,)"),
    "text": (np.array([["a", "b"]]), {}, InvalidArgument, "are numbers"),
    "a row over the limit": (
        vectors(2, REQUEST_BYTES_MAX // 2),
        {},
        LimitExceeded,
        "request_bytes_max",
    ),
    "a float64 table that is trained": (
        vectors(4, 6, "float64"),
        {"optimizer": "sgd"},
        InvalidArgument,
        "float64",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_and_nothing_is_left(
    call: Call, uploading: Uploading, names: Iterator[str], what: str
) -> None:
    name = next(names)
    given, options, kind, told = WRONG[what]
    with pytest.raises(kind) as caught:
        call(
            "create_table",
            name,
            given() if callable(given) else given,
            chunk_bytes=1_000,
            **options,
        )
    assert told in str(caught.value)
    assert type(caught.value) is kind
    with pytest.raises(TableNotFound):
        call("table", name)
    assert call("uploads") == []
    assert uploading.left() == []


def test_a_name_that_is_taken_is_refused_before_any_row(
    call: Call, uploading: Uploading, names: Iterator[str]
) -> None:
    name, given = next(names), vectors(10, 4)
    call("create_table", name, given)
    with pytest.raises(AlreadyExists):
        call("create_table", name, given)
    with pytest.raises(FailedPrecondition, match="dim 4"):
        call("publish", name, vectors(10, 5))
    with pytest.raises(TableNotFound):
        call("publish", f"{name}-that-isnt", given)
    assert uploading.left() == []


def test_nan_is_taken_if_it_is_allowed(call: Call, names: Iterator[str]) -> None:
    name, given = next(names), _with(np.nan)
    call("create_table", name, given, allow_nonfinite=True)
    np.testing.assert_array_equal(stored(call, name, 400), given)


def test_a_callers_own_error_cancels_the_upload(
    call: Call, uploading: Uploading, names: Iterator[str]
) -> None:
    name = next(names)

    def batches() -> Iterator[NDArray[Any]]:
        yield vectors(500, 8)
        assert call is not None
        assert uploading.left(), "half of it is there"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("create_table", name, batches(), chunk_bytes=1_000)
    assert uploading.left() == []
    assert call("uploads") == []


def test_an_unknown_upload_is_named(call: Call) -> None:
    with pytest.raises(NotFound, match="0123"):
        call("cancel_upload", "0123" * 8)
    with pytest.raises(NotFound):
        call("create_table", "nothing", vectors(2, 2), resume="0123" * 8)
    with pytest.raises(InvalidArgument, match="32 hex digits"):
        call("cancel_upload", "../../tables")
