"""Keys and bags: both clients against stand-in servers, over every wire."""

from typing import Any

import numpy as np
import pytest

from client.clients import ITEMS, WORDS, bags_of, word
from client.fakes import FakeService
from gatherd import (
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    NoKeys,
)

LIMITS: list[dict[str, int]] = [
    {},
    {"ids_max": 7},
    {"reply_bytes_max": 600},
    {"request_bytes_max": 400},
]


def test_rows_are_looked_up_by_key(make: Any, server: str) -> None:
    with make(server) as client:
        np.testing.assert_array_equal(
            client.lookup("words", keys=[["word3"], [b"word499"]]), WORDS[[[3], [499]]]
        )
        np.testing.assert_array_equal(client.lookup("words", keys="word3"), WORDS[3])
        fixed = np.array([["word1", "word22"]])
        np.testing.assert_array_equal(client.lookup("words", keys=fixed), WORDS[[[1, 22]]])
        for given_keys in ([-7, 993], np.array([-7, 993], ">i2")):
            np.testing.assert_array_equal(client.lookup("items", keys=given_keys), ITEMS[:2])
        out = np.empty((2, 3), np.float16)
        assert client.lookup("items", keys=[-7, 993], dtype="float16", out=out) is out
        assert client.lookup("words", keys=[]).shape == (0, 8)


def test_many_tables_by_id_and_by_key(make: Any, server: str, service: FakeService) -> None:
    with make(server) as client:
        found = client.lookup_many({"words": [[1]]}, keys={"items": [993, -7]})
        assert list(found) == ["words", "items"]
        np.testing.assert_array_equal(found["words"], WORDS[[[1]]])
        np.testing.assert_array_equal(found["items"], ITEMS[[1, 0]])
        only = client.lookup_many(keys={"words": ["word2"]})
        np.testing.assert_array_equal(only["words"], WORDS[[2]])
        assert client.lookup_many() == {}
        calls = len(service.calls)
        with pytest.raises(InvalidArgument, match="'words' has ids and keys"):
            client.lookup_many({"words": [1]}, keys={"words": ["word2"]})
        with pytest.raises(InvalidArgument, match="dict of table to keys"):
            client.lookup_many(keys=["word2"])
        assert len(service.calls) == calls


@pytest.mark.parametrize("limits", LIMITS)
def test_missing_keys_by_policy(
    make: Any, server: str, service: FakeService, limits: dict[str, int]
) -> None:
    service.limits = limits
    asked = [[word(row), word(row * 70)] for row in range(12)]
    rows = np.array([[row, row * 70] for row in range(12)])
    with make(server) as client:
        vectors, status = client.lookup("words", keys=asked, missing="zero", return_status=True)
        np.testing.assert_array_equal(status, rows >= 500)
        np.testing.assert_array_equal(vectors[rows < 500], WORDS[rows[rows < 500]])
        assert not vectors[rows >= 500].any()
        with pytest.raises(KeyNotFound, match=r"no key keys\[8\]\[1\]='word560'") as caught:
            client.lookup("words", keys=asked)
        assert isinstance(caught.value, KeyError)
        assert caught.value.metadata["keys[8][1]"] == "'word560'"


def test_missing_keys_are_named_by_their_places_in_the_whole(
    make: Any, server: str, service: FakeService
) -> None:
    service.limits = {"ids_max": 10}
    asked = [[word(row)] for row in range(13)] + [["no"]] * 7 + [["beyond"]] * 20
    with make(server) as client:
        with pytest.raises(KeyNotFound) as caught:
            client.lookup("words", keys=asked)
        # The server looked at the first 20 keys.
        assert caught.value.message == (
            "table 'words' has no key keys[13][0]='no', keys[14][0]='no', keys[15][0]='no', "
            "keys[16][0]='no', keys[17][0]='no' (and 2 more)"
        )
        assert caught.value.metadata["offenders"] == "7"
        flat = [key for (key,) in asked]
        with pytest.raises(KeyNotFound, match=r"no key keys\[13\]='no'.*\(and 2 more\)"):
            client.lookup_bags("words", keys=flat, offsets=[0, 3, 10, 20])
        many = {"items": [-7, 993], "words": flat}
        with pytest.raises(KeyNotFound, match=r"no key keys\[13\]='no'"):
            client.lookup_many(keys=many)


