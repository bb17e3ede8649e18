"""The JSON bodies of REST, for validation at the edge and for the OpenAPI document.

Ids are `Any` here: gatherd.store.ids checks them, with errors that name the id.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gatherd.errors import InvalidArgument
from gatherd.store.limits import DIM_MAX
from gatherd.store.query import K_DEFAULT

Body = TypeVar("Body", bound=BaseModel)

REPLY_DTYPE = Literal["float32", "float16", "bfloat16"]
MISSING = Literal["error", "zero", "default", "init"]
BAG_MISSING = Literal["error", "zero", "default", "skip", "init"]
MODE = Literal["sum", "mean", "max", "sqrtn"]
ENCODING = Literal["utf-8", "base64"]
METRIC = Literal["cosine", "dot", "l2"]
VERSION_MAX = 2**64 - 1

IDS_SCHEMA: dict[str, Any] = {
    "description": "An integer, or lists of integers nested to any rectangular shape S.",
    "anyOf": [{"type": "integer"}, {"type": "array", "items": {}}],
    "examples": [[[4], [20]]],
}
KEYS_SCHEMA: dict[str, Any] = {
    "description": "A string or an integer, or lists of them nested to any rectangular shape S. "
    "Instead of ids, for tables that have keys.",
    "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "array", "items": {}}],
    "examples": [["king", "queen"]],
}
_BAG_IDS_SCHEMA: dict[str, Any] = {
    "description": "Flat with offsets, or without offsets a list of lists, a bag each.",
    "type": "array",
    "items": {},
    "examples": [[[4, 20], [], [7]]],
}
_NUMBERS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "number"}}
_VECTORS_SCHEMA: dict[str, Any] = {
    "description": "Lists nested to the shape S + (dim,). NaN and infinity are null.",
    "type": "array",
    "items": {},
}
_QUERY_VECTORS_SCHEMA: dict[str, Any] = {
    "description": "A vector, or lists of them nested to any rectangular shape S + (dim,).",
    "type": "array",
    "items": {},
}
_SCORES_SCHEMA: dict[str, Any] = {
    "description": "Nested as the ids are. NaN and infinity are null.",
    "type": "array",
    "items": {},
}
_STATUS_SCHEMA: dict[str, Any] = {
    "description": "Nested as the ids are: 0 found, 1 missing. Absent when missing is error.",
    "anyOf": [{"type": "integer"}, {"type": "array", "items": {}}],
}


class _Asking(BaseModel):
    """The members that lookups of rows and of bags share."""

    model_config = ConfigDict(extra="forbid", strict=True)

    encoding: ENCODING = Field("utf-8", description="How string keys are written.")
    dtype: REPLY_DTYPE = Field("float32", description="The dtype of the reply.")
    version: int = Field(
        0, ge=0, le=VERSION_MAX, description="The version that must answer; 0 is the live one."
    )
    dims: int | None = Field(
        None, ge=1, le=DIM_MAX, description="Only so many elements of each vector, the first ones."
    )
    normalize: bool = Field(
        False, description="Vectors of length 1 (L2), after dims and pooling; zeros stay zeros."
    )
    with_lsn: bool = Field(False, description="Whether the reply has lsn.")


class LookupBody(_Asking):
    """A lookup in one table, by ids or by keys."""

    ids: Annotated[Any, Field(default=None, json_schema_extra=IDS_SCHEMA)]
    keys: Annotated[Any, Field(default=None, json_schema_extra=KEYS_SCHEMA)]
    missing: MISSING = Field("error", description="What is done with an id that has no row.")


class LookupBagsBody(_Asking):
    """Bags of one table, by ids or by keys, each pooled into one vector."""

    ids: Annotated[Any, Field(default=None, json_schema_extra=_BAG_IDS_SCHEMA)]
    keys: Annotated[Any, Field(default=None, json_schema_extra=_BAG_IDS_SCHEMA)]
    offsets: Annotated[Any, Field(default=None, json_schema_extra=_NUMBERS_SCHEMA)]
    mode: MODE = Field("mean", description="How a bag's rows become one vector.")
    weights: Annotated[Any, Field(default=None, json_schema_extra=_NUMBERS_SCHEMA)]
    padding_id: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="An id that never takes part."
    )
    missing: BAG_MISSING = Field("error", description="What is done with an id that has no row.")


class LookupBagsManyBody(BaseModel):
    """Bags of several tables, all or nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tables: dict[str, LookupBagsBody] = Field(description="Bags by table name.")


