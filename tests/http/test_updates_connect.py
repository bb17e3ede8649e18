"""Updates and changes over Connect, on an engine that has its tables in NumPy."""

import asyncio
import base64
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd.errors import DiskFull, GatherdError, Overloaded, Unavailable, UpdatesStopped
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd_proto.v1 import embedding_pb2, status_pb2, table_pb2, tensor_pb2
from gatherd_server.http.body import outcome
from gatherd_server.types import (
    AddStaged,
    CreateTable,
    DeleteTable,
    OptimizerSpec,
    Publish,
    Rollback,
    SessionSequence,
    SetOptimizer,
    UpdateOp,
)
from gatherd_server.wire import updates as proto_updates
from support.server import wait_until
from support.small_engine import LIMITS
from support.training_engine import LR, VERSION, Training, training

PROTO = "application/proto"
JSON = "application/json"
STAGED = "ab" * 16
EMBEDDING = "/gatherd.v1.EmbeddingService/"
TABLES = "/gatherd.v1.TableService/"
OPS = {
    "ScatterAdd": UpdateOp.SCATTER_ADD,
    "ApplyGradients": UpdateOp.APPLY_GRADIENTS,
    "Assign": UpdateOp.ASSIGN,
}
FLOATS = {
    tensor_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DTYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DTYPE_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


def tensor(array: Any, dtype: Any = None) -> tensor_pb2.Tensor:
    array = np.asarray(array)
    name = f"DTYPE_{array.dtype.name.upper()}" if dtype is None else dtype
    return tensor_pb2.Tensor(dtype=name, shape=array.shape, data=array.tobytes())


def table_update(table: str, ids: Any, values: Any, **fields: Any) -> embedding_pb2.TableUpdate:
    values = values if isinstance(values, tensor_pb2.Tensor) else tensor(np.float32(values))
    return embedding_pb2.TableUpdate(
        table=table, ids=tensor(np.asarray(ids, np.int64)), values=values, **fields
    )


def request(*updates: embedding_pb2.TableUpdate, **fields: Any) -> embedding_pb2.UpdateRequest:
    return embedding_pb2.UpdateRequest(updates=updates, **fields)


ONES = [[1.0] * 4]
ONE = table_update("items", [1], ONES)


def post(ask: Any, path: str, message: Any, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = message if isinstance(message, bytes) else message.SerializeToString()
    return ask("POST", path, content=content, headers={"Content-Type": PROTO, **named})


def pushed(ask: Any, name: str, message: Any, **headers: str) -> embedding_pb2.UpdateResponse:
    response = post(ask, EMBEDDING + name, message, **headers)
    assert response.status_code == 200, response.text
    return embedding_pb2.UpdateResponse.FromString(response.content)


def error(response: Any, status: int, code: str, reason: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert body["code"] == code
    detail = body["details"][0]
    raw = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
    assert status_pb2.ErrorInfo.FromString(raw).reason == reason
    message: str = body["message"]
    return message


def refused(response: Any) -> str:
    return error(response, 400, "invalid_argument", "INVALID_ARGUMENT")


# What is done


@pytest.mark.parametrize(("name", "op"), OPS.items())
@pytest.mark.parametrize("ids", [7, [], [3, 3], [[4], [20]]])
def test_an_update_reaches_the_engine_as_it_is(
    train: Any, trained: Training, name: str, op: UpdateOp, ids: Any
) -> None:
    values = np.arange(np.size(ids) * 4, dtype=np.float32).reshape(*np.shape(ids), 4)
    reply = pushed(train, name, request(table_update("items", ids, values, if_version=VERSION)))
    assert (reply.lsn, list(reply.versions)) == (1, [VERSION])
    (push,) = trained.engine.asked.pushes
    assert push.op is op
    assert push.request_id is None
    (made,) = push.updates
    assert made.if_version == VERSION
    assert made.lr is None
    np.testing.assert_array_equal(made.asked, np.asarray(ids))
    np.testing.assert_array_equal(made.values, values)


@pytest.mark.parametrize(("dtype", "kind"), FLOATS.items())
def test_narrow_values_are_widened(train: Any, trained: Training, dtype: int, kind: Any) -> None:
    values = np.linspace(-3, 3, 8).astype(kind).reshape(2, 4)
    update = table_update("items", [1, 2], tensor(values, dtype))
    pushed(train, "Assign", request(update))
    np.testing.assert_array_equal(trained.engine.rows["items"][1:3], values.astype(np.float32))


def test_updates_in_json_are_those_in_protobuf(train: Any, trained: Training) -> None:
    body = {
        "updates": [
            {
                "table": "items",
                "ids": {
                    "dtype": "DTYPE_INT64",
                    "shape": ["1"],
                    "data": base64.b64encode(np.array([5], "<i8").tobytes()).decode(),
                },
                "values": {
                    "dtype": "DTYPE_FLOAT32",
                    "shape": ["1", "4"],
                    "data": base64.b64encode(np.ones(4, "<f4").tobytes()).decode(),
                },
                "learningRate": 0.25,
            }
        ],
        "sequence": {"session": base64.b64encode(b"s" * 16).decode(), "sequence": "9"},
    }
    response = train("POST", EMBEDDING + "ApplyGradients", json=body)
    assert response.json() == {"lsn": "1", "versions": [str(VERSION)]}
    assert trained.engine.asked.pushes[0].request_id == SessionSequence(b"s" * 16, 9)
    np.testing.assert_array_equal(trained.engine.rows["items"][5], [-0.25] * 4)


def test_many_tables_are_one_push(train: Any, trained: Training) -> None:
    users = table_update("users", [[2]], [[[5.0, 6.0]]])
    reply = pushed(train, "ScatterAdd", request(users, ONE))
    assert list(reply.versions) == [VERSION, VERSION]
    assert len(trained.engine.asked.pushes) == 1
    np.testing.assert_array_equal(trained.engine.rows["users"][2], [5, 6])


def test_keys_are_taken_instead_of_ids(train: Any, trained: Training) -> None:
    seen: list[Any] = []

    def push(push: Any) -> Any:
        seen.append(push.updates[0].asked.keys)
        raise DiskFull("seen")

    trained.engine.push = push  # type: ignore[method-assign]
    strings = tensor_pb2.StringKeys(
        shape=[2], lengths=np.array([1, 2], "<u4").tobytes(), data=b"abc"
    )
    values = tensor(np.ones((2, 4), np.float32))
    for keys in (
        tensor_pb2.Keys(strings=strings),
        tensor_pb2.Keys(integers=tensor(np.array([2**40, 3]))),
    ):
        update = embedding_pb2.TableUpdate(table="items", keys=keys, values=values)
        post(train, EMBEDDING + "Assign", request(update))
    assert seen[0].texts() == ["a", "bc"]
    np.testing.assert_array_equal(seen[1], [2**40, 3])


@pytest.mark.parametrize(
    ("fields", "request_id"),
    [
        ({}, None),
        ({"idempotency_key": "~!" * 127}, "~!" * 127),
        (
            {"sequence": embedding_pb2.SessionSequence(session=bytes(16), sequence=2**64 - 1)},
            SessionSequence(bytes(16), 2**64 - 1),
        ),
    ],
)
def test_request_ids_reach_the_engine(
    train: Any, trained: Training, fields: Any, request_id: Any
) -> None:
    pushed(train, "ScatterAdd", request(ONE, **fields))
    assert trained.engine.asked.pushes[0].request_id == request_id


# What is refused


def sequence(session: bytes, number: int) -> embedding_pb2.SessionSequence:
    return embedding_pb2.SessionSequence(session=session, sequence=number)


def with_values(values: Any, shape: Any = None, dtype: Any = None) -> embedding_pb2.UpdateRequest:
    made = tensor(values, dtype)
    if shape is not None:
        del made.shape[:]
        made.shape.extend(shape)
    return request(table_update("items", [1], made))


F4 = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (request(), "no updates"),
        (request(ONE, ONE), "table 'items' stands in the request twice"),
        (request(ONE, idempotency_key=""), "idempotency key is empty"),
        (request(ONE, idempotency_key="a b"), "' ' at character 1"),
        (request(ONE, idempotency_key="é"), "'é' at character 0"),
        (request(ONE, idempotency_key="x" * 256), "256 characters"),
        (request(ONE, sequence=sequence(b"", 1)), "session has 0 bytes; it must have 16"),
        (request(ONE, sequence=sequence(bytes(17), 1)), "session has 17 bytes"),
        (request(ONE, sequence=sequence(bytes(16), 0)), "sequence is 0"),
        (request(embedding_pb2.TableUpdate(table="items")), "neither ids nor keys"),
        (with_values(np.ones((1, 4))), "table 'items': values can't be in dtype DTYPE_FLOAT64"),
        (with_values(np.ones((1, 4), np.int32)), "DTYPE_INT32"),
        (with_values(F4, dtype=0), "DTYPE_UNSPECIFIED"),
        (with_values(F4, dtype=99), "99"),
        (with_values(F4, shape=[4]), "values have shape (4,); the ids have (1,), so it must be"),
        (with_values(F4, shape=[2, 2]), "values have shape (2, 2)"),
        (with_values(F4, shape=[1, 1, 4]), "values have shape (1, 1, 4)"),
        (with_values(F4, shape=[]), "16 were sent"),
        (with_values(F4, shape=[1, 5]), "20 bytes; 16 were sent"),
        (with_values(F4, shape=[1, -4]), "no dimension can be negative"),
        (with_values(F4, shape=[2**62, 2**62]), "16 were sent"),
        (with_values(F4, shape=[1] * 40), "40 dimensions"),
        (request(table_update("items", [1], ONES, learning_rate=1)), "of apply_gradients, not of"),
        (request(table_update("items", [1], [[1.0] * 3])), "has dim 4"),
    ],
)
def test_wrong_updates_are_named(train: Any, trained: Training, message: Any, says: str) -> None:
    assert says in refused(post(train, EMBEDDING + "ScatterAdd", message))
    assert not trained.engine.asked.pushes


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf")])
def test_a_learning_rate_is_finite_and_not_negative(train: Any, lr: float) -> None:
    message = request(table_update("items", [1], ONES, learning_rate=lr))
    assert "lr can't be" in refused(post(train, EMBEDDING + "ApplyGradients", message))


@pytest.fixture(scope="session")
def steady(make_client: Any) -> Any:
    """Asks one server, whatever a test's examples leave there."""
    return make_client(training())


@settings(deadline=None)
@given(body=st.binary(max_size=60))
def test_no_bytes_make_the_server_stumble(steady: Any, body: bytes) -> None:
    for path in (EMBEDDING + "ScatterAdd", TABLES + "CreateTable", TABLES + "SetOptimizer"):
        assert post(steady, path, body).status_code in (200, 400, 404)


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (Unavailable("the writer is starting", {}, 0.2), 503, "unavailable", "1"),
        (Overloaded("the queue is full"), 429, "resource_exhausted", "1"),
        (DiskFull("no room"), 429, "resource_exhausted", None),
        (UpdatesStopped("the disk failed"), 400, "failed_precondition", None),
    ],
)
def test_what_the_writer_says_is_told(
    train: Any,
    trained: Training,
    failure: GatherdError,
    status: int,
    code: str,
    retry_after: str | None,
) -> None:
    trained.engine.fails_with = failure
    response = post(train, EMBEDDING + "ScatterAdd", request(ONE))
    assert failure.message in error(response, status, code, failure.reason)
    assert response.headers.get("retry-after") == retry_after
    assert trained.admission.in_flight == 0


