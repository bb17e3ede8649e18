"""Pages of rows: the request to bytes, and bytes to the reply."""

from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gatherd._requests.lookups import key_array
from gatherd._requests.scans import PageOfRows, RowBatch, ScanSpec, as_asked
from gatherd._wire.lookups import DTYPE_CODES, keys_of_message
from gatherd._wire.neighbors import array_of
from gatherd._wire.protobuf import unreadable
from gatherd_proto.v1 import embedding_pb2, tensor_pb2

_SLOT_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    tensor_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DTYPE_INT64: np.dtype("<i8"),
}


def encode_scan(spec: ScanSpec) -> bytes:
    """A ScanRequest."""
    query = spec.query
    return embedding_pb2.ScanRequest(
        table=spec.table,
        version=query.version,
        cursor=query.cursor,
        limit=query.limit,
        prefix=query.prefix,
        dtype=DTYPE_CODES[query.dtype],
        with_slots=query.with_slots,
    ).SerializeToString()


def decode_scan(body: memoryview, spec: ScanSpec) -> PageOfRows:
    """The page in a ScanResponse. InternalError when it isn't one, or answers something else."""
    try:
        reply = embedding_pb2.ScanResponse.FromString(bytes(body))
    except DecodeError:
        raise unreadable("it isn't a ScanResponse") from None
    ids = array_of(reply.ids, tensor_pb2.DTYPE_INT64, np.dtype("<i8"), (len(reply.ids.data) // 8,))
    if not (ids[1:] > ids[:-1]).all():
        raise unreadable("its ids aren't ascending")
    if reply.cursor and reply.cursor == spec.query.cursor:
        raise unreadable("its cursor leads to the page that was asked for")
    shape = tuple(reply.vectors.shape)
    if len(shape) != 2 or shape[0] != ids.size:
        raise unreadable(f"vectors of shape {shape} don't belong to {ids.size} ids")
    wire = spec.reply.wire
    vectors = as_asked(array_of(reply.vectors, DTYPE_CODES[wire], wire.storage, shape), spec)
    keys = None
    if reply.HasField("keys"):
        keys = key_array(keys_of_message(reply.keys, ids.shape))
    slots = {slot.name: _slot(slot.values, ids.size) for slot in reply.slots}
    return PageOfRows(RowBatch(ids, keys, vectors, slots), reply.cursor)


def _slot(tensor: tensor_pb2.Tensor, count: int) -> NDArray[Any]:
    shape, dtype = tuple(tensor.shape), _SLOT_DTYPES.get(tensor.dtype)
    if dtype is None or not (shape == (1,) or (len(shape) == 2 and shape[0] == count)):
        raise unreadable(f"a slot of shape {shape} doesn't belong to {count} rows")
    return array_of(tensor, tensor.dtype, dtype, shape)
