"""The status of every gatherd error over gRPC.

The trailer grpc-status-details-bin carries the details, as a google.rpc.Status. When a retry may
help, the trailer retry-after says after how many seconds. Trailers are metadata, of which a peer
takes 8 KiB, so quoted text in them is cut.
"""

from collections.abc import Mapping
from typing import Final, NoReturn

import grpc

from gatherd import errors
from gatherd_proto.errors import DETAILS_TRAILER, code_name
from gatherd_proto.headers import RETRY_AFTER
from gatherd_proto.v1.status_pb2 import Status
from gatherd_server.observe import trail
from gatherd_server.wire.codes import code_of
from gatherd_server.wire.error_details import error_details, request_info, retry_seconds

# The message is sent twice: percent-encoded, at three bytes for one, and in base64 with the
# details. 3 * 1024 + (1024 + 1024 + 512) * 4 / 3 bytes, the other details and the names stay under
# 8 KiB.
MESSAGE_BYTES_MAX: Final = 1024
METADATA_BYTES_MAX: Final = 1024
METADATA_VALUE_BYTES_MAX: Final = 200

_BY_NAME: Final = {code_name(code.name): code for code in grpc.StatusCode}


def status_code(error: errors.GatherdError) -> grpc.StatusCode:
    """The status code of `error`."""
    return _BY_NAME[code_of(error)]


def status_message(error: errors.GatherdError, request_id: str = "") -> Status:
    """`error` as a Status with its details, small enough for a trailer."""
    number: int = status_code(error).value[0]
    status = Status(code=number, message=_cut(error.message, MESSAGE_BYTES_MAX))
    metadata = _cut_metadata(error.metadata)
    for detail in error_details(error.reason, metadata, retry_seconds(error)):
        status.details.add().Pack(detail)
    if request_id:
        status.details.add().Pack(request_info(request_id))
    return status


def abort(context: grpc.ServicerContext, error: errors.GatherdError) -> NoReturn:
    """End the call with `error`'s status. Raises, as grpc's own abort does."""
    request = trail.current()
    request_id = "" if request is None else request.request_id
    status = status_message(error, request_id)
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_TRAILER, status.SerializeToString())]
    seconds = retry_seconds(error)
    if seconds is not None:
        trailers.append((RETRY_AFTER, f"{seconds:g}"))
    if request is not None:
        request.error = error
        trailers.append((trail.REQUEST_ID_HEADER, request_id))
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
