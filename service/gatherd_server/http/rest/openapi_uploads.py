"""The part of /openapi.json on uploads."""

from typing import Any, Final

from gatherd_server.http.media import OCTETS
from gatherd_server.http.rest.openapi_parts import BINARY, body, json_content, option, responses
from gatherd_server.http.rest.upload_schemas import (
    BeginUploadBody,
    CancelledReply,
    CommittedReply,
    PutRowsBody,
    PutRowsReply,
    UploadReply,
    UploadsReply,
)

MODELS: Final = (
    BeginUploadBody,
    PutRowsBody,
    UploadReply,
    UploadsReply,
    PutRowsReply,
    CommittedReply,
    CancelledReply,
)
EXAMPLE_UPLOAD: Final = "d0c5" * 8

_STATUSES: Final = (400, 404, 406, 409, 413, 415, 422, 429, 500, 503, 507)
_WITHOUT_BODY: Final = (404, 409, 422, 429, 500, 503, 507)
_UPLOAD: Final = {
    "upload": EXAMPLE_UPLOAD,
    "name": "items",
    "dim": 2,
    "dtype": "float32",
    "key_kind": "",
    "rows": 2,
    "publish": False,
    "next_row": 0,
    "bytes": 0,
    "expires": "2026-11-29T06:00:00+00:00",
    "committing": False,
    "chunk_bytes_max": 16773120,
}


def _operation(
    operation_id: str,
    summary: str,
    model: type[Any],
    example: Any,
    statuses: tuple[int, ...],
    **extra: Any,
) -> dict[str, Any]:
    return {
        "operation_id": operation_id,
        "tags": ["uploads"],
        "summary": summary,
        "responses": responses(
            {"description": "As it is now.", "content": json_content(model, example)}, *statuses
        ),
        **extra,
    }


BEGIN: Final = _operation(
    "beginUpload",
    "Begin to upload a table, or a new version of one",
    UploadReply,
    _UPLOAD,
    _STATUSES,
    description="Nobody sees any of it before it is committed. It survives a restart of the "
    "server, and is deleted when nothing comes for a while. Sent again, with the same `upload`, it "
    "changes nothing.",
    openapi_extra=body(
        BeginUploadBody, {"upload": EXAMPLE_UPLOAD, "name": "items", "dim": 2, "rows": 2}
    ),
)
LIST: Final = _operation(
    "listUploads",
    "The uploads that aren't committed",
    UploadsReply,
    {"uploads": [{**_UPLOAD, "chunk_bytes_max": 0}]},
    (409, 422, 429, 500, 503),
)
GET: Final = _operation(
    "getUpload",
    "How far an upload is",
    UploadReply,
    _UPLOAD,
    (404, 409, 422, 429, 500, 503),
)
PUT_ROWS: Final = _operation(
    "putRows",
    "Append rows to an upload",
    PutRowsReply,
    {"next_row": 2},
    _STATUSES,
    description="Rows that are there already, and are the same, change nothing. Any other offset "
    "than `next_row` is an error whose metadata has the right one under `expected`. As "
    f"`{OCTETS}` the body is the rows in the upload's dtype, after their keys if it has keys: "
    "8 bytes for each integer; or the strings' lengths, uint32 each, and then the strings. All "
    "are little-endian, and the options then stand in the query.",
    openapi_extra={
        "parameters": [
            option("offset", None, f"The first row's number. Required with {OCTETS}."),
            option("rows", None, f"How many rows; required with string keys. Only with {OCTETS}."),
            option("crc32", None, f"zlib's crc32 of the body. Only with {OCTETS}."),
        ],
        "requestBody": {
            "required": True,
            "content": {
                **json_content(PutRowsBody, {"offset": 0, "rows": [[0.5, -0.25], [1.5, 2.0]]}),
                OCTETS: {"schema": BINARY},
            },
        },
    },
)
COMMIT: Final = _operation(
    "commitUpload",
    "Make an upload's rows a table, or the live version of one",
    CommittedReply,
    {"version": 1, "lsn": 117, "rows": 2, "duplicates": 0},
    _WITHOUT_BODY,
    description="All of it is seen at once. Sent again, it gets the same answer.",
)
CANCEL: Final = _operation(
    "cancelUpload", "Delete an upload and its rows", CancelledReply, {}, _WITHOUT_BODY
)
