"""Stand-ins for a server: a NumPy gather behind Connect and gRPC, and scripted sockets."""

import base64
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from gatherd import GatherdError, IdOutOfRange, LimitExceeded, RetryableError, TableNotFound
from gatherd_proto.v1 import embedding_pb2, status_pb2, table_pb2, tensor_pb2

ID_DTYPES = dict(zip(range(5, 13), ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"), strict=True))


@dataclass
class FakeService:
    """Answers serialized requests. `failures` are raised first, one for each request."""

    tables: dict[str, NDArray[np.float32]]
    limits: dict[str, int] = field(default_factory=dict)
    version: int = 7
    failures: list[GatherdError] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)
    versions_asked: list[int] = field(default_factory=list)
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
        return table_pb2.Table(
            name=name, rows=rows, dim=dim, dtype=tensor_pb2.DTYPE_FLOAT32, version=self.version
        )

    def _lookups(self, requests: list[Any]) -> list[embedding_pb2.LookupResponse]:
        sizes = [np.prod(request.ids.shape, dtype=int) for request in requests]
        for name, value in (("ids_max", sum(sizes)), ("tables_max", len(requests))):
            if self.limits.get(name) and value > self.limits[name]:
                raise LimitExceeded(f"{name} is {self.limits[name]}, the request has {value}")
        return [self._lookup(request) for request in requests]

    def _lookup(self, request: Any) -> embedding_pb2.LookupResponse:
        weights = self._table(request.table)
        self.versions_asked.append(request.version)
        ids = np.frombuffer(request.ids.data, ID_DTYPES[request.ids.dtype])
        ids = ids.reshape(tuple(request.ids.shape))
        bad = (ids < 0) | (ids >= len(weights))
        if bad.any() and request.missing in (0, 1):
            raise IdOutOfRange(
                f"ids[{int(np.flatnonzero(bad)[0])}] is out of range",
                {"table": request.table, "rows": str(len(weights))},
            )
        vectors = weights[np.where(bad, 0, ids).astype(np.intp)]
        vectors[bad] = 0 if request.missing != 3 else weights.mean(axis=0)
        code = request.dtype or tensor_pb2.DTYPE_FLOAT32
        data: NDArray[Any] = vectors.astype(np.float16) if code == 2 else vectors
        if code == 3:
            data = (vectors.view(np.uint32) >> 16).astype(np.uint16)
        status = b"" if request.missing in (0, 1) else bad.astype(np.uint8).tobytes()
        tensor = tensor_pb2.Tensor(dtype=code, shape=vectors.shape, data=data.tobytes())
        return embedding_pb2.LookupResponse(version=self.version, status=status, vectors=tensor)


CODES = {
    TableNotFound: ("not_found", 404),
    IdOutOfRange: ("invalid_argument", 400),
    LimitExceeded: ("resource_exhausted", 413),
}


def error_info(error: GatherdError) -> status_pb2.ErrorInfo:
    return status_pb2.ErrorInfo(reason=error.reason, domain="gatherd", metadata=error.metadata)


def _handler(service: FakeService, tcp: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = tcp

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Connect-Protocol-Version"] == "1"
            assert int(self.headers["Connect-Timeout-Ms"]) > 0
            try:
                self._answer(200, "application/proto", service.handle(self.path, body), None)
            except GatherdError as error:
                code, status = CODES.get(type(error), ("unavailable", 503))
                info = base64.b64encode(error_info(error).SerializeToString()).decode()
                document = {
                    "code": code,
                    "message": error.message,
                    "details": [{"type": "google.rpc.ErrorInfo", "value": info.rstrip("=")}],
                }
                hint = getattr(error, "retry_after_seconds", None)
                self._answer(status, "application/json", json.dumps(document).encode(), hint)

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
        # HTTPServer's own looks its host name up, which a path doesn't have.
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = self.socket.accept()
        return connection, ("unix", 0)


class _TcpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the default of 5 drops connections that come at once


@contextmanager
def connect_server(service: FakeService, unix_path: Path | None = None) -> Iterator[str]:
    """Serve over Connect; yields the URL."""
    server: ThreadingHTTPServer
    if unix_path is None:
        server = _TcpServer(("127.0.0.1", 0), _handler(service, True))
        url = f"http://127.0.0.1:{server.server_address[1]}"
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


class ScriptedServer:
    """Answers the n-th connection with the n-th script, then closes it.

    A script is a function of the connected socket; `read_request` helps it.
    """

    def __init__(self, *scripts: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._scripts = scripts
        self._thread = threading.Thread(target=self._serve)
        self.failure: BaseException | None = None
        self.connections = 0

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        # Wakes an accept() that nobody came for.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        if self.failure is not None:
            raise self.failure

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                try:
                    script(connection)
                except ConnectionError:
                    pass
                except BaseException as error:  # noqa: BLE001 - given to the test's thread
                    self.failure = error
                    return


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """One request's head and body; (b"", b"") when the client closed instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b"", b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def ok(body: bytes, extra: str = "") -> bytes:
    """A 200 of protobuf."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: {len(body)}\r\n"
    return (head + extra + "\r\n").encode() + body
