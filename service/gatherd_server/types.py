"""Values that the rooms hand to each other."""

from dataclasses import dataclass
from pathlib import Path

from gatherd.errors import LimitExceeded
from gatherd.store.dtypes import DType
from gatherd.store.query import Asked, BagsQuery, Missing

LIVE_VERSION = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold, and how many may be under way in one process."""

    request_bytes_max: int
    reply_bytes_max: int
    ids_max: int
    tables_max: int
    requests_in_flight_max: int

    def check(self, name: str, what: str, value: int) -> None:
        """LimitExceeded, naming the limit, when `value` is over the limit called `name`."""
        maximum: int = getattr(self, name)
        if value > maximum:
            unit = "bytes" if "bytes" in name else name.removesuffix("_max")
            raise LimitExceeded(
                f"{what} {value} {unit}; this server takes at most {maximum} ({name})",
                {"limit": name, "value": str(value), "max": str(maximum)},
            )


@dataclass(frozen=True, slots=True)
class LookupPlan:
    """One table's part of a lookup, as a transport read it from the wire.

    `asked` are ids of any integer dtype, or keys, of any shape; whether they have rows is the
    engine's to check. With `bags` they are flat, and pooled. `version` LIVE_VERSION means
    whatever is live.
    """

    table: str
    asked: Asked
    dtype: DType = DType.FLOAT32
    missing: Missing = Missing.ERROR
    version: int = LIVE_VERSION
    bags: BagsQuery | None = None


@dataclass(frozen=True, slots=True)
class TableInfo:
    """What is told about a table. `refused` is empty, or why it can't be looked up.

    `key_kind` is empty, "bytes", "int64" or "uint64". `resident_bytes` are those of `rows_bytes`
    that are in memory now.
    """

    name: str
    row_count: int
    dim: int
    dtype: DType | None
    version: int
    refused: str = ""
    trainable: bool = False
    key_kind: str = ""
    rows_bytes: int = 0
    keys_bytes: int = 0
    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TableSource:
    """A file served where it lies: `name=path#tensor`."""

    name: str
    path: Path
    tensor: str | None = None
    default_vector: Path | None = None
