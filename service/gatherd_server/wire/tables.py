"""The protobuf messages about tables and the server's limits, on gRPC and Connect alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from gatherd.store.open_spec import OpenSpec
from gatherd_proto.v1 import table_pb2, tensor_pb2
from gatherd_server.types import Limits, ServerInfo, TableInfo
from gatherd_server.wire.lookups import DTYPE_CODES


def list_tables_reply(infos: Sequence[TableInfo], limits: Limits) -> bytes:
    """A ListTablesResponse."""
    return table_pb2.ListTablesResponse(
        tables=map(_table_message, infos), limits=_limits_message(limits)
    ).SerializeToString()


def get_table_reply(info: TableInfo, limits: Limits) -> bytes:
    """A GetTableResponse."""
    return table_pb2.GetTableResponse(
        table=_table_message(info), limits=_limits_message(limits)
    ).SerializeToString()


def get_server_reply(info: ServerInfo) -> bytes:
    """A GetServerResponse."""
    return table_pb2.GetServerResponse(
        version=info.version, commit=info.commit, ready=info.is_ready, updates=info.updates.value
    ).SerializeToString()


def _table_message(info: TableInfo) -> table_pb2.Table:
    return table_pb2.Table(
        name=info.name,
        rows=info.row_count,
        dim=info.dim,
        dtype=tensor_pb2.DTYPE_UNSPECIFIED if info.dtype is None else DTYPE_CODES[info.dtype],
        version=info.version,
        refused=info.refused,
        trainable=info.trainable,
        key_kind=info.key_kind,
        rows_bytes=info.rows_bytes,
        keys_bytes=info.keys_bytes,
        resident_bytes=info.resident_bytes,
        versions=info.versions,
        optimizer=_optimizer_message(info.optimizer),
        lsn=info.lsn,
        open=None if info.open is None else _open_message(info.open),
    )


def _open_message(spec: OpenSpec) -> table_pb2.OpenOptions:
    return table_pb2.OpenOptions(
        keys=spec.keys,
        rows_max=spec.rows_max,
        on_missing=spec.on_missing,
        admit_after=spec.admit_after,
        on_full=spec.on_full.value,
        ttl_seconds=spec.ttl_seconds or None,
        touch_on_lookup=spec.touch_on_lookup,
        init=spec.init.name,
        seed=spec.seed,
        init_parameters={
            name: value
            for name, value in spec.init.parameters.items()
            if not isinstance(value, str)
        },
        init_words={
            name: value for name, value in spec.init.parameters.items() if isinstance(value, str)
        },
    )


def _optimizer_message(optimizer: Mapping[str, Any] | None) -> table_pb2.Optimizer | None:
    if optimizer is None:
        return None
    options = {
        name: float(value)
        for name, value in optimizer.items()
        if name != "name" and value is not None
    }
    return table_pb2.Optimizer(name=optimizer["name"], options=options)


def _limits_message(limits: Limits) -> table_pb2.Limits:
    return table_pb2.Limits(
        request_bytes_max=limits.request_bytes_max,
        reply_bytes_max=limits.reply_bytes_max,
        ids_max=limits.ids_max,
        tables_max=limits.tables_max,
    )