# Waiting for the writer


def test_many_updates_wait_together(make_client: Any, runner: asyncio.Runner) -> None:
    trained = training(updates_in_flight_max=64)
    trained.engine.waits_for = 32
    client = make_client(trained)

    async def all_at_once() -> None:
        replies = await asyncio.gather(*(send(client) for _ in range(32)))
        assert {reply.status_code for reply in replies} == {200}

    async def send(client: Any) -> Any:
        return await client.requested(
            "POST",
            EMBEDDING + "ScatterAdd",
            content=request(ONE).SerializeToString(),
            headers={"Content-Type": PROTO},
        )

    runner.run(all_at_once())
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [32] * 4)


def test_an_update_past_its_deadline_goes_on_and_may_be_done(train: Any, trained: Training) -> None:
    trained.engine.waits_for = 2
    response = post(train, EMBEDDING + "ScatterAdd", request(ONE), Connect_Timeout_Ms="30")
    message = error(response, 504, "deadline_exceeded", "DEADLINE_EXCEEDED")
    assert "0.03 s; the update may still be done" in message
    assert trained.admission.in_flight == 0
    trained.engine.let_go()
    np.testing.assert_array_equal(trained.engine.rows["items"][1], ONES[0])


def test_an_update_whose_loop_is_gone_is_done_all_the_same(trained: Training) -> None:
    trained.engine.waits_for = 2
    future = trained.engine.push(_push_of_one())

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await outcome(future)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    thread = threading.Thread(target=trained.engine.let_go)
    thread.start()
    thread.join()
    assert future.result(0).lsn == 1


