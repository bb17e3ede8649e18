"""The status of every gatherd error over gRPC.

A status carries its details as a gatherd.v1.Status in the trailer grpc-status-details-bin, as
google.rpc does, and, when a retry may help, the trailer retry-after, in seconds. Trailers are
metadata, of which a peer takes 8 KiB, so quoted text in them is cut.
"""

from collections.abc import Mapping
from typing import Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from gatherd import errors
from gatherd_proto.errors import (
    DETAILS_TRAILER,
    ERROR_DOMAIN,
    ERROR_INFO_TYPE_URL,
    code_name,
)
from gatherd_proto.headers import RETRY_AFTER
from gatherd_proto.v1.status_pb2 import ErrorInfo, Status
from gatherd_server.access.admission import RETRY_AFTER_SECONDS
from gatherd_server.observe import trail
from gatherd_server.wire.codes import code_of

# The message is sent twice: percent-encoded, at three bytes for one, and in base64 with the
# metadata. 3 * 1024 + (1024 + 1024) * 4 / 3 bytes and the names stay under 8 KiB.
MESSAGE_BYTES_MAX: Final = 1024
METADATA_BYTES_MAX: Final = 1024
METADATA_VALUE_BYTES_MAX: Final = 200

_BY_NAME: Final = {code_name(code.name): code for code in grpc.StatusCode}


def status_code(error: errors.GatherdError) -> grpc.StatusCode:
    """The status code of `error`."""
    return _BY_NAME[code_of(error)]


def status_message(error: errors.GatherdError) -> Status:
    """`error` as a Status with its ErrorInfo, small enough for a trailer."""
    info = ErrorInfo(
        reason=error.reason, domain=ERROR_DOMAIN, metadata=_cut_metadata(error.metadata)
    )
    detail = AnyMessage(type_url=ERROR_INFO_TYPE_URL, value=info.SerializeToString())
    number: int = status_code(error).value[0]
    return Status(code=number, message=_cut(error.message, MESSAGE_BYTES_MAX), details=[detail])


def abort(context: grpc.ServicerContext, error: errors.GatherdError) -> NoReturn:
    """End the call with `error`'s status. Raises, as grpc's own abort does."""
    status = status_message(error)
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_TRAILER, status.SerializeToString())]
    if isinstance(error, errors.RetryableError):
        seconds = error.retry_after_seconds or RETRY_AFTER_SECONDS
        trailers.append((RETRY_AFTER, f"{seconds:g}"))
    request = trail.current()
    if request is not None:
        request.error = error
        trailers.append((trail.REQUEST_ID_HEADER, request.request_id))
    context.set_trailing_metadata(tuple(trailers))
    context.abort(status_code(error), status.message)


def _cut(text: str, bytes_max: int) -> str:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= bytes_max:
        return raw.decode()
    # Cutting may split a character; the rest of its bytes is dropped too.
    return raw[: bytes_max - 3].decode(errors="ignore") + "…"


def _cut_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    room_bytes = METADATA_BYTES_MAX
    for key, value in metadata.items():
        short = _cut(value, METADATA_VALUE_BYTES_MAX)
        room_bytes -= len(key.encode()) + len(short.encode())
        if room_bytes < 0:
            break
        kept[key] = short
    return kept