@pytest.mark.parametrize("limits", LIMITS)
def test_ids_of_keys(make: Any, server: str, service: FakeService, limits: dict[str, int]) -> None:
    service.limits = limits
    asked = [[word(row), word(row * 70)] for row in range(12)]
    rows = np.array([[row, row * 70] for row in range(12)])
    with make(server) as client:
        np.testing.assert_array_equal(client.ids_of("words", asked[:7]), rows[:7])
        found = client.ids_of("words", asked, allow_missing=True)
        np.testing.assert_array_equal(found, np.where(rows < 500, rows, -1))
        assert found.dtype == np.int64
        assert client.ids_of("items", 993).shape == ()
        assert client.ids_of("words", []).shape == (0,)
        with pytest.raises(KeyNotFound, match=r"no key keys\[8\]\[1\]='word560'"):
            client.ids_of("words", asked)


def test_keys_that_cannot_be_looked_up(make: Any, server: str, service: FakeService) -> None:
    del service.keys["items"]
    with make(server) as client:
        with pytest.raises(NoKeys):
            client.lookup("items", keys=["a"])
        with pytest.raises(NoKeys):
            client.keys_of("items", [0])
        calls = len(service.calls)
        bad: Any
        for bad in ([""], ["x" * 1025], ["a", 1], [1.5], [True], [None], [["a"], ["b", "c"]], {}):
            with pytest.raises(InvalidArgument, match="keys"):
                client.lookup("words", keys=bad)
        with pytest.raises(InvalidArgument, match="neither ids nor keys"):
            client.lookup("words")
        with pytest.raises(InvalidArgument, match="both ids and keys"):
            client.lookup("words", [1], keys=["a"])
        with pytest.raises(InvalidArgument, match="only bags can skip"):
            client.lookup("words", keys=["a"], missing="skip")
        assert len(service.calls) == calls


BAGS = [[1, 2, 2], [], [499, 3], [7]]
FLAT = [1, 2, 2, 499, 3, 7]
OFFSETS = [0, 3, 3, 5]


@pytest.mark.parametrize("mode", ["sum", "mean", "max", "sqrtn"])
def test_bags_are_pooled_however_they_are_given(make: Any, server: str, mode: str) -> None:
    expected = bags_of(WORDS, BAGS, mode)
    ids: Any
    with make(server) as client:
        for ids, offsets in (
            (FLAT, OFFSETS),
            (np.array(FLAT, np.uint16), np.array(OFFSETS, np.int32)),
            (BAGS, None),
            ([np.array(bag, int) for bag in BAGS], None),
        ):
            found = client.lookup_bags("words", ids, offsets, mode=mode)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)
        named = [list(map(word, bag)) for bag in BAGS]
        np.testing.assert_array_equal(client.lookup_bags("words", keys=named, mode=mode), expected)
        flat = list(map(word, FLAT))
        out = np.empty((4, 8), np.float32)
        found = client.lookup_bags("words", None, OFFSETS, keys=flat, mode=mode, out=out)
        assert found is out
        np.testing.assert_array_equal(out, expected)
        even = client.lookup_bags("words", np.array([[1, 2], [3, 4]]), mode=mode)
        np.testing.assert_array_equal(even, bags_of(WORDS, [[1, 2], [3, 4]], mode))
        even = client.lookup_bags("items", keys=np.array([[-7, 993]]), mode=mode)
        np.testing.assert_array_equal(even, bags_of(ITEMS, [[0, 1]], mode))
        assert client.lookup_bags("words", []).shape == (0, 8)
        assert client.lookup_bags("words", [], []).shape == (0, 8)
        assert not client.lookup_bags("words", [[], []], mode=mode).any()


