"""The part of /openapi.json on the REST handlers, which take their requests raw."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from gatherd.store.dtypes import REPLY_DTYPES
from gatherd.store.query import (
    PAGE_KEYS_DEFAULT,
    PAGE_KEYS_MAX,
    ROW_POLICIES,
    SCANNED_KEYS_MAX,
)
from gatherd_proto.headers import PROBLEM_JSON
from gatherd_server.access.admission import OPEN_PATHS
from gatherd_server.http.media import NPY, OCTETS
from gatherd_server.http.rest import (
    openapi_neighbors,
    openapi_scans,
    openapi_updates,
    openapi_uploads,
)
from gatherd_server.http.rest.arrays import ARRAY_HEADERS, ID_DTYPES, LSN_HEADER
from gatherd_server.http.rest.openapi_parts import (
    BINARY,
    REF,
    body,
    error,
    json_content,
    option,
    responses,
)
from gatherd_server.http.rest.schemas import (
    HealthReply,
    IdsOfBody,
    IdsOfReply,
    KeyPageReply,
    KeysOfBody,
    KeysOfReply,
    LookupBagsBody,
    LookupBagsManyBody,
    LookupBody,
    LookupManyBody,
    LookupManyReply,
    LookupReply,
    Problem,
    ReadyReply,
    ServerReply,
    TableReply,
    TablesReply,
)
from gatherd_server.http.rest.update_schemas import VersionsReply

API_VERSION: Final = "v1"
DESCRIPTION: Final = """\
Looks rows up in embedding tables: ids of any integer shape S in, vectors of shape S + (dim,) out.
Updates rows: durable, and seen by every lookup, when they are answered.

