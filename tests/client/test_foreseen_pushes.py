"""A push like an earlier one is the same bytes as one that is made from nothing."""

from typing import Any

import numpy as np
import pytest

from gatherd._plans.foreseen_pushes import ForeseenPushes
from gatherd._requests.updates import UpdateOp, prepare_update
from gatherd._wire.updates import SessionSequence, encode_request_id, encode_update

RNG = np.random.default_rng(3)


def arrays(*shape: int) -> tuple[Any, Any]:
    return RNG.integers(0, 1000, shape), RNG.random((*shape, 64), np.float32)


@pytest.mark.parametrize("shape", [(1,), (64,), (2, 3), (300,), (9000,)])
@pytest.mark.parametrize(("lr", "if_version"), [(None, None), (0.5, None), (0.25, 7)])
def test_its_bytes_are_those_of_any_other_push(shape: Any, lr: Any, if_version: Any) -> None:
    foreseen = ForeseenPushes()
    for number in (1, 127, 128, 2**40):
        ids, values = arrays(*shape)
        given = ("items", ids, values, lr, if_version)
        spec = prepare_update(
            UpdateOp.APPLY_GRADIENTS, "items", ids, None, values, lr=lr, if_version=if_version
        )
        for request_id in (SessionSequence(b"s" * 16, number), "a key"):
            wanted = encode_update([spec], request_id)
            found = foreseen.find(*given)
            assert (found is None) == (number == 1)
            if found is not None:
                made = found.body(encode_request_id(request_id))
                assert made.head == wanted.head
                assert [bytes(part) for part in made.rest] == [bytes(part) for part in wanted.rest]
        foreseen.learn(spec, *given)


def test_what_is_not_as_plain_is_left_to_the_general_way() -> None:
    foreseen, (ids, values) = ForeseenPushes(), arrays(4)
    spec = prepare_update(UpdateOp.SCATTER_ADD, "items", ids, None, values)
    foreseen.learn(spec, "items", ids, values, None, None)
    assert foreseen.find("items", ids, values, None, None) is not None
    nan = values.copy()
    nan[1, 1] = np.nan
    for table, some_ids, some_values, lr, version in (
        ("items", ids, nan, None, None),
        ("other", ids, values, None, None),
        ("items", ids.astype(np.int32), values, None, None),
        ("items", ids.tolist(), values, None, None),
        ("items", ids[:3], values[:3], None, None),
        ("items", ids, values.astype(np.float64), None, None),
        ("items", ids, np.asfortranarray(values), None, None),
        ("items", ids, values, True, None),
        ("items", ids, values, None, True),
    ):
        assert foreseen.find(table, some_ids, some_values, lr, version) is None