@pytest.mark.parametrize(
    ("path", "media_type", "body"),
    [
        (EMBEDDING + "ScatterAdd", PROTO, request(ONE).SerializeToString()),
        ("/v1/tables/items:scatterAdd", JSON, b'{"ids": [1], "values": [[1, 1, 1, 1]]}'),
    ],
)
def test_a_client_that_leaves_does_not_call_its_update_back(
    trained: Training, trained_url: str, path: str, media_type: str, body: bytes
) -> None:
    trained.engine.waits_for = 2
    address = urlsplit(trained_url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\n"
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: bool(trained.engine.asked.pushes), "the update arrived")
    # Once another client is answered, the server has seen that the first one left.
    with httpx.Client(base_url=trained_url) as other:
        assert other.get("/healthz").status_code == 200
    trained.engine.let_go()
    wait_until(lambda: trained.admission.in_flight == 0, "the place is free again")
    np.testing.assert_array_equal(trained.engine.rows["items"][1], ONES[0])


def _push_of_one() -> Any:
    return proto_updates.push(UpdateOp.SCATTER_ADD, request(ONE), LIMITS)


# Changes

SGD = table_pb2.Optimizer(name="sgd", options={"lr": 0.1})
SPEC = OptimizerSpec("sgd", {"lr": 0.1})
SCALING = Initializer.parse("variance_scaling", {"scale": 0.5, "mode": "fan_out"})


