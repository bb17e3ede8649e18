"""Admission, eviction and TTL in the commits of a writer, held against dicts."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durability.trainer import Quick
from gatherd.errors import GatherdError, LimitExceeded
from gatherd.store.catalog import version_dir
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.open_spec import OnFull, OpenSpec
from gatherd.store.query import ByKey
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.types import (
    CreateTable,
    Push,
    PushResult,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.writer import Writer

LIMITS = WriterLimits(segment_bytes=1 << 16, checkpoint_seconds=3600.0)
WAIT_SECONDS = 60
INIT = Initializer.parse("normal")


@dataclass
class Opened:
    """A writer of a data dir with one open table, "t", of integer keys."""

    data: Path
    spec: OpenSpec
    names: tuple[str, ...] = ("t",)
    writer: Writer = field(init=False)

    def __post_init__(self) -> None:
        with own_data_dir(self.data, create=True, files=Quick()):
            pass
        self.start()
        changes = Changes(self.writer, LIMITS)
        for name in self.names:
            made = CreateTable(name, 0, 2, DType.FLOAT32, INIT, 7, None, self.spec)
            changes.change(made).result(WAIT_SECONDS)
        changes.close()

    def start(self) -> None:
        self.writer = Writer(self.data, Quick(), LIMITS)

    def restart(self) -> None:
        self.writer.close()
        self.start()

    def submit(self, *pushes: Push) -> list[PushResult | GatherdError]:
        """As one batch."""

        def submitted() -> "list[Future[PushResult]]":
            return [self.writer.submit(push, b"") for push in pushes]

        outcomes: list[PushResult | GatherdError] = []
        for future in self.writer.between(submitted):
            try:
                outcomes.append(future.result(WAIT_SECONDS))
            except GatherdError as error:
                outcomes.append(error)
        return outcomes

    def done(self, *pushes: Push) -> list[PushResult]:
        outcomes = self.submit(*pushes)
        assert all(isinstance(one, PushResult) for one in outcomes), outcomes
        return [one for one in outcomes if isinstance(one, PushResult)]

    def keys(self, name: str = "t") -> set[int]:
        folder = version_dir(self.data, name, 1)
        lives = np.load(folder / "stamps.npy") > 0
        found = np.load(folder / "keys.npy")[lives].tolist()
        assert len(set(found)) == len(found)
        return set(found)


def push(keys: list[int], op: UpdateOp = UpdateOp.SCATTER_ADD, *, name: str = "t") -> Push:
    return many({name: keys}, op)


def many(tables: dict[str, list[int]], op: UpdateOp = UpdateOp.SCATTER_ADD) -> Push:
    dim, creates = (0, False) if op is UpdateOp.DELETE_ROWS else (2, True)
    updates = (
        TableUpdate(
            name, ByKey(np.array(keys, np.int64)), np.ones((len(keys), dim), np.float32),
            creates=creates,
        )
        for name, keys in tables.items()
    )  # fmt: skip
    return Push(op, tuple(updates))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    made: list[Opened] = []

    def make(names: tuple[str, ...] = ("t",), rows_max: int = 8, **options: Any) -> Opened:
        spec = OpenSpec(KeyKind.INT64, rows_max, 7, INIT, **options)
        made.append(Opened(tmp_path / f"data{len(made)}", spec, names))
        return made[-1]

    yield make
    for one in made:
        one.writer.close()


# Admission


def test_a_key_gets_its_row_at_its_nth_push(opened: Any) -> None:
    table = opened(admit_after=3)
    first, second = table.done(push([5, 6, 5]), push([5]))
    assert (first.created, first.not_admitted) == ((), (2,))
    assert (second.created, second.not_admitted) == ((), (1,))
    assert table.keys() == set()
    (third,) = table.done(push([5, 6, 7]))
    assert (third.created, third.not_admitted) == ((1,), (2,))
    assert table.keys() == {5}
    # What was counted before a row came stays counted after it went.
    assert table.done(push([5], UpdateOp.DELETE_ROWS))[0].removed == (1,)
    assert table.done(push([5, 6, 7]))[0].counts == ((2, 0, 1),)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_what_was_counted_stays_counted_after_a_restart(opened: Any, checkpoints: bool) -> None:
    table = opened(admit_after=3)
    table.done(push([5, 6]))
    if checkpoints:
        table.writer.checkpoint()
    table.done(push([5]))
    # A kill: the log above the checkpoint is all there is.
    copied = table.data.with_name("copied")
    shutil.copytree(table.data, copied)
    table.restart()
    assert table.done(push([5, 6]))[0].counts == ((1, 0, 1),)
    other = Writer(copied, Quick(), LIMITS)
    try:
        future = other.submit(push([5, 6]), b"")
        assert future.result(WAIT_SECONDS).counts == ((1, 0, 1),)
    finally:
        other.close()


def test_a_push_that_is_refused_counts_nothing(opened: Any) -> None:
    table = opened(admit_after=2)
    wrong = push([5])
    wrong.updates[0].values[:] = 3e38
    table.done(push([6]), push([6]))
    bad = many({"t": [5, 6]})
    bad.updates[0].values[1] = np.inf
    (refused,) = table.submit(bad)
    assert isinstance(refused, GatherdError)
    assert table.done(push([5]))[0].not_admitted == (1,)
    assert table.done(push([5]))[0].created == (1,)


# Eviction


def test_a_full_table_refuses_new_keys_and_takes_the_old(opened: Any) -> None:
    table = opened()
    table.done(push([*range(8)]))
    full, old = table.submit(push([1, 99]), push([1]))
    assert isinstance(full, LimitExceeded)
    assert full.metadata == {"table": "t", "limit": "rows_max", "max": "8"}
    assert "'t' is full: it has 8 rows of 8" in full.message
    assert isinstance(old, PushResult)
    assert table.keys() == {*range(8)}


@pytest.mark.parametrize(
    ("on_full", "gone"), [(OnFull.EVICT_LRU, {1, 2}), (OnFull.EVICT_LFU, {0, 2})]
)
def test_the_lowest_rows_make_room(opened: Any, on_full: OnFull, gone: set[int]) -> None:
    table = opened(on_full=on_full)
    table.done(push([1]))
    table.done(push([1, 2]))
    table.done(push([3, 4, 5, 6, 7]))
    table.done(push([3, 4, 5, 6, 7]))
    table.done(push([0]))
    assert table.done(push([8, 9]))[0].counts == ((2, 2, 0),)
    assert table.keys() == {*range(10)} - gone


def test_a_push_never_evicts_what_it_changes(opened: Any) -> None:
    table = opened(on_full=OnFull.EVICT_LRU)
    table.done(push([*range(8)]))
    (result,) = table.done(push([0, 1, 2, 10, 11]))
    assert result.counts == ((2, 2, 0),)
    assert table.keys() == {0, 1, 2, 5, 6, 7, 10, 11}
    (refused,) = table.submit(push([*range(20, 26), 0, 1, 2]))
    assert isinstance(refused, LimitExceeded)
    assert type(refused) is LimitExceeded
    assert "push fewer keys at once" in refused.message
    assert table.keys() == {0, 1, 2, 5, 6, 7, 10, 11}


def test_pushes_that_would_evict_each_others_rows_are_committed_one_after_the_other(
    opened: Any,
) -> None:
    """All of them are done, although together they change more rows than there may be."""
    table = opened(on_full=OnFull.EVICT_LRU)
    pushes = [push([*range(10 * i, 10 * i + 5)]) for i in range(6)]
    results = table.done(*pushes)
    assert [result.counts for result in results] == [
        ((5, 0, 0),), ((5, 2, 0),), *[((5, 5, 0),)] * 4,
    ]  # fmt: skip
    assert [result.lsn for result in results] == [*range(results[0].lsn, results[0].lsn + 6)]
    # Of the rows of one push, those with the higher numbers stay, whatever their keys.
    left = table.keys() - {*range(50, 55)}
    assert len(left) == 3
    assert left < {*range(40, 45)}


def test_a_push_of_two_tables_evicts_in_both_or_in_none(opened: Any) -> None:
    table = opened(("t", "u"), on_full=OnFull.EVICT_LRU)
    table.done(many({"t": [*range(8)], "u": [*range(8)]}))
    (refused,) = table.submit(many({"t": [8], "u": [*range(20, 29)]}))
    assert isinstance(refused, LimitExceeded)
    assert table.keys("t") == table.keys("u") == {*range(8)}
    (done,) = table.done(many({"t": [8], "u": [20, 21]}))
    assert done.counts == ((1, 1, 0), (2, 2, 0))


KEYS = st.lists(st.integers(0, 25), unique=True, min_size=1, max_size=6)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.sampled_from(["push", "delete", "restart", "checkpoint"]), KEYS)),
    st.booleans(),
)
def test_evictions_are_those_of_a_dict(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[int]]], by_count: bool
) -> None:
    """Which the log's replay makes too, from the table as it was made."""
    on_full = OnFull.EVICT_LFU if by_count else OnFull.EVICT_LRU
    folder = tmp_path_factory.mktemp("evicted")
    table = Opened(folder / "data", OpenSpec(KeyKind.INT64, 8, 7, INIT, on_full=on_full))
    ranks: dict[int, tuple[int, int]] = {}
    for now, (what, keys) in enumerate(steps):
        if what == "restart":
            table.restart()
        elif what == "checkpoint":
            table.writer.checkpoint()
        elif what == "delete":
            (result,) = table.done(push(keys, UpdateOp.DELETE_ROWS))
            assert result.counts == (((0, n, 0),) if (n := len(ranks.keys() & {*keys})) else ())
            ranks = {key: rank for key, rank in ranks.items() if key not in keys}
        else:
            new = [key for key in keys if key not in ranks]
            others = [key for key in ranks if key not in keys]
            # Rows of one push have the same rank but for the order of rows, so any of them may go.
            short = max(0, len(ranks) + len(new) - 8)
            (result,) = table.done(push(keys))
            stays = table.keys()
            gone = set(ranks) - stays
            assert gone <= set(others)
            assert len(gone) == short
            kept = [ranks[key] for key in others if key not in gone]
            assert max((ranks[key] for key in gone), default=(0, 0)) <= min(kept, default=(9, 9e9))
            ranks = {key: rank for key, rank in ranks.items() if key not in gone}
            for key in keys:
                count = ranks.get(key, (0, 0))[0] + by_count
                ranks[key] = (count, now)
            assert result.created == ((len(new),) if new else ())
        assert table.keys() == set(ranks)
    table.writer.close()


# TTL


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_rows_go_when_their_ttl_is_over(opened: Any) -> None:
    table = opened(("t", "u"), ttl_seconds=1)
    begun = time.time()
    table.done(many({"t": [1, 2, 3], "u": [1]}))
    while time.time() < begun + 1.5:
        table.done(push([2]))
        assert {2} <= table.keys()
    wait_for(lambda: table.keys() == {2} and not table.keys("u"), "old rows stay")
    wait_for(lambda: not table.keys(), "the last row stays")
    lsn = table.writer.applied_lsn
    # Expired rows are as gone as deleted ones, for replicas and after a restart too.
    table.restart()
    assert table.keys() == set()
    assert table.writer.applied_lsn == lsn
    assert table.done(push([1]))[0].created == (1,)


def test_more_rows_than_go_at_once_all_go(opened: Any) -> None:
    table = opened(rows_max=20_000, ttl_seconds=1)
    table.done(push([*range(10_000)]))
    wait_for(lambda: not table.keys(), "old rows stay")
