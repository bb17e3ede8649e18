"""The part of /openapi.json on updates and changes."""

from typing import Any, Final

from pydantic import BaseModel

from gatherd.store.dtypes import REPLY_DTYPES
from gatherd_server.http.media import OCTETS
from gatherd_server.http.rest.arrays import ID_DTYPES
from gatherd_server.http.rest.openapi_parts import BINARY, body, json_content, option, responses
from gatherd_server.http.rest.update_schemas import (
    KEY_SCHEMA,
    ChangeReply,
    CreateBody,
    DeletedReply,
    DeleteRowsBody,
    DeleteRowsManyBody,
    GradientsBody,
    GradientsManyBody,
    OpenBody,
    OptimizerBody,
    PublishBody,
    RollbackBody,
    SetOptimizerBody,
    SnapshotBody,
    SnapshotInfoReply,
    SnapshotReply,
    SnapshotsReply,
    UpdateBody,
    UpdateManyBody,
    UpdateManyReply,
    UpdateReply,
)
from gatherd_server.types import UpdateOp

MODELS: Final = (
    UpdateBody,
    GradientsBody,
    UpdateManyBody,
    GradientsManyBody,
    DeleteRowsBody,
    DeleteRowsManyBody,
    OpenBody,
    UpdateReply,
    UpdateManyReply,
    OptimizerBody,
    CreateBody,
    PublishBody,
    RollbackBody,
    SetOptimizerBody,
    ChangeReply,
    SnapshotBody,
    SnapshotReply,
    SnapshotInfoReply,
    SnapshotsReply,
    DeletedReply,
)

_STATUSES: Final = (400, 404, 406, 409, 413, 415, 422, 429, 500, 503, 507)
_SUMMARIES: Final = {
    UpdateOp.SCATTER_ADD: "Add values to rows; every duplicate counts",
    UpdateOp.APPLY_GRADIENTS: "Take a step of the optimizer, after summing duplicates' gradients",
    UpdateOp.ASSIGN: "Replace rows; of duplicates the last one counts",
    UpdateOp.DELETE_ROWS: "Remove rows of open tables, by key",
}
_DESCRIPTION: Final = (
    "The answer comes when the update is durable and every lookup sees it. All of it is done or "
    "nothing. With an Idempotency-Key it is done once, however often it is sent."
)
_RAW: Final = (
    f"As `{OCTETS}` the body is the ids, directly followed by the values, both little-endian; the "
    "options then stand in the query."
)
_KEYS: Final = {"keys": ["king", "queen"]}
_KEY_HEADER: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Who sends the same update again with the same key gets the first answer again.",
    "schema": KEY_SCHEMA,
}
_VALUES: Final = [[0.5, -0.25], [1.5, 2.0]]
_EXAMPLE: Final = {"ids": [4, 20], "values": _VALUES}
_CHANGED: Final = {
    "description": "It is done, and durable.",
    "content": json_content(ChangeReply, {"version": 2, "lsn": 117}),
}


def one(verb: str, op: UpdateOp) -> dict[str, Any]:
    """An update of one table."""
    if op is UpdateOp.DELETE_ROWS:
        content, description, options = json_content(DeleteRowsBody, _KEYS), _DESCRIPTION, []
    else:
        has_lr = op is UpdateOp.APPLY_GRADIENTS
        model = GradientsBody if has_lr else UpdateBody
        content = {**json_content(model, _EXAMPLE), OCTETS: {"schema": BINARY}}
        description, options = f"{_DESCRIPTION} {_RAW}", _raw_options(has_lr)
    return {
        "operation_id": verb,
        "tags": ["updates"],
        "summary": _SUMMARIES[op],
        "description": description,
        "responses": responses(
            {
                "description": "It is durable, and every lookup sees it.",
                "content": json_content(UpdateReply, {"lsn": 117, "version": 1}),
            },
            *_STATUSES,
        ),
        "openapi_extra": {
            "parameters": [_KEY_HEADER, *options],
            "requestBody": {"required": True, "content": content},
        },
    }


def many(verb: str, op: UpdateOp) -> dict[str, Any]:
    """An update of many tables."""
    example: dict[str, Any] = {"user": _EXAMPLE, "item": {"ids": 7, "values": _VALUES[0]}}
    model: type[BaseModel] = UpdateManyBody
    if op is UpdateOp.APPLY_GRADIENTS:
        model = GradientsManyBody
    elif op is UpdateOp.DELETE_ROWS:
        model, example = DeleteRowsManyBody, {"user": _KEYS, "item": {"keys": [7]}}
    return {
        "operation_id": f"{verb}Many",
        "tags": ["updates"],
        "summary": f"{_SUMMARIES[op]}: several tables, all or nothing",
        "description": _DESCRIPTION,
        "responses": responses(
            {
                "description": "It is durable, and every lookup sees it.",
                "content": json_content(
                    UpdateManyReply, {"lsn": 117, "versions": {"user": 1, "item": 3}}
                ),
            },
            *_STATUSES,
        ),
        "openapi_extra": {
            "parameters": [_KEY_HEADER],
            **body(model, {"tables": example}),
        },
    }


