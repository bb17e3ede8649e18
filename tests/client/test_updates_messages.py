"""The generated classes read an update as it was meant, whatever its shapes and dtypes."""

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from client.clients import Awaited
from client.fake_updates import UpdatedService, wire_values
from client.fakes import connect_server, wire_array, wire_keys
from gatherd import Client
from gatherd.store.keys import StringKeys

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ID_DTYPES = st.sampled_from(["b", "h", "i", "q", "B", "H", "I", "Q", ">i4", ">u8"])
VALUE_DTYPES = st.sampled_from(
    ["f2", "f4", "f8", ">f2", ">f4", ">f8", "i1", "u8", ">i8", ml_dtypes.bfloat16,
     ml_dtypes.float8_e4m3fn]
)  # fmt: skip


class Recorder(UpdatedService):
    """Takes any update of any table, and does nothing."""

    def _apply(self, method: str, update: Any) -> None:
        pass


@st.composite
def arrays(draw: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids of a shape S and values of S + (dim,), of any layout."""
    shape, dim = draw(SHAPES), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.asarray(rng.integers(0, 100, shape)).astype(draw(ID_DTYPES))
    values = rng.integers(0, 50, (*shape, dim)).astype(draw(VALUE_DTYPES))
    if draw(st.booleans()):
        values = np.asfortranarray(values)
    if values.ndim > 1 and draw(st.booleans()):
        ids, values = ids[..., ::-1] if ids.ndim else ids, values[..., ::-1, :]
    return ids, values


def keys_for(ids: NDArray[Any], strings: bool) -> Any:
    if not strings:
        return ids
    return np.array([f"ключ{row}" for row in ids.reshape(-1)], object).reshape(ids.shape)


@settings(deadline=None)
@given(
    st.lists(arrays(), min_size=1, max_size=4),
    st.sampled_from(["ids", "integers", "strings"]),
    st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(0, 2**64 - 1),
    st.sampled_from([Client, Awaited]),
)
def test_an_update_is_read_as_it_was_given(
    parts: list[tuple[NDArray[Any], NDArray[Any]]],
    rows: str,
    lr: float | None,
    version: int,
    kind: Any,
) -> None:
    service = SERVICE
    service.pushes.clear()
    updates = {
        f"таблица{n}": (ids if rows == "ids" else keys_for(ids, rows == "strings"), values)
        for n, (ids, values) in enumerate(parts)
    }
    with connect_server(service) as url, kind(url) as client:
        result = client.apply_gradients_many(
            **{"updates" if rows == "ids" else "keys": updates},
            lr=lr,
            if_version=dict.fromkeys(updates, version) if version else None,
        )
    assert list(result.versions) == list(updates)
    (push,) = service.pushes
    for update, (table, (_, values)), (ids, _) in zip(
        push.updates, updates.items(), parts, strict=True
    ):
        assert update.table == table
        assert update.HasField("learning_rate") == (lr is not None)
        assert update.learning_rate == (lr or 0.0)
        assert update.if_version == version
        sent = wire_values(update.values)
        np.testing.assert_array_equal(sent, values.astype(np.float32))
        small = values.dtype.itemsize == 2 and values.dtype.kind in "fV"
        assert len(update.values.data) == values.size * (2 if small else 4)
        if rows == "ids":
            assert tuple(update.ids.shape) == ids.shape
            np.testing.assert_array_equal(wire_array(update.ids), ids)
            continue
        keys = wire_keys(update.keys)
        assert keys.shape == ids.shape
        if isinstance(keys, StringKeys):
            given_keys = keys_for(ids, strings=True).reshape(-1).tolist()
            assert keys.tolist() == [key.encode() for key in given_keys]
        else:
            np.testing.assert_array_equal(keys, ids)


SERVICE = Recorder({})


@settings(deadline=None, max_examples=20)
@given(st.integers(8_000, 9_000), st.integers(1, 3), st.sampled_from(["f2", "f4", "f8"]))
def test_a_large_update_is_framed_alike(rows: int, tables: int, dtype: str) -> None:
    """Around the size from which arrays aren't copied into the request's head."""
    service = Recorder({})
    rng = np.random.default_rng(rows)
    updates = {
        f"t{n}": (rng.integers(0, 9, rows), rng.standard_normal((rows, 2)).astype(dtype))
        for n in range(tables)
    }
    with connect_server(service) as url, Client(url) as client:
        client.assign_many(updates)
    (push,) = service.pushes
    for update, (ids, values) in zip(push.updates, updates.values(), strict=True):
        np.testing.assert_array_equal(wire_array(update.ids), ids)
        np.testing.assert_array_equal(wire_values(update.values), values.astype(np.float32))
