"""The arguments of a change of a table, and its result; _wire/changes.py has the requests.

The server decides which optimizers, options and initializers exist.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from gatherd._requests.names import Init, OptimizerName
from gatherd._shown import Shown
from gatherd._suggestions import did_you_mean, near
from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.open_spec import TTL_SECONDS_MAX

OptimizerGiven: TypeAlias = OptimizerName | Mapping[str, str | float]
"""A name, or {"name": …} with options, as TableInfo has it."""

InitGiven: TypeAlias = Init | Mapping[str, str | float]
"""A name, or {"name": …} with parameters."""

_UINT64_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ChangeResult(Shown):
    """A change that is durable and that every reader sees.

    `version` is the one that is live now, 0 for a table that was deleted; `lsn` the change's
    position in the log.
    """

    version: int
    lsn: int


@dataclass(frozen=True, slots=True)
class SnapshotResult(Shown):
    """A snapshot: its folder on the server's machine, and the last update that is in it."""

    path: str
    lsn: int


@dataclass(frozen=True, slots=True)
class ServerInfo(Shown):
    """The server that answers a ping.

    `version` is its release and `commit` what that was built from, or "unknown". `ready` is False
    while it is about to stop. `updates` is "running", "none" (nothing can be changed), "stopped",
    "unreachable", "disk_full" or "hung". `seconds` is how long a round trip took.
    """

    version: str
    commit: str
    ready: bool
    updates: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SnapshotInfo(Shown):
    """A snapshot in the server's folder of them, `path`, on the server's machine.

    `lsn` is the last update that is in it, `created` the time it was taken, in UTC, and `bytes` are
    those of all its files. `damaged` is empty, or why it can't be read; `created` is None then.
    """

    name: str
    path: str
    lsn: int
    created: datetime | None
    bytes: int
    damaged: str = ""


@dataclass(frozen=True, slots=True)
class UploadResult(ChangeResult):
    """A table, or a version of one, that was uploaded.

    `rows` is how many it has, `duplicates` how many came with a key that another row had.
    """

    rows: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class UploadInfo(Shown):
    """An upload that isn't committed. `upload` is its name.

    `rows` is how many are there and `announced` how many were said to come, None if it wasn't said;
    `bytes` are those of the rows and keys that are there. It becomes a new version of the table if
    `publishes`. It is deleted at `expires`, UTC, if nothing comes.
    """

    upload: str
    table: str
    rows: int
    announced: int | None
    dim: int
    dtype: str
    key_kind: str
    bytes: int
    publishes: bool
    expires: datetime


def is_given(rows: object) -> bool:
    """Whether `rows` are vectors, and neither their number nor nothing."""
    return rows is not None and not isinstance(rows, int | np.integer)


def check_drawn(*others: object) -> None:
    """InvalidArgument when a table without vectors is given what is for them."""
    if any(other is not None for other in others):
        raise InvalidArgument(
            "default_vector, resume and chunk_bytes are for vectors, and rows are none"
        )


def check_given(dim: object, init: object, seed: object, grows: Mapping[str, Any]) -> None:
    """InvalidArgument when a table of vectors is given what is for drawn rows, or an open table."""
    named = [name for name, value in grows.items() if value != _CLOSED[name]]
    if dim is not None or seed is not None or init != "uniform":
        named.append("dim, init or seed")
    if named:
        raise InvalidArgument(f"{named[0]} can't be given with vectors: they are the table's rows")


def check_copied(*others: object) -> None:
    """InvalidArgument when a copy of a version is given what is for vectors."""
    if any(other is not None for other in others):
        raise InvalidArgument(
            "keys, dtype, optimizer, default_vector, resume and chunk_bytes are for vectors, and "
            "there are none"
        )


def check_optimizer(
    given: OptimizerGiven | None, options: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """The name and the options of the optimizer `given`; InvalidArgument if it isn't one.

    None has no name: then `options` are of the table's present one.
    """
    if given is None and not options:
        raise InvalidArgument("name an optimizer, or give options to change, such as lr=0.01")
    merged: dict[str, str | float] = {"name": given} if isinstance(given, str) else {}
    for part in (options, given if isinstance(given, Mapping) else {}):
        for option, value in part.items():
            if option in merged:
                raise InvalidArgument(f"the optimizer's {option} is given twice")
            merged[option] = value
    name = merged.pop("name", "" if given is None else None)
    if not isinstance(name, str):
        raise InvalidArgument(
            f'optimizer={given!r} names none: it is a name, or {{"name": "adam", "lr": 0.001}}'
        )
    name, checked = check_text("optimizer", name), {}
    for option, value in merged.items():
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
            raise InvalidArgument(f"the optimizer's option {option!r} is a number, not {value!r}")
        checked[check_text("option", option)] = float(value)
    return name, checked


def check_initializer(given: InitGiven) -> tuple[str, dict[str, float], dict[str, str]]:
    """The name, the numbers and the words of the initializer; InvalidArgument if it isn't one."""
    parts: dict[str, object] = {"name": given} if isinstance(given, str) else {}
    if isinstance(given, Mapping):
        parts.update(given)
    name = parts.pop("name", None)
    if not isinstance(name, str):
        raise InvalidArgument(
            f'init={given!r} names none: it is a name, or {{"name": "normal", "stddev": 0.1}}'
        )
    numbers, words = {}, {}
    for parameter, value in parts.items():
        checked = check_text("parameter", parameter)
        if isinstance(value, str):
            words[checked] = check_text(parameter, value)
        elif isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_):
            numbers[checked] = float(value)
        else:
            raise InvalidArgument(f"init's {parameter} is a number or a str, not {value!r}")
    return check_text("init", name), numbers, words


