"""The Connect unary protocol over HTTP/1.1: what the blocking and the awaited transport share."""

import functools
import ssl
import time

from gatherd._effects import Deadline, Send
from gatherd._http1 import (
    ConnectionEnded,
    HttpError,
    ResponseReader,
    finish_request,
    request_prefix,
)
from gatherd._retry import parse_retry_after
from gatherd._target import Target
from gatherd._wire_errors import from_http
from gatherd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    GatherdError,
    InternalError,
    Unavailable,
)

CONTENT_TYPE = "application/proto"
# How many connections a client opens at most; a call beyond waits for one.
CONNECTIONS_MAX = 256
# What was idle for longer is looked at before it is used again: servers close what is idle.
IDLE_UNCHECKED_SECONDS = 2.0
# Up to here head and body are joined for one send; copying more costs more than a second send.
JOINED_BYTES_MAX = 64 << 10
_TIMEOUT_MS_MAX = 9_999_999_999  # ten digits, says Connect


@functools.lru_cache(maxsize=64)
def _prefix(path: str, authority: str) -> bytes:
    headers = [("Content-Type", CONTENT_TYPE), ("Connect-Protocol-Version", "1")]
    return request_prefix("POST", path, authority, headers)


def request_head(target: Target, send: Send, now: float) -> bytes:
    """The head of the HTTP request for `send`."""
    path = send.method if target.scheme == "unix" else target.path + send.method
    left = int((send.deadline.at - now) * 1000)
    timeout_ms = max(1, min(left, _TIMEOUT_MS_MAX))
    return finish_request(_prefix(path, target.authority), timeout_ms, len(send.body))


def reply_body(url: str, reader: ResponseReader) -> memoryview:
    """The body of a complete response when it is a reply, else the error that it is."""
    head = reader.head
    assert head is not None  # the reader is done
    content_type = head.headers.get("content-type", "")
    if head.status != 200:
        retry_after = parse_retry_after(head.headers.get("retry-after"))
        raise from_http(url, head.status, content_type, bytes(reader.body), retry_after)
    if content_type.partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise InternalError(
            f"{url} answered {content_type[:80]!r} and not {CONTENT_TYPE}: is it a gatherd server?"
        )
    if head.headers.get("content-encoding", "identity") != "identity":
        raise InternalError(f"{url} answered in a content coding that wasn't asked for")
    return reader.body


def no_answer(url: str, deadline: Deadline) -> DeadlineExceeded:
    """The error for a call whose time is up."""
    return DeadlineExceeded(
        f"{url} gave no answer within the call's timeout of {deadline.timeout_seconds:g} seconds"
    )


def unreachable(target: Target, error: OSError) -> GatherdError:
    """The error for a connection that can't be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # Trying again won't make the certificate right.
        return FailedPrecondition(f"{target.url}: {error.verify_message or error}")
    return Unavailable(f"can't connect to {target.url}: {error.strerror or error}")


def broken(url: str, error: BaseException) -> Unavailable:
    """The error for a connection that ended before the response did."""
    return Unavailable(f"the connection to {url} broke: {error}")


def unspoken(url: str, error: HttpError) -> GatherdError:
    """The error for a response that can't be read."""
    if isinstance(error, ConnectionEnded):
        return broken(url, error)
    return InternalError(f"{url} doesn't answer in HTTP/1.1: {error}")


def tls_context() -> ssl.SSLContext:
    """Verifies the server by the system's certificates (or those of SSL_CERT_FILE)."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def remaining_seconds(url: str, deadline: Deadline) -> float:
    """The time that is left, DeadlineExceeded when there is none."""
    left = deadline.at - time.monotonic()
    if left <= 0:
        raise no_answer(url, deadline)
    return left
