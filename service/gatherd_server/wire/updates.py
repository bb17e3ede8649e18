"""The protobuf messages of updates and of changes to tables, as gRPC and Connect both carry them.

Requests become the engine's types; answers are small, so protobuf itself writes them. Field numbers
are those of embedding.proto and table.proto in gatherd_proto/v1.
"""

from typing import Final

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import REPLY_DTYPES, DType
from gatherd.store.ids import array_from_bytes
from gatherd_proto.v1 import embedding_pb2, table_pb2, tensor_pb2
from gatherd_server.data_dir.naming import check_staged
from gatherd_server.snapshots.naming import check_name, optional_name
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    CreateTable,
    DeleteTable,
    DeleteVersion,
    Limits,
    OptimizerSpec,
    Publish,
    Push,
    PushResult,
    RequestId,
    Rollback,
    SetOptimizer,
    SnapshotList,
    SnapshotResult,
    TableUpdate,
    UpdateOp,
)
from gatherd_server.wire import checks
from gatherd_server.wire.lookups import DTYPE_CODES, asked_rows, enum_name

_VALUE_DTYPES: Final[dict[int, DType]] = {DTYPE_CODES[dtype]: dtype for dtype in REPLY_DTYPES}
_TABLE_DTYPES: Final[dict[int, DType]] = {
    tensor_pb2.DTYPE_UNSPECIFIED: DType.FLOAT32,
    **{number: dtype for dtype, number in DTYPE_CODES.items()},
}
_DRAWN_FIELDS: Final = (
    *("rows", "dim", "dtype", "init", "init_parameters", "init_words", "seed", "optimizer"),
    "frozen",
    "open",
)


def push(op: UpdateOp, request: embedding_pb2.UpdateRequest, limits: Limits) -> Push:
    """The push that `request` asks for.

    InvalidArgument, naming the table, for an invalid one; LimitExceeded for too many tables.

    Float32 values stay in the message's own bytes and are read-only.
    """
    limits.check("tables_max", "the update is of", len(request.updates))
    request_id = _request_id(request)
    updates = []
    for update in request.updates:
        try:
            updates.append(_table_update(op, update))
        except InvalidArgument as error:
            raise checks.in_table(error, update.table) from None
    return checks.push(op, updates, request_id)


def _request_id(request: embedding_pb2.UpdateRequest) -> RequestId:
    match request.WhichOneof("request_id"):
        case "sequence":
            given = request.sequence
            return checks.session_sequence(given.session, given.sequence)
        case "idempotency_key":
            return checks.idempotency_key(request.idempotency_key)
    return None


def _table_update(op: UpdateOp, update: embedding_pb2.TableUpdate) -> TableUpdate:
    if update.WhichOneof("rows") is None:
        raise InvalidArgument("the update has neither ids nor keys")
    asked = checks.rows_of(op, asked_rows(update), creates=update.create)
    if op is UpdateOp.DELETE_ROWS:
        if update.HasField("values") or update.HasField("learning_rate"):
            raise InvalidArgument("rows are deleted by key alone; the update has values or a rate")
        return checks.deleted_rows(update.table, asked, update.if_version)
    dtype = _VALUE_DTYPES.get(update.values.dtype)
    if dtype is None:
        name = enum_name(tensor_pb2.DType, update.values.dtype)
        known = ", ".join(enum_name(tensor_pb2.DType, number) for number in _VALUE_DTYPES)
        raise InvalidArgument(f"values can't be in dtype {name}; they can in {known}")
    shape = tuple(update.values.shape)
    values = array_from_bytes("values", update.values.data, dtype.storage, shape)
    has_lr = update.HasField("learning_rate")
    return TableUpdate(
        update.table,
        asked,
        checks.values_of(asked, values, dtype),
        checks.learning_rate(update.learning_rate, op) if has_lr else None,
        update.if_version,
        update.create,
    )


def create_table(request: table_pb2.CreateTableRequest) -> AddStaged | CreateTable:
    """The new table that `request` asks for. InvalidArgument for an invalid one."""
    if request.staged:
        beside = [name for name in _DRAWN_FIELDS if _is_set(request, name)]
        if beside:
            raise InvalidArgument(
                f"a staged table is what its files say; {beside[0]} can't be given with staged"
            )
        return AddStaged(request.table, check_staged(request.staged))
    if request.dtype not in _TABLE_DTYPES:
        name = enum_name(tensor_pb2.DType, request.dtype)
        known = ", ".join(enum_name(tensor_pb2.DType, number) for number in DTYPE_CODES.values())
        raise InvalidArgument(f"rows can't be stored in dtype {name}; they can in {known}")
    if request.HasField("open"):
        return _open_table(request)
    change = CreateTable(
        request.table,
        request.rows,
        request.dim,
        _TABLE_DTYPES[request.dtype],
        checks.initializer(request.init, {**request.init_parameters, **request.init_words}),
        request.seed if request.HasField("seed") else None,
        _optimizer(request.optimizer) if request.HasField("optimizer") else None,
        frozen=request.frozen,
    )
    return checks.drawn_table(change)


