"""The compiled answer is the general way's, byte for byte, or none."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutations import mutated
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.wire.compiled.answers import (
    LOOKUP,
    LOOKUP_BAGS,
    LOOKUP_BAGS_MANY,
    LOOKUP_MANY,
)
from support.answering import TwoWays, two_ways
from support.request_bytes import Asking, encoded

MESSAGES = (LOOKUP, LOOKUP_MANY, LOOKUP_BAGS, LOOKUP_BAGS_MANY)


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> TwoWays:
    return two_ways(tmp_path_factory.mktemp("answers"))


def request_of(ways: TwoWays, message: int, random: Random, *, is_sound: bool = True) -> Message:
    asking = Asking(ways.row_counts, ways.keys, random)
    count = random.choice([0, 1, 2, 5])
    if message == LOOKUP:
        return asking.lookup(is_sound=is_sound)
    if message == LOOKUP_BAGS:
        return asking.bags(is_sound=is_sound)
    if message == LOOKUP_MANY:
        many = [asking.lookup(is_sound=is_sound) for _ in range(count)]
        return embedding_pb2.LookupManyRequest(lookups=many)
    bags = [asking.bags(is_sound=is_sound) for _ in range(count)]
    return embedding_pb2.LookupBagsManyRequest(bags=bags)


def same(ways: TwoWays, message: int, body: bytes) -> bool:
    """Whether the compiled answer gave one, which is the general way's."""
    given = ways.compiled(message, body)
    if given is None:
        return False
    assert given == ways.general(message, body)
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_nearly_every_sound_request_is_answered_and_alike(ways: TwoWays, message: int) -> None:
    random = Random(message)
    bodies = [request_of(ways, message, random).SerializeToString() for _ in range(400)]
    answered = sum(same(ways, message, body) for body in bodies)
    sound = sum(isinstance(ways.general(message, body), bytes) for body in bodies)
    assert answered >= 0.99 * sound > 300


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), message=st.sampled_from(MESSAGES))
def test_what_an_odd_encoder_sends_is_answered_alike(
    ways: TwoWays, seed: int, message: int
) -> None:
    random = Random(seed)
    for oddity in (0.02, 0.1, 0.4):
        request = request_of(ways, message, random, is_sound=False)
        same(ways, message, encoded(request, random, oddity))
