"""Stand-ins for a server: NumPy behind Connect and gRPC."""

import base64
import json
import math
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from gatherd import (
    GatherdError,
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    NoKeys,
    RetryableError,
    TableNotFound,
)
from gatherd.store.bags import check_offsets
from gatherd.store.keys import Keys, StringKeys, key_not_found_error
from gatherd_proto.v1 import embedding_pb2, status_pb2, table_pb2, tensor_pb2

ID_DTYPES = dict(zip(range(5, 13), ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"), strict=True))


@dataclass
class FakeService:
    """Answers serialized requests. `failures` are raised first, one for each request."""

    tables: dict[str, NDArray[np.float32]]
    # Each table's keys in row order: bytes, or integers.
    keys: dict[str, list[Any]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    version: int = 7
    # Of tables with another one.
    versions: dict[str, int] = field(default_factory=dict)
    failures: list[GatherdError] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)
    versions_asked: list[int] = field(default_factory=list)
    # Each request's headers, or metadata, with names in lower case.
    headers: list[dict[str, str]] = field(default_factory=list)
    before: Callable[[str], None] = lambda method: None

    def handle(self, method: str, body: bytes) -> bytes:
        self.calls.append((method.rpartition("/")[2], len(body)))
        self.before(method)
        if self.failures:
            raise self.failures.pop(0)
        over = self.limits.get("request_bytes_max", 0)
        if over and len(body) > over:
            raise LimitExceeded(f"the request has {len(body)} bytes; at most {over} are taken")
        reply = self._reply(method.rpartition("/")[2], body).SerializeToString()
        over = self.limits.get("reply_bytes_max", 0)
        if over and len(reply) > over:
            raise LimitExceeded(f"the reply has {len(reply)} bytes; at most {over} are sent")
        return bytes(reply)

    def _reply(self, method: str, body: bytes) -> Any:
        if method == "Lookup":
            return self._lookups([embedding_pb2.LookupRequest.FromString(body)])[0]
        if method == "LookupMany":
            request = embedding_pb2.LookupManyRequest.FromString(body)
            return embedding_pb2.LookupManyResponse(lookups=self._lookups(list(request.lookups)))
        if method == "LookupBags":
            return self._bags([embedding_pb2.LookupBagsRequest.FromString(body)])[0]
        if method == "LookupBagsMany":
            bags = embedding_pb2.LookupBagsManyRequest.FromString(body)
            return embedding_pb2.LookupManyResponse(lookups=self._bags(list(bags.bags)))
        if method == "IdsOf":
            return self._ids_of(embedding_pb2.IdsOfRequest.FromString(body))
        if method == "KeysOf":
            return self._keys_of(embedding_pb2.KeysOfRequest.FromString(body))
        limits = table_pb2.Limits(**self.limits)
        if method == "ListTables":
            tables = [self._info(name) for name in self.tables]
            return table_pb2.ListTablesResponse(tables=tables, limits=limits)
        name = table_pb2.GetTableRequest.FromString(body).table
        return table_pb2.GetTableResponse(table=self._info(name), limits=limits)

    def _table(self, name: str) -> NDArray[np.float32]:
        if name not in self.tables:
            raise TableNotFound(f"there is no table {name!r}", {"table": name})
        return self.tables[name]

    def _info(self, name: str) -> table_pb2.Table:
        rows, dim = self._table(name).shape
        keys = self.keys.get(name, [])
        kind = ("bytes" if isinstance(keys[0], bytes) else "int64") if keys else ""
        return table_pb2.Table(
            name=name, rows=rows, dim=dim, dtype=tensor_pb2.DTYPE_FLOAT32, version=self.version,
            key_kind=kind, rows_bytes=rows * dim * 4, keys_bytes=8 * len(keys), resident_bytes=4096,
        )  # fmt: skip

    def _check_limits(self, requests: list[Any]) -> None:
        sizes = [math.prod(_shape(request)) for request in requests]
        for name, value in (("ids_max", sum(sizes)), ("tables_max", len(requests))):
            if self.limits.get(name) and value > self.limits[name]:
                raise LimitExceeded(f"{name} is {self.limits[name]}, the request has {value}")

    def _lookups(self, requests: list[Any]) -> list[embedding_pb2.LookupResponse]:
        self._check_limits(requests)
        return [self._lookup(request) for request in requests]

    def _rows(
        self, request: Any, padding_id: int | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The requested ids or keys as row indices, and which of them have no row."""
        weights = self._table(request.table)
        self.versions_asked.append(request.version)
        keyed = request.WhichOneof("rows") == "keys"
        if keyed:
            keys = wire_keys(request.keys)
            index = {key: row for row, key in enumerate(self._own_keys(request.table))}
            flat = keys.tolist() if isinstance(keys, StringKeys) else keys.reshape(-1).tolist()
            ids = np.array([index.get(key, -1) for key in flat], int).reshape(keys.shape)
        else:
            ids = wire_array(request.ids)
        bad = ((ids < 0) | (ids >= len(weights))) & (ids != padding_id if not keyed else True)
        if bad.any() and request.missing in (0, 1):
            if keyed:
                raise key_not_found_error(request.table, keys, ids)
            raise IdOutOfRange(
                f"ids[{int(np.flatnonzero(bad)[0])}] is out of range",
                {"table": request.table, "rows": str(len(weights))},
            )
        return ids, bad

    def _own_keys(self, table: str) -> list[Any]:
        if table not in self.keys:
            raise NoKeys(f"table {table!r} has no keys", {"table": table})
        return self.keys[table]

    def _gather(
        self, request: Any, padding_id: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_]]:
        weights = self._table(request.table)
        ids, bad = self._rows(request, padding_id)
        has_row = (ids >= 0) & (ids < len(weights))
        vectors = weights[np.where(has_row, ids, 0).astype(np.intp)]
        vectors[bad] = 0 if request.missing != 3 else weights.mean(axis=0)
        return vectors, ids, bad

    def _lookup(self, request: Any) -> embedding_pb2.LookupResponse:
        vectors, _, bad = self._gather(request)
        return self._response(request, vectors, bad)

    def _response(
        self, request: Any, vectors: NDArray[np.float32], bad: NDArray[np.bool_]
    ) -> embedding_pb2.LookupResponse:
        code = request.dtype or tensor_pb2.DTYPE_FLOAT32
        data: NDArray[Any] = vectors.astype(np.float16) if code == 2 else vectors
        if code == 3:
            data = (vectors.view(np.uint32) >> 16).astype(np.uint16)
        status = b"" if request.missing in (0, 1) else bad.astype(np.uint8).tobytes()
        tensor = tensor_pb2.Tensor(dtype=code, shape=vectors.shape, data=data.tobytes())
        version = self.versions.get(request.table, self.version)
        return embedding_pb2.LookupResponse(version=version, status=status, vectors=tensor)

    def _bags(self, requests: list[Any]) -> list[embedding_pb2.LookupResponse]:
        self._check_limits([request.lookup for request in requests])
        return [self._pooled(request) for request in requests]

    def _pooled(self, request: Any) -> embedding_pb2.LookupResponse:
        padding_id = request.padding_id if request.HasField("padding_id") else None
        vectors, ids, bad = self._gather(request.lookup, padding_id)
        offsets = wire_array(request.offsets)
        assert ids.ndim == offsets.ndim == 1
        try:
            check_offsets(offsets, len(ids))
        except InvalidArgument as error:
            raise InvalidArgument(f"the server says: {error.message}") from None
        weights = np.ones(len(ids), np.float32)
        if request.HasField("weights"):
            weights = wire_array(request.weights)
            assert weights.shape == ids.shape
        takes_part = ~bad if request.lookup.missing == 4 else np.ones(len(ids), bool)
        if padding_id is not None:
            takes_part &= ids != padding_id
        pooled = np.zeros((len(offsets), vectors.shape[1]), np.float32)
        mode = embedding_pb2.Pooling.Name(request.pooling).removeprefix("POOLING_").lower()
        for bag, (begin, end) in enumerate(pairwise([*offsets.tolist(), len(ids)])):
            part = np.arange(begin, end)[takes_part[begin:end]]
            if part.size:
                pooled[bag] = pool(vectors[part], weights[part], mode)
        return self._response(request.lookup, pooled, bad)

    def _ids_of(self, request: Any) -> embedding_pb2.IdsOfResponse:
        keys = wire_keys(request.keys)
        index = {key: row for row, key in enumerate(self._own_keys(request.table))}
        flat = keys.tolist() if isinstance(keys, StringKeys) else keys.reshape(-1).tolist()
        if self.limits.get("ids_max") and len(flat) > self.limits["ids_max"]:
            raise LimitExceeded("ids_max")
        ids = np.array([index.get(key, -1) for key in flat], "<i8").reshape(keys.shape)
        if (ids < 0).any() and not request.allow_missing:
            raise key_not_found_error(request.table, keys, ids)
        tensor = tensor_pb2.Tensor(
            dtype=tensor_pb2.DTYPE_INT64, shape=ids.shape, data=ids.tobytes()
        )
        return embedding_pb2.IdsOfResponse(version=self.version, ids=tensor)

    def _keys_of(self, request: Any) -> embedding_pb2.KeysOfResponse:
        keys = self._own_keys(request.table)
        ids = wire_array(request.ids)
        self.versions_asked.append(request.version)
        if self.limits.get("ids_max") and ids.size > self.limits["ids_max"]:
            raise LimitExceeded("ids_max")
        if ((ids < 0) | (ids >= len(keys))).any():
            raise IdOutOfRange("somewhere", {"table": request.table, "rows": str(len(keys))})
        found = [keys[row] for row in ids.reshape(-1).tolist()]
        reply = embedding_pb2.KeysOfResponse(version=self.version)
        if isinstance(keys[0], bytes):
            strings = reply.keys.strings
            strings.shape.extend(ids.shape)
            strings.lengths = np.array([len(key) for key in found], "<u4").tobytes()
            strings.data = b"".join(found)
        else:
            integers = reply.keys.integers
            integers.dtype = tensor_pb2.DTYPE_INT64
            integers.shape.extend(ids.shape)
            integers.data = np.array(found, "<i8").tobytes()
        return reply


def pool(rows: NDArray[np.float32], weights: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
    """One bag's vector, added up row by row, so that equal bags give equal bits."""
    if mode == "max":
        return np.asarray(rows.max(axis=0))
    total = np.zeros(rows.shape[1], np.float32)
    for row, weight in zip(rows, weights, strict=True):
        total += row * weight
    divisor = {"sum": 1.0, "mean": weights.sum(), "sqrtn": np.sqrt((weights**2).sum())}[mode]
    return (total / divisor if divisor else np.zeros_like(total)).astype(np.float32)


def wire_array(tensor: Any) -> NDArray[Any]:
    """A tensor of a request."""
    dtypes = {tensor_pb2.DTYPE_FLOAT32: "f4", **ID_DTYPES}
    return np.frombuffer(tensor.data, dtypes[tensor.dtype]).reshape(tuple(tensor.shape))


def wire_keys(keys: Any) -> Keys:
    """The keys of a request."""
    if keys.WhichOneof("kind") == "integers":
        return wire_array(keys.integers)
    bounds = np.cumsum([0, *np.frombuffer(keys.strings.lengths, "<u4").tolist()]).tolist()
    assert bounds[-1] == len(keys.strings.data)
    each = [keys.strings.data[begin:end] for begin, end in pairwise(bounds)]
    return StringKeys.of(each, tuple(keys.strings.shape))


def _shape(request: Any) -> tuple[int, ...]:
    if request.WhichOneof("rows") == "keys":
        return wire_keys(request.keys).shape
    return tuple(request.ids.shape)


CODES = {
    TableNotFound: ("not_found", 404),
    IdOutOfRange: ("invalid_argument", 400),
    InvalidArgument: ("invalid_argument", 400),
    KeyNotFound: ("invalid_argument", 400),
    NoKeys: ("invalid_argument", 400),
    LimitExceeded: ("resource_exhausted", 413),
}


def error_info(error: GatherdError) -> status_pb2.ErrorInfo:
    return status_pb2.ErrorInfo(reason=error.reason, domain="gatherd", metadata=error.metadata)


def error_document(error: GatherdError) -> tuple[int, bytes]:
    """The status and the body of an error over Connect."""
    code, status = CODES.get(type(error), ("unavailable", 503))
    info = base64.b64encode(error_info(error).SerializeToString()).decode()
    document = {
        "code": code,
        "message": error.message,
        "details": [{"type": "google.rpc.ErrorInfo", "value": info.rstrip("=")}],
    }
    return status, json.dumps(document).encode()


def _handler(service: FakeService, tcp: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = tcp

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Connect-Protocol-Version"] == "1"
            assert int(self.headers["Connect-Timeout-Ms"]) > 0
            service.headers.append({name.lower(): text for name, text in self.headers.items()})
            try:
                self._answer(200, "application/proto", service.handle(self.path, body), None)
            except GatherdError as error:
                status, document = error_document(error)
                hint = getattr(error, "retry_after_seconds", None)
                self._answer(status, "application/json", document, hint)

        def _answer(self, status: int, content_type: str, body: bytes, hint: float | None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            if hint is not None:
                self.send_header("Retry-After", str(hint))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    return Handler


class _UnixServer(ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    daemon_threads = True
    request_queue_size = 256  # the default of 5 drops connections that come at once

    def server_bind(self) -> None:
        # HTTPServer's own method looks up its host name, which a path doesn't have.
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = self.socket.accept()
        return connection, ("unix", 0)


class _TcpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the default of 5 drops connections that come at once


@contextmanager
def connect_server(
    service: FakeService, unix_path: Path | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve over Connect; yields the URL."""
    server: ThreadingHTTPServer
    if unix_path is None:
        server = _TcpServer(("127.0.0.1", 0), _handler(service, True))
        url = f"http://127.0.0.1:{server.server_address[1]}"
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            url = url.replace("http", "https")
    else:
        server = _UnixServer(str(unix_path), _handler(service, False))  # type: ignore[arg-type]  # a path
        url = f"unix://{unix_path}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Generic(grpc.GenericRpcHandler):
    def __init__(self, service: FakeService) -> None:
        self._service = service

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        def handle(body: bytes, context: Any) -> bytes:
            self._service.headers.append(dict(context.invocation_metadata()))
            try:
                return self._service.handle(method, body)
            except GatherdError as error:
                code, _ = CODES.get(type(error), ("unavailable", 503))
                status = status_pb2.Status(code=1, message=error.message)
                detail = status.details.add()
                detail.type_url = "type.googleapis.com/google.rpc.ErrorInfo"
                detail.value = error_info(error).SerializeToString()
                trailers: list[tuple[str, str | bytes]] = [
                    ("grpc-status-details-bin", status.SerializeToString())
                ]
                if isinstance(error, RetryableError) and error.retry_after_seconds is not None:
                    trailers.append(("retry-after", str(error.retry_after_seconds)))
                context.set_trailing_metadata(trailers)
                context.abort(grpc.StatusCode[code.upper()], error.message)
                raise AssertionError("abort raises") from None

        return grpc.unary_unary_rpc_method_handler(handle)


@contextmanager
def grpc_server(service: FakeService) -> Iterator[str]:
    """Serve over gRPC; yields the URL."""
    server = grpc.server(ThreadPoolExecutor(4), handlers=[_Generic(service)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
