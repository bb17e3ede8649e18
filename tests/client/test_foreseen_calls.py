"""Many tables, keys, bags and statuses: foreseen or not, requests and results are the same."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.clients import ITEMS, WORDS, Awaited, bags_of, word
from client.fakes import FakeService, grpc_server
from client.replies import KEYS, Reply, replies, serving
from gatherd import Client, GatherdError, InternalError, InvalidArgument, request_headers

TABLES = {"words": WORDS, "items": ITEMS}
ASIDE = {"x-judge": "1"}  # calls with headers of their own are never foreseen

options = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["float32", "float32", "float16", "bfloat16", np.float16]),
        "missing": st.sampled_from(["error", "error", "zero", "default"]),
        "return_status": st.booleans(),
    }
)
calls = st.tuples(
    st.sampled_from(["rows", "keys", "many", "many", "mixed", "bags", "key bags", "many bags"]),
    st.sampled_from([0, 1, 1, 3, 200]),
    st.sampled_from([np.int64, np.int64, np.int32]),
    options,
    st.sampled_from([None, None, None, 7, 8]),
    st.integers(0, 40),  # beyond the 40 rows of one of the tables for some of the ids
)


versions = st.sampled_from([7, 7, 8])


def arguments(call: Any, step: int) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A method, and what it is called with."""
    kind, size, id_dtype, chosen, version, highest = call
    ids = (np.arange(step, step + size) % (highest + 1)).astype(id_dtype)
    texts = [word(int(one)) for one in ids]
    numbers = ids.astype(np.int64) * 8 + 7
    offsets = np.array([0, size // 2, size])
    keywords = dict(chosen)
    if version is not None:
        keywords["version"] = version if kind in ("rows", "keys", "bags") else {"items": version}
    if kind == "rows":
        return "lookup", ("items", ids), keywords
    if kind == "keys":
        if step % 2:
            return "lookup", ("items",), {"keys": numbers, **keywords}
        return "lookup", ("words",), {"keys": texts, **keywords}
    if kind == "many":
        return "lookup_many", ({"words": ids, "items": ids[:1]},), keywords
    if kind == "mixed":
        return "lookup_many", ({"words": ids[None]},), {"keys": {"items": numbers}, **keywords}
    if kind == "many bags":
        pair = (ids, offsets)
        weights = {"items": np.linspace(0, 1, size, dtype=np.float32)}
        return "lookup_bags_many", ({"items": pair, "words": pair},), {
            "weights": weights if step % 2 else None, "padding_id": 3, **keywords
        }  # fmt: skip
    keywords |= {"mode": "sum" if step % 2 else "max"}
    if kind == "bags":
        return "lookup_bags", ("items", ids, offsets), keywords
    return (
        "lookup_bags",
        ("words",),
        {"keys": texts, "offsets": offsets}
        | {name: value for name, value in keywords.items() if name != "version"},
    )


def outcome(client: Any, method: str, given_: Any, keywords: Any) -> Any:
    """What a call returns, in a form that compares equal, or the error."""
    try:
        found = getattr(client, method)(*given_, **keywords)
    except GatherdError as error:
        return type(error), error.message
    return flat(found)


def flat(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: flat(one) for name, one in found.items()}
    if isinstance(found, tuple):
        return tuple(map(flat, found))
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert found.flags.aligned
    return found.dtype, found.shape, found.tobytes()


@pytest.mark.parametrize("make", [Client, Awaited])
@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(calls, replies, versions, st.integers(1, 3)), min_size=2, max_size=6)
)
def test_a_call_is_the_same_whether_it_was_foreseen_or_not(make: Any, steps: Any) -> None:
    with serving() as server, make(server.url, retries=2, timeout=5) as client:
        for step, (call, reply, of_items, times) in enumerate(steps):
            server.service.versions["items"] = of_items
            for _ in range(times):
                asked = arguments(call, step)
                server.replies[:], server.requests[:] = [reply], []
                found = outcome(client, *asked)
                # What was cut off is answered anew, as usual.
                version = 7 if reply.truncated is not None else reply.version
                requests = list(server.requests)
                server.replies[:], server.requests[:] = [Reply(version=version)], []
                with request_headers(ASIDE):
                    judged = outcome(client, *asked)
                assert found == judged
                assert set(requests) == set(server.requests)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(calls, versions, versions), min_size=2, max_size=6))
def test_over_grpc_as_well(steps: Any) -> None:
    with ExitStack() as stack:
        service = FakeService(TABLES, KEYS)
        client = stack.enter_context(Client(stack.enter_context(grpc_server(service))))
        for step, (call, of_words, of_items) in enumerate(steps):
            service.versions = {"words": of_words, "items": of_items}
            asked = arguments(call, step)
            found = [outcome(client, *asked) for _ in range(3)]
            with request_headers(ASIDE):
                judged = outcome(client, *asked)
            assert found == [judged] * 3


@pytest.mark.parametrize("make", [Client, Awaited])
def test_rows_of_many_tables_are_those_of_numpy_and_nobodys_else(make: Any) -> None:
    large = np.arange(40)
    with serving() as server, make(server.url) as client:
        results = []
        for step in range(4):
            asked = {"items": (large + step) % 40, "words": np.full((20, 60), step)}
            results.append((asked, client.lookup_many(asked)))
        results[1][1]["items"][:] = 0
        for step in (0, 2, 3):
            asked, found = results[step]
            for name, ids in asked.items():
                np.testing.assert_array_equal(found[name], TABLES[name][ids])


