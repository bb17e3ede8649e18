"""A server's answer that isn't a reply, as one of the classes in gatherd/errors.py.

An ErrorInfo names the class by its reason. Without one (a proxy answered, or a foreign server) the
canonical code decides, and without a code the HTTP status. The Connect protocol maps that too, but
not for a client behind a proxy: the answer of a proxy that lost the server, or the connection to
it, is Unavailable here. So the request is tried again, and its outcome is unknown.
"""

import base64
import binascii
import json
import re
from typing import Any

from google.protobuf.message import DecodeError

from gatherd._outcome import NOT_SENT, OUTCOME, UNKNOWN
from gatherd.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    GatherdError,
    InternalError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    RetryableError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    by_reason,
)
from gatherd_proto.errors import CANCELED, ERROR_DOMAIN, ERROR_INFO_TYPE
from gatherd_proto.headers import JSON, PROBLEM_JSON
from gatherd_proto.v1 import status_pb2

# How much of a foreign error body is worth showing.
SNIPPET_CHARS_MAX = 200

CLASS_BY_CODE: dict[str, type[GatherdError]] = {
    # A party on the way gave up, not the caller: a canceled call of ours isn't answered at all.
    CANCELED: Unavailable,
    "unknown": InternalError,
    "invalid_argument": InvalidArgument,
    "deadline_exceeded": DeadlineExceeded,
    "not_found": NotFound,
    "already_exists": AlreadyExists,
    "permission_denied": PermissionDenied,
    "resource_exhausted": Overloaded,
    "failed_precondition": FailedPrecondition,
    "aborted": Unavailable,
    "out_of_range": InvalidArgument,
    "unimplemented": Unimplemented,
    "internal": InternalError,
    "unavailable": Unavailable,
    "data_loss": InternalError,
    "unauthenticated": Unauthenticated,
}
_CODE_BY_HTTP_STATUS = {
    401: "unauthenticated",
    403: "permission_denied",
    404: "unimplemented",
    # A server that speaks our HTTP and Connect never sends these. (Below, other statuses from 500
    # are taken for a proxy's.)
    501: "internal",
    505: "internal",
    511: "internal",
    # A proxy that gave up on the way, or lost the connection in the middle of a request.
    400: "unavailable",
    408: "unavailable",
    425: "unavailable",
    429: "unavailable",
    499: "unavailable",
}
_HTTP_SERVER_ERROR = range(500, 600)
_LOSES_TRACK = (Unavailable, Overloaded, InternalError, DeadlineExceeded)
_HTTP_PAYLOAD_TOO_LARGE = 413
# grpc's words for an answer in HTTP alone, and so from a proxy.
_GRPC_HTTP_STATUS = re.compile(r"Received http2 header with status: ([0-9]{3})")
# … and for a stream, or a whole connection, that ended without an answer.
_GRPC_LOST = re.compile(r"RST_STREAM|Stream removed|GOAWAY|Stream closed|Socket closed")
# … and, without details, for a message over a limit of either side.
_GRPC_TOO_LARGE = "message larger than max"
# … and for a call that it had no connection for.
_GRPC_NOT_CONNECTED = "failed to connect to all addresses"


def make_error(
    code: str, message: str, infos: list[status_pb2.ErrorInfo], retry_after_seconds: float | None
) -> GatherdError:
    """The error for a canonical code (as Connect spells it) and its details."""
    info = next((info for info in infos if info.domain == ERROR_DOMAIN), None)
    cls = by_reason(info.reason) if info is not None else None
    if cls is None and code == "resource_exhausted" and _GRPC_TOO_LARGE in message:
        cls = LimitExceeded
    if cls is None:
        cls = CLASS_BY_CODE.get(code, InternalError)
    metadata = dict(info.metadata) if info is not None else {}
    text = message or f"the server answered {code} without a message"
    if info is None and cls in _LOSES_TRACK:
        # From a proxy, or grpc itself: the outcome of the request is unknown.
        metadata[OUTCOME] = UNKNOWN
    if issubclass(cls, RetryableError):
        return cls(text, metadata, retry_after_seconds)
    return cls(text, metadata)


