"""What is taken for a writer that hangs, and what isn't."""

import asyncio
import logging

import pytest

from gatherd.errors import Unavailable
from gatherd_server.link.heartbeat import BEAT_SECONDS, Heartbeat

HUNG_SECONDS = 2.0
BEATS = round(HUNG_SECONDS / BEAT_SECONDS)


def test_one_that_stays_at_a_step_is_hung_and_its_next_step_ends_that() -> None:
    heart = Heartbeat(HUNG_SECONDS)
    heart.heard(7)
    for _ in range(BEATS - 1):
        heart.waited(BEAT_SECONDS)
        heart.heard(7)
    heart.check()
    heart.waited(BEAT_SECONDS)
    assert heart.is_hung
    with pytest.raises(Unavailable) as raised:
        heart.check()
    assert raised.value.metadata == {"outcome": "not sent"}
    assert raised.value.retry_after_seconds
    heart.heard(8)
    heart.check()


def test_one_that_says_nothing_at_all_is_hung() -> None:
    heart = Heartbeat(HUNG_SECONDS)
    for _ in range(BEATS):
        heart.waited(BEAT_SECONDS)
    assert heart.is_hung


@pytest.mark.parametrize("steps", [[None] * 100, range(100)], ids=["idle", "slow, but moving"])
def test_one_that_waits_for_work_or_gets_on_with_it_is_not(steps: "list[int | None]") -> None:
    heart = Heartbeat(HUNG_SECONDS)
    for step in steps:
        heart.heard(step)
        heart.waited(HUNG_SECONDS / 2)
        assert not heart.is_hung


def test_a_process_that_was_itself_away_takes_nobody_for_dead() -> None:
    heart = Heartbeat(HUNG_SECONDS)
    heart.heard(7)
    heart.waited(3600)
    assert not heart.is_hung


def test_it_is_logged_once_and_who_waits_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gatherd.writer")

    async def watch() -> int:
        heart, given_up, gone = Heartbeat(2 * BEAT_SECONDS), 0, asyncio.Event()

        def give_up() -> None:
            nonlocal given_up
            given_up += 1
            if given_up == 2:
                # A step later it is back.
                heart.heard(8)
                asyncio.get_running_loop().call_later(2 * BEAT_SECONDS, gone.set)

        watching = asyncio.ensure_future(heart.watch(lambda: None, give_up))
        await asyncio.wait_for(gone.wait(), 30)
        watching.cancel()
        return given_up

    assert asyncio.run(watch()) >= 2
    levels = [record.levelno for record in caplog.records]
    assert levels[:2] == [logging.CRITICAL, logging.WARNING]
