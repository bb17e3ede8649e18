"""CORS: what the browsers of pages from other sites are allowed, see access/web.py."""

from typing import Any, Final

from gatherd_proto.headers import AUTHORIZATION, CONNECT_TIMEOUT, CONNECT_VERSION, RETRY_AFTER
from gatherd_server.http.rest.arrays import ARRAY_HEADERS, CURSOR_HEADER, LSN_HEADER, PARTS_HEADER
from gatherd_server.observe.trail import REQUEST_ID_HEADER

# How long a browser may keep the answer to a preflight; Chromium's own limit.
PREFLIGHT_SECONDS: Final = 7200
_ASKED: Final = (
    *(AUTHORIZATION, "content-type", "accept", "content-encoding", "idempotency-key"),
    *(CONNECT_VERSION, CONNECT_TIMEOUT, "x-user-agent"),
    *(REQUEST_ID_HEADER, "traceparent", "tracestate"),
)
_ANSWERED: Final = (
    *ARRAY_HEADERS,
    LSN_HEADER,
    CURSOR_HEADER,
    PARTS_HEADER,
    RETRY_AFTER,
    REQUEST_ID_HEADER,
    "WWW-Authenticate",
    "Allow",
)


def options(origins: tuple[str, ...]) -> dict[str, Any]:
    """The options of Starlette's CORSMiddleware that let pages of `origins` ask."""
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "HEAD", "POST", "DELETE"),
        "allow_headers": _ASKED,
        "expose_headers": _ANSWERED,
        "max_age": PREFLIGHT_SECONDS,
    }
