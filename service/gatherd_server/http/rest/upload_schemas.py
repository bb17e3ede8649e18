"""The JSON of REST's uploads, for validation at the edge and for OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gatherd.store.limits import DIM_MAX, ROWS_MAX
from gatherd_server.http.rest.schemas import ENCODING, KEYS_SCHEMA, VERSION_MAX
from gatherd_server.http.rest.update_schemas import OptimizerBody

UPLOAD_SCHEMA: dict[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_STRICT = ConfigDict(extra="forbid", strict=True)
_ROWS_SCHEMA: dict[str, Any] = {
    "description": "Numbers, nested to the shape (n, dim).",
    "type": "array",
    "items": {},
}
_DTYPE = Literal["float32", "float16", "bfloat16", "float64"]
_KEY_KIND = Literal["", "bytes", "int64", "uint64"]


class BeginUploadBody(BaseModel):
    """A table, or a version of one, whose rows will come in chunks."""

    model_config = _STRICT

    upload: str = Field(
        "",
        pattern="^([0-9a-f]{32})?$",
        description="32 hex digits that the client draws, so that the request can be sent again; "
        "the server draws them if it is empty.",
    )
    name: str = Field(description="The table.")
    dim: int = Field(ge=1, le=DIM_MAX)
    dtype: _DTYPE = Field("float32", description="How the rows are sent and stored.")
    key_kind: _KEY_KIND = Field("", description="Empty for rows without keys; bytes for strings.")
    rows: int | None = Field(
        None, ge=0, le=ROWS_MAX, description="How many will come; the commit checks it."
    )
    optimizer: OptimizerBody | None = Field(
        None, description="Without one a new table takes no gradients; a version has its table's."
    )
    default_vector: list[float] | None = Field(None, description="The vector of missing ids.")
    publish: bool = Field(False, description="Whether it is a new version of a table that exists.")
    if_version: int = Field(
        0, ge=0, le=VERSION_MAX, description="With publish: the version that has to be live; 0: any"
    )
    allow_nonfinite: bool = Field(False, description="Whether NaN and infinity are taken.")
    on_duplicate: Literal["error", "first", "last"] = Field(
        "error", description="What a row does whose key came before."
    )
    frozen: bool = Field(False, description="Whether the new table takes no updates at all.")


class PutRowsBody(BaseModel):
    """A chunk of rows."""

    model_config = _STRICT

    offset: int = Field(ge=0, le=ROWS_MAX, description="The first row's number: next_row.")
    rows: Annotated[Any, Field(json_schema_extra=_ROWS_SCHEMA)]
    keys: Annotated[Any, Field(default=None, json_schema_extra=KEYS_SCHEMA)]
    encoding: ENCODING = Field("utf-8", description="How string keys are written.")


class UploadReply(BaseModel):
    """An upload that isn't committed."""

    upload: str
    name: str = Field(description="The table.")
    dim: int
    dtype: _DTYPE
    key_kind: _KEY_KIND
    rows: int | None = Field(description="As announced; null if it wasn't.")
    publish: bool
    next_row: int = Field(description="The offset of the next chunk: as many rows are there.")
    bytes: int = Field(description="Bytes of rows and keys that are there.")
    expires: str = Field(description="When it is deleted if nothing comes.")
    committing: bool
    chunk_bytes_max: int = Field(description="The most bytes of a chunk; 0 in a list.")


class UploadsReply(BaseModel):
    """The uploads that aren't committed."""

    uploads: list[UploadReply]


class PutRowsReply(BaseModel):
    """Rows that are there."""

    next_row: int = Field(description="The offset of the next chunk.")


class CommittedReply(BaseModel):
    """An upload that is a version of a table now."""

    version: int = Field(description="The version that is live now.")
    lsn: int = Field(description="The change's position in the log.")
    rows: int = Field(description="Rows of the version.")
    duplicates: int = Field(description="Rows that came with a key that another row had.")


class CancelledReply(BaseModel):
    """Nothing is left to tell."""
