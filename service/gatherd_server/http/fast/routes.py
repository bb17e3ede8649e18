"""The lookups and updates that the fast path answers, each wire's in its own encoding.

A route decides by a request's headers whether it is plain. Any other request goes through ASGI,
which also knows how to refuse it.
"""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.datastructures import QueryParams
from starlette.responses import Response

from gatherd.errors import GatherdError
from gatherd.store.dtypes import DType
from gatherd.store.query import ByKey, Missing
from gatherd_proto.framing import dtype_code
from gatherd_proto.headers import CONNECT_VERSION, JSON, PROTO
from gatherd_proto.procedures import LOOKUP, Procedure
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.access.callers import Caller, Scope
from gatherd_server.engine.engine import Engine
from gatherd_server.http.body import PartsResponse
from gatherd_server.http.errors import connect_error, problem
from gatherd_server.http.media import OCTETS
from gatherd_server.http.offload import PARSED_AT_ONCE_BYTES
from gatherd_server.http.rest import arrays, lookup_bodies
from gatherd_server.http.rest.arrays import array_response
from gatherd_server.http.rest.json_lookups import (
    JSON_LOOKUPS,
    JSON_LOOKUPS_OF_MANY,
    JsonLookups,
    prepared,
)
from gatherd_server.observe.metrics.recorder import RequestSeries
from gatherd_server.observe.metrics.telemetry import Telemetry
from gatherd_server.types import PushResult, UpdateOp
from gatherd_server.wire import lookups, updates
from gatherd_server.wire.procedures import COMPILED, LOOKUPS, PUSHES, Lookups
from gatherd_server.wire.seen_updates import SeenUpdates

_VERSION: Final = CONNECT_VERSION.encode()
_PROTO: Final = PROTO.encode()
_PROTO_LINE: Final = b"content-type: %b\r\n" % _PROTO
_OCTETS: Final = OCTETS.encode()
_JSON: Final = JSON.encode()
_ANYTHING: Final = (None, b"*/*", _JSON)
_NO_QUERY: Final = QueryParams()
_REST_LOOKUP: Final = rb"/v1/tables/([A-Za-z0-9_.-]{1,128}):(lookup|lookupBags)(?:\?([^#]*))?"


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """An answer that isn't only rows, and still has to be made."""

    run: Callable[[], Response]
    is_long: bool


