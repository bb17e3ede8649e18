"""Headers that callers add to requests, on every wire: a client's, and those of a block of code.

Left out on purpose: replacing headers that the client itself sends, because they say how a request
is framed, what it means or who sends it.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Final, TypeAlias

from gatherd.errors import InvalidArgument

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
USER_AGENT: Final = f"gatherd/{version('gatherd')} python/{_PYTHON}"
HEADERS_MAX: Final = 32
HEADERS_BYTES_MAX: Final = 8 << 10

Headers: TypeAlias = tuple[tuple[str, str], ...]

# RFC 9110, 5.6.2 and 5.5: a token, and visible ASCII with blanks inside.
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE: Final = re.compile(r"[!-~]([ \t!-~]*[!-~])?")
_OURS: Final = {
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_OUR_PREFIXES: Final = (":", "connect-", "grpc-")

_of_block: ContextVar[Headers] = ContextVar("gatherd_headers", default=())


def checked_headers(given: object) -> Headers:
    """Headers, with names in lower case as gRPC wants them. InvalidArgument for wrong ones."""
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"headers are a mapping of str to str, not a {type(given).__name__}")
    headers = tuple(_checked(name, value) for name, value in given.items())
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > HEADERS_MAX or size > HEADERS_BYTES_MAX:
        raise InvalidArgument(
            f"there are {len(headers)} headers of {size} bytes; at most {HEADERS_MAX} of "
            f"{HEADERS_BYTES_MAX} bytes in all are sent"
        )
    return headers


def _checked(name: object, value: object) -> tuple[str, str]:
    if not isinstance(name, str) or not isinstance(value, str):
        raise InvalidArgument(f"a header's name and value are str, not {name!r}: {type(value)}")
    lower = name.lower()
    if not _NAME.fullmatch(lower) or lower.endswith("-bin"):
        raise InvalidArgument(f"{name[:64]!r} can't be a header's name")
    if lower in _OURS or lower.startswith(_OUR_PREFIXES):
        raise InvalidArgument(f"the header {lower!r} is the client's own to set")
    if not _VALUE.fullmatch(value):
        # Without showing it: it may be a secret.
        raise InvalidArgument(f"the header {lower!r} has a value that isn't visible ASCII")
    return lower, value


def of_block() -> Headers:
    """The headers of the `request_headers` blocks around; an inner one's replace an outer one's."""
    return _of_block.get()


def merged(headers: Headers, more: Headers) -> Headers:
    """`headers` with those of `more` added; they replace headers of the same name."""
    return tuple({**dict(headers), **dict(more)}.items()) if more else headers


@contextmanager
def request_headers(headers: Mapping[str, str]) -> Iterator[None]:
    """Add `headers` to every request that this thread or task makes inside the block.

        with gatherd.request_headers({"X-Request-Id": request_id, "traceparent": parent}):
            client.lookup("words", ids)

    They go out on every wire, retries included, over gRPC as metadata; the server's log lines and
    errors contain the request's X-Request-Id. Blocks can be nested. A lookup inside one isn't
    merged with others by `batching`. InvalidArgument for a header that can't be sent or is the
    client's own, such as Authorization.
    """
    token = _of_block.set(merged(_of_block.get(), checked_headers(headers)))
    try:
        yield
    finally:
        _of_block.reset(token)
