"""Requests about open tables over REST and Connect, as they reach an engine, and its answers."""

import base64
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import StringKeys
from gatherd.store.open_spec import OnFull, OpenSpec
from gatherd.store.query import ByKey
from gatherd_server.types import CreateTable, OptimizerSpec, Push, PushResult, TableInfo, UpdateOp
from support.training_engine import Training, TrainingEngine, training

CREATE = "/gatherd.v1.TableService/CreateTable"
NORMAL = Initializer.parse("normal", {"stddev": 0.5})
SGD = OptimizerSpec("sgd", {"lr": 0.1})
"""What both wires are asked for, in the words of REST; Connect's JSON has other names."""
OPTIONS: dict[str, Any] = {
    "keys": "string",
    "rows_max": 50,
    "on_missing": "create",
    "admit_after": 3,
    "on_full": "evict-lru",
    "ttl_seconds": 60,
    "touch_on_lookup": True,
}
SPEC = OpenSpec(KeyKind.BYTES, 50, 7, NORMAL, True, 3, OnFull.EVICT_LRU, 60, True)
MADE = CreateTable("new", 0, 3, DType.FLOAT16, NORMAL, 7, SGD, SPEC)


class OpenEngine(TrainingEngine):
    """Answers every push with counts of rows."""

    def push(self, push: Push) -> "Future[PushResult]":
        self.asked.pushes.append(push)
        future: Future[PushResult] = Future()
        count = len(push.updates)
        counts = [(5, 0, 2), (0, 0, 1)][:count] if push.op in CREATING else [(0, 4, 0)] * count
        future.set_result(PushResult.of(9, (3,) * count, counts))
        return future

    def table(self, name: str) -> TableInfo:
        return TableInfo(name, 7, 4, DType.FLOAT32, 3, key_kind="bytes", open=SPEC)

    def key_kind(self, name: str) -> str:
        return "int64" if name == "users" else "bytes"


CREATING = (UpdateOp.SCATTER_ADD, UpdateOp.ASSIGN)


@pytest.fixture
def opened() -> Training:
    usual = training()
    return Training(OpenEngine(), usual.admission, usual.offload)


@pytest.fixture
def ask(opened: Training, make_client: Callable[[Any], Any]) -> Any:
    return make_client(opened)


def by_rest(ask: Any, options: dict[str, Any], **fields: Any) -> Any:
    body = {
        "name": "new",
        "dim": 3,
        "dtype": "float16",
        "init": {"name": "normal", "stddev": 0.5},
        "seed": 7,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "open": options,
        **fields,
    }
    return ask("POST", "/v1/tables", json=body)


def by_connect(ask: Any, options: dict[str, Any], **fields: Any) -> Any:
    body = {
        "table": "new",
        "dim": 3,
        "dtype": "DTYPE_FLOAT16",
        "init": "normal",
        "initParameters": {"stddev": 0.5},
        "seed": 7,
        "optimizer": {"name": "sgd", "options": {"lr": 0.1}},
        "open": options,
        **fields,
    }
    return ask("POST", CREATE, json=body)


CREATES: dict[str, Callable[..., Any]] = {"rest": by_rest, "connect": by_connect}


@pytest.mark.parametrize("wire", CREATES)
def test_an_open_table_is_made_as_it_is_asked_for(ask: Any, opened: Training, wire: str) -> None:
    assert CREATES[wire](ask, OPTIONS).status_code == 200
    assert CREATES[wire](ask, {"keys": "uint64"}).status_code == 200
    usual = OpenSpec(KeyKind.UINT64, 100_000_000, 7, NORMAL)
    assert opened.engine.asked.changes == [
        MADE,
        CreateTable("new", 0, 3, DType.FLOAT16, NORMAL, 7, SGD, usual),
    ]


