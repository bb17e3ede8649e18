"""The messages between workers and the writer, over their Unix socket.

    offset  bytes  field
    0       4      bytes after this field, little-endian
    4       1      kind: see MessageKind
    5       8      number: a request's, repeated by its answer
    13      n      a record (storage/records.py)

A push is {"op", "id", "digest", "traceparent", "updates": [[table, rows, shape, lr, if_version,
creates], …]}, with two or three arrays for each update: its ids, integer keys, or the data and
offsets of string keys ("rows" is "ids", "keys" or "strings"), and its values. A change is its
class's name and its fields. An answer has "result", or "error" with the fields of a GatherdError.
"""

from dataclasses import asdict, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import GatherdError, InternalError, RetryableError, by_reason
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.keys import StringKeys
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import Asked, ByKey
from gatherd_server.storage.records import Record, pack, unpack
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    CreateTable,
    DeleteTable,
    DeleteVersion,
    OptimizerSpec,
    Publish,
    Push,
    PushResult,
    Rollback,
    SetOptimizer,
    SnapshotInfo,
    SnapshotList,
    SnapshotResult,
    TableChange,
    TableUpdate,
    UpdateOp,
)
from gatherd_server.writer.commit import Submitted
from gatherd_server.writer.window import request_id_from_json, request_id_to_json

HEAD_BYTES = 13
MESSAGE_BYTES_MAX = 2 << 30

Result = PushResult | ChangeResult | SnapshotResult | SnapshotList | None
_CHANGES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        *(AddStaged, CreateTable, DeleteTable, DeleteVersion),
        *(Publish, Rollback, SetOptimizer),
    )
}
_RESULTS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (PushResult, ChangeResult, SnapshotResult, SnapshotList)
}


class MessageKind(IntEnum):
    """The kind of a message."""

    PUSH = 1  # worker to writer
    CHANGE = 2  # worker to writer
    SNAPSHOT = 3  # worker to writer
    PREPARE = 4  # writer to worker: map a version before it becomes live
    ANSWER = 5  # either way, to the message of the same number
    PING = 6  # worker to writer, and back with {"step": the committer's or null, "is_full"}
    LIST_SNAPSHOTS = 7  # worker to writer
    DELETE_SNAPSHOT = 8  # worker to writer
    UNUSED = 9  # writer to worker: whether no lookup names a version


def message_parts(
    kind: MessageKind, number: int, parts: list[bytes | memoryview]
) -> list[bytes | memoryview]:
    """The parts of a message."""
    byte_count = HEAD_BYTES - 4 + sum(len(part) for part in parts)
    head = byte_count.to_bytes(4, "little") + bytes((kind,)) + number.to_bytes(8, "little")
    return [head, *parts]


class MessageReader:
    """Reads messages from the bytes of a stream, in whatever pieces they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[MessageKind, int, Record]]:
        """The messages that `data` completes. BadFile or ValueError for any other bytes."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= HEAD_BYTES:
            end = 4 + int.from_bytes(self._buffer[:4], "little")
            if end > MESSAGE_BYTES_MAX or end < HEAD_BYTES:
                raise ValueError(f"a message of {end} bytes")
            if len(self._buffer) < end:
                break
            kind, number = (
                MessageKind(self._buffer[4]),
                int.from_bytes(self._buffer[5:13], "little"),
            )
            # The copy begins at a multiple of 8 bytes, so that the arrays are aligned.
            body = bytes(memoryview(self._buffer)[HEAD_BYTES:end])
            del self._buffer[:end]
            messages.append((kind, number, unpack(memoryview(body), "a message")))
        return messages


