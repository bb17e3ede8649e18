"""Which rows of an open table come, and which go, held against dicts that remember everything."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatherd_server.writer import eviction, key_counts
from gatherd_server.writer.eviction import Eviction
from gatherd_server.writer.expiry import Expiry
from gatherd_server.writer.key_counts import KeyCounts

ROWS = 24
PATCHED = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def hash_of(key: int) -> int:
    """Of splitmix64: spread as the hashes of real keys are."""
    mixed = (key + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31


def hashes_of(keys: list[int]) -> Any:
    return np.array([hash_of(key) for key in keys], np.uint64)


# KeyCounts

PUSHES = st.lists(st.lists(st.integers(0, 9), unique=True, max_size=6), max_size=60)


@settings(deadline=None)
@given(PUSHES, st.integers(1, 5), st.integers(1, 7))
def test_a_key_is_admitted_at_its_nth_push(
    pushes: list[list[int]], admit_after: int, per_batch: int
) -> None:
    """Exactly, as few keys share no cells; whether a push before is in the same batch or not."""
    policy = KeyCounts(admit_after, 1_000)
    counted: dict[int, int] = {}
    for begin in range(0, len(pushes), per_batch):
        batch = policy.begin()
        for keys in pushes[begin : begin + per_batch]:
            found = batch.admitted(hashes_of(keys)).tolist()
            assert found == [counted.get(key, 0) + 1 >= admit_after for key in keys]
            for key, is_admitted in zip(keys, found, strict=True):
                counted[key] = counted.get(key, 0) + (not is_admitted)
        for hashes in batch.counted:
            policy.count(hashes)


def test_a_batch_that_is_not_committed_counts_nothing() -> None:
    policy, keys = KeyCounts(2, 1_000), hashes_of([1, 2])
    assert not policy.begin().admitted(keys).any()
    assert not policy.begin().admitted(keys).any()
    policy.count(keys)
    assert policy.begin().admitted(keys).all()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketches whose cells many keys share, and that forget soon."""
    monkeypatch.setattr(key_counts, "WIDTH_MIN", 128)
    monkeypatch.setattr(key_counts, "WIDTH_MAX", 128)


@pytest.mark.usefixtures("narrow")
@PATCHED
@given(st.lists(st.integers(0, 200), max_size=150), st.data())
def test_a_count_is_never_less_than_the_pushes_of_the_last_window(
    keys: list[int], data: st.DataObject
) -> None:
    policy = KeyCounts(3, 1_000)
    assert policy.window == 16
    begin = 0
    while begin < len(keys):
        end = begin + data.draw(st.integers(1, 40))
        policy.count(hashes_of(keys[begin:end]))
        begin = end
    recent = keys[-policy.window :]
    for key in {*keys}:
        (count,) = policy.counts(hashes_of([key]))
        assert count >= recent.count(key)


