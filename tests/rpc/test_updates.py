"""Updates and changes over gRPC, on an engine that has its tables in NumPy."""

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

from gatherd.errors import DiskFull, GatherdError, Overloaded, Unavailable, UpdatesStopped
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd_proto.v1 import (
    embedding_pb2,
    embedding_pb2_grpc,
    status_pb2,
    table_pb2,
    table_pb2_grpc,
    tensor_pb2,
)
from gatherd_server.rpc.server import RpcServer
from gatherd_server.types import (
    CreateTable,
    DeleteTable,
    OptimizerSpec,
    Publish,
    Rollback,
    SessionSequence,
    SetOptimizer,
    UpdateOp,
)
from support.server import wait_until
from support.training_engine import LR, VERSION, Training, training

Code = grpc.StatusCode
OPS = {
    "ScatterAdd": UpdateOp.SCATTER_ADD,
    "ApplyGradients": UpdateOp.APPLY_GRADIENTS,
    "Assign": UpdateOp.ASSIGN,
}
PUSHERS = 32


@pytest.fixture
def trained() -> Training:
    return training(updates_in_flight_max=2 * PUSHERS)


@pytest.fixture
def channel(trained: Training) -> Iterator[grpc.Channel]:
    server = RpcServer(
        trained.engine,
        trained.admission,
        address="127.0.0.1:0",
        threads=1,
        streams_max=0,
        reflection=False,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.start()}", options=options) as channel:
        yield channel
    trained.engine.let_go()
    server.stop(10)


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return embedding_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture
def tables(channel: grpc.Channel) -> Any:
    return table_pb2_grpc.TableServiceStub(channel)  # type: ignore[no-untyped-call]


def tensor(array: Any) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        dtype=f"DTYPE_{array.dtype.name.upper()}", shape=array.shape, data=array.tobytes()
    )


def request(ids: Any, values: Any, **fields: Any) -> embedding_pb2.UpdateRequest:
    update = embedding_pb2.TableUpdate(
        table="items", ids=tensor(np.asarray(ids)), values=tensor(np.asarray(values, np.float32))
    )
    return embedding_pb2.UpdateRequest(updates=[update], **fields)


ONE = request([1], [[1] * 4])


def failure(call: Callable[[], Any], code: grpc.StatusCode, reason: str) -> Any:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    assert error.code() is code, error.details()
    status = status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    assert status_pb2.ErrorInfo.FromString(status.details[0].value).reason == reason
    return error


@pytest.mark.parametrize(("name", "op"), OPS.items())
def test_an_update_reaches_the_engine_as_it_is(
    stub: Any, trained: Training, name: str, op: UpdateOp
) -> None:
    sequence = embedding_pb2.SessionSequence(session=b"s" * 16, sequence=4)
    values = np.arange(8).reshape(2, 1, 4)
    reply = getattr(stub, name)(request([[3], [5]], values, sequence=sequence))
    assert (reply.lsn, list(reply.versions)) == (1, [VERSION])
    (push,) = trained.engine.asked.pushes
    assert push.op is op
    assert push.request_id == SessionSequence(b"s" * 16, 4)
    np.testing.assert_array_equal(push.updates[0].asked, [[3], [5]])
    np.testing.assert_array_equal(push.updates[0].values, values)
    assert trained.engine.rows["items"][[3, 5]].any()


def test_as_many_updates_wait_together_as_a_commit_takes(stub: Any, trained: Training) -> None:
    trained.engine.waits_for = PUSHERS
    calls = [stub.ScatterAdd.future(ONE, timeout=60) for _ in range(PUSHERS)]
    assert sorted(call.result().lsn for call in calls) == list(range(1, PUSHERS + 1))
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [PUSHERS] * 4)


def test_lookups_of_tables_are_answered_while_updates_wait(
    stub: Any, tables: Any, trained: Training
) -> None:
    trained.engine.waits_for = PUSHERS + 1
    calls = [stub.ScatterAdd.future(ONE) for _ in range(PUSHERS)]
    wait_until(lambda: len(trained.engine.asked.pushes) == PUSHERS, "all updates arrived")
    assert tables.GetTable(table_pb2.GetTableRequest(table="items"), timeout=30).table.dim == 4
    assert not any(call.done() for call in calls)
    stub.ScatterAdd(ONE)
    assert [call.result().versions[0] for call in calls] == [VERSION] * PUSHERS