@pytest.mark.parametrize("wire", CREATES)
@pytest.mark.parametrize(
    ("options", "fields", "says"),
    [
        ({"keys": "float"}, {}, "keys are int64, uint64 or string, not 'float'"),
        ({"rows_max": 0}, {}, "rows_max is 0; it must be 1 to"),
        ({"ttl_seconds": 0}, {}, "ttl_seconds is 0, which leaves no time"),
        ({"ttl_seconds": 2**62}, {}, "ttl_seconds is 4611686018427387904; it must be"),
        ({"admit_after": 0}, {}, "admit_after is 0; it must be 1 to 255"),
        ({"on_full": "evict"}, {}, "on_full is 'evict'; it can be error, evict-lru, evict-lfu"),
        ({"on_missing": "zero"}, {}, "on_missing is 'zero'; it can be error, create"),
        ({"on_full": "error", "ttl_seconds": None}, {}, "nothing asks: give a TTL too"),
        ({}, {"rows": 5}, "rows is 5, but an open table begins without rows; rows_max"),
        ({}, {"init": "orthogonal", "initParameters": {}}, "draws the whole table at once"),
    ],
)
def test_what_an_open_table_can_not_be_is_named(
    ask: Any, opened: Training, wire: str, options: Any, fields: Any, says: str
) -> None:
    if wire == "rest":
        fields = {name: value for name, value in fields.items() if name != "initParameters"}
    reply = CREATES[wire](ask, {**OPTIONS, **options}, **fields)
    assert reply.status_code in (400, 422)
    assert says in reply.text
    assert opened.engine.asked.changes == []


@pytest.mark.parametrize("wire", CREATES)
def test_staged_files_say_themselves_whether_they_are_open(ask: Any, wire: str) -> None:
    reply = CREATES[wire](ask, OPTIONS, staged="0f" * 16)
    assert reply.status_code in (400, 422)
    assert "can't be given with staged" in reply.text


def test_a_table_tells_how_its_rows_come_and_go(ask: Any) -> None:
    told = {**OPTIONS, "seed": 7, "init": {"name": "normal", "mean": 0.0, "stddev": 0.5}}
    assert ask("GET", "/v1/tables/items").json()["open"] == told
    path = "/gatherd.v1.TableService/GetTable"
    found = ask("POST", path, json={"table": "items"}).json()["table"]["open"]
    assert found == {
        "keys": "string",
        "rowsMax": "50",
        "onMissing": "create",
        "admitAfter": 3,
        "onFull": "evict-lru",
        "ttlSeconds": "60",
        "touchOnLookup": True,
        "init": "normal",
        "initParameters": {"mean": 0.0, "stddev": 0.5},
        "seed": "7",
    }


def test_a_push_over_rest_creates_rows_and_is_answered_with_counts(
    ask: Any, opened: Training
) -> None:
    one = {"keys": ["a", "b"], "values": [[1.0] * 4] * 2, "create": True}
    reply = ask("POST", "/v1/tables/items:assign", json=one)
    assert reply.json() == {"lsn": 9, "version": 3, "created": 5, "not_admitted": 2}
    many = {"items": one, "users": {"keys": [7], "values": [[1.0] * 2]}}
    reply = ask("POST", "/v1/scatterAdd", json={"tables": many})
    assert reply.json() == {
        "lsn": 9,
        "versions": {"items": 3, "users": 3},
        "created": {"items": 5},
        "not_admitted": {"items": 2, "users": 1},
    }
    raw = np.array([7]).tobytes() + np.ones((1, 4), np.float32).tobytes()
    query = "shape=1&by=keys&create=true"
    headers = {"Content-Type": "application/octet-stream"}
    path = f"/v1/tables/items:assign?{query}"
    assert ask("POST", path, content=raw, headers=headers).status_code == 200
    asked = [[update.creates for update in push.updates] for push in opened.engine.asked.pushes]
    assert asked == [[True], [True, False], [True]]


def test_rows_are_deleted_by_key_over_rest(ask: Any, opened: Training) -> None:
    reply = ask("POST", "/v1/tables/items:deleteRows", json={"keys": [["a"], ["b"]]})
    assert reply.json() == {"lsn": 9, "version": 3, "removed": 4}
    tables = {"items": {"keys": ["a"], "if_version": 3}, "users": {"keys": [7, 8]}}
    reply = ask("POST", "/v1/deleteRows", json={"tables": tables})
    assert reply.json()["removed"] == {"items": 4, "users": 4}
    encoded = {"keys": [base64.b64encode(b"\xff").decode()], "encoding": "base64"}
    assert ask("POST", "/v1/tables/items:deleteRows", json=encoded).status_code == 200
    first, both, third = opened.engine.asked.pushes
    assert first.op is both.op is UpdateOp.DELETE_ROWS
    (one,) = first.updates
    assert isinstance(one.asked, ByKey)
    assert isinstance(one.asked.keys, StringKeys)
    assert one.asked.keys.tolist() == [b"a", b"b"]
    assert one.values.shape == (2, 1, 0)
    assert [update.if_version for update in both.updates] == [3, 0]
    assert isinstance(third.updates[0].asked, ByKey)
    assert third.updates[0].asked.keys.tolist() == [b"\xff"]


