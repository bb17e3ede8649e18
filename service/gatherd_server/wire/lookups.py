"""The protobuf messages of lookups, on gRPC and Connect alike.

The generated classes parse requests. Replies are framed by hand around the vectors, so that vectors
are never copied into a message: each reply is a list of parts, headers and buffers in turn, to be
written one after another. Every field but the vectors' data comes first, so a reader knows shape
and dtype before the first row arrives. Field numbers are those of embedding.proto and tensor.proto
in gatherd_proto/v1; a test compares every frame with that of the generated classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument, MalformedRequest
from gatherd.store.bags import check_offsets, check_weights
from gatherd.store.dtypes import REPLY_DTYPES, DType
from gatherd.store.ids import array_from_bytes
from gatherd.store.keys import Keys, StringKeys, string_keys_from_wire
from gatherd.store.query import (
    BAG_POLICIES,
    ROW_POLICIES,
    Asked,
    BagsQuery,
    ByKey,
    FoundKeys,
    KeyQuery,
    Missing,
    Pooling,
    VectorForm,
    parse_missing,
)
from gatherd.store.table import Gathered
from gatherd_proto import framing
from gatherd_proto.framing import dtype_code, varint
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.types import Limits, Lookup
from gatherd_server.wire.bounds import check_fields

Part = bytes | memoryview

# Batches come in a few sizes: their heads are kept, about 200 bytes each.
HEADS_MAX: Final = 1024
# Requests kept to recognize their like; for larger ones parsing is a small part of the cost.

_ID_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    dtype_code(dtype.name): dtype
    for dtype in (np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8))
}
DTYPE_CODES: Final = {dtype: dtype_code(dtype.value) for dtype in DType}
_REPLY_DTYPES: Final[dict[int, DType]] = {
    tensor_pb2.DTYPE_UNSPECIFIED: DType.FLOAT32,
    **{DTYPE_CODES[dtype]: dtype for dtype in REPLY_DTYPES},
}
_KEY_DTYPES: Final = {"i": tensor_pb2.DTYPE_INT64, "u": tensor_pb2.DTYPE_UINT64}
_MISSING: Final[dict[int, Missing]] = {
    embedding_pb2.MISSING_UNSPECIFIED: Missing.ERROR,
    **{embedding_pb2.Missing.Value(f"MISSING_{one.name}"): one for one in Missing},
}
_POOLING: Final[dict[int, Pooling]] = {
    embedding_pb2.POOLING_UNSPECIFIED: Pooling.SUM,
    **{embedding_pb2.Pooling.Value(f"POOLING_{one.name}"): one for one in Pooling},
}

M = TypeVar("M", bound=Message)


def parse(message: M, body: bytes, limits: Limits) -> M:
    """Fill `message` from `body`, after `check_fields`, whose errors it raises.

    MalformedRequest when `body` isn't such a message.
    """
    check_fields(type(message), body, limits)
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        name = message.DESCRIPTOR.full_name
        raise MalformedRequest(f"the body isn't a {name} in protobuf: {error}") from None
    return message


def lookups_of(request: embedding_pb2.LookupManyRequest, limits: Limits) -> list[Lookup]:
    """Lookups of many tables. LimitExceeded; InvalidArgument for an invalid one."""
    limits.check("tables_max", "the request asks for", len(request.lookups))
    return [*map(lookup_of, request.lookups)]


def bag_lookups_of(request: embedding_pb2.LookupBagsManyRequest, limits: Limits) -> list[Lookup]:
    """Bags of many tables, as `lookups_of`."""
    limits.check("tables_max", "the request asks for", len(request.bags))
    return [*map(bag_lookup_of, request.bags)]


def lookup_of(request: embedding_pb2.LookupRequest) -> Lookup:
    """One lookup as the engine takes it. InvalidArgument for an invalid one."""
    return Lookup(
        request.table,
        asked_rows(request),
        reply_dtype(request.dtype),
        _missing(request.missing, ROW_POLICIES),
        request.version,
        None,
        _form(request),
        request.with_lsn,
    )


def bag_lookup_of(request: embedding_pb2.LookupBagsRequest) -> Lookup:
    """Bags of one table as the engine takes them. InvalidArgument for invalid ones."""
    lookup = request.lookup
    asked = asked_rows(lookup)
    if len(asked.shape) != 1:
        raise InvalidArgument(f"bags take flat ids or keys; these have shape {asked.shape}")
    if request.pooling not in _POOLING:
        raise InvalidArgument(f"unknown pooling mode {request.pooling}")
    pooling = _POOLING[request.pooling]
    weights = _weights(request.weights) if request.HasField("weights") else None
    query = BagsQuery(
        check_offsets(integers("offsets", request.offsets), asked.size),
        pooling,
        check_weights(weights, asked.size, pooling),
        request.padding_id if request.HasField("padding_id") else None,
    )
    missing = _missing(lookup.missing, BAG_POLICIES)
    return Lookup(
        lookup.table,
        asked,
        reply_dtype(lookup.dtype),
        missing,
        lookup.version,
        query,
        _form(lookup),
        lookup.with_lsn,
    )


def keys_of_request(
    request: embedding_pb2.KeysOfRequest,
) -> tuple[str, NDArray[np.integer[Any]], int]:
    """The table, ids and version of a KeysOfRequest."""
    return request.table, integers("ids", request.ids), request.version


def asked_rows(request: embedding_pb2.LookupRequest | embedding_pb2.TableUpdate) -> Asked:
    """The ids or keys of one table's part. InvalidArgument for invalid ones."""
    if request.WhichOneof("rows") != "keys":
        return integers("ids", request.ids)
    return asked_keys(request.keys)


