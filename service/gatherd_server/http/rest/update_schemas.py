"""The JSON bodies of REST's updates and changes, for validation at the edge and for OpenAPI.

Ids and values are `Any` here: their readers name the element that is wrong.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gatherd.store.initializer import NAMES
from gatherd.store.limits import DIM_MAX, KEY_CHARS_MAX, ROWS_MAX
from gatherd.store.open_spec import ROWS_MAX_DEFAULT, OnFull, OnMissing
from gatherd_server.http.rest.schemas import ENCODING, IDS_SCHEMA, KEYS_SCHEMA, VERSION_MAX
from gatherd_server.wire.checks import INIT_DEFAULT

_STRICT = ConfigDict(extra="forbid", strict=True)
_VALUES_SCHEMA: dict[str, Any] = {
    "description": "Numbers nested to the shape S + (dim,), S being that of the ids or keys.",
    "type": "array",
    "items": {},
}
_IF_VERSION = Field(0, ge=0, le=VERSION_MAX, description="The version that has to be live; 0: any.")
_ABSENT = " Absent when 0."
KEY_SCHEMA: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": KEY_CHARS_MAX,
    "pattern": "^[!-~]+$",
}


class UpdateBody(BaseModel):
    """An update of rows of one table, by ids or by keys."""

    model_config = _STRICT

    ids: Annotated[Any, Field(default=None, json_schema_extra=IDS_SCHEMA)]
    keys: Annotated[Any, Field(default=None, json_schema_extra=KEYS_SCHEMA)]
    values: Annotated[Any, Field(json_schema_extra=_VALUES_SCHEMA)]
    encoding: ENCODING = Field("utf-8", description="How string keys are written.")
    create: bool = Field(
        False,
        description="In an open table, give each key without a row one that begins as its initial "
        "vector.",
    )
    if_version: int = _IF_VERSION


class DeleteRowsBody(BaseModel):
    """Rows of one open table to remove, by key."""

    model_config = _STRICT

    keys: Annotated[Any, Field(json_schema_extra=KEYS_SCHEMA)]
    encoding: ENCODING = Field("utf-8", description="How string keys are written.")
    if_version: int = _IF_VERSION


class DeleteRowsManyBody(BaseModel):
    """Rows of several open tables to remove, all or nothing."""

    model_config = _STRICT

    tables: dict[str, DeleteRowsBody] = Field(description="Keys by table name.")


class GradientsBody(UpdateBody):
    """Gradients for rows of one table, by ids or by keys."""

    lr: float | None = Field(None, description="Instead of the table's learning rate.")


class UpdateManyBody(BaseModel):
    """Updates of several tables, all or nothing."""

    model_config = _STRICT

    tables: dict[str, UpdateBody] = Field(description="Updates by table name.")


class GradientsManyBody(BaseModel):
    """Gradients for several tables, all or nothing."""

    model_config = _STRICT

    tables: dict[str, GradientsBody] = Field(description="Gradients by table name.")


class OptimizerBody(BaseModel):
    """How a table is trained. An option that isn't given has its default."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={"examples": [{"name": "adagrad", "lr": 0.05}]},
    )
    __pydantic_extra__: dict[str, float] = Field(init=False)

    name: str = Field(description="sgd, adagrad, rowwise-adagrad, adam, ftrl or none.")


