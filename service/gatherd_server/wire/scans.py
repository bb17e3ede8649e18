"""The protobuf messages of scans, on gRPC and Connect alike. protobuf writes the bounded pages."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.store.scans import ScanPage, ScanQuery
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.wire.lookups import DTYPE_CODES, put_keys, reply_dtype

_SLOT_DTYPES: Final = {"f": tensor_pb2.DTYPE_FLOAT32, "i": tensor_pb2.DTYPE_INT64}


def scan_query(request: embedding_pb2.ScanRequest) -> ScanQuery:
    """The page that a ScanRequest asks for. InvalidArgument for a dtype that none is sent in."""
    return ScanQuery(
        request.cursor,
        request.limit,
        request.prefix,
        reply_dtype(request.dtype),
        request.with_slots,
        request.version,
    )


def scan_reply(page: ScanPage) -> bytes:
    """A ScanResponse."""
    message = embedding_pb2.ScanResponse(version=page.version, cursor=page.cursor)
    _put(message.ids, tensor_pb2.DTYPE_INT64, page.ids)
    if page.keys is not None:
        put_keys(message.keys, page.keys)
    _put(message.vectors, DTYPE_CODES[page.dtype], page.vectors)
    for name, values in page.slots.items():
        _put(message.slots.add(name=name).values, _SLOT_DTYPES[values.dtype.kind], values)
    return message.SerializeToString()


def _put(tensor: tensor_pb2.Tensor, dtype: tensor_pb2.DType, array: NDArray[Any]) -> None:
    tensor.dtype = dtype
    tensor.shape.extend(array.shape)
    tensor.data = np.ascontiguousarray(array).tobytes()
