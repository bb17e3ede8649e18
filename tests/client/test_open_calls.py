"""Calls about open tables: what they send, what they return, and what isn't sent at all."""

from collections import Counter
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from client.clients import Awaited
from client.fake_updates import UpdatedService
from client.fakes import connect_server
from gatherd import Client
from gatherd.errors import InvalidArgument
from gatherd_proto.v1 import embedding_pb2, table_pb2

ROWS = np.ones((2, 3), np.float32)
KEYS = ["a", "b"]


class Counting(UpdatedService):
    """Takes any update, and answers it with counts of rows."""

    def _push(self, method: str, body: bytes) -> embedding_pb2.UpdateResponse:
        request = embedding_pb2.UpdateRequest.FromString(body)
        self.pushes.append(request)
        self.methods = [*getattr(self, "methods", []), method]
        versions = [7] * len(request.updates)
        counts = list(range(len(versions)))
        return embedding_pb2.UpdateResponse(
            lsn=9,
            versions=versions,
            created=counts if any(counts) else [],
            removed=[4] * len(counts),
        )


@pytest.fixture(params=[Client, Awaited])
def asked(request: Any) -> Any:
    service = Counting({})
    with connect_server(service) as url, request.param(url) as client:
        yield client, service


def test_each_push_creates_rows_when_it_is_asked_to(asked: Any) -> None:
    client, service = asked
    client.scatter_add("t", keys=KEYS, deltas=ROWS, create=True)
    client.apply_gradients("t", keys=KEYS, grads=ROWS, create=True)
    client.assign("t", keys=KEYS, rows=ROWS, create=True)
    client.upsert("t", KEYS, ROWS)
    client.assign("t", keys=KEYS, rows=ROWS)
    client.assign("t", [1, 2], ROWS)
    assert service.methods == ["ScatterAdd", "ApplyGradients", *["Assign"] * 4]
    created = [push.updates[0].create for push in service.pushes]
    assert created == [True, True, True, True, False, False]


def test_a_push_of_many_tables_creates_rows_in_those_given_by_key(asked: Any) -> None:
    client, service = asked
    by_id, by_key = {"ids": ([1, 2], ROWS)}, {"one": (KEYS, ROWS), "two": (KEYS, ROWS)}
    client.assign_many(by_id, keys=by_key, create=True)
    client.scatter_add_many(by_id, keys=by_key, create={"two": True})
    client.apply_gradients_many(by_id, keys=by_key)
    made = [[update.create for update in push.updates] for push in service.pushes]
    assert made == [[False, True, True], [False, False, True], [False] * 3]


def test_rows_are_deleted_by_key(asked: Any) -> None:
    client, service = asked
    result = client.delete_rows("t", KEYS, if_version=7, idempotency_key="k")
    assert (result.lsn, result.versions) == (9, {"t": 7})
    assert (result.created, result.removed) == (Counter(), {"t": 4})
    many = client.delete_rows_many({"one": [5], "two": KEYS}, if_version={"two": 7})
    assert (many.created, many.removed) == ({"two": 1}, {"one": 4, "two": 4})
    assert many.not_admitted["one"] == 0
    first, both = service.pushes
    assert first.idempotency_key == "k"
    assert [update.if_version for update in (*first.updates, *both.updates)] == [7, 0, 7]
    assert not any(update.HasField("values") for update in (*first.updates, *both.updates))
    assert first.updates[0].keys.strings.data == b"ab"


def test_a_handle_has_them_too() -> None:
    service = Counting({})
    with connect_server(service) as url, Client(url) as client:
        client["t"].upsert(KEYS, ROWS)
        client["t"].delete_rows(KEYS)
    assert service.methods == ["Assign", "DeleteRows"]
    assert service.pushes[0].updates[0].create


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda client: client.assign("t", [1, 2], ROWS, create=True), "ids were given"),
        (lambda client: client.assign("t", keys=KEYS, rows=ROWS, create=1), "create is True or"),
        (lambda client: client.assign_many({"t": ([1, 2], ROWS)}, create={"t": True}), "ids were"),
        (lambda client: client.assign_many({"t": ([1, 2], ROWS)}, create={"u": True}), "'u'"),
        (lambda client: client.delete_rows("t", None), "rows are deleted by key"),
        (lambda client: client.delete_rows("t", [0.5]), "keys"),
        (lambda client: client.delete_rows_many({}), "was given no table"),
        (lambda client: client.create_table("t", 5, 3, keys="int64"), "begins without rows"),
        (lambda client: client.create_table("t", dim=3), "rows or keys is needed"),
        (lambda client: client.create_table("t", 5), "dim is needed"),
        (lambda client: client.create_table("t", 5, 3, ttl=60), "ttl is for an open table"),
        (lambda client: client.create_table("t", 5, 3, on_full="evict-lru"), "on_full is for an"),
        (lambda client: client.create_table("t", dim=3, keys="int64", ttl=0), "ttl is 0"),
        (
            lambda client: client.create_table("t", dim=3, keys="int64", ttl="30d"),
            "ttl is a number",
        ),
        (lambda client: client.create_table("t", dim=3, keys="int64", rows_max=-1), "rows_max=-1"),
    ],
)
def test_what_can_not_be_is_not_sent(asked: Any, call: Any, why: str) -> None:
    client, service = asked
    with pytest.raises(InvalidArgument, match=why):
        call(client)
    assert (service.pushes, service.changes) == ([], [])


def test_an_open_table_is_asked_for_with_its_options(asked: Any) -> None:
    client, service = asked
    client.create_table("t", dim=3, keys="string")
    client.create_table(
        "t", dim=3, keys="int64", rows_max=50, on_missing="create", admit_after=3,
        on_full="evict-lfu", ttl=timedelta(days=30), touch_on_lookup=True, seed=7,
    )  # fmt: skip
    plain, full = service.changes
    assert plain == table_pb2.CreateTableRequest(
        table="t", dim=3, dtype="DTYPE_FLOAT32", init="uniform",
        open=table_pb2.OpenOptions(
            keys="string", on_missing="error", admit_after=1, on_full="error",
        ),
    )  # fmt: skip
    assert (full.rows, full.seed) == (0, 7)
    assert full.open == table_pb2.OpenOptions(
        keys="int64", rows_max=50, on_missing="create", admit_after=3, on_full="evict-lfu",
        ttl_seconds=30 * 86_400, touch_on_lookup=True,
    )  # fmt: skip