@pytest.mark.usefixtures("narrow")
@PATCHED
@given(st.lists(st.integers(0, 200), max_size=150), st.integers(0, 150), st.integers(1, 40))
def test_a_replay_from_a_checkpoint_counts_the_same(
    keys: list[int], until: int, per_frame: int
) -> None:
    """Whatever the frames were, and wherever the checkpoint was taken."""
    whole, replayed = KeyCounts(3, 1_000), KeyCounts(3, 1_000)
    whole.count(hashes_of(keys))
    replayed.count(hashes_of(keys[:until]))
    again = KeyCounts.restored(3, 1_000, *replayed.to_state())
    for begin in range(until, len(keys), per_frame):
        again.count(hashes_of(keys[begin : begin + per_frame]))
    for one, other in zip(whole.to_state(), again.to_state(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_few_keys_are_admitted_too_early() -> None:
    """As the module says: of new keys, with both sketches full, one in 400."""
    policy = KeyCounts(2, 1 << 17)
    policy.count(hashes_of(list(range(2 * policy.window - 1))))
    new = hashes_of(list(range(10**7, 10**7 + 20_000)))
    assert policy.begin().admitted(new).mean() < 1 / 200


@pytest.mark.parametrize("numbers", [[2, 0], [0, 1 << 20], [0, -1], [0], [0, 0, 0]])
def test_a_state_that_is_none_is_refused(numbers: list[int]) -> None:
    _, cells = KeyCounts(2, 1_000).to_state()
    with pytest.raises(ValueError, match=r"the key counts have|values to unpack"):
        KeyCounts.restored(2, 1_000, numbers, cells)
    with pytest.raises(ValueError, match=r"the key counts have|values to unpack"):
        KeyCounts.restored(2, 1_000, [0, 0], cells[:-1])


# Eviction


@pytest.fixture
def scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of a small table finds a part of it, as that of a large one does."""
    for name, value in {
        "SORTED_MAX": 6, "FOUND_MAX": 3, "SAMPLED": 8, "SCANNED_AT_ONCE": 5, "BLOCK_MIN": 2,
    }.items():  # fmt: skip
        monkeypatch.setattr(eviction, name, value)


class Table:
    """Stamps and counts as the writer keeps them, and dicts that say which row is the lowest."""

    def __init__(self, *, by_count: bool) -> None:
        self.stamps = np.zeros(ROWS, np.uint64)
        self.counts = np.zeros(ROWS, np.uint32)
        self.policy = Eviction(self.stamps, self.counts, by_count=by_count)
        self.rows: dict[int, tuple[int, int]] = {}
        self._by_count = by_count
        self._now = 0

    def push(self, rows: list[int]) -> None:
        """Rows that live are pushed together; others are created."""
        self._now += 1
        new = [row for row in rows if row not in self.rows]
        for row in rows:
            self.rows[row] = self.rows.get(row, (0, 0))[0] + 1, self._now
            self.counts[row], self.stamps[row] = self.rows[row]
        self.policy.created(np.array(new, np.int64))

    def remove(self, rows: list[int]) -> None:
        for row in rows:
            if self.rows.pop(row, None) is not None:
                self.stamps[row] = self.counts[row] = 0

    def lowest(self, count: int, pinned: set[int]) -> list[int]:
        def rank(row: int) -> tuple[int, int, int]:
            times, stamp = self.rows[row]
            return times if self._by_count else 0, stamp, row

        return sorted((row for row in self.rows if row not in pinned), key=rank)[:count]


SOME = st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1, max_size=8)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), SOME),
        st.tuples(st.just("remove"), SOME),
        st.tuples(
            st.sampled_from(["evict", "refuse"]),
            st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, ROWS - 1))), max_size=3),
        ),
    ),
    max_size=40,
)


def run(steps: list[tuple[str, Any]], *, by_count: bool) -> None:
    table = Table(by_count=by_count)
    for what, given_rows in steps:
        if what == "push":
            table.push(given_rows)
        elif what == "remove":
            table.remove(given_rows)
        else:
            # Several pushes of a batch, each of which has touched some rows.
            table.policy.begin()
            gone: list[int] = []
            for count, touched in given_rows:
                pinned = {*touched, *gone}
                table.policy.pin(np.array(touched, np.int64))
                found = table.policy.take(count, ROWS).tolist()
                # What one push touched, the next ones of the batch may not take either.
                assert found == table.lowest(count, pinned)
                gone += [*touched, *found]
            if what == "evict":
                table.remove(gone)


@pytest.mark.usefixtures("scanning")
@PATCHED
@given(STEPS, st.booleans())
def test_the_lowest_rows_of_a_large_table_make_room(
    steps: list[tuple[str, Any]], by_count: bool
) -> None:
    run(steps, by_count=by_count)


@settings(deadline=None, max_examples=200)
@given(STEPS, st.booleans())
def test_the_lowest_rows_of_a_small_table_make_room(
    steps: list[tuple[str, Any]], by_count: bool
) -> None:
    run(steps, by_count=by_count)


def test_a_table_of_a_million_rows_is_scanned_now_and_then() -> None:
    """65,536 rows are found at once, more or less; then pushes are asked about without a scan."""
    rng = np.random.default_rng(5)
    stamps = rng.permutation(1 << 20).astype(np.uint64) + np.uint64(1)
    counts = rng.integers(1, 5, 1 << 20).astype(np.uint32)
    for by_count in (False, True):
        policy = Eviction(stamps.copy(), counts, by_count=by_count)
        order = np.lexsort((stamps, counts)) if by_count else np.argsort(stamps)
        policy.begin()
        for begin in range(0, 100_300, 1_003):
            policy.pin(order[begin : begin + 3])
            taken = policy.take(1_000, stamps.size)
            np.testing.assert_array_equal(taken, order[begin + 3 : begin + 1_003])


# Expiry


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), SOME),
            st.tuples(st.just("remove"), SOME),
            st.tuples(st.just("wait"), st.integers(1, 7)),
            st.tuples(st.just("refuse"), st.integers(1, 4)),
        ),
        max_size=40,
    ),
    st.integers(1, 9),
    st.integers(1, 12),
)
def test_a_row_goes_one_sweep_after_its_ttl_and_never_before(
    steps: list[tuple[str, Any]], count_max: int, scanned_max: int
) -> None:
    stamps = np.zeros(ROWS, np.uint64)
    policy = Expiry(stamps, ttl_seconds=5)
    now_us, ttl_us = 10_000_000, 5_000_000
    for what, given_rows in steps:
        if what == "push":
            stamps[given_rows] = now_us
        elif what == "remove":
            stamps[given_rows] = 0
        elif what == "wait":
            now_us += given_rows * 1_000_000
        for _ in range(given_rows if what == "refuse" else 0):
            # The rows that are found stay: the push that would remove them was refused.
            found = policy.step(now_us, ROWS, count_max, scanned_max)
            assert ((stamps[found] > 0) & (stamps[found] <= now_us - ttl_us)).all()
        # One sweep that was begun, a whole one, and all its rows a few at a time.
        for _ in range(2 * (-(-ROWS // scanned_max) + ROWS)):
            found = policy.step(now_us, ROWS, count_max, scanned_max)
            assert found.size <= count_max
            assert ((stamps[found] > 0) & (stamps[found] <= now_us - ttl_us)).all()
            stamps[found] = 0
        assert not ((stamps > 0) & (stamps <= now_us - ttl_us)).any()


def test_a_table_without_old_rows_is_left_alone_until_its_oldest_is_too_old() -> None:
    stamps = np.full(ROWS, 7_000_000, np.uint64)
    policy = Expiry(stamps, ttl_seconds=5)
    assert policy.step(8_000_000, ROWS, 10).size == 0
    stamps[:] = 1  # nobody looks, so nobody finds them
    assert policy.step(11_999_999, ROWS, 10).size == 0
    assert policy.step(12_000_000, ROWS, 10).tolist() == list(range(10))
