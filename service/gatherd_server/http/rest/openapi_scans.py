"""The part of /openapi.json on scans."""

from typing import Any, Final

from gatherd.store.dtypes import REPLY_DTYPES
from gatherd.store.query import PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX
from gatherd.store.scans import PAGE_BYTES_MAX
from gatherd_server.http.media import NPY, OCTETS
from gatherd_server.http.rest.arrays import ARRAY_HEADERS, CURSOR_HEADER, PARTS_HEADER
from gatherd_server.http.rest.openapi_parts import BINARY, json_content, option, responses
from gatherd_server.http.rest.schemas import RowPageReply

MODELS: Final = (RowPageReply,)
_NUMBER: Final = "^[0-9]{1,20}$"
_HEADERS: Final = {
    **dict.fromkeys(ARRAY_HEADERS[:3], "Of the vectors."),
    ARRAY_HEADERS[3]: "0.",
    PARTS_HEADER: "Every array in the body, in order: `vectors float32 2,3; ids int64 2`.",
    CURSOR_HEADER: "The cursor of the next page; absent after the last one.",
}

SCAN: Final[dict[str, Any]] = {
    "operation_id": "scan",
    "tags": ["lookup"],
    "summary": "A page of a table's rows, with ids and keys, in the order of the ids",
    "description": "All pages are of one version, that of the first. Each row is as an update left "
    "it: an update between two pages is in the rows of the later one only. A cursor holds "
    "everything that the next page needs; the server keeps nothing of a scan. "
    f"As `{OCTETS}` or `{NPY}` the arrays follow one another: vectors, ids, keys (of strings "
    f"`key_lengths` and `key_bytes`), slots; {PARTS_HEADER} lists them.",
    "responses": responses(
        {
            "description": "The page. It may have fewer rows than `limit`, or none, and not be the "
            "last: that one's `cursor` is null.",
            "content": {
                **json_content(
                    RowPageReply,
                    {
                        "vectors": [[0.25, 0.1], [0.6, -0.2]],
                        "dtype": "float32",
                        "ids": [0, 1],
                        "keys": ["king", "queen"],
                        "kind": "bytes",
                        "encoding": "utf-8",
                        "version": 3,
                        "cursor": "AQMAAAAAAAAAAgAAAAAAAADzxZ8g",
                    },
                ),
                OCTETS: {"schema": BINARY},
                NPY: {"schema": BINARY},
            },
            "headers": {
                name: {"description": f"{told} Not with JSON.", "schema": {"type": "string"}}
                for name, told in _HEADERS.items()
            },
        },
        *(404, 406, 409, 413, 422, 429, 500, 503),
    ),
    "openapi_extra": {
        "parameters": [
            option("cursor", None, "That of the page before; absent for the first page."),
            option(
                "limit",
                str(PAGE_KEYS_DEFAULT),
                f"The most rows of the page; at most {PAGE_KEYS_MAX} are given, and "
                f"{PAGE_BYTES_MAX} bytes.",
                pattern=_NUMBER,
            ),
            option(
                "prefix",
                None,
                "Only rows whose string keys begin with it, as for a page of keys; the same for "
                "every page.",
            ),
            option(
                "version",
                "0",
                "The version of the first page; 0 is the live one.",
                pattern=_NUMBER,
            ),
            option(
                "dtype",
                "float32",
                "The dtype of the vectors.",
                enum=[dtype.value for dtype in REPLY_DTYPES],
            ),
            option(
                "slots",
                "false",
                "Whether the optimizer's state is sent as well.",
                enum=["true", "false"],
            ),
        ]
    },
}
