"""An update as the caller asked for it: checked, before anything is sent.

Values are sent in the dtype they come in where the wire has it (float32, float16, bfloat16) and as
float32 otherwise. Left out on purpose: splitting an update, because half of one could be lost, and
checking whether an id is the table's padding, which only the server knows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import check_table, check_version
from gatherd._requests.names import Ids, Values
from gatherd._requests.tables import check_flag
from gatherd._shown import Shown
from gatherd.errors import InvalidArgument, NonfiniteValues
from gatherd.store.dtypes import DType, bfloat16_to_float32
from gatherd.store.given import OFFENDERS_MAX, as_given_array, bfloat16_bits
from gatherd.store.ids import as_id_array
from gatherd.store.keys import as_keys
from gatherd.store.limits import KEY_CHARS_MAX
from gatherd.store.query import Asked, ByKey
from gatherd_proto.procedures import APPLY_GRADIENTS, ASSIGN, DELETE_ROWS, SCATTER_ADD

RowsGiven: TypeAlias = tuple[Ids, Values]
"""(ids or keys, values) of one table."""

# The bits that are all ones in infinities and NaNs.
_EXPONENTS = {DType.FLOAT16: 0x7C00, DType.BFLOAT16: 0x7F80}


@dataclass(frozen=True, slots=True)
class UpdateResult(Shown):
    """An update that is durable and that every lookup sees.

    `lsn` is its position in the log; `versions` has, by table, the version that was changed. By
    table, and only for those where it isn't 0: `created` has the rows of an open table that the
    update created, `removed` those that it deleted, or evicted to make room, and `not_admitted` the
    keys, each once, that weren't pushed often enough to get a row. (A Counter has 0 for the rest.)
    """

    lsn: int
    versions: dict[str, int]
    created: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    not_admitted: Counter[str] = field(default_factory=Counter)


class UpdateOp(Enum):
    """The kinds of updates. Errors call an update's values by `what`."""

    SCATTER_ADD = "scatter_add"
    APPLY_GRADIENTS = "apply_gradients"
    ASSIGN = "assign"
    DELETE_ROWS = "delete_rows"

    @property
    def method(self) -> str:
        """The procedure's path."""
        return _METHODS[self][0]

    @property
    def what(self) -> str:
        """The argument that holds the values."""
        return _METHODS[self][1]


_METHODS = {
    UpdateOp.SCATTER_ADD: (SCATTER_ADD.path, "deltas"),
    UpdateOp.APPLY_GRADIENTS: (APPLY_GRADIENTS.path, "grads"),
    UpdateOp.ASSIGN: (ASSIGN.path, "rows"),
    UpdateOp.DELETE_ROWS: (DELETE_ROWS.path, "values"),
}


@dataclass(frozen=True, slots=True, eq=False)
class UpdateSpec:
    """One table's part of an update: `asked` of shape S, `values` of S + (dim,), or None.

    `values` are C-contiguous, in the storage dtype of `dtype`: bfloat16 as bits. Values given in
    that form are the caller's own array.
    """

    table: str
    table_bytes: bytes
    asked: Asked
    values: NDArray[Any] | None
    dtype: DType
    lr: float | None
    if_version: int
    creates: bool = False


def prepare_update(
    op: UpdateOp,
    table: object,
    ids: object,
    keys: object,
    values: object,
    *,
    lr: object = None,
    if_version: object = None,
    create: object = False,
) -> UpdateSpec:
    """Check one table's part. InvalidArgument if it can't be sent, NonfiniteValues."""
    name, table_bytes = check_table(table)
    if (ids is None) == (keys is None):
        given = "neither ids nor keys" if ids is None else "both ids and keys"
        raise InvalidArgument(f"table {name!r}: {given} were given; an update takes one of them")
    creates = check_flag("create", create)
    if creates and keys is None:
        raise InvalidArgument(
            f"table {name!r}: create=True makes rows for keys, and ids were given; an open table's "
            "rows are asked for by key"
        )
    if values is None:
        raise InvalidArgument(f"table {name!r}: no {op.what} were given")
    asked: Asked = as_id_array(ids) if keys is None else ByKey(as_keys(keys))
    array, dtype = _as_values(name, op.what, values)
    if array.ndim != len(asked.shape) + 1 or array.shape[:-1] != asked.shape:
        rows = "ids" if keys is None else "keys"
        wanted = ", ".join([*map(str, asked.shape), "dim"])
        raise InvalidArgument(
            f"table {name!r}: {op.what} have shape {array.shape}; for {rows} of shape "
            f"{asked.shape} they have ({wanted}), and nothing is broadcast"
        )
    _check_finite(name, op.what, array, dtype, values)
    version = check_version("if_version", if_version)
    return UpdateSpec(name, table_bytes, asked, array, dtype, _check_lr(lr), version, creates)


def prepare_deletes(given: Mapping[str, Any], if_version: Mapping[str, Any]) -> list[UpdateSpec]:
    """Check the keys, by table, of rows to delete. InvalidArgument if they can't be sent."""
    specs = []
    for table, keys in given.items():
        name, table_bytes = check_table(table)
        if keys is None:
            raise InvalidArgument(f"table {name!r}: no keys were given; rows are deleted by key")
        version = check_version("if_version", if_version.get(table))
        asked = ByKey(as_keys(keys))
        specs.append(UpdateSpec(name, table_bytes, asked, None, DType.FLOAT32, None, version))
    if not specs:
        raise InvalidArgument("delete_rows_many was given no table")
    return specs


