"""Places of requests: lookups' and updates' are apart, a token's are counted over both."""

from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest

from gatherd.errors import Overloaded
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Caller, Grant, Scope
from support.small_engine import LIMITS


def admission(requests: int, updates: int) -> Admission:
    limits = replace(LIMITS, requests_in_flight_max=requests, updates_in_flight_max=updates)
    return Admission(limits)


def test_updates_and_lookups_take_no_places_from_each_other() -> None:
    asked = admission(requests=2, updates=1)
    with ExitStack() as held:
        held.enter_context(asked.update())
        with pytest.raises(Overloaded, match="1 updates in flight") as raised, asked.update():
            pass
        assert raised.value.metadata == {"limit": "updates_in_flight_max"}
        assert raised.value.retry_after_seconds
        held.enter_context(asked.request())
        held.enter_context(asked.request())
        with pytest.raises(Overloaded, match="2 requests in flight"), asked.request():
            pass
        assert (asked.in_flight, asked.updates_in_flight) == (3, 1)
    assert (asked.in_flight, asked.updates_in_flight) == (0, 0)


def test_a_tokens_places_are_given_back_whatever_comes_of_an_update() -> None:
    caller = Caller(Grant("t", frozenset(Scope), ("*",), concurrency=1))
    asked = admission(requests=1, updates=1)
    with asked.update(), pytest.raises(Overloaded, match="1 updates in flight"):
        with asked.update(caller):
            pass
    for _ in range(3):
        with suppress(ZeroDivisionError), asked.update(caller):
            with pytest.raises(Overloaded, match="as many as it is for"), asked.request(caller):
                pass
            raise ZeroDivisionError
    assert asked.in_flight == 0
