"""The checks that every wire makes of an update before the engine sees it, in the same words.

Only those that need no table. Each wire has its own types for bytes and JSON, but values that don't
fit their ids, an invalid request id and a table named twice are wrong on all of them. The engine
checks whether rows exist, the dim, NaN and limits.
"""

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType, convert
from gatherd.store.initializer import Initializer, Parameter
from gatherd.store.limits import DIM_MAX, KEY_CHARS_MAX, LIVE_VERSION, ROWS_MAX, SESSION_BYTES
from gatherd.store.open_spec import (
    ROWS_MAX_DEFAULT,
    OnFull,
    OnMissing,
    OpenSpec,
    parse_key_kind,
    parse_on_full,
    parse_on_missing,
)
from gatherd.store.query import Asked, ByKey
from gatherd_server.training.optimizer import check_lr
from gatherd_server.types import (
    CreateTable,
    DeleteVersion,
    OptimizerSpec,
    Push,
    RequestId,
    SessionSequence,
    TableUpdate,
    UpdateOp,
)

INIT_DEFAULT: Final = "uniform"

UPDATE_MAY_BE_DONE: Final = (
    "the update may still be done; sent again with the same request id, it is done once"
)
# For changes, which have no request id.
CHANGE_MAY_BE_DONE: Final = "the change may still be made; look whether it was before you repeat it"
# Of uploads, whose every step can be repeated.
UPLOAD_MAY_BE_DONE: Final = "it may still be done; sent again for the same upload, it is done once"

_VISIBLE = re.compile(rf"[!-~]{{1,{KEY_CHARS_MAX}}}")


def in_table(error: InvalidArgument, table: str) -> InvalidArgument:
    """`error` with the table it is about, for a request with several."""
    return type(error)(f"table {table!r}: {error.message}", {**error.metadata, "table": table})


def session_sequence(session: bytes, sequence: int) -> SessionSequence:
    """A session's request id; InvalidArgument when it can't be one."""
    if len(session) != SESSION_BYTES:
        raise InvalidArgument(
            f"the request id's session has {len(session)} bytes; it must have {SESSION_BYTES}"
        )
    if sequence < 1:
        raise InvalidArgument(
            f"the request id's sequence is {sequence}; a session counts its updates from 1"
        )
    return SessionSequence(session, sequence)


def idempotency_key(key: str) -> str:
    """`key` when it can be an idempotency key, else InvalidArgument."""
    if _VISIBLE.fullmatch(key):
        return key
    if len(key) > KEY_CHARS_MAX:
        raise InvalidArgument(
            f"the idempotency key has {len(key)} characters; it can have 1 to {KEY_CHARS_MAX}"
        )
    if not key:
        raise InvalidArgument("the idempotency key is empty; leave it out, or draw one")
    index, character = next((i, c) for i, c in enumerate(key) if not "!" <= c <= "~")
    raise InvalidArgument(
        f"the idempotency key has {character!r} at character {index}; "
        "it takes visible ASCII, without blanks"
    )


def learning_rate(lr: float, op: UpdateOp) -> float:
    """`lr` rounded to float32; InvalidArgument when an update by `op` takes none.

    Messages carry a float32, and an update must mean the same over JSON.
    """
    if op is not UpdateOp.APPLY_GRADIENTS:
        raise InvalidArgument(f"a learning rate is of apply_gradients, not of {op.value}")
    return float(np.float32(check_lr(lr)))


def values_of(asked: Asked, values: NDArray[Any], dtype: DType) -> NDArray[np.float32]:
    """`values`, of `dtype` in its storage, as float32; float32 isn't copied unless misaligned.

    InvalidArgument when their shape isn't the ids' (or keys') with one dimension more.
    """
    if values.ndim != len(asked.shape) + 1 or values.shape[:-1] != asked.shape:
        dims = ", ".join(map(str, (*asked.shape, "dim")))
        raise InvalidArgument(
            f"values have shape {values.shape}; the ids have {asked.shape}, so it must be ({dims})"
        )
    if dtype is DType.FLOAT32 and values.flags.aligned:
        return values
    wide = np.empty(values.shape, np.float32)
    convert(values, dtype, wide, DType.FLOAT32)
    return wide


def rows_of(op: UpdateOp, asked: Asked, *, creates: bool) -> Asked:
    """`asked`; InvalidArgument for ids where only keys can be: to create or delete rows."""
    if isinstance(asked, ByKey):
        if creates and op is UpdateOp.DELETE_ROWS:
            raise InvalidArgument("rows are deleted or created; delete_rows takes no create")
        return asked
    if op is UpdateOp.DELETE_ROWS:
        raise InvalidArgument("rows are deleted by key, in open tables; the request has ids")
    if creates:
        raise InvalidArgument("rows are created for keys, in open tables; the request has ids")
    return asked


