"""Searches of one table: exact whatever the numbers are, whole rows, ended when told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gatherd.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, LimitExceeded
from gatherd.errors import Overloaded as TooMany
from gatherd.store import neighbors
from gatherd.store.catalog import open_table
from gatherd.store.dtypes import DType
from gatherd.store.neighbors import Norms, search
from gatherd.store.query import Metric, NeighborsQuery
from gatherd.store.table import Table
from gatherd_server.engine.searching import Searches, Stopping
from gatherd_server.types import NeighborsLimits
from store.test_torn_rows import NAME, make_table, writing
from support.file_tables import open_file_table

KINDS = ("normal", "ties", "one row again and again", "half zeros", "any length", "NaN", "far off")


def go_on() -> None:
    """Never ends a search."""


def table_of(folder: Path, rows: NDArray[Any]) -> Table:
    np.save(folder / "rows.npy", rows)
    return open_file_table("t", folder / "rows.npy", None)


def made(kind: str, rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    rows = rng.standard_normal((count, dim)).astype(np.float32)
    with np.errstate(over="ignore"):
        match kind:
            case "ties":
                rows = rng.integers(-1, 2, (count, dim)).astype(np.float32)
            case "one row again and again":
                rows = np.repeat(rows[:1], count, axis=0)
            case "half zeros":
                rows[rng.random(count) < 0.5] = 0
            case "any length":
                rows *= np.exp(rng.standard_normal((count, 1)) * 20).astype(np.float32)
                rows[rng.random(count) < 0.01] = np.inf
            case "NaN":
                rows[rng.random(count) < 0.3, 0] = np.nan
            case "far off":
                rows += 1000
    return rows


def judged(
    rows: NDArray[np.float32], query: NDArray[np.float32], metric: Metric, k: int, own: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """NumPy's float64, rounded; ties by id, NaN last; `own` −1 leaves no row out."""
    wide, one = rows.astype(float), query.astype(float)
    with np.errstate(all="ignore"):
        if metric is Metric.L2:
            ranks = -np.sqrt(((wide - one) ** 2).sum(axis=1))
        else:
            ranks = (wide * one).sum(axis=1)
        if metric is Metric.COSINE:
            lengths = np.sqrt((wide * wide).sum(axis=1)) * np.sqrt((one * one).sum())
            ranks = np.where(lengths == 0, 0, ranks / lengths)
        rounded = ranks.astype(np.float32)
    ids = np.delete(np.arange(len(rows)), own) if own >= 0 else np.arange(len(rows))
    ids = ids[np.lexsort((ids, -rounded[ids]))][:k]
    return ids, -rounded[ids] if metric is Metric.L2 else rounded[ids]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    metric=st.sampled_from(Metric),
    by_id=st.booleans(),
    threads=st.sampled_from([1, 3]),
)
def test_a_search_is_exact(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    kind: str,
    metric: Metric,
    by_id: bool,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    count, dim, k = (int(rng.integers(1, most)) for most in (5000, 70, 30))
    rows = made(kind, rng, count, dim)
    finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
    table = table_of(tmp_path_factory.mktemp("rows"), rows)
    own = np.full(int(rng.integers(1, 12)), -1)
    if by_id and finite.size:
        own = rng.choice(finite, own.size)
        query, queries = NeighborsQuery(own, None, k, metric), rows[own]
    else:
        queries = rng.standard_normal((own.size, dim)).astype(np.float32)
        queries[0] = 0
        query = NeighborsQuery(None, queries, k, metric)
    chunked = pytest.MonkeyPatch()
    chunked.setattr(neighbors, "CHUNK_BYTES", 64 << 10)
    chunked.setattr(neighbors, "MANY_QUERIES_CHUNK_BYTES", 64 << 10)
    norms = Norms()
    try:
        for _ in range(2):  # the second time, with the norms of the first
            found = search(table, query, norms, go_on, threads)
            for i, one in enumerate(queries):
                ids, scores = judged(rows, one, metric, k, int(own[i]))
                np.testing.assert_array_equal(found.ids[i], ids)
                np.testing.assert_allclose(found.scores[i], scores, rtol=1e-6)
    finally:
        chunked.undo()


def test_a_query_that_isnt_finite_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, np.array([[1, 2], [np.nan, 3]], np.float32))
    with pytest.raises(InvalidArgument, match=r"NaN or infinity, the first at queries\[1\]"):
        search(table, NeighborsQuery(np.array([0, 1]), None), Norms(), go_on)
    vectors = np.array([[[1, np.inf]]], np.float32)
    with pytest.raises(InvalidArgument, match=r"NaN or infinity, the first at vectors\[0\]\[0\]"):
        search(table, NeighborsQuery(None, vectors), Norms(), go_on)


def test_norms_are_kept_within_a_bound_and_only_of_rows_that_never_change(tmp_path: Path) -> None:
    norms = Norms(nbytes_max=100)
    tables = []
    for name in "abc":
        folder = tmp_path / name
        folder.mkdir()
        tables.append(table_of(folder, np.ones((10, 2), np.float32)))
        search(tables[-1], NeighborsQuery(np.array(0), None), norms, go_on)
    kept = [norms.of(table) for table in tables]
    assert kept[0] is None
    assert [one is not None for one in kept[1:]] == [True, True]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_search_ends_before_the_next_chunk_when_it_is_told(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "CHUNK_BYTES", 4 * 16 * 128)
    table = table_of(tmp_path, np.ones((128 * 100, 16), np.float32))
    stopping, checks = Stopping(), []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            stopping.stop()
        stopping.check()

    with pytest.raises(DeadlineExceeded, match="its client is gone"):
        search(table, NeighborsQuery(np.array(0), None), Norms(), check, threads)
    assert len(checks) <= 3 + threads


def test_rows_that_are_written_meanwhile_are_compared_whole(tmp_path: Path) -> None:
    folder = make_table(tmp_path, DType.FLOAT32)
    query = NeighborsQuery(None, np.ones((1, 128), np.float32), 1000, Metric.DOT)
    norms = Norms()
    with writing(folder):
        table = open_table(tmp_path, NAME, 1)
        for _ in range(30):
            # A row is of one value, an integer: so is each whole row's product by 128.
            scores = search(table, query, norms, go_on, 2).scores
            np.testing.assert_array_equal(scores % 128, 0)
    assert norms.of(table) is None


def test_searches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path, np.ones((10, 2), np.float32))
    searches = Searches(NeighborsLimits(in_flight_max=1, work_max=40))
    two = searches.prepare(table, NeighborsQuery(np.array([0, 1]), None), lambda _nbytes: None)
    assert two.run().nearest.ids.shape == (2, 9)
    with pytest.raises(LimitExceeded, match=r"60 multiplications.*40 \(neighbors_work_max\)"):
        searches.prepare(table, NeighborsQuery(np.array([0, 1, 2]), None), lambda _nbytes: None)
    with pytest.raises(FailedPrecondition, match="searches no neighbors"):
        Searches(NeighborsLimits(in_flight_max=0)).check_query(NeighborsQuery(np.array(0), None))

    refused = []

    def ask_again() -> None:
        rival = searches.prepare(table, NeighborsQuery(np.array(0), None), lambda _nbytes: None)
        with pytest.raises(TooMany, match="1 searches are under way") as raised:
            rival.run()
        refused.append(raised.value.retry_after_seconds)

    monkeypatch.setattr(two.stopping, "check", ask_again)
    two.run()
    assert refused == [1.0]
