"""Uploads to bytes, and their answers back. A chunk is framed around its rows, which aren't copied.

The messages are those of gatherd_proto/v1/upload.proto.
"""

import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from gatherd._requests.tables import OptimizerGiven, UploadInfo, UploadResult
from gatherd._requests.uploads import Batch, Rows
from gatherd._wire.changes import encode_optimizer
from gatherd._wire.lookups import DTYPE_CODES, keys_parts, sent_strings, tensor_parts
from gatherd._wire.protobuf import Parts, nested, unreadable
from gatherd._wire.updates import Body, pieces, read_message
from gatherd.store.dtypes import DType
from gatherd.store.keys import StringKeys
from gatherd_proto.framing import BYTES, FIXED32, VARINT, tag, varint
from gatherd_proto.v1 import tensor_pb2, upload_pb2

_UPLOAD: Final = tag(1, BYTES)
_OFFSET: Final = tag(2, VARINT)
_CRC32: Final = tag(3, FIXED32)
_KEYS: Final = tag(4, BYTES)
_ROWS: Final = tag(5, BYTES)
_DTYPES: Final = {code: dtype for dtype, code in DTYPE_CODES.items()}


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """What an upload is to become, as the caller asked for it; checked."""

    table: str
    optimizer: OptimizerGiven | None
    default_vector: tuple[float, ...] | None
    publishes: bool
    if_version: int
    allow_nonfinite: bool
    on_duplicate: str
    frozen: bool = False


def encode_begin(upload: str, spec: UploadSpec, rows: Rows) -> bytes:
    """A BeginUploadRequest."""
    default = spec.default_vector
    request = upload_pb2.BeginUploadRequest(
        upload=upload,
        table=spec.table,
        dim=rows.dim,
        dtype=DTYPE_CODES[rows.dtype],
        key_kind=rows.key_kind,
        rows=rows.row_count,
        optimizer=None if spec.optimizer is None else encode_optimizer(spec.optimizer, {}),
        default_vector=None
        if default is None
        else tensor_pb2.Tensor(
            dtype=DTYPE_CODES[DType.FLOAT32],
            shape=[len(default)],
            data=np.array(default, "<f4").tobytes(),
        ),
        publish=spec.publishes,
        if_version=spec.if_version,
        allow_nonfinite=spec.allow_nonfinite,
        frozen=spec.frozen,
        on_duplicate=f"ON_DUPLICATE_{spec.on_duplicate.upper()}",
    )
    return request.SerializeToString()


def encode_chunk(upload: str, offset: int, batch: Batch, dtype: DType) -> Body:
    """A PutChunkRequest, with its checksum."""
    crc, keys = 0, batch.keys
    key_field: Parts = []
    if isinstance(keys, StringKeys):
        sent = sent_strings(keys)
        crc = zlib.crc32(sent.data, zlib.crc32(sent.lengths))
        key_field = nested(_KEYS, keys_parts(keys))
    elif keys is not None:
        keys = np.ascontiguousarray(keys)
        crc = zlib.crc32(keys.data)
        key_field = nested(_KEYS, keys_parts(keys))
    crc = zlib.crc32(batch.rows.data, crc)
    name = upload.encode()
    head = _UPLOAD + varint(len(name)) + name + _OFFSET + varint(offset)
    head += _CRC32 + struct.pack("<I", crc)
    tensor = nested(_ROWS, tensor_parts(batch.rows, DTYPE_CODES[dtype]))
    return pieces([head, *key_field, *tensor])


def encode_get(upload: str) -> bytes:
    """A GetUploadRequest."""
    return upload_pb2.GetUploadRequest(upload=upload).SerializeToString()


def encode_list() -> bytes:
    """A ListUploadsRequest."""
    return upload_pb2.ListUploadsRequest().SerializeToString()


def encode_commit(upload: str) -> bytes:
    """A CommitUploadRequest."""
    return upload_pb2.CommitUploadRequest(upload=upload).SerializeToString()


def encode_cancel(upload: str) -> bytes:
    """A CancelUploadRequest."""
    return upload_pb2.CancelUploadRequest(upload=upload).SerializeToString()


def decode_upload(body: memoryview) -> tuple[UploadInfo, int]:
    """The upload in a GetUploadResponse, and the most bytes of a chunk."""
    reply = read_message(upload_pb2.GetUploadResponse, body)
    return _info(reply.upload), reply.chunk_bytes_max


def decode_put(body: memoryview) -> int:
    """The next row's offset, in a PutChunkResponse."""
    return read_message(upload_pb2.PutChunkResponse, body).next_row


def decode_list(body: memoryview) -> list[UploadInfo]:
    """The uploads in a ListUploadsResponse."""
    return [*map(_info, read_message(upload_pb2.ListUploadsResponse, body).uploads)]


def decode_commit(body: memoryview) -> UploadResult:
    """The result in a CommitUploadResponse."""
    reply = read_message(upload_pb2.CommitUploadResponse, body)
    return UploadResult(reply.version, reply.lsn, reply.rows, reply.duplicates)


def _info(one: upload_pb2.Upload) -> UploadInfo:
    if one.dtype not in _DTYPES:
        raise unreadable(f"an upload has dtype {one.dtype}")
    try:
        expires = datetime.fromtimestamp(one.expires_seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise unreadable(f"an upload can't expire in second {one.expires_seconds}") from None
    return UploadInfo(
        one.upload,
        one.table,
        one.next_row,
        one.rows if one.HasField("rows") else None,
        one.dim,
        _DTYPES[one.dtype].value,
        one.key_kind,
        one.bytes,
        one.publish,
        expires,
    )