The same service is answered over gRPC and over the Connect protocol
(`POST /gatherd.v1.EmbeddingService/Lookup`); the .proto files describe those. Every error here is
a problem body of RFC 9457 with the extra members `error`, `reason` and `metadata`.
"""

_ARRAY_HEADERS: Final = {
    **dict(
        zip(
            ARRAY_HEADERS,
            (
                ("The vectors' shape, as in 2,1,256.", "string"),
                ("The vectors' dtype.", "string"),
                ("The version that answered.", "integer"),
                ("Bytes of status after the vectors, one an id; or 0.", "integer"),
            ),
            strict=True,
        )
    ),
    LSN_HEADER: ("Every update up to it is in the vectors; if asked for.", "integer"),
}
_EXAMPLE_BODY: Final = {"ids": [[4], [20]]}
_EXAMPLE_REPLY: Final = {
    "vectors": [[[0.25, 0.1]], [[0.6, -0.2]]],
    "shape": [2, 1, 2],
    "dtype": "float32",
    "version": 3,
}

LOOKUP: Final[dict[str, Any]] = {
    "operation_id": "lookup",
    "tags": ["lookup"],
    "summary": "Gather rows of one table",
    "description": (
        f"Ids come as JSON, as raw little-endian integers (`{OCTETS}`) or as a .npy file "
        f"(`{NPY}`), by Content-Type; vectors are answered as one of the same, by Accept. "
        "With JSON the options stand in the body, with the others in the query. JSON gives "
        "float16 and bfloat16 as the float32 values they stand for, and NaN and infinity as null."
    ),
    "responses": responses(
        {
            "description": "The rows. Over raw bytes and .npy the status, when `missing` isn't "
            "error, follows the vectors: a byte an id, or a second .npy in the same body.",
            "content": {
                **json_content(LookupReply, _EXAMPLE_REPLY),
                OCTETS: {"schema": BINARY},
                NPY: {"schema": BINARY},
            },
            "headers": {
                name: {
                    "description": f"{description} Not with JSON.",
                    "schema": {"type": kind},
                }
                for name, (description, kind) in _ARRAY_HEADERS.items()
            },
        },
        *(400, 404, 406, 409, 413, 415, 422, 429, 500, 503),
    ),
    "openapi_extra": {
        "parameters": [
            option(
                "dtype",
                "float32",
                "The dtype of the reply. Not with JSON.",
                enum=[dtype.value for dtype in REPLY_DTYPES],
            ),
            option(
                "missing",
                "error",
                "What is done with an id that has no row. Not with JSON.",
                enum=[policy.value for policy in ROW_POLICIES],
            ),
            option(
                "version",
                "0",
                "The version that must answer; 0 is the live one. Not with JSON.",
                pattern="^[0-9]{1,20}$",
            ),
            option(
                "dims",
                None,
                "Only so many elements of each vector, the first ones. Not with JSON.",
                pattern="^[0-9]{1,9}$",
            ),
            option(
                "normalize",
                "false",
                "Vectors of length 1. Not with JSON.",
                enum=["true", "false"],
            ),
            option(
                "with_lsn",
                "false",
                "Whether the reply has Gatherd-Lsn. Not with JSON.",
                enum=["true", "false"],
            ),
            option(
                "by",
                "ids",
                "Whether the integers are ids or keys. Not with JSON.",
                enum=["ids", "keys"],
            ),
            option(
                "ids_dtype",
                "int64",
                f"The dtype of raw ids. Only with {OCTETS}.",
                enum=list(ID_DTYPES),
            ),
            option(
                "shape",
                None,
                f"The shape of raw ids, as in 2,1; flat when absent. Only with {OCTETS}.",
            ),
        ],
        "requestBody": {
            "required": True,
            "content": {
                **json_content(LookupBody, _EXAMPLE_BODY),
                OCTETS: {"schema": BINARY},
                NPY: {"schema": BINARY},
            },
        },
    },
}

LOOKUP_MANY: Final[dict[str, Any]] = {
    "operation_id": "lookupMany",
    "tags": ["lookup"],
    "summary": "Gather rows of several tables, all or nothing",
    "responses": responses(
        {
            "description": "The rows of every table, in the order of the request.",
            "content": json_content(LookupManyReply, {"tables": {"user": _EXAMPLE_REPLY}}),
        },
        *(400, 404, 406, 409, 413, 415, 422, 429, 500, 503),
    ),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": json_content(
                LookupManyBody, {"tables": {"user": _EXAMPLE_BODY, "item": {"ids": 7}}}
            ),
        }
    },
}

_EXAMPLE_BAGS: Final = {"ids": [[4, 20], [], [7]], "mode": "mean"}
_EXAMPLE_POOLED: Final = {**_EXAMPLE_REPLY, "vectors": [[0.4, 0], [0, 0], [1, 2]], "shape": [3, 2]}
_LOOKUP_STATUSES: Final = (400, 404, 406, 409, 413, 415, 422, 429, 500, 503)


LOOKUP_BAGS: Final[dict[str, Any]] = {
    "operation_id": "lookupBags",
    "tags": ["lookup"],
    "summary": "Pool bags of rows of one table, each into one vector",
    "description": (
        "A bag is a list of ids or keys: the lists of `ids`, or flat `ids` with `offsets`, where "
        "bag i is ids[offsets[i]] up to ids[offsets[i + 1]]. With x the rows and w the weights: "
        "sum is Σwx, mean Σwx / Σw, sqrtn Σwx / sqrt(Σw²); max takes no weights. "
        "An empty bag is zeros."
    ),
    "responses": responses(
        {
            "description": "A vector for each bag; a status for each id unless missing is error.",
            "content": {
                **json_content(LookupReply, _EXAMPLE_POOLED),
                OCTETS: {"schema": BINARY},
                NPY: {"schema": BINARY},
            },
            "headers": LOOKUP["responses"][200]["headers"],
        },
        *_LOOKUP_STATUSES,
    ),
    "openapi_extra": body(LookupBagsBody, _EXAMPLE_BAGS),
}

LOOKUP_BAGS_MANY: Final[dict[str, Any]] = {
    "operation_id": "lookupBagsMany",
    "tags": ["lookup"],
    "summary": "Pool bags of several tables, all or nothing",
    "responses": responses(
        {
            "description": "The vectors of every table, in the order of the request.",
            "content": json_content(LookupManyReply, {"tables": {"user": _EXAMPLE_POOLED}}),
        },
        *_LOOKUP_STATUSES,
    ),
    "openapi_extra": body(LookupBagsManyBody, {"tables": {"user": _EXAMPLE_BAGS}}),
}

KEYS_OF: Final[dict[str, Any]] = {
    "operation_id": "keysOf",
    "tags": ["lookup"],
    "summary": "The keys of rows",
    "responses": responses(
        {
            "description": "The keys, nested as the ids are.",
            "content": json_content(
                KeysOfReply,
                {"keys": ["king"], "kind": "bytes", "encoding": "utf-8", "version": 3},
            ),
        },
        *_LOOKUP_STATUSES,
    ),
    "openapi_extra": body(KeysOfBody, {"ids": [6989]}),
}

IDS_OF: Final[dict[str, Any]] = {
    "operation_id": "idsOf",
    "tags": ["lookup"],
    "summary": "The ids of keys",
    "responses": responses(
        {
            "description": "The ids, nested as the keys are.",
            "content": json_content(IdsOfReply, {"ids": [6989], "version": 3}),
        },
        *_LOOKUP_STATUSES,
    ),
    "openapi_extra": body(IdsOfBody, {"keys": ["king"]}),
}

_NUMBER: Final = "^[0-9]{1,20}$"
LIST_KEYS: Final[dict[str, Any]] = {
    "operation_id": "listKeys",
    "tags": ["lookup"],
    "summary": "A page of a table's keys with their ids, in the order of the ids",
    "description": "There is no index of prefixes: the server reads every key from `start` on, "
    f"until the page is full or {SCANNED_KEYS_MAX} are read.",
    "responses": responses(
        {
            "description": "The page. It may have fewer keys than `limit`, or none, and not be the "
            "last: that one's `next` is null.",
            "content": json_content(
                KeyPageReply,
                {
                    "keys": ["king", "kings"],
                    "kind": "bytes",
                    "encoding": "utf-8",
                    "ids": [6989, 8171],
                    "next": 8172,
                    "version": 3,
                },
            ),
        },
        *(404, 409, 422, 429, 500, 503),
    ),
    "openapi_extra": {
        "parameters": [
            option(
                "prefix",
                None,
                "Only keys that begin with it. Only for string keys; bytes that aren't UTF-8 are "
                "percent-encoded as they are.",
            ),
            option(
                "limit",
                str(PAGE_KEYS_DEFAULT),
                f"The most keys of the page; at most {PAGE_KEYS_MAX} are given.",
                pattern=_NUMBER,
            ),
            option("start", "0", "The id to begin at: `next` of the page before.", pattern=_NUMBER),
            option(
                "version",
                "0",
                "The version that must answer, such as the first page's; 0 is the live one.",
                pattern=_NUMBER,
            ),
        ]
    },
}

LIST_TABLES: Final[dict[str, Any]] = {
    "operation_id": "listTables",
    "tags": ["tables"],
    "summary": "Every table, and what one request may hold",
    "responses": responses(
        {"description": "The tables, by name.", "content": json_content(TablesReply)}, 500
    ),
}

GET_TABLE: Final[dict[str, Any]] = {
    "operation_id": "getTable",
    "tags": ["tables"],
    "summary": "One table",
    "responses": responses(
        {"description": "The table.", "content": json_content(TableReply)}, 404, 500
    ),
}

GET_VERSIONS: Final[dict[str, Any]] = {
    "operation_id": "getVersions",
    "tags": ["tables"],
    "summary": "The versions of one table",
    "responses": responses(
        {"description": "Its versions.", "content": json_content(VersionsReply)}, 404, 500
    ),
}

GET_SERVER: Final[dict[str, Any]] = {
    "operation_id": "getServer",
    "tags": ["health"],
    "summary": "What answers, and whether it takes traffic and updates",
    "responses": responses(
        {
            "description": "The server.",
            "content": json_content(
                ServerReply,
                {"version": "0.1.0", "commit": "unknown", "ready": True, "updates": "running"},
            ),
        },
        500,
    ),
}

HEALTHZ: Final[dict[str, Any]] = {
    "operation_id": "healthz",
    "tags": ["health"],
    "summary": "Whether the process is alive",
    "responses": responses({"description": "It is.", "content": json_content(HealthReply)}),
}

READYZ: Final[dict[str, Any]] = {
    "operation_id": "readyz",
    "tags": ["health"],
    "summary": "Whether the server takes traffic",
    "responses": responses({"description": "It does.", "content": json_content(ReadyReply)}, 503),
}

METRICS: Final[dict[str, Any]] = {
    "operation_id": "metrics",
    "tags": ["health"],
    "summary": "What all processes of the server counted, for Prometheus",
    "responses": responses(
        {
            "description": "Prometheus' text format, version 0.0.4.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        500,
    ),
}

_MODELS: Final = (
    IdsOfBody,
    IdsOfReply,
    KeysOfBody,
    KeyPageReply,
    KeysOfReply,
    LookupBagsBody,
    LookupBagsManyBody,
    LookupBody,
    LookupManyBody,
    LookupReply,
    LookupManyReply,
    TableReply,
    TablesReply,
    VersionsReply,
    HealthReply,
    ReadyReply,
    ServerReply,
    Problem,
    *openapi_neighbors.MODELS,
    *openapi_scans.MODELS,
    *openapi_updates.MODELS,
    *openapi_uploads.MODELS,
)


def describe(app: FastAPI, *, has_tokens: bool, root_path: str = "") -> None:
    """Make `app.openapi()` the description of the handlers with the schemas they refer to.

    With `has_tokens` it has every operation's answers to a missing and to a wrong token. With
    `root_path` it says that the operations are below that prefix.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
                servers=[{"url": root_path}] if root_path else None,
            )
            _, schemas = models_json_schema(
                [(model, "validation") for model in _MODELS], ref_template=REF + "{model}"
            )
            # FastAPI's own schemas describe its validation errors, which are never sent.
            described["components"] = {"schemas": schemas["$defs"]}
            for path in described["paths"].values():
                for operation in path.values():
                    _drop_validation_error(operation)
            if has_tokens:
                _tell_of_tokens(described)
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _tell_of_tokens(described: dict[str, Any]) -> None:
    described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"token": []}]
    for path, operations in described["paths"].items():
        for operation in operations.values():
            if path in OPEN_PATHS:
                operation["security"] = []
                continue
            for status in (401, 403, 429):
                operation["responses"].setdefault(str(status), error(status))


def _drop_validation_error(operation: dict[str, Any]) -> None:
    added = operation["responses"].get("422", {}).get("content", {})
    if PROBLEM_JSON not in added:
        operation["responses"].pop("422", None)