def asked_keys(keys: tensor_pb2.Keys) -> ByKey:
    """The keys of a message. InvalidArgument for invalid ones."""
    match keys.WhichOneof("kind"):
        case "strings":
            shape = tuple(keys.strings.shape)
            return ByKey(string_keys_from_wire(keys.strings.data, keys.strings.lengths, shape))
        case "integers":
            return ByKey(integers("keys", keys.integers))
    raise InvalidArgument("keys are neither strings nor integers")


def ids_of_request(request: embedding_pb2.IdsOfRequest) -> tuple[str, Keys, int]:
    """The table, keys and version of an IdsOfRequest."""
    return request.table, asked_keys(request.keys).keys, request.version


def ids_reply(ids: NDArray[np.int64], version: int) -> bytes:
    """An IdsOfResponse."""
    message = embedding_pb2.IdsOfResponse(version=version, ids=_ids_tensor(ids))
    return message.SerializeToString()


def _ids_tensor(ids: NDArray[np.int64]) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.DTYPE_INT64, shape=ids.shape, data=ids.astype("<i8").tobytes()
    )


def reply_dtype(number: int) -> DType:
    """The dtype that a reply is asked in. InvalidArgument for one that it can't be in."""
    if number not in _REPLY_DTYPES:
        raise InvalidArgument(
            f"a lookup can't be answered in dtype {enum_name(tensor_pb2.DType, number)}; "
            "it can in DTYPE_FLOAT32, DTYPE_FLOAT16 and DTYPE_BFLOAT16"
        )
    return _REPLY_DTYPES[number]


def _form(request: embedding_pb2.LookupRequest) -> VectorForm | None:
    if not request.dims and not request.normalize:
        return None
    return VectorForm(request.dims, request.normalize)


def _missing(number: int, policies: tuple[Missing, ...]) -> Missing:
    missing = _MISSING.get(number)
    if missing is Missing.ERROR:
        return missing
    if missing is None:
        raise InvalidArgument(f"unknown missing policy {number}")
    return parse_missing(missing.value, policies)


def _weights(tensor: tensor_pb2.Tensor) -> NDArray[np.float32]:
    if tensor.dtype != tensor_pb2.DTYPE_FLOAT32:
        name = enum_name(tensor_pb2.DType, tensor.dtype)
        raise InvalidArgument(f"weights must be float32, not {name}")
    return array_from_bytes("weights", tensor.data, np.dtype("<f4"), tuple(tensor.shape))


def integers(name: str, tensor: tensor_pb2.Tensor) -> NDArray[np.integer[Any]]:
    """A tensor of integers, uncopied. InvalidArgument, calling it `name`, for another one."""
    dtype = _ID_DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidArgument(
            f"{name} must be integers, not {enum_name(tensor_pb2.DType, tensor.dtype)}"
        )
    return array_from_bytes(name, tensor.data, dtype, tuple(tensor.shape))


