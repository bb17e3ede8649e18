"""Searches for neighbors, on every surface, judged by NumPy's float64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from contract.conftest import ServedTables
from contract.surfaces import Near, Search, Surface
from gatherd.errors import (
    GatherdError,
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    NoKeys,
    TableNotFound,
)

EXAMPLES = settings(max_examples=8, deadline=None)
METRICS = ["cosine", "dot", "l2"]


@pytest.fixture(autouse=True)
def _searching(surface: Surface) -> None:
    if not surface.has("neighbors"):
        pytest.skip("this surface doesn't carry it")


def judged(
    rows: NDArray[Any], query: NDArray[Any], metric: str, k: int, own: int | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids and scores by the definition of the metric: ties by id."""
    wide, one = rows.astype(np.float32).astype(float), query.astype(np.float32).astype(float)
    if metric == "l2":
        scores = np.sqrt(((wide - one) ** 2).sum(axis=1))
    else:
        scores = (wide * one).sum(axis=1)
    if metric == "cosine":
        lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(one)
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    scores = scores.astype(np.float32)
    ids = np.arange(len(rows))
    ids = ids[ids != own] if own is not None else ids
    order = np.lexsort((ids, scores[ids] if metric == "l2" else -scores[ids]))[:k]
    return ids[order], scores[ids[order]]


def check(
    found: Near, rows: NDArray[Any], queries: NDArray[Any], search: Search, own: Any = None
) -> None:
    """Compare an answer to flat queries with `judged`."""
    assert found.ids.shape == found.scores.shape
    flat = found.ids.reshape(len(queries), -1)
    for i, query in enumerate(queries):
        excluded = None if own is None else int(own[i])
        ids, scores = judged(rows, query, search.metric, search.k, excluded)
        np.testing.assert_array_equal(flat[i], ids)
        got = found.scores.reshape(len(queries), -1)[i]
        np.testing.assert_allclose(got, scores, rtol=1e-6, atol=1e-7)


@EXAMPLES
@given(data=st.data())
def test_neighbors_of_ids_are_those_that_numpy_finds(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    table = data.draw(st.sampled_from(["float32", "float16", "bfloat16", "float64"]))
    rows = served.oracles[table].rows
    shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 4)]))
    ids = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=8, max_size=8)))
    ids = ids[: int(np.prod(shape))].reshape(shape)
    k, metric = data.draw(st.integers(1, 20)), data.draw(st.sampled_from(METRICS))
    search = Search(ids, "ids", k, metric, data.draw(st.booleans()))
    found = surface.neighbors(table, search)
    assert found.ids.shape == (*shape, k)
    assert found.keys is None
    own = None if search.include_self else ids.reshape(-1)
    check(found, rows, rows[ids.reshape(-1)], search, own)


@EXAMPLES
@given(data=st.data())
def test_neighbors_of_vectors_leave_no_row_out(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    table = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    rows = served.oracles[table].rows
    near = rows[data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3))]
    vectors = (near * np.float32(data.draw(st.sampled_from([-2, 0, 1])))).astype(np.float32)
    search = Search(vectors, "vectors", 7, data.draw(st.sampled_from(METRICS)))
    check(surface.neighbors(table, search), rows, vectors, search)


def test_neighbors_of_keys_have_keys(surface: Surface, served: ServedTables) -> None:
    words, rows = served.words, served.oracles["words"].rows
    search = Search(["queen", words[5]], "keys", 3)
    found = surface.neighbors("words", search)
    check(found, rows, rows[[1, 5]], search, [1, 5])
    assert found.keys == [[words[row] for row in line] for line in found.ids.tolist()]
    items = served.items
    search = Search(items[[7, 1]], "keys", 4, "l2", include_self=True)
    found = surface.neighbors("items", search)
    assert found.ids[:, 0].tolist() == [7, 1]
    assert found.keys == items[found.ids].tolist()
    check(found, served.oracles["items"].rows, served.oracles["items"].rows[[7, 1]], search)


def test_a_table_with_fewer_rows_gives_what_it_has(surface: Surface, served: ServedTables) -> None:
    assert surface.neighbors("words", Search(["king"], "keys", 50)).ids.shape == (1, 9)
    assert surface.neighbors("one-row", Search([0], "ids")).ids.shape == (1, 0)
    found = surface.neighbors("one-row", Search([0], "ids", include_self=True))
    assert found.ids.tolist() == [[0]]


@pytest.mark.parametrize(
    ("table", "search", "error", "match"),
    [
        ("float32", Search([300], "ids"), IdOutOfRange, r"ids\[0\]=300 is out of range"),
        ("words", Search(["kong"], "keys"), KeyNotFound, "kong"),
        ("float32", Search(["king"], "keys"), NoKeys, "has no keys"),
        ("no-such", Search([0], "ids"), TableNotFound, "no-such"),
        ("float32", Search([[1.5] * 23], "vectors"), InvalidArgument, "has dim 24; .*23"),
        ("float32", Search([0], "ids", metric="manhattan"), InvalidArgument, "metric"),
    ],
)
def test_wrong_searches_are_refused(
    surface: Surface, table: str, search: Search, error: type[GatherdError], match: str
) -> None:
    with pytest.raises(error, match=match):
        surface.neighbors(table, search)


def test_a_search_is_bounded(surface: Surface) -> None:
    if "local" in surface.name:
        pytest.skip("the caller's own machine has no limits")
    with pytest.raises(LimitExceeded, match=r"at most 1000 .neighbors_k_max.*docs/neighbors.md"):
        surface.neighbors("float32", Search([0], "ids", 1001))
    with pytest.raises(LimitExceeded, match=r"at most 256 .neighbors_queries_max"):
        surface.neighbors("float32", Search(list(range(257)), "ids"))