class InitializerBody(BaseModel):
    """How rows are drawn. A parameter that isn't given has Keras' default."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={"examples": [{"name": "normal", "stddev": 0.1}]},
    )
    __pydantic_extra__: dict[str, float | str] = Field(init=False)

    name: str = Field(description=f"{', '.join(NAMES)}.")


class OpenBody(BaseModel):
    """How the rows of an open table come and go."""

    model_config = _STRICT

    keys: str = Field(description="Their kind: int64, uint64 or string.")
    rows_max: int | None = Field(
        None, description=f"The most rows that it can have; {ROWS_MAX_DEFAULT:,} by default."
    )
    on_missing: str = Field(
        OnMissing.ERROR.value,
        description="What an update does with a key without a row, unless it says create: error or "
        "create.",
    )
    admit_after: int | None = Field(
        None,
        description="A key gets its row at its so-manieth update, 1 to 255; the ones before are "
        "counted, and answered in not_admitted.",
    )
    on_full: str = Field(
        OnFull.ERROR.value,
        description="What an update does that needs a row when there are rows_max: error, "
        "evict-lru or evict-lfu.",
    )
    ttl_seconds: int | None = Field(
        None, description="A row that wasn't updated for so long is removed; null: never."
    )
    touch_on_lookup: bool = Field(
        False,
        description="Whether a lookup counts as an update, for ttl_seconds and evict-lru. Lookups "
        "are sampled.",
    )


class CreateBody(BaseModel):
    """A new table of drawn rows, an open one, or one of files staged in the data dir."""

    model_config = _STRICT

    name: str
    staged: str | None = Field(None, description="A folder in staging; then nothing but the name.")
    rows: int | None = Field(None, ge=0, le=ROWS_MAX)
    dim: int | None = Field(None, ge=1, le=DIM_MAX)
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = Field(
        "float32", description="How the rows are stored."
    )
    init: str | InitializerBody = Field(
        INIT_DEFAULT,
        description="How the rows are drawn: the name of an initializer, or an object with its "
        "parameters.",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**64, description="The same seed, the same rows; else drawn at random."
    )
    optimizer: OptimizerBody | None = Field(
        None, description="Without one it takes updates, but no gradients."
    )
    frozen: bool = Field(False, description="Whether it takes no updates, as one of float64.")
    open: OpenBody | None = Field(
        None, description="Makes an open table, which has keys, and no rows yet: rows is absent."
    )


class PublishBody(BaseModel):
    """A new live version."""

    model_config = _STRICT

    staged: str = Field("", description="A folder in staging; without, a copy of the live version.")
    if_version: int = _IF_VERSION


class RollbackBody(BaseModel):
    """An older version, live again."""

    model_config = _STRICT

    version: int = Field(
        0, ge=0, le=VERSION_MAX, description="0: the newest of those older than the live one."
    )
    if_version: int = _IF_VERSION


class OptimizerChangeBody(OptimizerBody):
    """How a table is to be trained. Without a name its present optimizer gets the options given."""

    name: str = Field("", description="As for a new table; absent, the kind and the rest stay.")


class SetOptimizerBody(BaseModel):
    """How a table is to be trained from now on."""

    model_config = _STRICT

    optimizer: OptimizerChangeBody
    if_version: int = _IF_VERSION


class SnapshotBody(BaseModel):
    """A copy of the whole data dir."""

    model_config = _STRICT

    name: str = Field("", description="The folder's name; made of time and LSN when empty.")


class UpdateReply(BaseModel):
    """An update that is durable and that every lookup sees."""

    lsn: int = Field(description="Its position in the log.")
    version: int = Field(description="The version that was changed.")
    created: int = Field(0, description=f"The rows that it created.{_ABSENT}")
    removed: int = Field(0, description=f"The rows that it deleted, or evicted.{_ABSENT}")
    not_admitted: int = Field(
        0, description=f"The keys that weren't updated often enough to get a row.{_ABSENT}"
    )


class UpdateManyReply(BaseModel):
    """Updates that are durable and that every lookup sees."""

    lsn: int = Field(description="Their position in the log.")
    versions: dict[str, int] = Field(description="The version that was changed, by table name.")
    created: dict[str, int] = Field(
        {}, description="The rows that it created, by table name, unless 0; absent when all are."
    )
    removed: dict[str, int] = Field({}, description="Likewise, the rows that it removed.")
    not_admitted: dict[str, int] = Field({}, description="Likewise, the keys not admitted.")


class ChangeReply(BaseModel):
    """What became of a table."""

    version: int = Field(description="The version that is live now; 0 for a deleted table.")
    lsn: int = Field(description="The change's position in the log.")


class VersionsReply(BaseModel):
    """A table's versions."""

    name: str
    version: int = Field(description="The live one.")
    versions: list[int] = Field(description="All that can be looked up or rolled back to.")


class SnapshotInfoReply(BaseModel):
    """A snapshot."""

    name: str
    path: str = Field(description="The folder, on the server's machine.")
    lsn: int = Field(description="The last update that is in it.")
    created: str | None = Field(description="The time it was taken; null for a damaged one.")
    bytes: int = Field(description="Bytes of all its files.")
    damaged: str = Field(description="Empty, or why it can't be read.")


class SnapshotsReply(BaseModel):
    """The snapshots, oldest first."""

    snapshots: list[SnapshotInfoReply]


class DeletedReply(BaseModel):
    """Nothing is left to tell."""


class SnapshotReply(BaseModel):
    """A copy of the data dir."""

    path: str = Field(description="The folder, on the server's machine.")
    lsn: int = Field(description="The last update that is in it.")