@pytest.mark.parametrize("make", [Client, Awaited])
def test_bags_are_pooled_as_by_numpy_and_offsets_are_checked_each_time(make: Any) -> None:
    ids, bags = np.array([1, 2, 3, 4]), [[1], [2, 3, 4]]
    with serving() as server, make(server.url) as client:
        for _ in range(3):
            found = client.lookup_bags("items", ids, np.array([0, 1]), mode="sum")
            np.testing.assert_array_equal(found, bags_of(ITEMS, bags, "sum"))
        out = np.empty((2, 3), np.float32)
        assert client.lookup_bags("items", ids, np.array([0, 1]), mode="sum", out=out) is out
        np.testing.assert_array_equal(out, bags_of(ITEMS, bags, "sum"))
        for _ in range(2):
            with pytest.raises(InvalidArgument, match=r"^offsets\[1\]=9 is past the end"):
                client.lookup_bags("items", ids, np.array([0, 9]), mode="sum")


@pytest.mark.parametrize("make", [Client, Awaited])
def test_true_is_no_version_and_no_padding_id(make: Any) -> None:
    ids, offsets = np.array([1, 2]), np.array([0])
    with serving() as server, make(server.url) as client:
        server.replies[:] = [Reply(version=1)] * 4
        for _ in range(2):
            client.lookup("items", ids, version=1, missing="zero")
            client.lookup_bags("items", ids, offsets, padding_id=1)
            server.replies[:] = [Reply(version=1)] * 4
        with pytest.raises(InvalidArgument, match="version"):
            client.lookup("items", ids, version=True, missing="zero")
        with pytest.raises(InvalidArgument, match="version"):
            client.lookup_many({"items": ids, "words": ids}, version={"items": True})
        with pytest.raises(InvalidArgument, match="padding_id"):
            client.lookup_bags("items", ids, offsets, padding_id=True)


@pytest.mark.parametrize("make", [Client, Awaited])
def test_each_table_is_answered_by_the_version_that_was_asked_for(make: Any) -> None:
    ids = np.array([1, 2])
    with serving() as server, make(server.url) as client:
        for _ in range(3):
            client.lookup_many({"words": ids, "items": ids}, version={"items": 7})
        server.service.versions["items"] = 8
        with pytest.raises(InternalError, match="version 8 answered, 7 was asked"):
            client.lookup_many({"words": ids, "items": ids}, version={"items": 7})


IDS, STARTS = np.array([1, 2, 3]), np.array([0, 1])
UNUSUAL: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("lookup_many", (IDS,), {}),
    ("lookup_many", (), {"keys": IDS}),
    ("lookup_many", ({"words": IDS, "items": [1.5]},), {}),
    ("lookup_many", ({"words": IDS, "items": []},), {}),
    ("lookup_many", ({"words": IDS[::2], "items": range(3)},), {"return_status": True}),
    ("lookup_many", ({"words": IDS, "items": IDS.astype(">i8")},), {"missing": "zero"}),
    ("lookup_many", ({"words": IDS},), {"version": [7]}),
    ("lookup_many", ({"words": IDS},), {"keys": {"words": ["word1"]}}),
    ("lookup_many", ({"words": IDS},), {"keys": {"items": ["word1"]}}),
    ("lookup", ("words",), {"keys": ["word1", 2]}),
    ("lookup", ("words",), {"keys": ["word1", "w\u00f6rd", ""]}),
    ("lookup", ("words",), {"keys": [["word1"], [b"word2"]]}),
    ("lookup", ("words",), {"keys": ["no such word"], "missing": "default"}),
    ("lookup", ("words", IDS), {"missing": ["zero"]}),
    ("lookup", ("words", IDS), {"missing": "zero", "out": np.empty((3, 7), np.float32)}),
    ("lookup_bags", ("words", IDS), {"offsets": STARTS[None]}),
    ("lookup_bags", ("words", IDS), {"offsets": STARTS.astype(np.int32)}),
    ("lookup_bags", ("words", IDS[None], STARTS), {}),
    ("lookup_bags", ("words", [[1], [2, 3]]), {}),
    ("lookup_bags", ("words", IDS, STARTS), {"weights": [1, 2, 3.5]}),
    ("lookup_bags", ("words", IDS, STARTS), {"weights": np.ones(2, np.float32)}),
    ("lookup_bags", ("words", IDS, STARTS), {"mode": "max", "weights": np.ones(3, np.float32)}),
    ("lookup_bags_many", ({"words": (IDS, STARTS), "items": [[1], [2]]},), {}),
    ("lookup_bags_many", ({"words": (IDS, STARTS)},), {"weights": {"items": IDS}}),
    ("lookup_bags_many", ({"words": (IDS, STARTS, IDS)},), {}),
]


@pytest.mark.parametrize("make", [Client, Awaited])
def test_what_is_unusual_or_wrong_is_as_the_plan_has_it(make: Any) -> None:
    with serving() as server, make(server.url) as client:
        for asked in UNUSUAL:
            found = [outcome(client, *asked) for _ in range(3)]
            with request_headers(ASIDE):
                judged = outcome(client, *asked)
            assert found == [judged] * 3, asked


@pytest.mark.parametrize("make", [Client, Awaited])
def test_a_dim_of_0_is_no_special_case(make: Any) -> None:
    with serving() as server, make(server.url) as client:
        server.service.tables = {"words": WORDS, "items": np.empty((9, 0), np.float32)}
        for _ in range(3):
            assert client.lookup("items", IDS).shape == (3, 0)
            assert client.lookup_bags("items", IDS, STARTS).shape == (2, 0)
            found = client.lookup_many({"items": IDS, "words": IDS}, return_status=True)
            assert found["items"][0].shape == (3, 0)
            np.testing.assert_array_equal(found["words"][0], WORDS[IDS])
