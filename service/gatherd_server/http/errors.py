"""The answer to every gatherd error on the HTTP port, in REST and in Connect.

REST answers with RFC 9457 problem bodies; `error` repeats `detail`, because clients of the Open
Inference Protocol read that member. Connect answers with its own error JSON, under the status that
the protocol's table gives the code; REST uses the same status where that is precise enough.
"""

import asyncio
import base64
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import orjson
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from gatherd import errors
from gatherd._outcome import OUTCOME, UNKNOWN
from gatherd_proto.headers import JSON, PROBLEM_JSON, RETRY_AFTER
from gatherd_proto.procedures import PATH_PREFIX
from gatherd_server.errors import unexpected
from gatherd_server.observe import trail
from gatherd_server.wire.checks import UPDATE_MAY_BE_DONE
from gatherd_server.wire.codes import CODES, class_of, code_of
from gatherd_server.wire.error_details import error_details, retry_seconds

# A message quotes the request, and the quoted part can be as long as a body.
MESSAGE_CHARS_MAX: Final = 4096


# https://connectrpc.com/docs/protocol#error-codes
CONNECT_STATUS: Final[Mapping[str, int]] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}

# REST has statuses of its own for three errors that share one in Connect: a body that can't be
# read, a body that is wrong, and a conflict.
_REST_STATUS: Final[Mapping[str, int]] = {"invalid_argument": 422, "failed_precondition": 409}
_REST_STATUS_OF_CLASS: Final[Mapping[type[errors.GatherdError], int]] = {
    errors.MalformedRequest: 400,
    errors.LimitExceeded: 413,
    errors.DiskFull: 507,
    errors.TooManyFiles: 503,
    errors.UpdatesStopped: 503,
}

# Errors of HTTP itself have no class of their own, and get the reason of the nearest one.
_STATUS_REASONS: Final[Mapping[int, str]] = {
    400: errors.MalformedRequest.reason,
    404: errors.NotFound.reason,
    405: errors.Unimplemented.reason,
    406: errors.InvalidArgument.reason,
    415: errors.MalformedRequest.reason,
    431: errors.LimitExceeded.reason,
    500: errors.InternalError.reason,
    501: errors.Unimplemented.reason,
    505: errors.Unimplemented.reason,
}


# Error bodies kept, so that a full server refuses many requests alike at little cost.
BODIES_MAX: Final = 64


def rest_status(cls: type[errors.GatherdError]) -> int:
    """The REST status of a class with a code: its own, else its code's in REST, else in Connect."""
    code = CODES[cls]
    return _REST_STATUS_OF_CLASS.get(cls) or _REST_STATUS.get(code) or CONNECT_STATUS[code]


def problem(error: errors.GatherdError, extra: Mapping[str, Any] | None = None) -> Response:
    """`error` as a problem response, with `extra` members."""
    trail.failed(code_of(error), error)
    members = {
        "type": "urn:gatherd:error:" + error.reason.lower().replace("_", "-"),
        "title": error.reason.replace("_", " ").capitalize(),
        "reason": error.reason,
        "metadata": _cut_values(error.metadata),
        **(extra or {}),
    }
    return _problem(rest_status(class_of(error)), error.message, members, _headers_of(error))


def http_problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error of HTTP itself, such as 404 for a path or 405, as a problem response."""
    members = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "reason": _STATUS_REASONS.get(status, errors.InvalidArgument.reason),
        "metadata": {},
    }
    return _problem(status, detail, members, headers or {})


def _problem(
    status: int, detail: str, members: Mapping[str, Any], headers: Mapping[str, str]
) -> Response:
    detail = _cut(detail)
    body = {
        "type": members["type"],
        "title": members["title"],
        "status": status,
        "detail": detail,
        "error": detail,
        **members,
    }
    return Response(orjson.dumps(body), status, dict(headers), PROBLEM_JSON)


def connect_error(error: errors.GatherdError) -> Response:
    """`error` as Connect's error JSON, under the status of its code."""
    code = code_of(error)
    return connect_problem(error, CONNECT_STATUS[code], code, _headers_of(error))


def connect_problem(
    error: errors.GatherdError, status: int, code: str, headers: Mapping[str, str]
) -> Response:
    """`error` as Connect's error JSON under another status, as for an unknown procedure."""
    trail.failed(code, error)
    metadata = tuple(_cut_values(error.metadata).items())
    seconds = retry_seconds(error)
    body = _connect_body(code, _cut(error.message), error.reason, metadata, seconds)
    return Response(body, status, dict(headers), JSON)


@lru_cache(BODIES_MAX)
def _connect_body(
    code: str,
    message: str,
    reason: str,
    metadata: tuple[tuple[str, str], ...],
    retry_seconds: float | None,
) -> bytes:
    details = [*map(_detail, error_details(reason, dict(metadata), retry_seconds))]
    return orjson.dumps({"code": code, "message": message, "details": details})


def _detail(detail: Message) -> dict[str, Any]:
    return {
        "type": detail.DESCRIPTOR.full_name,
        "value": base64.b64encode(detail.SerializeToString()).rstrip(b"=").decode(),
        "debug": MessageToDict(detail, always_print_fields_with_no_presence=True),
    }


def _headers_of(error: errors.GatherdError) -> dict[str, str]:
    """The headers for a class: when to retry, or which token is needed (RFC 6750)."""
    if isinstance(error, errors.Unauthenticated):
        challenge = 'Bearer realm="gatherd"'
        if "error" in error.metadata:
            challenge += f', error="{error.metadata["error"]}"'
        return {"WWW-Authenticate": challenge}
    if isinstance(error, errors.PermissionDenied):
        challenge = 'Bearer realm="gatherd", error="insufficient_scope"'
        if "scope" in error.metadata:
            challenge += f', scope="{error.metadata["scope"]}"'
        return {"WWW-Authenticate": challenge}
    seconds = retry_seconds(error)
    return {} if seconds is None else {RETRY_AFTER.title(): str(math.ceil(seconds))}


def _cut(text: str) -> str:
    # A lone surrogate, which JSON can contain, can't be written as UTF-8.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"


def _cut_values(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(value) for key, value in metadata.items()}


class CatchUnexpected:
    """ASGI middleware: an exception that no handler caught is logged once, and a fixed text sent.

    Starlette's own handler for this answers and raises again, so that the web server logs it a
    second time. The web server cancels requests that outlast a stop, which is no error of ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; when it raises before it has answered, answer in its place."""
        started = False

        async def watched(message: AsgiMessage) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if started or scope["type"] != "http":
                raise
            answer = connect_error if scope["path"].startswith(PATH_PREFIX) else problem
            await answer(stopping())(scope, receive, send)
        except Exception as error:
            if started or scope["type"] != "http":
                raise  # too late for an answer; the web server logs it and drops the connection
            await problem(unexpected(error))(scope, receive, send)


def stopping() -> errors.Unavailable:
    """The answer to what outlasts a stop."""
    return errors.Unavailable(
        f"the server is stopping and waits no longer for this request; {UPDATE_MAY_BE_DONE}",
        {OUTCOME: UNKNOWN},
    )


def allow_header(methods: Iterable[str]) -> dict[str, str]:
    """The header that a 405 must carry."""
    return {"Allow": ", ".join(sorted(methods))}
