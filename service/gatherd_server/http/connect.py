"""The Connect protocol, unary: gatherd.v1 over HTTP/1.1 as protobuf or JSON.

This follows the section on unary RPCs of https://connectrpc.com/docs/protocol. Plain ASGI, because
this is the HTTP port's hot path. Left out on purpose: compressed replies, GET requests (a body of
ids doesn't belong in a URL), and streams, which gRPC has.
"""

import asyncio
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gatherd.errors import (
    DeadlineExceeded,
    GatherdError,
    InvalidArgument,
    MalformedRequest,
    Overloaded,
    PermissionDenied,
    Unimplemented,
)
from gatherd_proto.headers import CONNECT_TIMEOUT, CONNECT_VERSION, JSON, PROTO, TIMEOUT_DIGITS_MAX
from gatherd_proto.procedures import LOOKUP_STREAM, SERVICES
from gatherd_server.access.admission import Admission
from gatherd_server.access.body_room import Held
from gatherd_server.access.callers import AnyEngine
from gatherd_server.engine.engine import SHORT_BYTES, Engine
from gatherd_server.errors import unexpected
from gatherd_server.http.access import caller_of
from gatherd_server.http.body import PartsResponse, outcome, read_body
from gatherd_server.http.errors import allow_header, connect_error, connect_problem
from gatherd_server.http.json_bounds import check_connect
from gatherd_server.http.leaving import until_gone
from gatherd_server.http.media import ACCEPT_ENCODING, ENCODINGS, content_encoding, split
from gatherd_server.http.offload import Offload
from gatherd_server.types import Limits
from gatherd_server.wire import lookups
from gatherd_server.wire.lookups import Part
from gatherd_server.wire.procedures import ANSWERED, ReadProcedure, UpdateProcedure

_VERSION: Final = CONNECT_VERSION.encode()
_TIMEOUT: Final = CONNECT_TIMEOUT.encode()
_PROTO_HEADERS: Final = {"Content-Type": PROTO}
_JSON_HEADERS: Final = {"Content-Type": JSON}
_ACCEPTED: Final = f"{PROTO}, {JSON}"


def connect_routes(engine: Engine, admission: Admission, offload: Offload) -> list[BaseRoute]:
    """The routes of both services, and one for procedures that they don't have."""
    routes: list[BaseRoute] = [
        Route(answered.procedure.path, _Endpoint(answered, engine, admission, offload))
        for answered in ANSWERED
    ]
    unknown = _UnknownProcedure()
    return [*routes, *(Route(f"/{service}/{{procedure:path}}", unknown) for service in SERVICES)]


