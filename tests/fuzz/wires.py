"""The decoders of the wires: protobuf and REST in the server, HTTP and replies in the SDK."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h11
import numpy as np
from google.protobuf.message import DecodeError
from starlette.datastructures import QueryParams

from fuzz.target import Target
from gatherd._requests.keys import KeysSpec
from gatherd._requests.neighbors import prepare_neighbors
from gatherd._requests.scans import prepare_scan
from gatherd._wire import errors
from gatherd._wire import lookups as _codec
from gatherd._wire.keys import decode_list_keys
from gatherd._wire.neighbors import decode_neighbors
from gatherd._wire.scans import decode_scan
from gatherd._wire.updates import decode_get_server, decode_list_snapshots
from gatherd.errors import GatherdError, InternalError
from gatherd.store.query import PAGE_KEYS_MAX, ByKey, KeyQuery
from gatherd.transports.http1 import HttpError, ResponseReader, feed
from gatherd_proto.v1 import embedding_pb2, status_pb2, table_pb2, tensor_pb2
from gatherd_server.http.media import NPY, OCTETS
from gatherd_server.http.rest import lookup_bodies, update_bodies
from gatherd_server.types import Lookup, UpdateOp
from gatherd_server.wire import lookups, neighbors, scans, updates
from support.small_engine import LIMITS, SmallEngine, lookup_request, small_engine

BODY_BYTES_MAX = 1 << 20


def tensor(array: Any) -> tensor_pb2.Tensor:
    values = np.asarray(array)
    return tensor_pb2.Tensor(
        dtype=f"DTYPE_{values.dtype.name.upper()}", shape=values.shape, data=values.tobytes()
    )


def keyed(table: str, *keys: bytes) -> embedding_pb2.LookupRequest:
    request = embedding_pb2.LookupRequest(table=table)
    request.keys.strings.shape.append(len(keys))
    request.keys.strings.lengths = np.array([len(key) for key in keys], "<u4").tobytes()
    request.keys.strings.data = b"".join(keys)
    return request


LOOKUPS = [
    lookup_request("words", np.arange(5, dtype=np.int64)),
    lookup_request("half", np.array([[1, 2], [299, 0]], np.int32), dtype="DTYPE_FLOAT16"),
    lookup_request("words", np.array([7, 4_999], np.uint64), missing="MISSING_ZERO", version=0),
    lookup_request("odd", np.array(1, np.int8), dtype="DTYPE_BFLOAT16"),
    lookup_request("empty", np.zeros((0, 3), np.int64)),
    keyed("words", b"king", b"queen"),
    lookup_request("words", np.arange(3), dims=7, normalize=True, with_lsn=True),
]
SEARCHES = [
    embedding_pb2.NeighborsRequest(table="words", ids=LOOKUPS[0].ids, k=3, include_self=True),
    embedding_pb2.NeighborsRequest(
        table="half", vectors=tensor(np.ones((2, 5), np.float16)), metric="METRIC_L2"
    ),
    embedding_pb2.NeighborsRequest(table="odd", vectors=tensor(np.ones(2, np.float32)), version=1),
    embedding_pb2.NeighborsRequest(table="words", keys=keyed("", b"king").keys),
]
SCANS = [
    embedding_pb2.ScanRequest(table="words", limit=7, cursor=b"\1\1" + b"\0" * 19),
    embedding_pb2.ScanRequest(table="half", dtype="DTYPE_BFLOAT16", with_slots=True, version=1),
    embedding_pb2.ScanRequest(table="odd", prefix=b"a"),
]
BAGS = [
    embedding_pb2.LookupBagsRequest(
        lookup=lookup_request("words", np.array([1, 2, 3, 3], np.int64)),
        offsets=tensor(np.array([0, 2, 2], np.int64)),
        pooling="POOLING_MEAN",
    ),
    embedding_pb2.LookupBagsRequest(
        lookup=lookup_request("half", np.array([4, 5, 0], np.int32), missing="MISSING_SKIP"),
        offsets=tensor(np.array([0, 1], np.int32)),
        weights=tensor(np.array([1, 0.5, -2], np.float32)),
        padding_id=0,
    ),
]
UPDATES = [
    embedding_pb2.UpdateRequest(
        updates=[
            embedding_pb2.TableUpdate(
                table="words", ids=tensor(np.array([1, 1], np.int64)),
                values=tensor(np.ones((2, 64), np.float32)), learning_rate=0.5, if_version=2,
            )
        ],
        idempotency_key="once",
    ),
    embedding_pb2.UpdateRequest(
        updates=[
            embedding_pb2.TableUpdate(
                table=name, ids=tensor(np.array([[3], [4]], np.uint16)),
                values=tensor(np.zeros((2, 1, 3), np.float16)),
            )
            for name in ("half", "odd")
        ],
        sequence=embedding_pb2.SessionSequence(session=bytes(range(16)), sequence=9),
    ),
]  # fmt: skip


def rows_of(served: SmallEngine, lookup: Lookup) -> None:
    """Look it up; rows have to be NumPy's."""
    gathered = served.engine.lookup(lookup)
    if lookup.bags is not None or gathered.status is not None or isinstance(lookup.asked, ByKey):
        return
    expected = served.rows[lookup.table][lookup.asked.astype(np.int64)]
    if lookup.form is not None:
        expected = expected[..., : lookup.form.dims or None]
    assert gathered.vectors.shape == expected.shape
    if gathered.dtype.value == "float32" and not gathered.is_normalized:
        np.testing.assert_array_equal(gathered.vectors, expected)