def test_the_mean_is_what_bags_are_pooled_to_by_default(make: Any, server: str) -> None:
    with make(server) as client:
        np.testing.assert_array_equal(
            client.lookup_bags("words", BAGS), bags_of(WORDS, BAGS, "mean")
        )


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_weights_are_flat_or_as_jagged_as_the_ids(make: Any, server: str, mode: str) -> None:
    weights: list[list[float]] = [[1, 0.5, -2.0], [], [3, 4], [0.25]]
    flat = [weight for bag in weights for weight in bag]
    expected = bags_of(WORDS, BAGS, mode, weights)
    with make(server) as client:
        for given_weights in (flat, np.array(flat), weights, [np.array(bag) for bag in weights]):
            found = client.lookup_bags("words", BAGS, mode=mode, weights=given_weights)
            np.testing.assert_array_equal(found, expected)
        found = client.lookup_bags(
            "words", FLAT, OFFSETS, mode=mode, weights=np.array(flat, np.float16)
        )
        np.testing.assert_array_equal(found, expected)


def test_padding_and_missing_ids_in_bags(make: Any, server: str, service: FakeService) -> None:
    bags = [[1, -1, 900], [900], [5, -1]]
    with make(server) as client:
        for limits in ({}, {"ids_max": 3}):
            service.limits = limits
            found, status = client.lookup_bags(
                "words", bags, padding_id=-1, missing="skip", return_status=True
            )
            np.testing.assert_array_equal(found, bags_of(WORDS, [[1], [], [5]], "mean"))
            np.testing.assert_array_equal(status, [0, 0, 1, 1, 0, 0])
            with pytest.raises(IdOutOfRange) as caught:
                client.lookup_bags("words", bags, padding_id=-1)
            if limits:
                assert "ids[2]=900, ids[3]=900 are out of range" in caught.value.message
        found, status = client.lookup_bags("words", [[1], []], return_status=True)
        np.testing.assert_array_equal(status, [0])