def pack_push(submitted: Submitted) -> list[bytes | memoryview]:
    """A push as a record."""
    push = submitted.push
    updates = []
    arrays: list[NDArray[Any]] = []
    for update in push.updates:
        rows, own = _rows(update.asked)
        lr = None if update.lr is None else float(update.lr)
        updates.append(
            [update.table, rows, update.asked.shape, lr, update.if_version, update.creates]
        )
        arrays += [*own, np.ascontiguousarray(update.values, "<f4")]
    directory = {
        "op": push.op.value,
        "id": request_id_to_json(push.request_id),
        "digest": submitted.digest.hex(),
        "traceparent": push.traceparent,
        "updates": updates,
    }
    return pack(directory, arrays)


def _rows(asked: Asked) -> tuple[str, list[NDArray[Any]]]:
    if not isinstance(asked, ByKey):
        return "ids", [np.ascontiguousarray(asked)]
    keys = asked.keys
    if isinstance(keys, StringKeys):
        return "strings", [np.ascontiguousarray(keys.data), np.ascontiguousarray(keys.offsets)]
    return "keys", [np.ascontiguousarray(keys)]


def unpack_push(record: Record) -> Submitted:
    """The push that `pack_push` packed."""
    directory = record.directory
    arrays = iter(record.arrays)
    updates = []
    for table, rows, listed_shape, lr, if_version, creates in directory["updates"]:
        shape = tuple(listed_shape)
        asked: Asked
        if rows == "strings":
            data, offsets = next(arrays), next(arrays)
            asked = ByKey(StringKeys(data, offsets, shape))
        elif rows == "keys":
            asked = ByKey(next(arrays).reshape(shape))
        else:
            asked = next(arrays).reshape(shape)
        updates.append(TableUpdate(table, asked, next(arrays), lr, if_version, creates))
    request_id = request_id_from_json(directory["id"])
    push = Push(UpdateOp(directory["op"]), tuple(updates), request_id, directory["traceparent"])
    return Submitted(push, bytes.fromhex(directory["digest"]))


def pack_change(change: TableChange) -> list[bytes | memoryview]:
    """A change as a record."""
    if isinstance(change, CreateTable):
        fields = asdict(replace(change, open=None))
        fields["dtype"] = change.dtype.value
        fields["open"] = None if change.open is None else change.open.to_json()
        fields["init"] = change.init.to_json()
    else:
        fields = asdict(change)
    return pack({"change": type(change).__name__, "fields": fields}, [])


def unpack_change(record: Record) -> TableChange:
    """The change that `pack_change` packed."""
    fields = dict(record.directory["fields"])
    if fields.get("optimizer") is not None:
        fields["optimizer"] = OptimizerSpec(**fields["optimizer"])
    if "dtype" in fields:
        fields["dtype"] = DType(fields["dtype"])
        fields["init"] = Initializer.from_json(fields["init"])
    if fields.get("open") is not None:
        fields["open"] = OpenSpec.from_json(fields["open"])
    change: TableChange = _CHANGES[record.directory["change"]](**fields)
    return change


def pack_result(result: Result) -> list[bytes | memoryview]:
    """An answer as a record."""
    fields = None if result is None else asdict(result)
    return pack({"result": type(result).__name__, "fields": fields}, [])


def pack_error(error: GatherdError) -> list[bytes | memoryview]:
    """An error as the record of an answer."""
    retry_after = error.retry_after_seconds if isinstance(error, RetryableError) else None
    return pack(
        {"error": [error.reason, error.message, error.metadata, retry_after]},
        [],
    )


def unpack_answer(record: Record) -> Any:
    """The result, or the error to raise."""
    if "error" not in record.directory:
        cls = _RESULTS.get(record.directory["result"])
        if cls is None:
            return None
        fields = record.directory["fields"]
        if cls is PushResult:
            lsn = fields.pop("lsn")
            return PushResult(lsn, **{name: tuple(listed) for name, listed in fields.items()})
        if cls is SnapshotList:
            return SnapshotList(tuple(SnapshotInfo(**one) for one in fields["snapshots"]))
        return cls(**fields)
    reason, message, metadata, retry_after = record.directory["error"]
    known = by_reason(reason) or InternalError
    if issubclass(known, RetryableError):
        return known(message, metadata, retry_after)
    return known(message, metadata)