def lookup_check(served: SmallEngine) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        with suppress(GatherdError):
            request = lookups.parse(embedding_pb2.LookupRequest(), body, LIMITS)
            rows_of(served, lookups.lookup_of(request))

    return check


def bags_check(served: SmallEngine) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        with suppress(GatherdError):
            request = lookups.parse(embedding_pb2.LookupBagsRequest(), body, LIMITS)
            rows_of(served, lookups.bag_lookup_of(request))

    return check


def search_check(served: SmallEngine) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        with suppress(GatherdError):
            request = lookups.parse(embedding_pb2.NeighborsRequest(), body, LIMITS)
            query = neighbors.query_of(request)
            run = served.engine.prepare_neighbors(request.table, query, request.version).run
            found = run().nearest
            assert found.ids.shape == found.scores.shape
            assert found.ids.shape[:-1] == query.shape
            assert found.ids.shape[-1] <= query.k
            assert (found.ids >= 0).all()
            assert (found.ids < len(served.rows[request.table])).all()

    return check


def scan_check(served: SmallEngine) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        with suppress(GatherdError):
            request = lookups.parse(embedding_pb2.ScanRequest(), body, LIMITS)
            query = scans.scan_query(request)
            page = served.engine.prepare_scan(request.table, query).run()
            rows = served.rows[request.table]
            assert page.vectors.shape == (page.ids.size, rows.shape[1])
            assert page.ids.size <= min(request.limit or PAGE_KEYS_MAX, PAGE_KEYS_MAX)
            assert (page.ids >= 0).all()
            assert (page.ids < len(rows)).all()

    return check


def push_check(body: bytes) -> None:
    for op in UpdateOp:
        with suppress(GatherdError):
            push = updates.push(
                op, lookups.parse(embedding_pb2.UpdateRequest(), body, LIMITS), LIMITS
            )
            for update in push.updates:
                assert update.values.shape[:-1] == update.asked.shape
                assert update.values.dtype == np.float32


