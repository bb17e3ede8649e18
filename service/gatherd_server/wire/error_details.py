"""An error's details as google.rpc has them, the same over gRPC and Connect.

ErrorInfo is always there, and first. RetryInfo says when to try again, BadRequest which ids, keys
or values of the request have no row or aren't finite. gRPC adds RequestInfo, the request's id in
the logs; Connect has it in a header alone, so that it can keep the bodies of errors.
https://google.aip.dev/193 describes the messages.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from gatherd.errors import GatherdError, RetryableError
from gatherd_proto.errors import ERROR_DOMAIN
from gatherd_server.access.admission import RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.rpc.error_details_pb2 import BadRequest

# Bytes of BadRequest, whose text repeats ErrorInfo's, and which shares a trailer with it.
BAD_REQUEST_BYTES_MAX: Final = 512

# The metadata that is named after a place in the request, as in ids[3]; a single id has no index.
_PLACE: Final = re.compile(r"(?:ids|keys)|[a-z_]+(?:\[\d+\])+")


def retry_seconds(error: GatherdError) -> float | None:
    """The seconds after which to send the request of `error` again; None if that won't help."""
    if isinstance(error, RetryableError):
        return error.retry_after_seconds or RETRY_AFTER_SECONDS
    return None


def error_details(
    reason: str, metadata: Mapping[str, str], retry_seconds: float | None
) -> "Iterator[Message]":
    """The details of an error but for its RequestInfo, ErrorInfo first."""
    # Here, because most servers' first seconds have no error, and it takes some milliseconds.
    from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

    yield ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata)
    if retry_seconds is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(retry_seconds * 1e9))
        yield retry
    wrong = BadRequest()
    _add_violations(wrong, reason, metadata)
    if wrong.field_violations:
        yield wrong


def request_info(request_id: str) -> "Message":
    """The detail with the id that the server's log has for a request."""
    from google.rpc.error_details_pb2 import RequestInfo

    info: Message = RequestInfo(request_id=request_id)
    return info


def _add_violations(wrong: "BadRequest", reason: str, metadata: Mapping[str, str]) -> None:
    why = reason.replace("_", " ").lower()
    for place, value in metadata.items():
        if not _PLACE.fullmatch(place):
            continue
        violation = wrong.field_violations.add(
            field=place, description=f"{value}: {why}", reason=reason
        )
        if wrong.ByteSize() > BAD_REQUEST_BYTES_MAX:
            wrong.field_violations.remove(violation)
            break
