"""Changes of tables as the caller asked for them: checked and encoded, before anything is sent.

Which optimizers, options and initializers there are is the server's to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from gatherd._requests.lookups import check_table, check_version
from gatherd._wire.lookups import DTYPE_CODES
from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd_proto.procedures import CREATE_TABLE, DELETE_TABLE, PUBLISH, ROLLBACK, SET_OPTIMIZER
from gatherd_proto.v1 import table_pb2

OptimizerGiven: TypeAlias = str | Mapping[str, str | float]
"""A name, or {"name": …} with options, as TableInfo has it."""

_UINT64_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """A change that is durable and that every reader sees.

    `version` is the one that is live now, 0 for a table that was deleted; `lsn` the change's
    position in the log.
    """

    version: int
    lsn: int


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """A snapshot: its folder on the server's machine, and the last update that is in it."""

    path: str
    lsn: int


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A change to send; `what` says in an error what became of it."""

    method: str
    body: bytes
    what: str


def create_table(
    name: str,
    rows: int,
    dim: int,
    *,
    dtype: DTypeLike,
    init: str,
    seed: int | None,
    optimizer: OptimizerGiven | None,
) -> ChangeRequest:
    """The request of Client.create_table."""
    table, _ = check_table(name)
    request = table_pb2.CreateTableRequest(
        table=table,
        rows=_count("rows", rows),
        dim=_count("dim", dim),
        dtype=DTYPE_CODES[_dtype(dtype)],
        init=_text("init", init),
        seed=None if seed is None else _count("seed", seed),
        optimizer=None if optimizer is None else _optimizer(optimizer, {}),
    )
    return ChangeRequest(CREATE_TABLE.path, request.SerializeToString(), "the table was made")


def add_staged(name: str, staged: str) -> ChangeRequest:
    """The request of Client.add_staged_table."""
    table, _ = check_table(name)
    request = table_pb2.CreateTableRequest(table=table, staged=_text("staged", staged))
    return ChangeRequest(CREATE_TABLE.path, request.SerializeToString(), "the table was made")


def delete_table(name: str) -> ChangeRequest:
    """The request of Client.delete_table."""
    request = table_pb2.DeleteTableRequest(table=check_table(name)[0])
    return ChangeRequest(DELETE_TABLE.path, request.SerializeToString(), "the table was deleted")


def publish(name: str, *, staged: str, if_version: int | None) -> ChangeRequest:
    """The request of Client.publish."""
    request = table_pb2.PublishRequest(
        table=check_table(name)[0],
        staged=_text("staged", staged),
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
    optimizer: OptimizerGiven,
    options: Mapping[str, float],
    *,
    if_version: int | None,
) -> ChangeRequest:
    """The request of Client.set_optimizer."""
    request = table_pb2.SetOptimizerRequest(
        table=check_table(name)[0],
        optimizer=_optimizer(optimizer, options),
        if_version=check_version("if_version", if_version),
    )
    return ChangeRequest(SET_OPTIMIZER.path, request.SerializeToString(), "the optimizer was set")


def encode_snapshot(name: str) -> bytes:
    """A SnapshotRequest."""
    return table_pb2.SnapshotRequest(name=_text("name", name)).SerializeToString()


def _optimizer(given: OptimizerGiven, options: Mapping[str, float]) -> table_pb2.Optimizer:
    merged: dict[str, str | float] = {"name": given} if isinstance(given, str) else {}
    for part in (options, given if isinstance(given, Mapping) else {}):
        for option, value in part.items():
            if option in merged:
                raise InvalidArgument(f"the optimizer's {option} is given twice")
            merged[option] = value
    name = merged.pop("name", None)
    if not isinstance(name, str):
        raise InvalidArgument(
            f'optimizer={given!r} names none: it is a name, or {{"name": "adam", "lr": 0.001}}'
        )
    optimizer = table_pb2.Optimizer(name=_text("optimizer", name))
    for option, value in merged.items():
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
            raise InvalidArgument(f"the optimizer's option {option!r} is a number, not {value!r}")
        optimizer.options[_text("option", option)] = float(value)
    return optimizer


def _count(name: str, value: object) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InvalidArgument(f"{name} is an integer, not {value!r}")
    if not 0 <= value <= _UINT64_MAX:
        raise InvalidArgument(f"{name}={value} isn't possible")
    return int(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is a str, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name}={value!r} can't be written as UTF-8") from None
    return value


def _dtype(name: DTypeLike) -> DType:
    for dtype in DType:
        if dtype.value == name:
            return dtype
    try:
        return DType(np.dtype(name).name)
    except (TypeError, ValueError):
        known = ", ".join(dtype.value for dtype in DType)
        raise InvalidArgument(f"a table can't be stored as {name!r}; it can as {known}") from None
