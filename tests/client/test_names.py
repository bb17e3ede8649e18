"""Signatures have the names that client and server know; named_arguments.py has more."""

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from gatherd import AsyncClient, Client
from gatherd.store.dtypes import REPLY_DTYPES, DType
from gatherd.store.initializer import NAMES
from gatherd.store.query import BAG_POLICIES, ROW_POLICIES, Pooling
from gatherd_server.training.optimizer import OptimizerName


def _named(client: type, call: str, argument: str) -> set[str]:
    """The strings that a signature has for an argument."""
    return _strings(get_type_hints(getattr(client, call))[argument])


def _strings(hint: Any) -> set[str]:
    if isinstance(hint, str):
        return {hint}
    hint = getattr(hint, "__value__", hint)  # of an alias
    return set().union(*(_strings(part) for part in get_args(hint)))


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_signatures_have_the_names_that_are_known(client: type) -> None:
    rows, bags = ({policy.value for policy in known} for known in (ROW_POLICIES, BAG_POLICIES))
    replies = {dtype.value for dtype in REPLY_DTYPES}
    for call in ("lookup", "lookup_many", "lookup_bags", "lookup_bags_many"):
        pooled = "bags" in call
        assert _named(client, call, "missing") == (bags if pooled else rows)
        assert _named(client, call, "dtype") == replies
        if pooled:
            assert _named(client, call, "mode") == {mode.value for mode in Pooling}
    assert _named(client, "create_table", "init") == set(NAMES)
    optimizers = {optimizer.value for optimizer in OptimizerName}
    assert _named(client, "create_table", "optimizer") == optimizers
    assert _named(client, "set_optimizer", "optimizer") == optimizers


def test_a_tables_dtype_has_its_own_names_and_numpys_other_words_for_them() -> None:
    named = _named(Client, "create_table", "dtype")
    own = {dtype.value for dtype in DType}
    assert own < named
    assert {np.dtype(word).name for word in named - own} == own - {"bfloat16"}
