"""Masked and null entries are refused by their position, wherever arrays are taken."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatherd import Client
from gatherd.errors import InvalidArgument
from gatherd.store.bags import check_offsets, check_weights, jagged
from gatherd.store.ids import as_id_array
from gatherd.store.keys import as_keys
from gatherd.store.query import Pooling


@given(mask=st.lists(st.booleans(), min_size=1, max_size=20), depth=st.integers(0, 2))
def test_no_mask_is_lost(mask: list[bool], depth: int) -> None:
    ids: Any = np.ma.MaskedArray(np.arange(len(mask)), mask=mask)
    for _ in range(depth):
        ids = [ids]
    where = f"[{mask.index(True)}]" if True in mask else ""
    for take, name in ((as_id_array, "ids"), (as_keys, "keys")):
        taker: Callable[[Any], Any] = take
        if not where:
            expected = np.arange(len(mask)).reshape((1,) * depth + (-1,))
            np.testing.assert_array_equal(taker(ids), expected)
            continue
        with pytest.raises(InvalidArgument, match="masked") as refused:
            taker(ids)
        assert str(refused.value).startswith(name + "[0]" * depth + where)


@pytest.mark.parametrize(
    ("take", "where"),
    [
        (lambda: as_id_array(pa.array([1, None, 3])), r"ids\[1\] is null"),
        (lambda: as_keys(pa.array(["a", None, None])), r"keys\[1\], keys\[2\] are null"),
        (lambda: as_keys(pa.chunked_array([["a"], [None]])), r"keys\[1\] is null"),
        (lambda: as_keys(["a", np.ma.masked]), r"keys\[1\] is masked"),
        (lambda: check_offsets(pa.array([0, None]), 3), r"offsets\[1\] is null"),
        (lambda: check_weights([1.0, None], 2, Pooling.SUM), r"weights\[1\] is null"),
        (
            lambda: check_weights(
                np.ma.MaskedArray([1.0, 2.0], mask=[False, True]), 2, Pooling.SUM
            ),
            r"weights\[1\] is masked",
        ),
        (lambda: jagged([[1], pa.array([2, None])]), r"ids\[1\]\[1\] is null"),
    ],
)
def test_a_null_is_refused_by_its_position(take: Callable[[], object], where: str) -> None:
    with pytest.raises(InvalidArgument, match=where):
        take()


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"ids": pa.array([[1, 2], [None]])}, r"ids\[1\]\[0\] is null"),
        ({"ids": pa.array([[1, 2], None])}, r"ids\[1\] is null"),
        ({"keys": [["a"], pa.array(["b", None])]}, r"keys\[1\]\[1\] is null"),
        ({"ids": [[1, 2]], "weights": [pa.array([1.0, None])]}, r"weights\[0\]\[1\] is null"),
    ],
)
def test_a_null_in_a_bag_is_refused_before_anything_is_sent(
    arguments: dict[str, Any], where: str
) -> None:
    # Nobody listens there.
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidArgument, match=where):
        client.lookup_bags("words", mode="sum", **arguments)


@pytest.mark.parametrize("op", ["scatter_add", "assign", "apply_gradients"])
def test_a_null_in_an_update_is_refused_before_anything_is_sent(op: str) -> None:
    masked = np.ma.MaskedArray([[1.0, 2.0]], mask=[[False, True]])
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(InvalidArgument, match=r"table 'words': \w+\[0\]\[1\] is masked"):
            getattr(client, op)("words", [1], masked)
        with pytest.raises(InvalidArgument, match=r"table 'words': \w+\[0\]\[0\] is null"):
            getattr(client, op)("words", [1], [[None, 1.0]])


def test_keys_take_what_ids_take() -> None:
    for ids in (range(3, 9, 2), pa.array([3, 5, 7]), [np.array([3, 5]), (7, 9)], np.int8(3)):
        np.testing.assert_array_equal(as_keys(ids), as_id_array(ids))


@pytest.mark.parametrize("unordered", [{"a"}, {"a": 1}.keys(), iter(["a"])])
def test_what_is_no_sequence_is_refused(unordered: object) -> None:
    for take in (as_id_array, as_keys):
        with pytest.raises(InvalidArgument, match=f"is a {type(unordered).__name__}"):
            take(unordered)