def enum_name(enum: Any, value: int) -> str:
    """The name of a number of the generated `enum`, for a message."""
    name: str = enum.Name(value) if value in enum.values() else f"{value}, which is none"
    return name


def lookup_reply(gathered: Gathered) -> list[Part]:
    """A LookupResponse."""
    return list(_lookup_response(gathered))


def lookup_many_reply(many: Sequence[Gathered]) -> list[Part]:
    """A LookupManyResponse."""
    parts: list[Part] = []
    for gathered in many:
        parts.extend(_nested(framing.LOOKUPS, _lookup_response(gathered)))
    return parts


def stream_reply(request_id: int, gathered: Gathered) -> list[Part]:
    """A LookupStreamResponse that holds a lookup."""
    head = framing.STREAM_ID + varint(request_id) if request_id else b""
    return [head, *_nested(framing.STREAM_LOOKUP, _lookup_response(gathered))]


def list_keys_request(request: embedding_pb2.ListKeysRequest) -> tuple[str, KeyQuery, int]:
    """The table, query and version of a ListKeysRequest."""
    query = KeyQuery(request.prefix, request.limit, request.start)
    return request.table, query, request.version


def keys_reply(keys: Keys, version: int) -> bytes:
    """A KeysOfResponse."""
    message = embedding_pb2.KeysOfResponse(version=version)
    put_keys(message.keys, keys)
    return message.SerializeToString()


def list_keys_reply(found: FoundKeys) -> bytes:
    """A ListKeysResponse."""
    message = embedding_pb2.ListKeysResponse(
        version=found.version, ids=_ids_tensor(found.ids), next=found.next
    )
    put_keys(message.keys, found.keys)
    return message.SerializeToString()


def put_keys(message: tensor_pb2.Keys, keys: Keys) -> None:
    """Fill `message` with `keys`."""
    if isinstance(keys, StringKeys):
        message.strings.shape.extend(keys.shape)
        message.strings.lengths = np.diff(keys.offsets).astype("<u4").tobytes()
        message.strings.data = keys.data.tobytes()
    else:
        message.integers.dtype = _KEY_DTYPES[keys.dtype.kind]
        message.integers.shape.extend(keys.shape)
        message.integers.data = keys.astype(f"<{keys.dtype.kind}8").tobytes()


def byte_count(parts: Sequence[Part]) -> int:
    """Bytes of all parts."""
    return sum(len(part) for part in parts)


def _lookup_response(gathered: Gathered) -> tuple[Part, ...]:
    data = gathered.vectors.reshape(-1).view(np.uint8).data
    status = b"" if gathered.status is None else gathered.status.tobytes()
    make = lookup_head.__wrapped__ if status else lookup_head  # a status seldom repeats
    head = make(gathered.version, gathered.dtype, gathered.vectors.shape, len(data), status)
    if gathered.lsn is not None or gathered.is_normalized:
        head = framing.lookup_notes(gathered.lsn, is_normalized=gathered.is_normalized) + head
    return (head, data) if len(data) else (head,)


@lru_cache(HEADS_MAX)
def lookup_head(
    version: int, dtype: DType, shape: tuple[int, ...], data_bytes: int, status: bytes = b""
) -> bytes:
    """A LookupResponse without the vectors' `data_bytes` bytes, which come after it."""
    return framing.lookup_head(version, DTYPE_CODES[dtype], shape, data_bytes, status)


@dataclass(frozen=True, slots=True)
class LookupHead:
    """What a LookupResponse without a status has before the vectors' data, `nbytes` in all."""

    version: int
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int


def read_lookup_head(reply: bytes | memoryview) -> LookupHead:
    """The head of a reply that `lookup_head`, or the compiled answer, began; it has data."""
    version, at = 0, 0
    if reply[0:1] == framing.VERSION:
        version, at = framing.read_varint(reply, 1)
    _, at = framing.read_varint(reply, at + 1)
    code, at = framing.read_varint(reply, at + 1)
    shape_bytes, at = framing.read_varint(reply, at + 1)
    shape, end = [], at + shape_bytes
    while at < end:
        size, at = framing.read_varint(reply, at)
        shape.append(size)
    _, at = framing.read_varint(reply, at + 1)
    return LookupHead(version, _REPLY_DTYPES[code], tuple(shape), at)


def _nested(begin: bytes, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return (begin + varint(byte_count(parts)), *parts)