class KeysOfBody(BaseModel):
    """Rows of one table whose keys are asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: Annotated[Any, Field(json_schema_extra=IDS_SCHEMA)]
    version: int = Field(0, ge=0, le=VERSION_MAX, description="0 is the live one.")


class IdsOfBody(BaseModel):
    """Keys of one table whose rows' ids are asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: Annotated[Any, Field(json_schema_extra=KEYS_SCHEMA)]
    encoding: ENCODING = Field("utf-8", description="How string keys are written.")
    version: int = Field(0, ge=0, le=VERSION_MAX, description="0 is the live one.")
    allow_missing: bool = Field(False, description="-1 for a key without a row, not an error.")


class NeighborsBody(BaseModel):
    """Queries of one table: ids, keys or vectors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: Annotated[Any, Field(default=None, json_schema_extra=IDS_SCHEMA)]
    keys: Annotated[Any, Field(default=None, json_schema_extra=KEYS_SCHEMA)]
    vectors: Annotated[Any, Field(default=None, json_schema_extra=_QUERY_VECTORS_SCHEMA)]
    encoding: ENCODING = Field("utf-8", description="How string keys are written.")
    k: int = Field(K_DEFAULT, ge=1, lt=2**31, description="Neighbors of each query.")
    metric: METRIC = Field(
        "cosine", description="cosine and dot: higher is nearer; l2, the distance: lower is."
    )
    include_self: bool = Field(
        False, description="Whether a query by id or key may be its own neighbor."
    )
    version: int = Field(0, ge=0, le=VERSION_MAX, description="0 is the live one.")


class NeighborsReply(BaseModel):
    """The nearest rows of each query, nearest first: lists nested to the shape S + (k,)."""

    ids: Annotated[Any, Field(json_schema_extra=IDS_SCHEMA)]
    scores: Annotated[Any, Field(json_schema_extra=_SCORES_SCHEMA)]
    keys: Annotated[Any, Field(default=None, json_schema_extra=KEYS_SCHEMA)]
    kind: Literal["bytes", "int64", "uint64"] | None = Field(
        None, description="What the keys are; it and they are absent for a table without keys."
    )
    encoding: ENCODING | None = Field(None, description="base64 when a key isn't UTF-8.")
    metric: METRIC
    version: int


class LookupManyBody(BaseModel):
    """Lookups in several tables, all or nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tables: dict[str, LookupBody] = Field(description="Lookups by table name.")


class LookupReply(BaseModel):
    """The rows of one table."""

    vectors: Annotated[Any, Field(json_schema_extra=_VECTORS_SCHEMA)]
    shape: list[int] = Field(examples=[[2, 1, 2]])
    dtype: REPLY_DTYPE
    version: int
    status: Annotated[Any, Field(default=None, json_schema_extra=_STATUS_SCHEMA)]
    lsn: int | None = Field(
        None, description="Every update up to it is in the vectors. Absent unless asked for."
    )


class LookupManyReply(BaseModel):
    """The rows of several tables, by table name."""

    tables: dict[str, LookupReply]


class KeysOfReply(BaseModel):
    """The keys of rows."""

    keys: Annotated[Any, Field(json_schema_extra=KEYS_SCHEMA)]
    kind: Literal["bytes", "int64", "uint64"]
    encoding: ENCODING = Field(description="base64 when one of the strings isn't UTF-8.")
    version: int


class IdsOfReply(BaseModel):
    """The ids of keys."""

    ids: Annotated[Any, Field(json_schema_extra=IDS_SCHEMA)]
    version: int


class KeyPageReply(KeysOfReply):
    """A page of a table's keys."""

    ids: list[int] = Field(description="The keys' ids, ascending.")
    next: int | None = Field(description="Where the next page begins; null after the last one.")