def _raw_options(has_lr: bool) -> list[dict[str, Any]]:
    only = f"Only with {OCTETS}."
    options = [
        option("ids_dtype", "int64", f"The dtype of the raw ids. {only}", enum=list(ID_DTYPES)),
        option("shape", None, f"The shape of the raw ids, as in 2,1. Required. {only}"),
        option(
            "values_dtype",
            "float32",
            f"The dtype of the raw values. {only}",
            enum=[dtype.value for dtype in REPLY_DTYPES],
        ),
        option("by", "ids", f"What the integers are. {only}", enum=["ids", "keys"]),
        option(
            "create",
            "false",
            f"Give keys of an open table that have no row one. {only}",
            enum=["true", "false"],
        ),
        option(
            "if_version",
            "0",
            f"The version that has to be live; 0: any. {only}",
            pattern="^[0-9]{1,20}$",
        ),
    ]
    if has_lr:
        options.append(option("lr", None, f"Instead of the table's learning rate. {only}"))
    return options


def _change(operation_id: str, summary: str, **extra: Any) -> dict[str, Any]:
    return {
        "operation_id": operation_id,
        "tags": ["tables"],
        "summary": summary,
        "responses": responses(_CHANGED, *_STATUSES),
        **extra,
    }


CREATE_TABLE: Final = _change(
    "createTable",
    "Make a table of drawn rows, an open one, or one of files staged in the data dir",
    openapi_extra=body(
        CreateBody,
        {
            "name": "items",
            "rows": 1000,
            "dim": 64,
            "init": "uniform",
            "seed": 7,
            "optimizer": {"name": "adagrad", "lr": 0.05},
        },
    ),
)
DELETE_TABLE: Final[dict[str, Any]] = {
    **_change("deleteTable", "Remove a table with all its versions"),
    "responses": responses(_CHANGED, 404, 409, 422, 429, 500, 503, 507),
}
PUBLISH: Final = _change(
    "publish",
    "Make a new version live",
    description="Of files that were staged in the data dir, or else a copy of the live version as "
    "it is at that moment, which so is kept.",
    openapi_extra=body(PublishBody, {"if_version": 1}, required=False),
)
ROLLBACK: Final = _change(
    "rollback",
    "Make an older version live again, as it was when it was superseded",
    openapi_extra=body(RollbackBody, {"version": 1}, required=False),
)
SET_OPTIMIZER: Final = _change(
    "setOptimizer",
    "Change the optimizer's options in place, or publish a copy that another optimizer trains",
    openapi_extra=body(SetOptimizerBody, {"optimizer": {"name": "adam", "lr": 0.001}}),
)
DELETE_VERSION: Final[dict[str, Any]] = {
    **_change("deleteVersion", "Remove a superseded version"),
    "description": "Not the live one, nor the one with the highest number, because no number is "
    "given twice; nor one that was looked up in the last ten seconds.",
    "responses": responses(_CHANGED, 404, 409, 422, 429, 500, 503, 507),
}
LIST_SNAPSHOTS: Final[dict[str, Any]] = {
    "operation_id": "listSnapshots",
    "tags": ["tables"],
    "summary": "The snapshots in the server's folder, oldest first",
    "responses": responses(
        {
            "description": "The snapshots.",
            "content": json_content(
                SnapshotsReply,
                {
                    "snapshots": [
                        {
                            "name": "monday",
                            "path": "/snapshots/monday",
                            "lsn": 117,
                            "created": "2026-11-23T06:00:00+00:00",
                            "bytes": 2048,
                            "damaged": "",
                        }
                    ]
                },
            ),
        },
        *(409, 422, 429, 500, 503),
    ),
}
DELETE_SNAPSHOT: Final[dict[str, Any]] = {
    "operation_id": "deleteSnapshot",
    "tags": ["tables"],
    "summary": "Remove a snapshot",
    "description": "Not one that is being copied or restored, nor a folder that isn't a snapshot.",
    "responses": responses(
        {"description": "It is gone, durably.", "content": json_content(DeletedReply, {})},
        *(404, 409, 422, 429, 500, 503, 507),
    ),
}
SNAPSHOT: Final[dict[str, Any]] = {
    "operation_id": "snapshot",
    "tags": ["tables"],
    "summary": "Copy the whole data dir, as it is at one LSN",
    "responses": responses(
        {
            "description": "It is done, and durable.",
            "content": json_content(SnapshotReply, {"path": "/snapshots/monday", "lsn": 117}),
        },
        *_STATUSES,
    ),
    "openapi_extra": body(SnapshotBody, {"name": "monday"}, required=False),
}
