"""The protobuf messages of uploads, as gRPC and Connect both carry them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.ids import array_from_bytes
from gatherd.store.key_index import KeyKind
from gatherd_proto.v1 import tensor_pb2, upload_pb2
from gatherd_server.data_dir.uploads.spec import (
    Chunk,
    Committed,
    UploadSpec,
    UploadStatus,
    check_upload_id,
)
from gatherd_server.types import OnDuplicate
from gatherd_server.wire import checks
from gatherd_server.wire.lookups import DTYPE_CODES, asked_keys, enum_name

_DTYPES: Final[dict[int, DType]] = {
    tensor_pb2.DTYPE_UNSPECIFIED: DType.FLOAT32,
    **{number: dtype for dtype, number in DTYPE_CODES.items()},
}
_ON_DUPLICATE: Final[dict[int, OnDuplicate]] = {
    upload_pb2.ON_DUPLICATE_UNSPECIFIED: OnDuplicate.ERROR,
    **{upload_pb2.OnDuplicate.Value(f"ON_DUPLICATE_{one.name}"): one for one in OnDuplicate},
}


def begun(request: upload_pb2.BeginUploadRequest) -> tuple[str, UploadSpec]:
    """The name of an upload, "" to have one drawn, and what it is to become."""
    upload = check_upload_id(request.upload) if request.upload else ""
    if request.on_duplicate not in _ON_DUPLICATE:
        raise InvalidArgument(f"unknown on_duplicate {request.on_duplicate}")
    optimizer = None
    if request.HasField("optimizer"):
        optimizer = checks.optimizer(request.optimizer.name, dict(request.optimizer.options))
    return upload, UploadSpec(
        request.table,
        request.dim,
        _dtype(request.dtype),
        key_kind(request.key_kind),
        request.rows if request.HasField("rows") else None,
        optimizer,
        _default_vector(request) if request.HasField("default_vector") else None,
        request.publish,
        request.if_version,
        request.allow_nonfinite,
        _ON_DUPLICATE[request.on_duplicate],
        request.frozen,
    )


def key_kind(name: str) -> KeyKind | None:
    """The kind of keys that a request names, None for ""."""
    try:
        return KeyKind(name) if name else None
    except ValueError:
        known = ", ".join(kind.value for kind in KeyKind)
        raise InvalidArgument(f"keys are {name[:64]!r}; they can be {known}") from None


def chunk(request: upload_pb2.PutChunkRequest) -> Chunk:
    """The rows of a PutChunkRequest, and their keys; in the message's own bytes."""
    keys = None
    key_bytes: tuple[bytes, ...] = ()
    if request.HasField("keys"):
        keys = asked_keys(request.keys).keys
        strings, integers = request.keys.strings, request.keys.integers
        key_bytes = (strings.lengths, strings.data, integers.data)
    dtype = _dtype(request.rows.dtype)
    shape = tuple(request.rows.shape)
    rows: Any = array_from_bytes("rows", request.rows.data, dtype.storage, shape)
    crc = request.crc32 if request.HasField("crc32") else None
    return Chunk(check_upload_id(request.upload), request.offset, rows, dtype, keys, crc, key_bytes)


def _dtype(number: int) -> DType:
    if number not in _DTYPES:
        name = enum_name(tensor_pb2.DType, number)
        known = ", ".join(enum_name(tensor_pb2.DType, number) for number in DTYPE_CODES.values())
        raise InvalidArgument(f"rows can't be stored in dtype {name}; they can in {known}")
    return _DTYPES[number]


def _default_vector(request: upload_pb2.BeginUploadRequest) -> tuple[float, ...]:
    tensor = request.default_vector
    if tensor.dtype != tensor_pb2.DTYPE_FLOAT32 or len(tensor.shape) != 1:
        raise InvalidArgument("default_vector takes a float32 tensor of shape (dim,)")
    vector = array_from_bytes("default_vector", tensor.data, np.dtype("<f4"), tuple(tensor.shape))
    return tuple(vector.tolist())


def get_upload_reply(status: UploadStatus) -> bytes:
    """A GetUploadResponse."""
    return upload_pb2.GetUploadResponse(
        upload=_upload(status), chunk_bytes_max=status.chunk_bytes_max
    ).SerializeToString()


def list_uploads_reply(statuses: Sequence[UploadStatus]) -> bytes:
    """A ListUploadsResponse."""
    return upload_pb2.ListUploadsResponse(uploads=map(_upload, statuses)).SerializeToString()


def put_chunk_reply(next_row: int) -> bytes:
    """A PutChunkResponse."""
    return upload_pb2.PutChunkResponse(next_row=next_row).SerializeToString()


def commit_upload_reply(done: Committed) -> bytes:
    """A CommitUploadResponse."""
    return upload_pb2.CommitUploadResponse(
        version=done.version, lsn=done.lsn, rows=done.row_count, duplicates=done.duplicates
    ).SerializeToString()


def cancel_upload_reply(_done: None) -> bytes:
    """A CancelUploadResponse."""
    return upload_pb2.CancelUploadResponse().SerializeToString()


def _upload(status: UploadStatus) -> upload_pb2.Upload:
    spec = status.spec
    return upload_pb2.Upload(
        upload=status.upload,
        table=spec.table,
        dim=spec.dim,
        dtype=DTYPE_CODES[spec.dtype],
        key_kind=spec.key_kind.value if spec.key_kind else "",
        rows=spec.row_count,
        publish=spec.publishes,
        next_row=status.next_row,
        bytes=status.byte_count,
        expires_seconds=status.expires_seconds,
        committing=status.is_committing,
    )