class _Endpoint:
    """One procedure as an ASGI application."""

    def __init__(
        self,
        answered: ReadProcedure | UpdateProcedure,
        engine: Engine,
        admission: Admission,
        offload: Offload,
    ) -> None:
        self._answered = answered
        self._place = answered.place(admission)
        self._engine = engine
        self._admission = admission
        self._offload = offload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller = caller_of(scope)
            if self._answered.scope is not None:
                caller.check(self._answered.scope)
            with self._place(caller) as held:
                response = await self._response(scope, receive, caller.guard(self._engine), held)
                await response(scope, receive, send)
        except (Overloaded, PermissionDenied) as error:  # everything else is answered above
            await connect_error(error)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is left to be answered

    async def _response(
        self, scope: Scope, receive: Receive, engine: AnyEngine, held: Held
    ) -> Response:
        if scope["method"] != "POST":
            return _wrong_method(scope["method"])
        headers: dict[bytes, bytes] = dict(scope["headers"])
        media_type, charset = split(headers.get(b"content-type", b"").decode("latin-1"))
        if media_type not in (PROTO, JSON) or charset not in ("", "utf-8", "utf8"):
            return _wrong_media_type(media_type, charset)
        encoding = content_encoding(headers)
        if encoding not in ENCODINGS:
            return _wrong_encoding(encoding)
        try:
            return await self._in_time(headers, receive, media_type, engine, held)
        except GatherdError as error:
            return connect_error(error)
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - logged, and answered as Connect wants it
            return connect_error(unexpected(error))

    async def _in_time(
        self,
        headers: dict[bytes, bytes],
        receive: Receive,
        media_type: str,
        engine: AnyEngine,
        held: Held,
    ) -> Response:
        version = headers.get(_VERSION, b"1")
        if version != b"1":
            raise InvalidArgument(
                f"Connect-Protocol-Version is {version.decode('latin-1')!r}; it must be '1'"
            )
        timeout = headers.get(_TIMEOUT)
        if timeout is None:
            return await self._reply(headers, receive, media_type, engine, held)
        seconds = _timeout_seconds(timeout)
        clock = asyncio.get_running_loop()
        deadline = clock.time() + seconds
        is_update = isinstance(self._answered, UpdateProcedure)
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._reply(headers, receive, media_type, engine, held)
        except GatherdError:
            raise
        except TimeoutError:
            raise _too_late(seconds, self._answered) from None
        # A gather on the event loop isn't interrupted, so its answer may come too late. An update
        # that was done is confirmed even then.
        if clock.time() >= deadline and not is_update:
            raise _too_late(seconds, self._answered)
        return response

    async def _reply(
        self,
        headers: dict[bytes, bytes],
        receive: Receive,
        media_type: str,
        engine: AnyEngine,
        held: Held,
    ) -> Response:
        answered, limits = self._answered, self._admission.limits
        body = await read_body(headers, receive, self._admission, held)
        message = answered.procedure.request()
        if media_type == PROTO:
            lookups.parse(message, body, limits)
        else:
            await self._offload.parse(lambda: _parse_json(message, body, limits), body)
        if isinstance(answered, UpdateProcedure):
            # Checking many values takes as long as gathering them would.
            future = await self._offload.run(
                lambda: answered.begin(engine, message), len(body) > SHORT_BYTES
            )
            reply = answered.encode(await outcome(future))
            if media_type == PROTO:
                return PartsResponse([reply], _PROTO_HEADERS)
            return PartsResponse([self._as_json([reply])], _JSON_HEADERS)
        prepared = answered.prepare(engine, message)

        def make() -> list[Part]:
            parts = prepared.make()
            return parts if media_type == PROTO else [self._as_json(parts)]

        if prepared.stopping is not None:
            parts = await until_gone(self._offload, make, prepared.stopping, receive)
        else:
            parts = await self._offload.run(make, prepared.is_long)
        return PartsResponse(parts, _PROTO_HEADERS if media_type == PROTO else _JSON_HEADERS)

    def _as_json(self, parts: list[Part]) -> bytes:
        reply = self._answered.procedure.reply()
        reply.ParseFromString(b"".join(parts))
        return json_format.MessageToJson(reply, indent=None).encode()


class _UnknownProcedure:
    """The answer to a path of our services that isn't one of their unary procedures."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.endswith(f"/{LOOKUP_STREAM.name}"):
            error = Unimplemented(f"{path} is a stream; it is served over gRPC")
        else:
            error = Unimplemented(f"there is no procedure {path}")
        await connect_problem(error, 404, "unimplemented", {})(scope, receive, send)


def _parse_json(message: Message, body: bytes, limits: Limits) -> Message:
    name = message.DESCRIPTOR.full_name
    check_connect(body, limits)
    try:
        text = body.decode()
        # json_format takes an empty list for a message without fields.
        if not text.lstrip().startswith("{"):
            raise MalformedRequest(f"the body isn't a {name} in JSON: it isn't an object")
        return json_format.Parse(text, message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body isn't a {name} in JSON: {error}") from None


def _timeout_seconds(value: bytes) -> float:
    if not value.isdigit() or len(value) > TIMEOUT_DIGITS_MAX:
        raise InvalidArgument(
            f"Connect-Timeout-Ms is {value.decode('latin-1')!r}; "
            f"it must be at most {TIMEOUT_DIGITS_MAX} digits"
        )
    return int(value) / 1000


def _too_late(seconds: float, answered: ReadProcedure | UpdateProcedure) -> DeadlineExceeded:
    wrong = f"the request wasn't answered within its {seconds:g} s"
    if not isinstance(answered, UpdateProcedure):
        return DeadlineExceeded(wrong)
    return DeadlineExceeded(f"{wrong}; {answered.may_be_done}")


def _wrong_method(method: str) -> Response:
    error = Unimplemented(f"procedures are called by POST, not {method}")
    return connect_problem(error, 405, "unimplemented", allow_header(("POST",)))


def _wrong_media_type(media_type: str, charset: str) -> Response:
    told = f"{media_type or 'missing'}{f' in charset {charset}' if charset else ''}"
    error = MalformedRequest(f"the Content-Type is {told}; accepted are {_ACCEPTED}")
    return connect_problem(error, 415, "invalid_argument", {"Accept-Post": _ACCEPTED})


def _wrong_encoding(encoding: str) -> Response:
    error = Unimplemented(f"the Content-Encoding is {encoding}; accepted are {ACCEPT_ENCODING}")
    return connect_problem(error, 501, "unimplemented", {"Accept-Encoding": ACCEPT_ENCODING})