@dataclass(frozen=True, slots=True)
class OpenGiven:
    """How an open table's rows come and go; `ttl_seconds` None for never, `rows_max` for as usual.

    The server decides what is possible.
    """

    keys: str
    rows_max: int | None
    on_missing: str
    admit_after: int
    on_full: str
    ttl_seconds: int | None
    touch_on_lookup: bool


_CLOSED: Final[dict[str, object]] = {
    "rows_max": None,
    "on_missing": "error",
    "admit_after": 1,
    "on_full": "error",
    "ttl": None,
    "touch_on_lookup": False,
}


def check_open(
    rows: object, dim: object, keys: object, given: Mapping[str, Any]
) -> OpenGiven | None:
    """The options of an open table, which has `keys`; None for a closed one, which has `rows`."""
    if dim is None:
        raise InvalidArgument("dim is needed: how many elements a row has")
    if keys is None:
        named = [name for name, value in given.items() if value != _CLOSED[name]]
        if named:
            raise InvalidArgument(
                f"{named[0]} is for an open table, whose rows come and go: give the kind of its "
                'keys too, keys="int64", "uint64" or "string"'
            )
        if rows is None:
            raise InvalidArgument(
                "rows or keys is needed: how many rows the table has, or, for an open table, the "
                'kind of its keys, "int64", "uint64" or "string"'
            )
        return None
    if rows is not None:
        raise InvalidArgument(
            f"rows={rows!r} and keys={keys!r}: an open table, which has keys, begins without rows; "
            "rows_max is the most that it can have"
        )
    rows_max = given["rows_max"]
    return OpenGiven(
        check_text("keys", keys),
        None if rows_max is None else check_count("rows_max", rows_max),
        check_text("on_missing", given["on_missing"]),
        check_count("admit_after", given["admit_after"]),
        check_text("on_full", given["on_full"]),
        check_ttl(given["ttl"]),
        check_flag("touch_on_lookup", given["touch_on_lookup"]),
    )


def check_ttl(given: object) -> int | None:
    """A TTL in whole seconds, at least one. InvalidArgument for anything else."""
    if given is None:
        return None
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(seconds, bool | np.bool_) or not isinstance(seconds, int | float | np.number):
        raise InvalidArgument(f"ttl is a number of seconds or a timedelta, not {given!r}")
    if not 1 <= seconds <= TTL_SECONDS_MAX:
        raise InvalidArgument(f"ttl is {given}; it must be 1 second to {TTL_SECONDS_MAX}")
    return math.floor(seconds)


def check_count(name: str, value: object) -> int:
    """`value` if it can be a count, else InvalidArgument, which calls it `name`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InvalidArgument(f"{name} is an integer, not {value!r}")
    if not 0 <= value <= _UINT64_MAX:
        raise InvalidArgument(f"{name}={value} isn't possible")
    return int(value)


def check_flag(name: str, value: object) -> bool:
    """`value` if it is True or False, else InvalidArgument, which calls it `name`."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgument(f"{name} is True or False, not {value!r}")
    return bool(value)


def check_text(name: str, value: object) -> str:
    """`value` if it is a str that can be sent, else InvalidArgument, which calls it `name`."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is a str, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name}={value!r} can't be written as UTF-8") from None
    return value


def check_stored_dtype(name: DTypeLike) -> DType:
    """The DType called `name`; InvalidArgument if rows can't be stored in it."""
    for dtype in DType:
        if dtype.value == name:
            return dtype
    try:
        return DType(np.dtype(name).name)
    except (TypeError, ValueError):
        known = [dtype.value for dtype in DType]
        raise InvalidArgument(
            f"a table can't be stored as {name!r}; it can as {', '.join(known)}"
            f"{did_you_mean(near(name, known, 1))}"
        ) from None
