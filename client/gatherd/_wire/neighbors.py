"""Searches for neighbors as messages of the generated classes: a search takes far longer."""

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gatherd._requests.lookups import key_array
from gatherd._requests.neighbors import Neighbors, NeighborsSpec
from gatherd._wire.lookups import keys_of_message, keys_parts, tensor_parts
from gatherd._wire.protobuf import unreadable
from gatherd.store.query import ByKey
from gatherd_proto.v1 import embedding_pb2, tensor_pb2


def encode_neighbors(spec: NeighborsSpec) -> bytes:
    """A NeighborsRequest."""
    query = spec.query
    request = embedding_pb2.NeighborsRequest(
        table=spec.table,
        k=query.k,
        metric=f"METRIC_{query.metric.name}",
        version=spec.version,
        include_self=query.includes_self,
    )
    if query.vectors is not None:
        request.vectors.MergeFromString(b"".join(tensor_parts(query.vectors)))
    elif isinstance(query.asked, ByKey):
        request.keys.MergeFromString(b"".join(keys_parts(query.asked.keys)))
    elif query.asked is not None:
        request.ids.MergeFromString(b"".join(tensor_parts(query.asked)))
    return request.SerializeToString()


def decode_neighbors(body: memoryview, spec: NeighborsSpec) -> Neighbors:
    """Read a NeighborsResponse. InternalError when it isn't one, or answers something else."""
    try:
        reply = embedding_pb2.NeighborsResponse.FromString(bytes(body))
    except DecodeError:
        raise unreadable("it isn't a NeighborsResponse") from None
    shape = tuple(reply.ids.shape)
    if shape[:-1] != spec.query.shape or not shape or shape[-1] > spec.query.k:
        raise unreadable(f"neighbors of shape {shape} don't answer queries of {spec.query.shape}")
    ids = array_of(reply.ids, tensor_pb2.DTYPE_INT64, "<i8", shape)
    scores = array_of(reply.scores, tensor_pb2.DTYPE_FLOAT32, "<f4", shape)
    keys = None
    if reply.HasField("keys"):
        keys = key_array(keys_of_message(reply.keys, shape))
    return Neighbors(ids, scores, keys, reply.version)


def array_of(
    tensor: tensor_pb2.Tensor,
    code: tensor_pb2.DType,
    dtype: str | np.dtype[Any],
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """The array in a tensor. InternalError when it has another dtype, shape or size."""
    count = int(np.prod(shape, dtype=object))
    if (
        tensor.dtype != code
        or tuple(tensor.shape) != shape
        or len(tensor.data) != count * np.dtype(dtype).itemsize
    ):
        raise unreadable(f"{len(tensor.data)} bytes can't be {shape} of dtype {dtype}")
    # A copy: the caller owns the array, and may write to it.
    return np.frombuffer(tensor.data, dtype).reshape(shape).copy()
