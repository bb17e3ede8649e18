"""The JSON bodies of REST, for validation at the edge and for the OpenAPI document.

Ids are `Any` here: gatherd.store.ids checks them, with errors that name the id.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gatherd.errors import InvalidArgument

REPLY_DTYPE = Literal["float32", "float16", "bfloat16"]
MISSING = Literal["error", "zero", "default"]
VERSION_MAX = 2**64 - 1

_IDS_SCHEMA: dict[str, Any] = {
    "description": "An integer, or lists of integers nested to any rectangular shape S.",
    "anyOf": [{"type": "integer"}, {"type": "array", "items": {}}],
    "examples": [[[4], [20]]],
}
_VECTORS_SCHEMA: dict[str, Any] = {
    "description": "Lists nested to the shape S + (dim,). NaN and infinity are null.",
    "type": "array",
    "items": {},
}
_STATUS_SCHEMA: dict[str, Any] = {
    "description": "Nested as the ids are: 0 found, 1 missing. Absent when missing is error.",
    "anyOf": [{"type": "integer"}, {"type": "array", "items": {}}],
}


class LookupBody(BaseModel):
    """A lookup in one table."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: Annotated[Any, Field(json_schema_extra=_IDS_SCHEMA)]
    dtype: REPLY_DTYPE = Field("float32", description="The dtype of the reply.")
    missing: MISSING = Field("error", description="What is done with an id that has no row.")
    version: int = Field(
        0, ge=0, le=VERSION_MAX, description="The version that must answer; 0 is the live one."
    )


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


class LookupManyReply(BaseModel):
    """The rows of several tables, by table name."""

    tables: dict[str, LookupReply]


class TableReply(BaseModel):
    """What is told about a table."""

    name: str
    rows: int
    dim: int
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = Field(
        description="How the rows are stored; null for a refused table."
    )
    version: int
    trainable: bool
    refused: str = Field(description="Empty, or why the table can't be looked up.")


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


class ReadyReply(BaseModel):
    """The server takes traffic."""

    status: Literal["ready"]
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


def lookup_body(value: object) -> LookupBody:
    """`value` as a LookupBody; InvalidArgument, naming the member, when it isn't one."""
    try:
        return LookupBody.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None


def lookup_many_body(value: object) -> LookupManyBody:
    """`value` as a LookupManyBody; InvalidArgument, naming the member, when it isn't one."""
    try:
        return LookupManyBody.model_validate(value)
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