def deleted_rows(table: str, asked: Asked, if_version: int) -> TableUpdate:
    """One table's part of a delete_rows."""
    return TableUpdate(table, asked, np.empty((*asked.shape, 0), np.float32), None, if_version)


def push(op: UpdateOp, updates: Sequence[TableUpdate], request_id: RequestId) -> Push:
    """The push of `updates`. InvalidArgument when it is empty or has a table twice."""
    if not updates:
        raise InvalidArgument("the request has no updates; it needs at least one table")
    seen: set[str] = set()
    for update in updates:
        if update.table in seen:
            raise InvalidArgument(
                f"table {update.table!r} stands in the request twice; put its rows into one update",
                {"table": update.table},
            )
        seen.add(update.table)
    return Push(op, tuple(updates), request_id)


def changed_optimizer(name: str, options: Mapping[str, float]) -> OptimizerSpec:
    """As `optimizer`; without a name, options of the table's present one."""
    if not name and not options:
        raise InvalidArgument("the request has no optimizer; name one, or give options to change")
    return _finite(name, options)


def optimizer(name: str, options: Mapping[str, float]) -> OptimizerSpec:
    """The optimizer `name` with its options; InvalidArgument for one that is NaN or infinite."""
    if not name:
        raise InvalidArgument("the optimizer has no name")
    return _finite(name, options)


def _finite(name: str, options: Mapping[str, float]) -> OptimizerSpec:
    for option, value in options.items():
        if not math.isfinite(value):
            raise InvalidArgument(f"the optimizer's {option} is {value}; it must be finite")
    return OptimizerSpec(name, options)


def initializer(name: str, parameters: Mapping[str, Parameter]) -> Initializer:
    """The initializer `name`, "" for the default one; raises as `Initializer.parse` does."""
    return Initializer.parse(name or INIT_DEFAULT, parameters)


def deleted_version(table: str, version: int) -> DeleteVersion:
    """The removal of a version; InvalidArgument for 0, which elsewhere means the live one."""
    if version == LIVE_VERSION:
        raise InvalidArgument("version is 0; name the superseded version to delete")
    return DeleteVersion(table, version)


def open_spec(
    *,
    keys: str,
    init: Initializer,
    rows_max: int | None = None,
    seed: int | None = None,
    on_missing: str = "",
    admit_after: int | None = None,
    on_full: str = "",
    ttl_seconds: int | None = None,
    touch_on_lookup: bool = False,
) -> OpenSpec:
    """An open table's options; None and "" are the defaults, a seed is drawn. InvalidArgument."""
    if ttl_seconds == 0:
        raise InvalidArgument(
            "ttl_seconds is 0, which leaves no time to look a row up; leave it out for rows that "
            "stay"
        )
    return OpenSpec(
        parse_key_kind(keys),
        ROWS_MAX_DEFAULT if rows_max is None else rows_max,
        secrets.randbits(63) if seed is None else seed,
        init,
        parse_on_missing(on_missing or OnMissing.ERROR.value) is OnMissing.CREATE,
        1 if admit_after is None else admit_after,
        parse_on_full(on_full or OnFull.ERROR.value),
        ttl_seconds or 0,
        touch_on_lookup,
    ).checked()


def open_table(
    name: str,
    row_count: int,
    dim: int,
    dtype: DType,
    optimizer: OptimizerSpec | None,
    spec: OpenSpec,
    *,
    frozen: bool = False,
) -> CreateTable:
    """The creation of an open table. InvalidArgument for a size that it can't have, or frozen."""
    if frozen:
        raise InvalidArgument("an open table grows by updates, so it can't be frozen")
    if row_count:
        raise InvalidArgument(
            f"rows is {row_count}, but an open table begins without rows; rows_max is the most "
            "that it can have"
        )
    change = CreateTable(name, 0, dim, dtype, spec.init, spec.seed, optimizer, spec)
    drawn_table(replace(change, row_count=spec.rows_max))
    return change


def drawn_table(change: CreateTable) -> CreateTable:
    """`change` if a table can have its size, else InvalidArgument."""
    if not 0 <= change.row_count <= ROWS_MAX:
        raise InvalidArgument(f"rows is {change.row_count}; it must be 0 to {ROWS_MAX}")
    if not 1 <= change.dim <= DIM_MAX:
        raise InvalidArgument(f"dim is {change.dim}; it must be 1 to {DIM_MAX}")
    byte_count = change.row_count * change.dim * change.dtype.itemsize
    if byte_count >= 2**63:
        raise InvalidArgument(
            f"{change.row_count} rows of {change.dim} {change.dtype.value} are {byte_count} bytes; "
            "no file can have so many"
        )
    return change