def rest_check(served: SmallEngine, read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        with suppress(GatherdError):
            for lookup in read(body):
                rows_of(served, lookup)

    return check


def npy_check(served: SmallEngine) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        try:
            lookup = lookup_bodies.lookup_of(NPY, "words", body, QueryParams(), LIMITS)
        except GatherdError:
            return
        assert not isinstance(lookup.asked, ByKey)
        np.testing.assert_array_equal(lookup.asked, np.load(io.BytesIO(body), allow_pickle=False))
        with suppress(GatherdError):
            rows_of(served, lookup)

    return check


def octets_check(served: SmallEngine) -> Callable[[bytes], None]:
    """A body behind its query string and a blank line."""

    def check(data: bytes) -> None:
        query, _, body = data.partition(b"\n")
        params = QueryParams(query.decode("latin-1"))
        with suppress(GatherdError):
            rows_of(served, lookup_bodies.lookup_of(OCTETS, "words", body, params, LIMITS))
        reader = update_bodies.UpdateReader(
            UpdateOp.APPLY_GRADIENTS, LIMITS, lambda _table: 64, lambda _table: "bytes"
        )
        with suppress(GatherdError):
            push = reader.one(OCTETS, "words", body, params, None)
            update = push.updates[0]
            assert update.values.shape[:-1] == update.asked.shape

    return check


def json_update_check(body: bytes) -> None:
    for op in UpdateOp:
        reader = update_bodies.UpdateReader(op, LIMITS, lambda _table: 3, lambda _table: "int64")
        one = partial(reader.one, "application/json", "words", body, QueryParams(), None)
        for read in (one, partial(reader.many, body, QueryParams(), None)):
            with suppress(GatherdError):
                for update in read().updates:
                    assert update.values.shape[:-1] == update.asked.shape
                    assert np.isfinite(update.values).all()
    for change in (
        lambda: update_bodies.create_table(body, QueryParams()),
        lambda: update_bodies.publish("words", body, QueryParams()),
        lambda: update_bodies.rollback("words", body, QueryParams()),
        lambda: update_bodies.set_optimizer("words", body, QueryParams()),
        lambda: update_bodies.snapshot_name(body, QueryParams()),
    ):
        with suppress(GatherdError):
            change()


JSON_LOOKUPS = [
    b'{"ids": [[4], [20]], "dtype": "float16", "missing": "zero", "version": 3}',
    b'{"ids": 7}',
    b'{"keys": ["king", "queen"]}',
    b'{"ids": [1, 2], "dims": 3, "normalize": true, "with_lsn": true}',
    b'{"keys": ["a2luZw==", "cXVlZW4="], "encoding": "base64"}',
    b'{"ids": [1, 2, 3, 3], "offsets": [0, 2, 2], "mode": "mean", "weights": [1, 2, 0.5, -1]}',
    b'{"ids": [[1, 2], [], [3]], "weights": [[1, 2], [], [3]], "padding_id": 3}',
    b'{"tables": {"words": {"ids": [1]}, "half": {"ids": [[2, 3]]}}}',
    b'{"tables": {"words": {"ids": [[1], [2, 3]], "mode": "max"}}}',
]
JSON_UPDATES = [
    b'{"ids": [1, 2], "values": [[1, 2, 3.5], [0.25, -1, 1e9]], "lr": 0.5, "if_version": 2}',
    b'{"keys": ["a"], "values": [[1, 2, 3]]}',
    b'{"ids": [], "values": []}',
    b'{"tables": {"words": {"ids": [[1]], "values": [[[1, 2, 3]]]}}}',
    b'{"name": "t", "rows": 10, "dim": 3, "init": "uniform", "seed": 7}',
    b'{"name": "t", "rows": 10, "dim": 3, "optimizer": {"name": "adagrad", "lr": 0.5}}',
    b'{"name": "adam", "lr": 0.1, "beta1": 0.9}',
    b'{"version": 3, "if_version": 5}',
    b'{"name": "monday"}',
]


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --- the SDK


def reply(**fields: Any) -> bytes:
    return embedding_pb2.LookupResponse(**fields).SerializeToString()


REPLIES = [
    reply(version=3, vectors=tensor(np.ones((2, 3), np.float32))),
    reply(version=2**40, status=b"\0\1", vectors=tensor(np.zeros((2, 1), np.float16))),
    reply(version=1, lsn=2**40, normalized=True, vectors=tensor(np.ones((1, 3), np.float32))),
    reply(vectors=tensor_pb2.Tensor(shape=[2**63 - 1, -1])),
    embedding_pb2.LookupManyResponse(
        lookups=[embedding_pb2.LookupResponse(version=n, status=b"s") for n in range(3)]
    ).SerializeToString(),
]
TABLES = [
    table_pb2.ListTablesResponse(
        tables=[
            table_pb2.Table(
                name="words", rows=5, dim=3, dtype="DTYPE_FLOAT32", version=2, versions=[1, 2],
                optimizer=table_pb2.Optimizer(name="sgd", options={"lr": 0.5}), key_kind="bytes",
            )
        ],
        limits=table_pb2.Limits(request_bytes_max=1, ids_max=2),
    ).SerializeToString(),
    embedding_pb2.KeysOfResponse(version=3, keys=keyed("t", b"a", b"bb").keys).SerializeToString(),
    embedding_pb2.KeysOfResponse(
        keys=tensor_pb2.Keys(integers=tensor(np.array([1, -1], np.int64)))
    ).SerializeToString(),
    embedding_pb2.ListKeysResponse(
        version=3, keys=keyed("t", b"a", b"bb").keys, ids=tensor(np.array([7, 9])), next=10
    ).SerializeToString(),
    table_pb2.ListSnapshotsResponse(
        snapshots=[table_pb2.SnapshotInfo(name="monday", lsn=7, created_seconds=1_790_000_000)]
    ).SerializeToString(),
]  # fmt: skip


def reply_check(data: bytes) -> None:
    try:
        ours = _codec.decode_lookup(memoryview(data))
    except InternalError:
        with suppress(DecodeError):
            embedding_pb2.LookupResponse.FromString(data)
            raise AssertionError("protobuf reads a reply that the SDK refuses") from None
        return
    try:
        theirs = embedding_pb2.LookupResponse.FromString(data)
    except DecodeError:
        pass  # invalid in fields that a lookup doesn't read
    else:
        assert ours.version == theirs.version
        assert ours.lsn == (theirs.lsn if theirs.HasField("lsn") else None)
        assert ours.normalized == theirs.normalized
        assert bytes(ours.status) == theirs.status
        assert bytes(ours.data) == theirs.vectors.data
        assert ours.shape == list(theirs.vectors.shape)
        # An enum is an int32 to protobuf.
        assert ours.dtype & 0xFFFFFFFF == theirs.vectors.dtype & 0xFFFFFFFF
    with suppress(InternalError):
        for one in _codec.decode_lookup_many(memoryview(data)):
            assert len(one.data) <= len(data)


SEARCH = prepare_neighbors("words", [1, 2], None, 2, "dot", False, None)
TABLES.append(
    embedding_pb2.NeighborsResponse(
        version=2,
        ids=tensor(np.zeros((2, 2), np.int64)),
        scores=tensor(np.ones((2, 2), np.float32)),
        keys=tensor_pb2.Keys(integers=tensor(np.zeros((2, 2), np.int64))),
    ).SerializeToString()
)


SCAN = prepare_scan("words", 4, True, None, "float32", None)
TABLES.append(
    embedding_pb2.ScanResponse(
        version=2,
        ids=tensor(np.array([3, 5])),
        keys=tensor_pb2.Keys(integers=tensor(np.array([9, 4]))),
        vectors=tensor(np.ones((2, 3), np.float32)),
        slots=[embedding_pb2.Slot(name="sum", values=tensor(np.zeros((2, 1), np.float32)))],
        cursor=b"next",
    ).SerializeToString()
)


def tables_check(data: bytes) -> None:
    for read in (
        lambda: _codec.decode_list_tables(memoryview(data)),
        lambda: _codec.decode_get_table(memoryview(data)),
        lambda: _codec.decode_keys_of(memoryview(data), (2,)),
        lambda: decode_neighbors(memoryview(data), SEARCH),
        lambda: _page_check(data),
        lambda: _rows_check(data),
        lambda: decode_list_snapshots(memoryview(data)),
        lambda: decode_get_server(memoryview(data)),
    ):
        with suppress(InternalError):
            read()


def _page_check(data: bytes) -> None:
    """A page of keys leads on, or it is refused."""
    page = decode_list_keys(memoryview(data), KeysSpec("t", KeyQuery(start=5)))
    ids = page.ids.tolist()
    assert page.keys.size == len(ids)
    assert ids == sorted(set(ids))
    assert all(row >= 5 for row in ids)
    assert page.next is None or page.next > max([5, *ids])


def _rows_check(data: bytes) -> None:
    """A page of rows has as many of everything, or it is refused."""
    rows = decode_scan(memoryview(data), SCAN).rows
    assert rows.vectors.ndim == 2
    assert len(rows.vectors) == rows.ids.size
    assert rows.keys is None or rows.keys.shape == rows.ids.shape
    assert all(len(one) == rows.ids.size or one.shape == (1,) for one in rows.slots.values())


INFO = "ChBUQUJMRV9OT1RfRk9VTkQSB2dhdGhlcmQaDgoFdGFibGUSBXdvcmRz"
ERRORS = [
    b'{"code": "not_found", "message": "no table", "details": '
    b'[{"type": "google.rpc.ErrorInfo", "value": "%b"}]}' % INFO.encode(),
    b"<html>busy</html>",
    status_pb2.Status(code=5, message="no table").SerializeToString(),
]


def errors_check(data: bytes) -> None:
    """Whatever a server or proxy answers with, it becomes an error of ours."""
    for status in (400, 404, 429, 503, 599):
        for kind in ("application/json", "text/html"):
            found = errors.from_http("http://x", status, kind, data, None)
            assert isinstance(found, GatherdError)
    assert isinstance(errors.from_grpc("x", "not_found", "no", data, None), GatherdError)


RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 12\r\n\r\nhello, world",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nX-A: b\r\nX-A: c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n",
    b"HTTP/1.0 503 Busy\r\nRetry-After: 1\r\n\r\nuntil the end",
    b"HTTP/1.1 429 Too Many\r\nConnection: close\r\ncontent-length: 3\r\n\r\nabc",
]