@pytest.mark.parametrize(
    ("name", "message", "change"),
    [
        (
            "CreateTable", table_pb2.CreateTableRequest(table="new", rows=5, dim=3),
            CreateTable("new", 5, 3, DType.FLOAT32, Initializer.parse("uniform"), None, None),
        ),
        (
            "CreateTable",
            table_pb2.CreateTableRequest(
                table="new", rows=5, dim=3, dtype="DTYPE_FLOAT64", init="zeros", seed=0,
                optimizer=SGD,
            ),
            CreateTable("new", 5, 3, DType.FLOAT64, Initializer.parse("zeros"), 0, SPEC),
        ),
        (
            "CreateTable",
            table_pb2.CreateTableRequest(
                table="new", rows=5, dim=3, init="variance_scaling",
                init_parameters={"scale": 0.5}, init_words={"mode": "fan_out"},
            ),
            CreateTable("new", 5, 3, DType.FLOAT32, SCALING, None, None),
        ),
        (
            "CreateTable", table_pb2.CreateTableRequest(table="new", staged=STAGED),
            AddStaged("new", STAGED),
        ),
        ("DeleteTable", table_pb2.DeleteTableRequest(table="items"), DeleteTable("items")),
        ("Publish", table_pb2.PublishRequest(table="items"), Publish("items")),
        (
            "Publish", table_pb2.PublishRequest(table="items", staged=STAGED, if_version=3),
            Publish("items", STAGED, 3),
        ),
        (
            "Rollback", table_pb2.RollbackRequest(table="items", version=2, if_version=3),
            Rollback("items", 2, 3),
        ),
        (
            "SetOptimizer",
            table_pb2.SetOptimizerRequest(table="items", optimizer=SGD, if_version=3),
            SetOptimizer("items", SPEC, 3),
        ),
    ],
)  # fmt: skip
def test_changes_reach_the_engine(
    train: Any, trained: Training, name: str, message: Any, change: Any
) -> None:
    response = post(train, TABLES + name, message)
    assert response.status_code == 200, response.text
    reply = table_pb2.ChangeResponse.FromString(response.content)
    assert (reply.version, reply.lsn) == (VERSION + 1, 77)
    assert trained.engine.asked.changes == [change]


