"""Observes every HTTP request: its count, its time, its id, its trace.

An ASGI middleware does it for the application; the fast path, which is outside of that, calls the
same pieces. An error's answer carries the request's id in X-Request-Id; its log lines have it too.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatherd_proto import procedures as proto
from gatherd_proto.errors import CANCELED
from gatherd_server.access.admission import PAGE_PATHS
from gatherd_server.observe.metrics.recorder import RequestSeries
from gatherd_server.observe.metrics.telemetry import Telemetry, now_ns
from gatherd_server.observe.trail import REQUEST_ID_HEADER, Trail, following

logger = logging.getLogger("gatherd.requests")

_VERB: Final = re.compile(r"/v1/(?:tables/[^/:]+:)?([A-Za-z]{1,32})")
_TABLE: Final = re.compile(r"/v1/tables/[^/:]+(/versions)?")
_UPLOADS: Final = "/v1/uploads"
_UPLOAD: Final = re.compile(r"/v1/uploads/[^/:]+(/rows|:commit|)")
_BY_UPLOAD: Final = {
    ("GET", ""): proto.GET_UPLOAD.name,
    ("DELETE", ""): proto.CANCEL_UPLOAD.name,
    ("PUT", "/rows"): proto.PUT_CHUNK.name,
    ("POST", ":commit"): proto.COMMIT_UPLOAD.name,
}
OPERATIONS_WIRE: Final = "http"
_UNKNOWN: Final = "unknown"
# "Not ready" is an answer, not a failure.
_READYZ: Final = "readyz"
_BY_VERB: Final = {
    procedure.name[0].lower() + procedure.name[1:]: procedure.name
    for procedure in (
        *(proto.LOOKUP, proto.LOOKUP_BAGS, proto.KEYS_OF, proto.IDS_OF),
        *(proto.SCATTER_ADD, proto.APPLY_GRADIENTS, proto.ASSIGN, proto.DELETE_ROWS),
        *(proto.PUBLISH, proto.ROLLBACK, proto.SET_OPTIMIZER),
    )
}
_OF_MANY: Final = {"lookup": proto.LOOKUP_MANY.name, "lookupBags": proto.LOOKUP_BAGS_MANY.name}
_BY_PATH: Final = {
    procedure.path: procedure.name for procedure in proto.PROCEDURES if not procedure.is_stream
}
_OPERATIONS: Final = frozenset({"/metrics", "/healthz", "/readyz", "/openapi.json"})
# For answers that come from no error of ours.
_CODE_OF_STATUS: Final[Mapping[int, str]] = {
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    405: "unimplemented",
    429: "resource_exhausted",
    503: "unavailable",
}


def procedure_of(method: str, path: str) -> tuple[str, str]:
    """The wire and procedure that a request is counted under, out of a fixed set.

    Updates of one and of many tables are the same procedure, as they are in gatherd.v1.
    """
    if path.startswith(proto.PATH_PREFIX):
        return "connect", _BY_PATH.get(path, _UNKNOWN)
    if path in _OPERATIONS:
        return OPERATIONS_WIRE, path.strip("/")
    if path in PAGE_PATHS:
        return OPERATIONS_WIRE, "docs"
    return "rest", _rest_procedure(method, path)


def _rest_procedure(method: str, path: str) -> str:
    if path == "/v1/tables":
        return (proto.CREATE_TABLE if method == "POST" else proto.LIST_TABLES).name
    if path == "/v1/snapshots":
        return proto.SNAPSHOT.name
    if path.startswith(_UPLOADS):
        return _upload_procedure(method, path)
    if _TABLE.fullmatch(path):
        return (proto.DELETE_TABLE if method == "DELETE" else proto.GET_TABLE).name
    match = _VERB.fullmatch(path)
    if match is None:
        return _UNKNOWN
    verb = match[1]
    if path == f"/v1/{verb}" and verb in _OF_MANY:
        return _OF_MANY[verb]
    return _BY_VERB.get(verb, _UNKNOWN)


def _upload_procedure(method: str, path: str) -> str:
    if path == _UPLOADS:
        return (proto.BEGIN_UPLOAD if method == "POST" else proto.LIST_UPLOADS).name
    match = _UPLOAD.fullmatch(path)
    return _UNKNOWN if match is None else _BY_UPLOAD.get((method, match[1]), _UNKNOWN)


@dataclass(frozen=True, slots=True)
class HeadTrail:
    """A request's X-Request-Id and traceparent headers; b"" for a missing one."""

    request_id: bytes
    traceparent: bytes

    def get(self, name: str) -> str | None:
        """The header called `name`; None when it is missing."""
        value = self.request_id if name == REQUEST_ID_HEADER else self.traceparent
        return value.decode("latin-1") or None


NO_TRAIL: Final = HeadTrail(b"", b"")


def head_trail(headers: Mapping[bytes, bytes]) -> HeadTrail | None:
    """The trail in a fast request's headers; None without one."""
    request_id = headers.get(b"x-request-id")
    traceparent = headers.get(b"traceparent")
    if request_id is None and traceparent is None:
        return None
    return HeadTrail(request_id or b"", traceparent or b"")


def note_failure(counted: RequestSeries, code: str, why: str, request_id: str) -> None:
    """Log a request that was answered with an error, at debug level."""
    if logger.isEnabledFor(logging.DEBUG):
        fields = {"wire": counted.wire, "procedure": counted.procedure, "code": code}
        logger.debug(
            "%s over %s failed, %s: %s",
            counted.procedure,
            counted.wire,
            code,
            why,
            extra={"request_id": request_id, "fields": fields},
        )


class Observed:
    """ASGI middleware around everything else: counts requests and gives them ids."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_ns = now_ns()
        wire, procedure = procedure_of(scope["method"], scope["path"])
        trail = Trail(lambda name: _header(scope, name.encode()))
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400:
                    named = (REQUEST_ID_HEADER.encode(), trail.request_id.encode())
                    message = {**message, "headers": [*message["headers"], named]}
            await send(message)

        try:
            with following(trail):
                await self._app(scope, receive, observed)
        finally:
            counted = self._telemetry.requests(wire, procedure)
            code, elapsed_ns = _code(trail, status), now_ns() - begun_ns
            counted.done(code, elapsed_ns)
            if self._telemetry.spans is not None and wire != OPERATIONS_WIRE:
                self._telemetry.spans.request(wire, procedure, code, elapsed_ns, trail.traceparent)
            if trail.error is not None and procedure != _READYZ:
                self._telemetry.failures.note(trail.error, trail.request_id)
            if status >= 400:
                note_failure(counted, code, f"status {status}", trail.request_id)


def _code(trail: Trail, status: int) -> str:
    if status == 0:
        return CANCELED
    if status < 400:
        return "ok"
    known = trail.code or _CODE_OF_STATUS.get(status)
    return known or ("invalid_argument" if status < 500 else "internal")


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None