class RowPageReply(BaseModel):
    """A page of a table's rows."""

    vectors: Annotated[Any, Field(json_schema_extra=_VECTORS_SCHEMA)]
    slots: dict[str, Any] = Field(
        default={},
        description="The optimizer's state, by name, if it was asked for: lists nested to (n, dim) "
        "or (n, 1), or one number for the whole table in a list.",
    )
    dtype: REPLY_DTYPE
    ids: list[int] = Field(description="The rows' ids, ascending.")
    keys: Annotated[Any, Field(default=None, json_schema_extra=KEYS_SCHEMA)]
    kind: Literal["bytes", "int64", "uint64"] | None = Field(
        None, description="What the keys are; it and they are absent for a table without keys."
    )
    encoding: ENCODING | None = Field(None, description="base64 when a key isn't UTF-8.")
    version: int
    cursor: str | None = Field(description="That of the next page; null after the last one.")


class TableReply(BaseModel):
    """What is told about a table."""

    name: str
    rows: int
    dim: int
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = Field(
        description="How the rows are stored; null for a refused table."
    )
    version: int
    trainable: bool = Field(description="Whether the table takes updates.")
    refused: str = Field(description="Empty, or why the table can't be looked up.")
    key_kind: Literal["", "bytes", "int64", "uint64"] = Field(
        description="What the table's keys are; empty when it has none."
    )
    rows_bytes: int
    keys_bytes: int
    resident_bytes: int = Field(description="How many of rows_bytes are in memory now.")
    versions: list[int] = Field(
        description="Every version that can be looked up or rolled back to, ascending."
    )
    optimizer: dict[str, Any] | None = Field(
        description="Its name and its options; null for a table that takes no gradients.",
        examples=[{"name": "adagrad", "lr": 0.05}],
    )
    lsn: int = Field(description="The last update that every lookup sees.")
    open: dict[str, Any] | None = Field(
        description="How the rows of an open table come and go; null for any other.",
        examples=[None],
    )


class LimitsReply(BaseModel):
    """What one request may hold."""

    request_bytes_max: int
    reply_bytes_max: int
    ids_max: int
    tables_max: int


class TablesReply(BaseModel):
    """Every table, and what one request may hold."""

    tables: list[TableReply]
    limits: LimitsReply


class HealthReply(BaseModel):
    """The process is alive."""

    status: Literal["alive"]


class ServerReply(BaseModel):
    """What answers."""

    version: str = Field(description="The release.")
    commit: str = Field(description='The commit that it was built from, or "unknown".')
    ready: bool = Field(description="False while the server is about to stop.")
    updates: str = Field(description="As /readyz has it.")


class ReadyReply(BaseModel):
    """The server takes traffic."""

    status: Literal["ready"]
    updates: Literal["none", "running", "stopped", "unreachable"] = Field(
        description="none: there is no data dir; stopped: the disk failed under the writer; "
        "unreachable: the writer is being started again. Lookups are answered all the same."
    )
    tables: int = Field(description="How many tables are served.")
    refused: list[str] = Field(description="The names of those that can't be.")


class Problem(BaseModel):
    """An error, by RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:gatherd:error:id-out-of-range"])
    title: str = Field(examples=["Id out of range"])
    status: int = Field(examples=[422])
    detail: str
    error: str = Field(description="The same text as detail.")
    reason: str = Field(examples=["ID_OUT_OF_RANGE"])
    metadata: dict[str, str]


def parse(model: type[Body], value: object) -> Body:
    """`value` as a `model`; InvalidArgument, naming the member, when it isn't one."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidArgument:
    # include_input=False: the input can be a body of megabytes.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    where = _member(first["loc"])
    match first["type"]:
        case "extra_forbidden":
            return InvalidArgument(f"{where} isn't known here; remove it")
        case "missing":
            return InvalidArgument(f"{where} is required")
        case "model_type" | "dict_type":
            return InvalidArgument(f"{where} must be a JSON object")
    return InvalidArgument(f"{where}: {first['msg']}")


def _member(location: Sequence[str | int]) -> str:
    return "the member " + ".".join(map(str, location)) if location else "the body"