def _open_table(request: table_pb2.CreateTableRequest) -> CreateTable:
    given = request.open
    return checks.open_table(
        request.table,
        request.rows,
        request.dim,
        _TABLE_DTYPES[request.dtype],
        _optimizer(request.optimizer) if request.HasField("optimizer") else None,
        checks.open_spec(
            keys=given.keys,
            rows_max=given.rows_max if given.HasField("rows_max") else None,
            seed=request.seed if request.HasField("seed") else None,
            init=checks.initializer(
                request.init, {**request.init_parameters, **request.init_words}
            ),
            on_missing=given.on_missing,
            admit_after=given.admit_after if given.HasField("admit_after") else None,
            on_full=given.on_full,
            ttl_seconds=given.ttl_seconds if given.HasField("ttl_seconds") else None,
            touch_on_lookup=given.touch_on_lookup,
        ),
        frozen=request.frozen,
    )


def _is_set(request: table_pb2.CreateTableRequest, name: str) -> bool:
    return any(field.name == name for field, _ in request.ListFields())


def delete_table(request: table_pb2.DeleteTableRequest) -> DeleteTable:
    """The removal of the table that `request` names."""
    return DeleteTable(request.table)


def publish(request: table_pb2.PublishRequest) -> Publish:
    """The new version that `request` asks for."""
    staged = check_staged(request.staged) if request.staged else ""
    return Publish(request.table, staged, request.if_version)


def rollback(request: table_pb2.RollbackRequest) -> Rollback:
    """The rollback that `request` asks for."""
    return Rollback(request.table, request.version, request.if_version)


def delete_version(request: table_pb2.DeleteVersionRequest) -> DeleteVersion:
    """The removal of the version that `request` names."""
    return checks.deleted_version(request.table, request.version)


def set_optimizer(request: table_pb2.SetOptimizerRequest) -> SetOptimizer:
    """The optimizer that `request` asks for."""
    given = request.optimizer
    spec = checks.changed_optimizer(given.name, dict(given.options))
    return SetOptimizer(request.table, spec, request.if_version)


def _optimizer(message: table_pb2.Optimizer) -> OptimizerSpec:
    return checks.optimizer(message.name, dict(message.options))


def snapshot_name(request: table_pb2.SnapshotRequest) -> str:
    """The name for a snapshot; "" lets the server choose one."""
    return optional_name(request.name)


def push_reply(result: PushResult) -> bytes:
    """An UpdateResponse."""
    return embedding_pb2.UpdateResponse(
        lsn=result.lsn,
        versions=result.versions,
        created=result.created,
        removed=result.removed,
        not_admitted=result.not_admitted,
    ).SerializeToString()


def change_reply(result: ChangeResult) -> bytes:
    """A ChangeResponse."""
    return table_pb2.ChangeResponse(version=result.version, lsn=result.lsn).SerializeToString()


def deleted_snapshot(request: table_pb2.DeleteSnapshotRequest) -> str:
    """The name of the snapshot to delete."""
    return check_name(request.name)


def list_snapshots_reply(listed: SnapshotList) -> bytes:
    """A ListSnapshotsResponse."""
    return table_pb2.ListSnapshotsResponse(
        snapshots=(
            table_pb2.SnapshotInfo(
                name=one.name,
                path=one.path,
                lsn=one.lsn,
                created_seconds=one.created_seconds,
                bytes=one.byte_count,
                damaged=one.damaged,
            )
            for one in listed.snapshots
        )
    ).SerializeToString()


def delete_snapshot_reply(_done: None) -> bytes:
    """A DeleteSnapshotResponse."""
    return table_pb2.DeleteSnapshotResponse().SerializeToString()


def snapshot_reply(result: SnapshotResult) -> bytes:
    """A SnapshotResponse."""
    return table_pb2.SnapshotResponse(path=result.path, lsn=result.lsn).SerializeToString()