def test_an_update_past_its_deadline_goes_on_and_may_be_done(stub: Any, trained: Training) -> None:
    trained.engine.waits_for = 2
    with pytest.raises(grpc.RpcError) as raised:
        stub.ScatterAdd(ONE, timeout=0.2)
    assert raised.value.code() is Code.DEADLINE_EXCEEDED
    wait_until(lambda: trained.admission.in_flight == 0, "its thread is free again")
    trained.engine.let_go()
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [1] * 4)


def test_a_call_that_is_cancelled_does_not_call_its_update_back(
    stub: Any, trained: Training
) -> None:
    trained.engine.waits_for = 2
    call = stub.ScatterAdd.future(ONE)
    wait_until(lambda: bool(trained.engine.asked.pushes), "the update arrived")
    call.cancel()
    assert stub.ScatterAdd(ONE).lsn == 2
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [2] * 4)


def test_updates_under_way_are_answered_at_stop(trained: Training) -> None:
    trained.engine.waits_for = 2
    server = RpcServer(
        trained.engine,
        trained.admission,
        address="127.0.0.1:0",
        threads=2,
        streams_max=0,
        reflection=False,
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.ScatterAdd.future(ONE)
        wait_until(lambda: bool(trained.engine.asked.pushes), "the update arrived")
        with futures.ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(server.stop, 60)
            trained.engine.let_go()
            assert call.result().lsn == 1
            stopping.result()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (embedding_pb2.UpdateRequest(), "no updates"),
        (request([1, 2], [[1] * 4]), "the ids have (2,), so it must be (2, dim)"),
        (request([1], [[1] * 4], idempotency_key="a\n"), "character 1"),
        (request([1], [[1] * 3]), "dim 4"),
    ],
)
def test_wrong_updates_are_named(stub: Any, trained: Training, message: Any, says: str) -> None:
    error = failure(lambda: stub.Assign(message), Code.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert says in error.details()
    assert not trained.engine.asked.pushes


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (Unavailable("the writer is starting", {}, 0.25), Code.UNAVAILABLE, "0.25"),
        (Overloaded("the queue is full"), Code.RESOURCE_EXHAUSTED, "1"),
        (DiskFull("no room"), Code.RESOURCE_EXHAUSTED, None),
        (UpdatesStopped("the disk failed"), Code.FAILED_PRECONDITION, None),
    ],
)
def test_what_the_writer_says_is_told(
    stub: Any,
    trained: Training,
    error: GatherdError,
    code: grpc.StatusCode,
    retry_after: str | None,
) -> None:
    trained.engine.fails_with = error
    told = failure(lambda: stub.ScatterAdd(ONE), code, error.reason)
    assert dict(told.trailing_metadata()).get("retry-after") == retry_after
    assert trained.admission.in_flight == 0


SGD = table_pb2.Optimizer(name="sgd", options={"lr": 0.1})
SPEC = OptimizerSpec("sgd", {"lr": 0.1})


@pytest.mark.parametrize(
    ("name", "message", "change"),
    [
        (
            "CreateTable",
            table_pb2.CreateTableRequest(table="new", rows=5, dim=3, seed=1, optimizer=SGD),
            CreateTable("new", 5, 3, DType.FLOAT32, Initializer.parse("uniform"), 1, SPEC),
        ),
        ("DeleteTable", table_pb2.DeleteTableRequest(table="items"), DeleteTable("items")),
        ("Publish", table_pb2.PublishRequest(table="items"), Publish("items")),
        ("Rollback", table_pb2.RollbackRequest(table="items"), Rollback("items")),
        (
            "SetOptimizer",
            table_pb2.SetOptimizerRequest(table="items", optimizer=SGD),
            SetOptimizer("items", SPEC),
        ),
    ],
)
def test_changes_reach_the_engine(
    tables: Any, trained: Training, name: str, message: Any, change: Any
) -> None:
    reply = getattr(tables, name)(message)
    assert (reply.version, reply.lsn) == (VERSION + 1, 77)
    assert trained.engine.asked.changes == [change]


def test_a_snapshot_is_answered_with_its_folder(tables: Any, trained: Training) -> None:
    reply = tables.Snapshot(table_pb2.SnapshotRequest())
    assert (reply.path, reply.lsn) == ("/snapshots/unnamed", 78)
    failure(
        lambda: tables.Snapshot(table_pb2.SnapshotRequest(name="a/b")),
        Code.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
    )
    assert trained.engine.asked.snapshots == [""]


def test_a_trained_table_tells_how_and_which_versions_it_has(tables: Any) -> None:
    (items, _) = tables.ListTables(table_pb2.ListTablesRequest()).tables
    assert list(items.versions) == [1, VERSION]
    assert items.optimizer == table_pb2.Optimizer(name="sgd", options={"lr": LR})