@pytest.mark.parametrize(
    ("verb", "body", "says"),
    [
        ("deleteRows", {"ids": [1]}, "the member keys is required"),
        ("deleteRows", {"ids": [1], "keys": ["a"]}, "the member ids isn't known here"),
        ("deleteRows", {}, "the member keys is required"),
        ("deleteRows", {"keys": ["a"], "values": []}, "the member values isn't known here"),
        ("assign", {"ids": [1], "values": [[1.0] * 4], "create": True}, "the request has ids"),
        ("assign", {"keys": ["a"], "values": [[1.0] * 4], "create": 1}, "the member create"),
    ],
)
def test_what_no_push_can_ask_is_named(
    ask: Any, opened: Training, verb: str, body: Any, says: str
) -> None:
    reply = ask("POST", f"/v1/tables/items:{verb}", json=body)
    assert reply.status_code == 422
    assert says in reply.json()["detail"]
    assert opened.engine.asked.pushes == []


def test_deleted_rows_take_no_raw_bytes(ask: Any) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    reply = ask("POST", "/v1/tables/items:deleteRows", content=b"", headers=headers)
    assert reply.status_code == 415


STRINGS = {"strings": {"shape": ["2"], "lengths": "AQAAAAEAAAA=", "data": "YWI="}}
IDS = {"dtype": "DTYPE_INT64", "shape": ["1"], "data": base64.b64encode(bytes(8)).decode()}
ROW = {"dtype": "DTYPE_FLOAT32", "shape": ["2", "4"], "data": base64.b64encode(bytes(32)).decode()}


def test_a_push_over_connect_creates_and_deletes_rows(ask: Any, opened: Training) -> None:
    path = "/gatherd.v1.EmbeddingService/"
    update = {"table": "items", "keys": STRINGS, "values": ROW, "create": True}
    reply = ask("POST", path + "Assign", json={"updates": [update]})
    assert reply.json() == {
        "lsn": "9", "versions": ["3"], "created": ["5"], "notAdmitted": ["2"],
    }  # fmt: skip
    gone = {"updates": [{"table": "items", "keys": STRINGS, "ifVersion": "3"}]}
    assert ask("POST", path + "DeleteRows", json=gone).json() == {
        "lsn": "9", "versions": ["3"], "removed": ["4"],
    }  # fmt: skip
    assigned, deleted = opened.engine.asked.pushes
    assert assigned.updates[0].creates
    assert deleted.op is UpdateOp.DELETE_ROWS
    assert deleted.updates[0].values.shape == (2, 0)
    assert deleted.updates[0].if_version == 3


@pytest.mark.parametrize(
    ("call", "update", "says"),
    [
        (
            "DeleteRows",
            {"ids": IDS},
            "rows are deleted by key, in open tables; the request has ids",
        ),
        ("DeleteRows", {"keys": STRINGS, "values": ROW}, "the update has values"),
        ("DeleteRows", {"keys": STRINGS, "learningRate": 0.5}, "the update has values or a rate"),
        ("DeleteRows", {"keys": STRINGS, "create": True}, "delete_rows takes no create"),
        ("DeleteRows", {}, "neither ids nor keys"),
        ("Assign", {"ids": IDS, "values": ROW, "create": True}, "rows are created for keys"),
        ("Assign", {"keys": STRINGS, "create": True}, "values"),
    ],
)
def test_what_no_push_over_connect_can_ask_is_named(
    ask: Any, opened: Training, call: str, update: dict[str, Any], says: str
) -> None:
    body = {"updates": [{"table": "items", **update}]}
    reply = ask("POST", f"/gatherd.v1.EmbeddingService/{call}", json=body)
    assert reply.status_code == 400
    assert says in reply.json()["message"]
    assert "'items'" in reply.json()["message"]
    assert opened.engine.asked.pushes == []