def prepare_updates(
    op: UpdateOp,
    by_id: Mapping[str, Any],
    by_key: Mapping[str, Any],
    *,
    lr: Mapping[str, Any] | float | None,
    if_version: Mapping[str, Any],
    create: Mapping[str, Any] | bool = False,
) -> list[UpdateSpec]:
    """Check an update of many tables; InvalidArgument also if there is none.

    `create` True is for the tables that are given by key.
    """
    specs = []
    for given, keyed in ((by_id, False), (by_key, True)):
        for table, pair in given.items():
            rows, values = _split(op, table, pair)
            creates = create and keyed
            if isinstance(create, Mapping):
                creates = create.get(table, False)
            spec = prepare_update(
                op,
                table,
                None if keyed else rows,
                rows if keyed else None,
                values,
                lr=lr.get(table) if isinstance(lr, Mapping) else lr,
                if_version=if_version.get(table),
                create=creates,
            )
            specs.append(spec)
    if not specs:
        raise InvalidArgument(f"{op.value}_many was given no table")
    return specs


def check_idempotency_key(key: object) -> str:
    """`key` if it can identify a push, else InvalidArgument."""
    if not isinstance(key, str):
        raise InvalidArgument(f"idempotency_key is a str, not a {type(key).__name__}")
    if not 0 < len(key) <= KEY_CHARS_MAX or not all("!" <= char <= "~" for char in key):
        raise InvalidArgument(
            f"idempotency_key={key[:40]!r} isn't possible: it has 1 to {KEY_CHARS_MAX} visible "
            "ASCII characters, and no space"
        )
    return key


def _split(op: UpdateOp, table: str, pair: object) -> tuple[object, object]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise InvalidArgument(f"table {table!r} is given a tuple (ids or keys, {op.what})")
    rows, values = pair
    if rows is None:
        raise InvalidArgument(f"table {table!r} is given None for ids or keys")
    return rows, values


def _as_values(table: str, what: str, values: object) -> tuple[NDArray[Any], DType]:
    """`values` C-contiguous, in native byte order and the storage dtype of the DType returned."""
    try:
        bits = bfloat16_bits(values, what)
        if bits is not None:
            return bits, DType.BFLOAT16
        array = as_given_array(values, what)
        if array.dtype.kind == "O" and not isinstance(values, np.ndarray | list | tuple):
            # Numbers of a column that could have had nulls are objects.
            array = as_given_array(array.tolist(), what)
        if array.dtype.kind == "f" and array.dtype.itemsize == 2:
            return _native(array, np.float16), DType.FLOAT16
        if array.dtype.kind in "iuf":
            with np.errstate(over="ignore"):  # too large values become infinity, and are refused
                return _native(array, np.float32), DType.FLOAT32
    except InvalidArgument as error:
        raise InvalidArgument(f"table {table!r}: {error}") from None
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"table {table!r}: {what} can't be made an array: {error}") from None
    raise InvalidArgument(f"table {table!r}: {what} are numbers, not {array.dtype}")


def _native(array: NDArray[Any], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _check_finite(table: str, what: str, array: NDArray[Any], dtype: DType, given: object) -> None:
    """NonfiniteValues naming the first vectors with NaN or infinity; one pass if none has."""
    if dtype is DType.FLOAT32:
        finite = np.isfinite(array)
        if finite.all():
            return
    else:
        exponent = _EXPONENTS[dtype]
        bits = array.view(np.uint16)
        if int((bits & exponent).max(initial=0)) < exponent:
            return
        finite = (bits & exponent) != exponent
    dim = array.shape[-1]
    bad = np.flatnonzero(~finite.reshape(-1, dim).all(axis=1))
    named = {}
    for row in bad[:OFFENDERS_MAX].tolist():
        element = int(np.argmin(finite.reshape(-1, dim)[row]))
        at = (*map(int, np.unravel_index(row, array.shape[:-1])), element)
        named[what + "".join(f"[{index}]" for index in at)] = _shown(array, dtype, at, given)
    listed = ", ".join(f"{where}={value}" for where, value in named.items())
    more = f" (and {bad.size - len(named)} more vectors)" if bad.size > len(named) else ""
    is_or_are = "isn't a finite float32" if bad.size == 1 else "aren't finite float32s"
    raise NonfiniteValues(
        f"table {table!r}: {listed}{more} {is_or_are}; nothing was sent",
        {"table": table, "offenders": str(bad.size), **named},
    )


def _shown(array: NDArray[Any], dtype: DType, at: tuple[int, ...], given: object) -> str:
    """The element at `at` as the caller gave it: it may be finite but too large for float32."""
    if dtype is DType.BFLOAT16:
        wide = np.empty(1, np.float32)
        bfloat16_to_float32(array[at].reshape(1), wide)
        return str(wide[0])
    return str(as_given_array(given, "values")[at] if dtype is DType.FLOAT32 else array[at])


def _check_lr(lr: object) -> float | None:
    if lr is None:
        return None
    if isinstance(lr, bool | np.bool_) or not isinstance(lr, int | float | np.number):
        raise InvalidArgument(f"lr is a number, or None for the table's own, not {lr!r}")
    value = float(lr)
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InvalidArgument(f"lr={lr} isn't a finite float32")
    return value