class Route(Protocol):
    """Decides which requests of one path are plain; `counted` counts them."""

    counted: RequestSeries

    body_bytes_max: int

    def takes(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether every default applies to a request with these headers."""

    def error(self, error: GatherdError) -> Response:
        """`error` in this wire's format."""


class LookupRoute(Route, Protocol):
    """Answers lookups by the compiled answer, or the general way."""

    message: int

    def begin(self, body: bytes, caller: Caller) -> PendingAnswer:
        """Read the request and find its tables. GatherdError when `caller` can't be answered."""

    def message_of(self, body: bytes) -> bytes | None:
        """The request as the message whose number is `message`; None if it can't be one."""

    def head_of(self, reply: memoryview, start: int, stop: int) -> tuple[bytes, int]:
        """Of the answer to that message, which begins in reply[start:stop]: its own lines.

        And where its body begins.
        """


class FastRoutes:
    """Finds the route of a URL."""

    def __init__(
        self, engine: Engine, telemetry: Telemetry | None = None, root_path: str = ""
    ) -> None:
        """Counts into `telemetry`; without it, the counts are lost.

        URLs may begin with `root_path`, which a proxy may have removed.
        """
        self._engine = engine
        telemetry = telemetry or Telemetry()
        self._octets = telemetry.requests("rest", LOOKUP.name)
        self._connect: dict[bytes, FastRoute] = {
            procedure.path.encode(): _Connect(
                engine, procedure, way, telemetry.requests("connect", procedure.name)
            )
            for procedure, way in LOOKUPS.items()
        }
        self._json = {
            verb.encode(): telemetry.requests("rest", way.procedure.name)
            for verb, way in JSON_LOOKUPS.items()
        }
        self._json_of_many = {
            f"/v1/{verb}".encode(): JsonRoute(
                engine, way, telemetry.requests("rest", way.procedure.name)
            )
            for verb, way in JSON_LOOKUPS_OF_MANY.items()
        }
        for procedure, op in PUSHES.items():
            counted = telemetry.requests("connect", procedure.name)
            self._connect[procedure.path.encode()] = PushRoute(engine, op, counted)
        prefix = root_path.encode()
        self._connect |= {prefix + path: route for path, route in self._connect.items()}
        self._json_of_many |= {prefix + path: route for path, route in self._json_of_many.items()}
        self._rest = re.compile(b"(?:%b)?%b" % (re.escape(prefix), _REST_LOOKUP))

    def find(self, url: bytes, headers: Mapping[bytes, bytes]) -> "FastRoute | None":
        """The route of a POST to `url` with these headers; None when the fast path has none."""
        route: FastRoute | None = self._connect.get(url)
        if route is None:
            route = self._rest_route(url, headers)
        return route if route is not None and route.takes(headers) else None

    def _rest_route(self, url: bytes, headers: Mapping[bytes, bytes]) -> "FastRoute | None":
        match = self._rest.fullmatch(url)
        if match is None:
            return self._json_of_many.get(url)
        table, verb, queried = match[1].decode("ascii"), match[2], match[3]
        query = QueryParams(queried.decode("latin-1")) if queried else _NO_QUERY
        if verb == b"lookup" and headers.get(b"content-type") == _OCTETS:
            return _Octets(self._engine, table, query, self._octets)
        return JsonRoute(self._engine, JSON_LOOKUPS[verb.decode()], self._json[verb], table, query)


class _Connect:
    """A procedure of Connect, in protobuf."""

    def __init__(
        self,
        engine: Engine,
        procedure: Procedure,
        way: Lookups,
        counted: RequestSeries,
    ) -> None:
        self.counted = counted
        self._engine = engine
        self.body_bytes_max = engine.limits.request_bytes_max
        self.message = COMPILED[procedure]
        self._request = procedure.request
        self._read = way.read
        self._encode = way.encode

    def takes(self, headers: Mapping[bytes, bytes]) -> bool:
        return _is_connect(headers)

    def begin(self, body: bytes, caller: Caller) -> PendingAnswer:
        caller.check(Scope.READ)
        limits = self._engine.limits
        asked = self._read(lookups.parse(self._request(), body, limits), limits)
        prepared = caller.guard(self._engine).prepare(asked)
        headers = {"Content-Type": PROTO}
        return PendingAnswer(
            lambda: PartsResponse(self._encode(prepared.run()), headers), prepared.is_long
        )

    def message_of(self, body: bytes) -> bytes:
        return body

    def head_of(self, _reply: memoryview, start: int, _stop: int) -> tuple[bytes, int]:
        return _PROTO_LINE, start

    def error(self, error: GatherdError) -> Response:
        return connect_error(error)


class PushRoute:
    """An update over Connect, in protobuf."""

    def __init__(self, engine: Engine, op: UpdateOp, counted: RequestSeries) -> None:
        self.counted = counted
        self._engine = engine
        self.body_bytes_max = engine.limits.request_bytes_max
        self._op = op
        self._seen = SeenUpdates(op)

    def takes(self, headers: Mapping[bytes, bytes]) -> bool:
        """See Route."""
        return _is_connect(headers)

    def admits(self, caller: Caller) -> bool:
        """Whether updates of `caller` are answered from here.

        A caller that may not push is refused by ASGI's way, before the body is read.
        """
        return caller.grant is None or Scope.UPDATE in caller.grant.scopes

    def begin(self, body: bytes, caller: Caller) -> "Future[PushResult]":
        """Read the update and hand it to the writer. A GatherdError when it is refused at once.

        On the event loop; on any thread for a body that is too long to be learnt.
        """
        engine, limits = self._engine, self._engine.limits
        push = self._seen.find(body)
        if push is None:
            message = embedding_pb2.UpdateRequest()
            lookups.parse(message, body, limits)
            push = updates.push(self._op, message, limits)
            self._seen.learn(body, push, limits)
        return caller.guard(engine).push(push)

    def reply(self, result: PushResult) -> tuple[bytes, bytes]:
        """The reply's own header lines, and its body."""
        return _PROTO_LINE, updates.push_reply(result)

    def error(self, error: GatherdError) -> Response:
        """See Route."""
        return connect_error(error)


def _is_connect(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-type") == _PROTO and headers.get(_VERSION, b"1") == b"1"


class _Octets:
    """REST's lookup of one table, raw ids for raw vectors."""

    message = COMPILED[LOOKUP]

    def __init__(
        self, engine: Engine, table: str, query: QueryParams, counted: RequestSeries
    ) -> None:
        self.counted = counted
        self._engine = engine
        self.body_bytes_max = engine.limits.request_bytes_max
        self._table = table
        self._query = query
        # The last body's length with what its message has before the ids; the last reply's head.
        self._before: tuple[int, bytes | None] = (-1, None)
        self._known = b""
        self._lines = b""

    def takes(self, headers: Mapping[bytes, bytes]) -> bool:
        return headers.get(b"content-type") == _OCTETS and headers.get(b"accept") == _OCTETS

    def begin(self, body: bytes, caller: Caller) -> PendingAnswer:
        engine = caller.guard(self._engine)
        lookup = lookup_bodies.lookup_of(OCTETS, self._table, body, self._query, engine.limits)
        prepared = engine.prepare([lookup])

        def answer() -> Response:
            gathered = prepared.run()[0]
            return array_response(OCTETS, arrays.octet_parts(gathered), gathered)

        return PendingAnswer(answer, prepared.is_long)

    def message_of(self, body: bytes) -> bytes | None:
        # Also asked on a thread, while the loop may have a next request: one reference, read once.
        length, before = self._before
        if length != len(body):
            before = self._before_ids(body)
            self._before = (len(body), before)
        return None if before is None else before + body

    def _before_ids(self, body: bytes) -> bytes | None:
        """A LookupRequest up to the bytes of its ids, when its answer is nothing but rows."""
        limits = self._engine.limits
        try:
            lookup = lookup_bodies.lookup_of(OCTETS, self._table, body, self._query, limits)
        except GatherdError:
            return None
        asked = lookup.asked
        if isinstance(asked, ByKey) or lookup.missing is not Missing.ERROR or not body:
            return None
        if not lookup.is_plain:
            return None
        dtype, version = lookups.DTYPE_CODES[lookup.dtype], lookup.version
        rest = embedding_pb2.LookupRequest(table=self._table, dtype=dtype, version=version)
        code = dtype_code(asked.dtype.name)
        ids = tensor_pb2.Tensor(dtype=code, shape=asked.shape, data=body)
        # Messages behind each other are one; a tensor's data is its last field.
        whole = rest.SerializeToString() + embedding_pb2.LookupRequest(ids=ids).SerializeToString()
        return whole.removesuffix(body)

    def head_of(self, reply: memoryview, start: int, stop: int) -> tuple[bytes, int]:
        known = self._known
        if not known or bytes(reply[start : start + len(known)]) != known:
            head = lookups.read_lookup_head(reply[start:stop])
            self._known = known = bytes(reply[start : start + head.nbytes])
            self._lines = _array_lines(head.shape, head.dtype, head.version)
        return self._lines, start + len(known)

    def error(self, error: GatherdError) -> Response:
        return problem(error)


class JsonRoute:
    """Lookups of REST in JSON that are parsed at once; longer ones go through ASGI."""

    body_bytes_max = PARSED_AT_ONCE_BYTES

    def __init__(
        self,
        engine: Engine,
        way: JsonLookups,
        counted: RequestSeries,
        table: str = "",
        query: QueryParams = _NO_QUERY,
    ) -> None:
        self.counted = counted
        self._engine = engine
        self._way = way
        self._table = table
        self._query = query

    def takes(self, headers: Mapping[bytes, bytes]) -> bool:
        """See Route."""
        return headers.get(b"content-type") == _JSON and headers.get(b"accept") in _ANYTHING

    def begin(self, body: bytes, caller: Caller) -> PendingAnswer:
        """Read the request and find its tables. GatherdError when `caller` can't be answered."""
        caller.check(Scope.READ)
        way, engine = self._way, caller.guard(self._engine)
        asked = way.read(self._table, body, self._query, engine.limits)
        run, is_long = prepared(engine, asked, way.encode)
        return PendingAnswer(run, is_long)

    def error(self, error: GatherdError) -> Response:
        """See Route."""
        return problem(error)


FastRoute = LookupRoute | PushRoute | JsonRoute


def _array_lines(shape: tuple[int, ...], dtype: DType, version: int) -> bytes:
    headers = arrays.array_headers(shape, dtype, version, 0)
    lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
    return b"content-type: application/octet-stream\r\n" + lines.encode("ascii")