def test_a_snapshot_is_answered_with_its_folder(train: Any, trained: Training) -> None:
    response = train("POST", TABLES + "Snapshot", json={"name": "monday"})
    assert response.json() == {"path": "/snapshots/monday", "lsn": "78"}
    assert trained.engine.asked.snapshots == ["monday"]


@pytest.mark.parametrize(
    ("name", "message", "says"),
    [
        ("CreateTable", table_pb2.CreateTableRequest(table="a", rows=1), "dim is 0"),
        ("CreateTable", table_pb2.CreateTableRequest(table="a", rows=2**63, dim=1), "rows is"),
        ("CreateTable", table_pb2.CreateTableRequest(table="a", rows=2**48, dim=2**20), "no file"),
        (
            "CreateTable",
            table_pb2.CreateTableRequest(table="a", rows=1, dim=1, dtype="DTYPE_INT8"),
            "rows can't be stored in dtype DTYPE_INT8",
        ),
        (
            "CreateTable",
            table_pb2.CreateTableRequest(table="a", staged="b", seed=0),
            "seed can't be given with staged",
        ),
        ("CreateTable", table_pb2.CreateTableRequest(table="a", staged="../b"), "'../b'"),
        (
            "CreateTable",
            table_pb2.CreateTableRequest(
                table="a", rows=1, dim=1, optimizer=table_pb2.Optimizer(options={"lr": 1})
            ),
            "no name",
        ),
        ("Publish", table_pb2.PublishRequest(table="a", staged="/etc"), "'/etc'"),
        ("SetOptimizer", table_pb2.SetOptimizerRequest(table="a"), "no optimizer"),
        (
            "SetOptimizer",
            table_pb2.SetOptimizerRequest(
                table="a",
                optimizer=table_pb2.Optimizer(name="sgd", options={"lr": float("nan")}),
            ),
            "lr is nan",
        ),
        ("Snapshot", table_pb2.SnapshotRequest(name="../up"), "can't name a snapshot"),
    ],
)
def test_wrong_changes_are_named(
    train: Any, trained: Training, name: str, message: Any, says: str
) -> None:
    assert says in refused(post(train, TABLES + name, message))
    assert not trained.engine.asked.changes
    assert not trained.engine.asked.snapshots


def test_a_trained_table_tells_how_and_which_versions_it_has(train: Any) -> None:
    response = post(train, TABLES + "GetTable", table_pb2.GetTableRequest(table="items"))
    table = table_pb2.GetTableResponse.FromString(response.content).table
    assert list(table.versions) == [1, VERSION]
    assert table.optimizer == table_pb2.Optimizer(name="sgd", options={"lr": LR})
    assert json.loads(train("POST", TABLES + "ListTables", json={}).content)["tables"]
