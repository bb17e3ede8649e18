"""Bags and keys_of in several requests: the same answers as in one, of one version."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.clients import ITEMS, WORDS, bags_of, word
from client.fakes import FakeService
from gatherd import GatherdError, InternalError, VersionNotFound
from gatherd._plans.effects import Plan, Send, T
from gatherd._plans.remote import RemoteAnswering
from gatherd._plans.retry import Tries
from gatherd._requests.lookups import Returned


class Direct:
    """Runs plans against a FakeService, with no wire between."""

    def __init__(self, service: FakeService) -> None:
        self._service = service
        self.answering = RemoteAnswering(Tries(timeout=10, retries=0))

    def run(self, plan: Plan[T]) -> T:
        try:
            effect = next(plan)
            while True:
                assert isinstance(effect, Send)
                try:
                    reply = memoryview(self._service.handle(effect.method, effect.body))
                except GatherdError as error:
                    effect = plan.throw(error)
                else:
                    effect = plan.send(reply)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def bags_many(self, bags: Mapping[str, Any], **options: Any) -> Any:
        asked: dict[str, Any] = {
            "keys": None, "mode": "mean", "weights": None, "padding_id": None, "dtype": "float32",
            "missing": "error", "returned": Returned(), "timeout": None,
        }  # fmt: skip
        return self.run(self.answering.lookup_bags_many(bags, **(asked | options)))


JAGGED = st.lists(st.lists(st.integers(-2, 42), max_size=6), max_size=25)


@given(
    JAGGED,
    JAGGED,
    st.sampled_from(["sum", "mean", "max", "sqrtn"]),
    st.booleans(),
    st.sampled_from(["zero", "default", "skip"]),
    st.sampled_from([None, -1, 3]),
    st.booleans(),
    st.tuples(
        st.sampled_from([{"ids_max": 6}, {"ids_max": 40}, {"tables_max": 1}, {}]),
        st.sampled_from([{"request_bytes_max": 420}, {"request_bytes_max": 900}, {}]),
        st.sampled_from([{"reply_bytes_max": 210}, {"reply_bytes_max": 700}, {}]),
    ),
)
def test_bags_in_pieces_are_the_bags_at_once(
    first: list[list[int]], second: list[list[int]], mode: str, weighted: bool, missing: str,
    padding_id: int | None, keyed: bool, limits: tuple[dict[str, int], ...],
) -> None:  # fmt: skip
    tables = {"words": WORDS[:40], "items": ITEMS}
    keys: dict[str, list[Any]] = {"words": [b"word%d" % row for row in range(40)]}
    options: dict[str, Any] = {
        "mode": mode, "missing": missing, "padding_id": padding_id,
        "returned": Returned(status=True),
    }  # fmt: skip
    if weighted and mode != "max":
        options["weights"] = {"words": [[0.5 + id_ % 3 for id_ in bag] for bag in first]}
    asked: dict[str, Any] = {"items": second}
    if keyed:
        options["keys"] = {"words": [list(map(word, bag)) for bag in first]}
    else:
        asked["words"] = first
    whole = Direct(FakeService(tables, keys)).bags_many(asked, **options)
    together = limits[0] | limits[1] | limits[2]
    found = Direct(FakeService(tables, keys, together)).bags_many(asked, **options)
    assert list(found) == list(whole)
    for table, (vectors, status) in whole.items():
        np.testing.assert_array_equal(found[table][0], vectors)
        np.testing.assert_array_equal(found[table][1], status)


def test_pieces_of_bags_are_pinned_to_the_version_of_the_first() -> None:
    service = FakeService({"words": WORDS}, limits={"ids_max": 4})

    def publish(method: str) -> None:
        if len(service.versions_asked) == 2 and service.version == 7:
            service.version = 8
            service.failures = [VersionNotFound("version 7 is gone")]

    service.before = publish
    bags = [[n, n + 1, n + 2] for n in range(5)]
    found = Direct(service).bags_many({"words": bags})
    np.testing.assert_array_equal(found["words"], bags_of(WORDS, bags, "mean"))
    assert service.versions_asked == [0, 7, 0, 8, 8, 8, 8]


@pytest.mark.parametrize("pooled", [True, False])
def test_a_piece_of_another_version_is_an_error(pooled: bool) -> None:
    service = FakeService({"words": WORDS}, {"words": [b"a", b"b"]}, {"ids_max": 1})

    def publish(method: str) -> None:
        service.version += 1

    service.before = publish
    direct = Direct(service)

    def ask() -> Any:
        if pooled:
            return direct.bags_many({"words": [[0], [1]]})
        return direct.run(direct.answering.keys_of("words", [0, 1], timeout=None))

    with pytest.raises(InternalError, match=r"version \d+ answered"):
        ask()
