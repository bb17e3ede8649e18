"""Pages of keys: the request to bytes, and bytes to the reply."""

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gatherd._requests.keys import KeysSpec
from gatherd._requests.lookups import LookupSpec
from gatherd._wire.lookups import keys_of_message, keys_parts
from gatherd._wire.protobuf import nested, unreadable
from gatherd.store.query import ByKey, FoundKeys, Missing
from gatherd_proto.framing import BYTES, tag
from gatherd_proto.v1 import embedding_pb2, tensor_pb2

_IDS_OF_KEYS = tag(2, BYTES)


def encode_ids_of(spec: LookupSpec, version: int) -> bytes:
    """An IdsOfRequest for the keys of `spec`, which has ids without a row if it isn't ERROR."""
    assert isinstance(spec.asked, ByKey)
    head = embedding_pb2.IdsOfRequest(
        table=spec.table, version=version, allow_missing=spec.missing is not Missing.ERROR
    )
    # Fields may stand in any order.
    keys = nested(_IDS_OF_KEYS, keys_parts(spec.asked.keys))
    return b"".join((head.SerializeToString(), *keys))


def decode_ids_of(body: memoryview, spec: LookupSpec) -> tuple[NDArray[np.int64], int]:
    """The flat ids in an IdsOfResponse, and the version. InternalError when it isn't one."""
    try:
        reply = embedding_pb2.IdsOfResponse.FromString(bytes(body))
    except DecodeError:
        raise unreadable("it isn't an IdsOfResponse") from None
    size = spec.asked.size
    if reply.ids.dtype != tensor_pb2.DTYPE_INT64 or len(reply.ids.data) != size * 8:
        raise unreadable(f"{len(reply.ids.data)} bytes can't be the ids of {size} keys")
    ids = np.frombuffer(reply.ids.data, "<i8").astype(np.int64)
    if int(ids.min(initial=0)) < (0 if spec.missing is Missing.ERROR else -1):
        raise unreadable("a key has a negative id")
    return ids, reply.version


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
    start = spec.query.start
    is_ascending = bool((ids[1:] > ids[:-1]).all()) and (not ids.size or int(ids[0]) >= start)
    last = int(ids[-1]) if ids.size else start
    if not is_ascending or (following is not None and following <= last):
        raise unreadable("its ids aren't ascending from the start that was asked for")
    if spec.version not in (0, reply.version):
        raise unreadable(f"version {reply.version} answered, {spec.version} was asked")
    return FoundKeys(keys_of_message(reply.keys, ids.shape), ids, following, reply.version)
