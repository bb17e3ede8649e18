"""Pages of keys: the request to bytes, and bytes to the reply."""

import numpy as np
from google.protobuf.message import DecodeError

from gatherd._requests.keys import KeysSpec
from gatherd._wire.lookups import keys_from
from gatherd._wire.protobuf import unreadable
from gatherd.store.query import FoundKeys
from gatherd_proto.v1 import embedding_pb2, tensor_pb2


def encode_list_keys(spec: KeysSpec) -> bytes:
    """A ListKeysRequest."""
    query = spec.query
    return embedding_pb2.ListKeysRequest(
        table=spec.table,
        prefix=query.prefix,
        limit=query.limit,
        start=query.start,
        version=spec.version,
    ).SerializeToString()


def decode_list_keys(body: memoryview, spec: KeysSpec) -> FoundKeys:
    """The page in a ListKeysResponse. InternalError when it isn't one, or answers something else.

    So a page that doesn't lead on can't make a caller ask for ever.
    """
    try:
        reply = embedding_pb2.ListKeysResponse.FromString(bytes(body))
    except DecodeError:
        raise unreadable("it isn't a ListKeysResponse") from None
    if reply.ids.dtype != tensor_pb2.DTYPE_INT64 or len(reply.ids.data) % 8:
        raise unreadable(f"{len(reply.ids.data)} bytes can't be ids of dtype {reply.ids.dtype}")
    # A copy: the caller owns the array, and may write to it.
    ids = np.frombuffer(reply.ids.data, "<i8").astype(np.int64)
    following = reply.next if reply.HasField("next") else None
    bounds = np.concatenate(([spec.query.start - 1], ids, [] if following is None else [following]))
    if (np.diff(bounds) <= 0).any():
        raise unreadable("its ids aren't ascending from the start that was asked for")
    if spec.version not in (0, reply.version):
        raise unreadable(f"version {reply.version} answered, {spec.version} was asked")
    return FoundKeys(keys_from(reply.keys, ids.shape), ids, following, reply.version)
