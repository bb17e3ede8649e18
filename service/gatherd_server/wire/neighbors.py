"""The protobuf messages of searches for neighbors, on gRPC and Connect alike.

The replies are small, so protobuf itself writes them.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import REPLY_DTYPES, DType, convert
from gatherd.store.ids import array_from_bytes
from gatherd.store.query import K_DEFAULT, Asked, Metric, NeighborsQuery
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.engine.searching import Found
from gatherd_server.wire.lookups import DTYPE_CODES, asked_keys, enum_name, integers, put_keys

_VECTOR_DTYPES: Final[dict[int, DType]] = {DTYPE_CODES[dtype]: dtype for dtype in REPLY_DTYPES}
_METRICS: Final[dict[int, Metric]] = {
    embedding_pb2.METRIC_UNSPECIFIED: Metric.COSINE,
    **{embedding_pb2.Metric.Value(f"METRIC_{one.name}"): one for one in Metric},
}


def query_of(request: embedding_pb2.NeighborsRequest) -> NeighborsQuery:
    """The query of a NeighborsRequest. InvalidArgument for an invalid one."""
    if request.metric not in _METRICS:
        raise InvalidArgument(f"unknown metric {request.metric}")
    asked: Asked | None = None
    vectors = None
    match request.WhichOneof("queries"):
        case "ids":
            asked = integers("ids", request.ids)
        case "keys":
            asked = asked_keys(request.keys)
        case "vectors":
            vectors = _vectors(request.vectors)
        case _:
            raise InvalidArgument("a search has ids, keys or vectors; this one has none of them")
    k = request.k or K_DEFAULT
    return NeighborsQuery(asked, vectors, k, _METRICS[request.metric], request.include_self)


def neighbors_reply(found: Found) -> bytes:
    """A NeighborsResponse."""
    message = embedding_pb2.NeighborsResponse(version=found.version)
    _put(message.ids, tensor_pb2.DTYPE_INT64, found.nearest.ids, "<i8")
    _put(message.scores, tensor_pb2.DTYPE_FLOAT32, found.nearest.scores, "<f4")
    if found.keys is not None:
        put_keys(message.keys, found.keys)
    return message.SerializeToString()


def _vectors(tensor: tensor_pb2.Tensor) -> NDArray[np.float32]:
    dtype = _VECTOR_DTYPES.get(tensor.dtype)
    if dtype is None:
        name = enum_name(tensor_pb2.DType, tensor.dtype)
        known = ", ".join(enum_name(tensor_pb2.DType, number) for number in _VECTOR_DTYPES)
        raise InvalidArgument(f"query vectors can't be in dtype {name}; they can in {known}")
    given = array_from_bytes("vectors", tensor.data, dtype.storage, tuple(tensor.shape))
    if dtype is DType.FLOAT32:
        return given
    vectors = np.empty(given.shape, np.float32)
    convert(given, dtype, vectors, DType.FLOAT32)
    return vectors


def _put(
    tensor: tensor_pb2.Tensor, code: tensor_pb2.DType, array: NDArray[Any], dtype: str
) -> None:
    tensor.dtype = code
    tensor.shape.extend(array.shape)
    tensor.data = array.astype(dtype).tobytes()