def read_response(data: bytes, step: int) -> tuple[Any, ...]:
    """What the SDK makes of `data` in pieces of `step` bytes."""
    reader = ResponseReader(BODY_BYTES_MAX)
    try:
        for begin in range(0, len(data), step):
            if reader.done:
                break
            feed(reader, memoryview(data)[begin : begin + step])
        if not reader.done:
            reader.eof()
    except HttpError:
        return ("refused",)
    assert reader.head is not None
    return reader.head.status, dict(reader.head.headers), bytes(reader.body)


def http_reply_check(data: bytes) -> None:
    whole = read_response(data, len(data) or 1)
    assert read_response(data, 1) == whole
    assert read_response(data, 7) == whole
    if whole == ("refused",):
        return
    assert len(whole[2]) <= BODY_BYTES_MAX
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    peer.send(h11.EndOfMessage())
    status, body = None, b""
    try:
        peer.receive_data(data)
        peer.receive_data(b"")
        while True:
            event = peer.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return
    except h11.RemoteProtocolError:
        return  # it is stricter in some ways
    assert (status, body) == (whole[0], whole[2])


PAGES = [b"prefix=ki&limit=10&start=3&version=2", b"prefix=caf%E9", b"start=0&prefix="]


def pages_check(data: bytes) -> None:
    with suppress(GatherdError):
        query, version = lookup_bodies.list_keys_request(data)
        assert 0 <= query.count_max <= PAGE_KEYS_MAX
        assert min(query.start, query.limit, version) >= 0


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """Those of this file; `folder` holds what they look up."""
    served = small_engine(folder)
    query = QueryParams()

    def many(body: bytes) -> Iterator[Lookup]:
        yield from lookup_bodies.lookups_of(body, query, LIMITS)

    def bags_many(body: bytes) -> Iterator[Lookup]:
        yield from lookup_bodies.bag_lookups_of(body, query, LIMITS)

    def one(body: bytes) -> Iterator[Lookup]:
        yield lookup_bodies.lookup_of("application/json", "words", body, query, LIMITS)

    def bags(body: bytes) -> Iterator[Lookup]:
        yield lookup_bodies.bag_lookup_of("words", body, query, LIMITS)

    checks = [rest_check(served, read) for read in (one, many, bags, bags_many)]

    def json_lookups(body: bytes) -> None:
        for check in checks:
            check(body)

    yield [
        Target("proto lookup", [one.SerializeToString() for one in LOOKUPS], lookup_check(served)),
        Target("proto bags", [one.SerializeToString() for one in BAGS], bags_check(served)),
        Target("proto scans", [one.SerializeToString() for one in SCANS], scan_check(served)),
        Target(
            "proto searches", [one.SerializeToString() for one in SEARCHES], search_check(served)
        ),
        Target("proto updates", [one.SerializeToString() for one in UPDATES], push_check),
        Target("rest json lookups", JSON_LOOKUPS, json_lookups),
        Target("rest json updates", JSON_UPDATES, json_update_check),
        Target(
            "rest npy",
            [
                npy(np.arange(6).reshape(2, 3)),
                npy(np.array(3, np.uint8)),
                npy(np.ones((2, 2), ">i4")),
            ],
            npy_check(served),
        ),
        Target(
            "rest octets",
            [
                b"shape=2,1&ids_dtype=int32\n" + bytes(8),
                b"dtype=float16&missing=zero&version=1\n" + np.arange(4).tobytes(),
                b"shape=2&values_dtype=float32&lr=0.5&if_version=2\n" + bytes(16 + 2 * 12),
                b"by=keys&shape=\n" + bytes(8),
                b"dims=3&normalize=true&with_lsn=false\n" + bytes(8),
            ],
            octets_check(served),
        ),
        Target("rest key pages", PAGES, pages_check),
        Target("sdk http", RESPONSES, http_reply_check),
        Target("sdk lookup replies", REPLIES, reply_check),
        Target("sdk table replies", TABLES, tables_check),
        Target("sdk error replies", ERRORS, errors_check),
    ]