def from_http(
    url: str, status: int, content_type: str, body: bytes, retry_after_seconds: float | None
) -> GatherdError:
    """The error in a Connect response that isn't a 200."""
    document = _json_object(body) if content_type.startswith(JSON) else {}
    code = document.get("code")
    if isinstance(code, str) and code in CLASS_BY_CODE:
        message = document.get("message")
        infos = _connect_infos(document.get("details"))
        return make_error(
            code, message if isinstance(message, str) else "", infos, retry_after_seconds
        )
    own = _own_problem(content_type, body, retry_after_seconds)
    if own is not None:
        return own
    snippet = body[: 4 * SNIPPET_CHARS_MAX].decode("utf-8", "replace")[:SNIPPET_CHARS_MAX]
    text = f"{url} answered HTTP {status}" + (f": {snippet!r}" if snippet else "")
    return _from_status(status, text, retry_after_seconds)


def _own_problem(
    content_type: str, body: bytes, retry_after_seconds: float | None
) -> GatherdError | None:
    """The error in a problem body, which a gatherd server sends before it knows the path."""
    if not content_type.startswith(PROBLEM_JSON):
        return None
    document = _json_object(body)
    reason, detail = document.get("reason"), document.get("detail")
    cls = by_reason(reason) if isinstance(reason, str) else None
    if cls is None or not isinstance(detail, str):
        return None
    return cls(detail, {}, retry_after_seconds) if issubclass(cls, RetryableError) else cls(detail)


def _from_status(status: int, text: str, retry_after_seconds: float | None) -> GatherdError:
    """The error for an HTTP status that didn't come from a gatherd server."""
    if status == _HTTP_PAYLOAD_TOO_LARGE:
        return LimitExceeded(text)
    code = _CODE_BY_HTTP_STATUS.get(status)
    if code is None:
        code = "unavailable" if status in _HTTP_SERVER_ERROR else "unknown"
    return make_error(code, text, [], retry_after_seconds)


def from_grpc(
    url: str, code: str, message: str, details: bytes | None, retry_after_seconds: float | None
) -> GatherdError:
    """The error of a gRPC status; `details` is the status proto."""
    infos = _status_infos(details) if details else []
    # Our servers' messages are complete; grpc's own lack the place.
    text = message if infos else f"{url}: {message}"
    if not infos and code not in (CANCELED, "resource_exhausted"):
        status = _GRPC_HTTP_STATUS.search(message)
        if status is not None:
            answered = f"{url} answered HTTP {status[1]}"
            return _from_status(int(status[1]), answered, retry_after_seconds)
        if code in ("internal", "unknown") and _GRPC_LOST.search(message):
            code = "unavailable"
    error = make_error(code, text, infos, retry_after_seconds)
    if message.startswith(_GRPC_NOT_CONNECTED) and not infos:
        error.metadata[OUTCOME] = NOT_SENT
    return error


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _connect_infos(details: object) -> list[status_pb2.ErrorInfo]:
    infos: list[status_pb2.ErrorInfo] = []
    for detail in details if isinstance(details, list) else []:
        value = detail.get("value") if isinstance(detail, dict) else None
        if isinstance(value, str) and detail.get("type") == ERROR_INFO_TYPE:
            try:
                # Connect sends base64 without padding, and accepts it with.
                raw = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
                infos.append(status_pb2.ErrorInfo.FromString(raw))
            except (ValueError, binascii.Error, DecodeError):
                continue  # details are extra: the code alone still makes the right error
    return infos


def _status_infos(details: bytes) -> list[status_pb2.ErrorInfo]:
    infos: list[status_pb2.ErrorInfo] = []
    try:
        status = status_pb2.Status.FromString(details)
        infos.extend(
            status_pb2.ErrorInfo.FromString(detail.value)
            for detail in status.details
            if detail.type_url.rpartition("/")[2] == ERROR_INFO_TYPE
        )
    except DecodeError:
        pass  # as above
    return infos
