"""Updates and changes to bytes, and their answers back; the messages are those of gatherd_proto.

An update is framed by hand, with its values left in place: a transport that can send several pieces
doesn't copy them. Everything else is small and goes through the generated classes.
"""

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from gatherd._requests.updates import UpdateResult, UpdateSpec
from gatherd._wire.lookups import DTYPE_CODES, keys_parts, tensor_parts
from gatherd._wire.protobuf import Parts, nested, unreadable
from gatherd.store.query import ByKey
from gatherd_proto.framing import BYTES, FIXED32, VARINT, tag, varint
from gatherd_proto.v1 import embedding_pb2, table_pb2

# A smaller piece is copied to its neighbours: cheaper than a system call of its own.
PIECE_BYTES_MIN: Final = 64 << 10

_MessageT = TypeVar("_MessageT", bound=Message)

_UPDATE = tag(1, BYTES)
_SEQUENCE = tag(2, BYTES)
_IDEMPOTENCY_KEY = tag(3, BYTES)
_SESSION = tag(1, BYTES)
_NUMBER = tag(2, VARINT)
_TABLE = tag(1, BYTES)
_IDS = tag(2, BYTES)
_KEYS = tag(3, BYTES)
_VALUES = tag(4, BYTES)
_LEARNING_RATE = tag(5, FIXED32)
_IF_VERSION = tag(6, VARINT)
_CREATE = tag(7, VARINT)


@dataclass(frozen=True, slots=True)
class SessionSequence:
    """The id of a push in a client's session: its name, and 1, 2, … in order of the pushes."""

    session: bytes
    sequence: int


RequestId: TypeAlias = SessionSequence | str
"""A session's sequence number, or an idempotency key."""


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A request's body: `head` and then `rest`."""

    head: bytes
    rest: tuple[bytes | memoryview, ...]


def encode_update(specs: Sequence[UpdateSpec], request_id: RequestId) -> Body:
    """An UpdateRequest. The id comes first, so that the values are the last bytes."""
    parts: Parts = [encode_request_id(request_id)]
    for spec in specs:
        parts += nested(_UPDATE, _table_update(spec))
    return pieces(parts)


def encode_request_id(request_id: RequestId) -> bytes:
    """A push's id, as it stands in an UpdateRequest."""
    if isinstance(request_id, str):
        text = request_id.encode("ascii")
        return _IDEMPOTENCY_KEY + varint(len(text)) + text
    session = request_id.session
    content = b"%b%b%b%b%b" % (
        *(_SESSION, varint(len(session)), session),
        *(_NUMBER, varint(request_id.sequence)),
    )
    return b"%b%b%b" % (_SEQUENCE, varint(len(content)), content)


@dataclass(frozen=True, slots=True, eq=False)
class Framing:
    """The bytes of an UpdateRequest of one table around its id, its ids and its values."""

    before: bytes
    between: bytes

    def body(self, request_id: bytes, ids: NDArray[Any], values: NDArray[Any]) -> Body:
        """What `encode_update` makes of such arrays, which are C-contiguous and not empty."""
        if ids.nbytes < PIECE_BYTES_MIN and values.nbytes < PIECE_BYTES_MIN:
            return Body(
                b"".join((request_id, self.before, ids.data, self.between, values.data)), ()
            )
        return pieces([request_id + self.before, ids.data, self.between, values.data])


def framing_of(spec: UpdateSpec) -> Framing:
    """The framing of updates like `spec`, which has ids."""
    assert not isinstance(spec.asked, ByKey)
    parts = nested(_UPDATE, _table_update(spec))
    at = next(i for i, part in enumerate(parts) if not isinstance(part, bytes))
    # The values are the last part.
    return Framing(b"".join(parts[:at]), b"".join(parts[at + 1 : -1]))


def _table_update(spec: UpdateSpec) -> Parts:
    parts: Parts = [_TABLE + varint(len(spec.table_bytes)) + spec.table_bytes]
    if isinstance(spec.asked, ByKey):
        parts += nested(_KEYS, keys_parts(spec.asked.keys))
    else:
        parts += nested(_IDS, tensor_parts(spec.asked))
    if spec.lr is not None:
        parts.append(_LEARNING_RATE + struct.pack("<f", spec.lr))
    if spec.if_version:
        parts.append(_IF_VERSION + varint(spec.if_version))
    if spec.creates:
        parts.append(_CREATE + b"\x01")
    if spec.values is None:
        return parts
    return parts + nested(_VALUES, tensor_parts(spec.values, DTYPE_CODES[spec.dtype]))


def pieces(parts: Parts) -> Body:
    """`parts`, with the small ones joined and the large ones as flat views of their arrays."""
    pieces: Parts = []
    run: Parts = []
    for part in parts:
        if memoryview(part).nbytes < PIECE_BYTES_MIN:
            run.append(part)
        else:
            pieces += [b"".join(run), memoryview(part).cast("B")]
            run = []
    pieces.append(b"".join(run))
    head, *rest = pieces
    assert isinstance(head, bytes)  # the first piece is always a run of small parts
    return Body(head, tuple(piece for piece in rest if len(piece)))


def decode_update(body: memoryview, specs: Sequence[UpdateSpec]) -> UpdateResult:
    """The result in an UpdateResponse to `specs`. InternalError when it isn't one."""
    reply = read_message(embedding_pb2.UpdateResponse, body)
    if len(reply.versions) != len(specs):
        raise unreadable(f"it has {len(reply.versions)} versions for {len(specs)} tables")
    tables = [spec.table for spec in specs]
    return UpdateResult(
        reply.lsn,
        dict(zip(tables, reply.versions, strict=True)),
        *(_counter(tables, one) for one in (reply.created, reply.removed, reply.not_admitted)),
    )


def _counter(tables: Sequence[str], counts: Sequence[int]) -> "Counter[str]":
    """Counts by table, without those that are 0. `counts` is empty when all are."""
    if not counts:
        return Counter()
    if len(counts) != len(tables):
        raise unreadable(f"it has {len(counts)} counts for {len(tables)} tables")
    return Counter({table: n for table, n in zip(tables, counts, strict=True) if n})


def decode_change(body: memoryview) -> table_pb2.ChangeResponse:
    """Read a ChangeResponse. InternalError when it isn't one."""
    return read_message(table_pb2.ChangeResponse, body)


def decode_snapshot(body: memoryview) -> table_pb2.SnapshotResponse:
    """Read a SnapshotResponse. InternalError when it isn't one."""
    return read_message(table_pb2.SnapshotResponse, body)


def decode_get_server(body: memoryview) -> table_pb2.GetServerResponse:
    """Read a GetServerResponse. InternalError when it isn't one."""
    return read_message(table_pb2.GetServerResponse, body)


def decode_list_snapshots(body: memoryview) -> table_pb2.ListSnapshotsResponse:
    """Read a ListSnapshotsResponse. InternalError when it isn't one."""
    return read_message(table_pb2.ListSnapshotsResponse, body)


def decode_delete_snapshot(body: memoryview) -> table_pb2.DeleteSnapshotResponse:
    """Read a DeleteSnapshotResponse. InternalError when it isn't one."""
    return read_message(table_pb2.DeleteSnapshotResponse, body)


def read_message(kind: type[_MessageT], body: memoryview) -> _MessageT:
    """The message of a reply's body. InternalError when it isn't one."""
    try:
        return kind.FromString(bytes(body))
    except DecodeError:
        raise unreadable(f"it isn't a {kind.__name__}") from None