def test_bags_of_many_tables(make: Any, server: str, service: FakeService) -> None:
    weights = {"words": [[1, 2, 3], [], [4, 5], [6]]}
    with make(server) as client:
        found = client.lookup_bags_many(
            {"words": BAGS}, keys={"items": ([-7, 993, -7], [0, 1])}, weights=weights, mode="sum"
        )
        assert list(found) == ["words", "items"]
        np.testing.assert_array_equal(found["words"], bags_of(WORDS, BAGS, "sum", weights["words"]))
        np.testing.assert_array_equal(found["items"], bags_of(ITEMS, [[0], [1, 0]], "sum"))
        assert [name for name, _ in service.calls] == ["LookupBagsMany"]
        assert client.lookup_bags_many({}) == {}
        service.limits = {"ids_max": 4, "tables_max": 1}
        both = client.lookup_bags_many(
            {"words": (FLAT, OFFSETS), "items": [[1, 99]]}, missing="zero", return_status=True
        )
        np.testing.assert_array_equal(both["words"][0], bags_of(WORDS, BAGS, "mean"))
        np.testing.assert_array_equal(both["items"][1], [0, 1])
        service.limits = {}
        calls = len(service.calls)
        refused: list[dict[str, Any]] = [
            {"ids": {"words": BAGS}, "weights": {"items": [1]}},
            {"ids": {"words": BAGS}, "keys": {"words": [["a"]]}},
            {"ids": {"words": (FLAT, OFFSETS, 1)}},
            {"ids": {"words": BAGS}, "weights": [1]},
        ]
        for arguments in refused:
            with pytest.raises(InvalidArgument):
                client.lookup_bags_many(**arguments)
        assert len(service.calls) == calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [1, 2], "offsets": [1]}, r"offsets\[0\]=1"),
        ({"ids": [1, 2], "offsets": [0, 2, 1]}, r"offsets\[2\]=1"),
        ({"ids": [1, 2], "offsets": [0, 3]}, "past the end"),
        ({"ids": [1, 2], "offsets": [[0]]}, "shape"),
        ({"ids": [1, 2], "offsets": [0.0]}, "integers"),
        ({"ids": [1, 2], "offsets": []}, "no bag"),
        ({"ids": [[1, 2]], "offsets": [0]}, "flat"),
        ({"keys": [["a"]], "offsets": [0]}, "flat"),
        ({"ids": [1, 2]}, "each bag is a list"),
        ({"ids": np.arange(3)}, "list of lists"),
        ({"keys": "abc"}, "list of lists"),
        ({"ids": [["a"]]}, "integers"),
        ({"ids": [[1.5]]}, "float"),
        ({"keys": [["a"], [1]]}, "one kind"),
        ({"ids": [[1]], "keys": [["a"]]}, "both"),
        ({"offsets": [0]}, "neither"),
        ({"ids": [[1]], "mode": "median"}, "median"),
        ({"ids": [[1]], "mode": "max", "weights": [1]}, "max"),
        ({"ids": [[1]], "weights": [1, 2]}, "1 ids and 2 weights"),
        ({"ids": [[1], [2]], "weights": [[1, 2], []]}, r"weights\[0\]"),
        ({"ids": [[1], [2]], "weights": [[1, 2]]}, "2 bags"),
        ({"ids": [[1]], "weights": ["x"]}, "numbers"),
        ({"ids": [[1]], "weights": 1.0}, "weights"),
        ({"ids": [[1]], "missing": "ignore"}, "skip"),
        ({"ids": [[1]], "padding_id": True}, "padding_id"),
        ({"ids": [[1]], "padding_id": 2**63}, "64 bits"),
        ({"ids": [[1]], "dtype": "int8"}, "int8"),
        ({"ids": [[1]], "out": np.empty((2, 8), np.float32)}, r"of \(1, dim\)"),
    ],
)
def test_bags_that_cannot_be_looked_up_are_refused_before_anything_is_sent(
    make: Any, server: str, service: FakeService, arguments: dict[str, Any], message: str
) -> None:
    with make(server) as client, pytest.raises(InvalidArgument, match=message):
        client.lookup_bags("words", **arguments)
    assert not service.calls


@pytest.mark.parametrize("limits", LIMITS)
def test_keys_of_rows(make: Any, server: str, service: FakeService, limits: dict[str, int]) -> None:
    service.keys["words"][9] = b"\xff\xfe"
    service.limits = limits
    with make(server) as client:
        ids = np.arange(20).reshape(5, 4)
        words = client.keys_of("words", ids)
        assert (words.shape, words.dtype) == ((5, 4), object)
        assert words[1, 0] == "word4"
        assert words[2, 1] == "\udcff\udcfe"
        np.testing.assert_array_equal(client.lookup("words", keys=words), WORDS[ids])
        items = client.keys_of("items", ids.tolist())
        assert (items.shape, items.dtype) == ((5, 4), np.int64)
        np.testing.assert_array_equal(items, ids * 1000 - 7)
        items[0, 0] = 5
        assert client.keys_of("items", 3) == 2993
        assert client.keys_of("words", []).shape == (0,)
        with pytest.raises(IdOutOfRange) as caught:
            client.keys_of("items", [0] * 30 + [40])
        if "ids_max" in limits:
            assert "ids[30]=40 is out of range" in caught.value.message
        for bad in ([1.0], None, ["word1"]):
            with pytest.raises(InvalidArgument):
                client.keys_of("words", bad)


def test_a_bag_that_is_over_a_limit_alone_is_the_servers_error(
    make: Any, server: str, service: FakeService
) -> None:
    service.limits = {"ids_max": 4}
    with make(server) as client, pytest.raises(LimitExceeded, match="ids_max is 4"):
        client.lookup_bags("words", [[1], [1, 2, 3, 4, 5], [2]])
