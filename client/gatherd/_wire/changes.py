"""Changes of tables to bytes: the arguments are checked before anything is sent."""

from collections.abc import Mapping
from dataclasses import dataclass

from numpy.typing import DTypeLike

from gatherd._requests.lookups import check_table, check_version
from gatherd._requests.tables import (
    InitGiven,
    OpenGiven,
    OptimizerGiven,
    check_count,
    check_flag,
    check_initializer,
    check_optimizer,
    check_stored_dtype,
    check_text,
)
from gatherd._wire.lookups import DTYPE_CODES
from gatherd.errors import InvalidArgument
from gatherd_proto.procedures import (
    CREATE_TABLE,
    DELETE_TABLE,
    DELETE_VERSION,
    PUBLISH,
    ROLLBACK,
    SET_OPTIMIZER,
)
from gatherd_proto.v1 import table_pb2


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A change to send; `what` names its effect in an error that leaves the outcome unknown."""

    method: str
    body: bytes
    what: str


def create_table(
    name: str,
    rows: object,
    dim: object,
    *,
    dtype: DTypeLike | None,
    init: InitGiven,
    seed: int | None,
    optimizer: OptimizerGiven | None,
    frozen: bool,
    opened: OpenGiven | None,
) -> ChangeRequest:
    """The request of Client.create_table."""
    table, _ = check_table(name)
    initializer, numbers, words = check_initializer(init)
    request = table_pb2.CreateTableRequest(
        table=table,
        rows=0 if opened is not None else check_count("rows", rows),
        dim=check_count("dim", dim),
        dtype=DTYPE_CODES[check_stored_dtype("float32" if dtype is None else dtype)],
        init=initializer,
        init_parameters=numbers,
        init_words=words,
        seed=None if seed is None else check_count("seed", seed),
        optimizer=None if optimizer is None else encode_optimizer(optimizer, {}),
        frozen=check_flag("frozen", frozen),
        open=None if opened is None else _encode_open(opened),
    )
    return ChangeRequest(CREATE_TABLE.path, request.SerializeToString(), "the table was made")


def add_staged(name: str, staged: str) -> ChangeRequest:
    """The request of Client.add_staged_table."""
    table, _ = check_table(name)
    request = table_pb2.CreateTableRequest(table=table, staged=check_text("staged", staged))
    return ChangeRequest(CREATE_TABLE.path, request.SerializeToString(), "the table was made")


def delete_table(name: str) -> ChangeRequest:
    """The request of Client.delete_table."""
    request = table_pb2.DeleteTableRequest(table=check_table(name)[0])
    return ChangeRequest(DELETE_TABLE.path, request.SerializeToString(), "the table was deleted")


def publish(name: str, *, staged: str, if_version: int | None) -> ChangeRequest:
    """The request of Client.publish."""
    request = table_pb2.PublishRequest(
        table=check_table(name)[0],
        staged=check_text("staged", staged),
        if_version=check_version("if_version", if_version),
    )
    return ChangeRequest(PUBLISH.path, request.SerializeToString(), "the version was published")


def rollback(name: str, version: int | None, *, if_version: int | None) -> ChangeRequest:
    """The request of Client.rollback."""
    request = table_pb2.RollbackRequest(
        table=check_table(name)[0],
        version=check_version("version", version),
        if_version=check_version("if_version", if_version),
    )
    return ChangeRequest(ROLLBACK.path, request.SerializeToString(), "the table was rolled back")


def set_optimizer(
    name: str,
    optimizer: OptimizerGiven | None,
    options: Mapping[str, float],
    *,
    if_version: int | None,
) -> ChangeRequest:
    """The request of Client.set_optimizer."""
    request = table_pb2.SetOptimizerRequest(
        table=check_table(name)[0],
        optimizer=encode_optimizer(optimizer, options),
        if_version=check_version("if_version", if_version),
    )
    return ChangeRequest(SET_OPTIMIZER.path, request.SerializeToString(), "the optimizer was set")


def delete_version(name: str, version: int) -> ChangeRequest:
    """The request of Client.delete_version."""
    if version is None:
        raise InvalidArgument("version is None; name the superseded version to delete")
    request = table_pb2.DeleteVersionRequest(
        table=check_table(name)[0], version=check_version("version", version)
    )
    return ChangeRequest(DELETE_VERSION.path, request.SerializeToString(), "it was deleted")


def encode_get_server() -> bytes:
    """A GetServerRequest."""
    return table_pb2.GetServerRequest().SerializeToString()


def encode_list_snapshots() -> bytes:
    """A ListSnapshotsRequest."""
    return table_pb2.ListSnapshotsRequest().SerializeToString()


def encode_delete_snapshot(name: str) -> bytes:
    """A DeleteSnapshotRequest."""
    return table_pb2.DeleteSnapshotRequest(name=check_text("name", name)).SerializeToString()


def encode_snapshot(name: str) -> bytes:
    """A SnapshotRequest."""
    return table_pb2.SnapshotRequest(name=check_text("name", name)).SerializeToString()


def _encode_open(given: OpenGiven) -> table_pb2.OpenOptions:
    if given.admit_after >= 2**32:
        raise InvalidArgument(f"admit_after={given.admit_after} isn't possible")
    return table_pb2.OpenOptions(
        keys=given.keys,
        rows_max=given.rows_max,
        on_missing=given.on_missing,
        admit_after=given.admit_after,
        on_full=given.on_full,
        ttl_seconds=given.ttl_seconds,
        touch_on_lookup=given.touch_on_lookup,
    )


def encode_optimizer(
    given: OptimizerGiven | None, options: Mapping[str, float]
) -> table_pb2.Optimizer:
    """An Optimizer message. InvalidArgument for what isn't an optimizer."""
    name, checked = check_optimizer(given, options)
    return table_pb2.Optimizer(name=name, options=checked)
