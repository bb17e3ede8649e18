"""Busy polling: when it is done, and that answers are the same."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatherd import Client, InvalidArgument
from gatherd.busy_poll import BusyPoll
from support.small_engine import SmallEngine, small_engine
from support.web_server import web_server

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="with one core nobody waits awake"
)


def tries(poll: BusyPoll, count: int) -> int:
    return sum(poll.is_worthwhile() for _ in range(count))


def test_it_is_tried_at_first_and_goes_on_while_it_pays() -> None:
    poll = BusyPoll(50)
    assert poll.seconds == pytest.approx(50e-6)
    for _ in range(100):
        assert poll.is_worthwhile()
        poll.came()


@pytest.mark.parametrize("hits", [0, 1, 10_000])
def test_misses_end_it_soon_whatever_was_before(hits: int) -> None:
    poll = BusyPoll(50)
    for _ in range(hits):
        poll.came()
    misses = 0
    while poll.is_worthwhile():
        poll.missed()
        misses += 1
    assert misses <= 10


def test_what_mostly_misses_is_seldom_tried() -> None:
    poll, tried = BusyPoll(50), 0
    for _ in range(1000):
        if poll.is_worthwhile():
            tried += 1
            poll.missed()
    assert 1 < tried < 30


def test_it_begins_again_when_it_pays_again() -> None:
    poll = BusyPoll(50)
    while poll.is_worthwhile():
        poll.missed()
    for _ in range(1000):
        if poll.is_worthwhile():
            poll.came()
    assert tries(poll, 10) == 10


def test_none_is_never() -> None:
    assert tries(BusyPoll(0), 1000) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module", params=[0, 100])
def url(request: pytest.FixtureRequest, served: SmallEngine) -> Iterator[str]:
    with web_server(served, busy_poll_us=request.param) as url:
        yield url


@pytest.mark.parametrize("microseconds", [0, 1, 10_000])
def test_answers_are_the_same(url: str, served: SmallEngine, microseconds: int) -> None:
    rng, rows = np.random.default_rng(1), served.rows["words"]
    with Client(url, busy_poll_us=microseconds) as client:
        for size in (1, 1, 1, 64, 3000, 20_000, 1):
            ids = rng.integers(0, len(rows), size)
            np.testing.assert_array_equal(client.lookup("words", ids), rows[ids])


@pytest.mark.parametrize("wrong", [-1, 10_001, 1.5, "100", True, None])
def test_a_wrong_time_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"busy_poll_us must be an integer from 0 to 10000"):
        Client("http://127.0.0.1:1", busy_poll_us=wrong)
