"""dedup: each id or key is sent once, and every place gets its row."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.clients import ITEMS, WORDS, Awaited, word
from client.fakes import FakeService, connect_server
from gatherd import Client, GatherdError, IdOutOfRange, InvalidArgument, KeyNotFound
from gatherd._requests.dedup import distinct
from gatherd.store.keys import StringKeys, as_keys
from gatherd.store.query import ByKey

RANGES = {"int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1), "int8": (-128, 127)}
integers = st.sampled_from(sorted(RANGES)).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
        elements=st.integers(0, 6) | st.integers(*RANGES[dtype]),
    )
)


@given(ids=integers)
def test_every_place_leads_to_its_id(ids: Any) -> None:
    few, places = distinct(ids)
    assert not isinstance(few, ByKey)
    assert few.dtype == ids.dtype
    assert few.size == len(set(ids.reshape(-1).tolist()))
    np.testing.assert_array_equal(few[places], ids.reshape(-1))


strings = st.sampled_from(["a", "b", "京都", "caf\udce9"]) | st.text(min_size=1, max_size=3)


@given(keys=st.lists(strings, min_size=1))
def test_every_place_leads_to_its_string(keys: list[str]) -> None:
    few, places = distinct(ByKey(as_keys(np.array(keys, object))))
    assert isinstance(few, ByKey)
    assert isinstance(few.keys, StringKeys)
    texts = few.keys.texts()
    assert [texts[place] for place in places] == keys
    assert len(texts) == len(set(keys))


def test_a_lookup_sends_less_and_answers_the_same(
    make: Any, server: str, service: FakeService
) -> None:
    ids = np.array([[3, 3, 499], [3, 0, 3]], np.int32)
    with make(server) as client:
        plain = client.lookup("words", ids)
        found = client.lookup("words", ids, dedup=True)
        np.testing.assert_array_equal(found, WORDS[ids])
        (_, sent), (_, sent_once) = service.calls
        assert sent_once < sent
        assert found.dtype == plain.dtype
        found[:] = 0  # it is the caller's
        out = np.empty((2, 3, 8), np.float32)
        assert client.lookup("words", ids, dedup=True, out=out) is out
        np.testing.assert_array_equal(out, WORDS[ids])
        half = client.lookup("words", ids, dedup=True, dtype="float16")
        np.testing.assert_array_equal(half, WORDS[ids].astype(np.float16))


def test_statuses_are_expanded_too(make: Any, server: str) -> None:
    ids = np.array([[600, 1], [600, 600]])
    with make(server) as client:
        vectors, status = client.lookup(
            "words", ids, missing="zero", return_status=True, dedup=True
        )
    np.testing.assert_array_equal(status, [[1, 0], [1, 1]])
    np.testing.assert_array_equal(vectors[0, 1], WORDS[1])
    assert not vectors[1].any()


def test_keys_and_many_tables(make: Any, server: str) -> None:
    with make(server) as client:
        found = client.lookup_many(
            {"items": [[5], [5]]}, keys={"words": [word(2), word(1), word(2)]}, dedup=True
        )
        np.testing.assert_array_equal(found["items"], ITEMS[[[5], [5]]])
        np.testing.assert_array_equal(found["words"], WORDS[[2, 1, 2]])
        own = client.lookup("items", keys=[993, -7, 993, -7], dedup=True)
        np.testing.assert_array_equal(own, ITEMS[[1, 0, 1, 0]])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ids": [1, 1, 500]}, IdOutOfRange),
        ({"keys": ["word1", "word1", "nobody"]}, KeyNotFound),
        ({"ids": [1], "out": np.empty((2, 8), np.float32)}, InvalidArgument),
        ({"ids": [1], "out": np.empty((1, 9), np.float32)}, InvalidArgument),
    ],
)
def test_errors_are_those_of_the_lookup_as_it_was_given(
    make: Any, service: FakeService, options: dict[str, Any], error: type[GatherdError]
) -> None:
    with connect_server(service) as url, make(url) as client:
        with pytest.raises(error) as plain:
            client.lookup("words", **options)
        with pytest.raises(error) as once:
            client.lookup("words", **options, dedup=True)
    assert once.value.message == plain.value.message
    assert once.value.metadata == plain.value.metadata


@pytest.mark.parametrize("dedup", [None, 1, "auto"])
def test_what_is_neither_true_nor_false_is_refused(service: FakeService, dedup: Any) -> None:
    with connect_server(service) as url:
        for cls in (Client, Awaited):
            with cls(url) as client, pytest.raises(InvalidArgument, match="dedup"):
                client.lookup("words", [1], dedup=dedup)
