"""Values that the rooms hand to each other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import LimitExceeded
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import Asked, BagsQuery, Missing, VectorForm

# HTTP connections above connections_max, for strangers; see http/connection_limit.py.
SPARE_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class NeighborsLimits:
    """Bounds on searches for neighbors; see the settings neighbors_…."""

    in_flight_max: int = 2
    threads: int = 2
    k_max: int = 1000
    queries_max: int = 256
    work_max: int = 2**38
    """Rows times dim times queries of one search."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request, and of all requests under way in one process."""

    request_bytes_max: int
    reply_bytes_max: int
    ids_max: int
    tables_max: int
    requests_in_flight_max: int
    updates_in_flight_max: int = 256
    bodies_bytes_max: int = 256 << 20
    default_mean_bytes_max: int = 8 << 30
    neighbors: NeighborsLimits = NeighborsLimits()

    def check(self, name: str, what: str, value: int) -> None:
        """LimitExceeded, naming the limit, when `value` is over the limit called `name`."""
        maximum: int = getattr(self, name)
        if value > maximum:
            unit = "bytes" if "bytes" in name else name.removesuffix("_max")
            raise LimitExceeded(
                f"{what} {value} {unit}; this server takes at most {maximum} ({name})",
                {"limit": name, "value": str(value), "max": str(maximum)},
            )


class Durability(Enum):
    """When an update is acknowledged."""

    FSYNC = "fsync"
    OS = "os"


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """The settings and limits of the writer."""

    segment_bytes: int = 64 << 20
    batch_pushes_max: int = 1_024
    batch_bytes_max: int = 32 << 20
    queued_pushes_max: int = 4_096
    queued_bytes_max: int = 256 << 20
    checkpoint_seconds: float = 60.0
    checkpoint_bytes: int = 256 << 20
    keep_versions: int = 2
    syncs: bool = True
    snapshot_dir: Path | None = None
    snapshot_seconds: float = 0.0
    snapshot_keep: int = 3
    backup_url: str = ""
    """The URL to copy snapshots to; "" for none."""
    backup_keep: int = 7
    file_tables: tuple[str, ...] = ()
    """Names of the files that are served where they lie; no table of the data dir may take one."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "WriterLimits":
        """From the fields in JSON."""
        folder = document["snapshot_dir"]
        typed = {
            "snapshot_dir": Path(folder) if folder else None,
            "file_tables": tuple(document["file_tables"]),
        }
        return cls(**{**document, **typed})


class Lookup(NamedTuple):
    """One table's part of a lookup, as a transport read it from the wire.

    `asked` are ids of any integer dtype, or keys, of any shape; the engine checks whether they have
    rows. With `bags` they are flat, and pooled. `version` LIVE_VERSION means the live version.
    """

    table: str
    asked: Asked
    dtype: DType = DType.FLOAT32
    missing: Missing = Missing.ERROR
    version: int = LIVE_VERSION
    bags: BagsQuery | None = None
    form: VectorForm | None = None
    with_lsn: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the vectors are whole and as stored, and the reply says nothing more of them."""
        return self.form is None and not self.with_lsn


class UpdateOp(Enum):
    """The operation of an update."""

    SCATTER_ADD = "scatter_add"
    APPLY_GRADIENTS = "apply_gradients"
    ASSIGN = "assign"
    DELETE_ROWS = "delete_rows"


VALUE_OPS = (UpdateOp.SCATTER_ADD, UpdateOp.APPLY_GRADIENTS, UpdateOp.ASSIGN)
"""The operations whose updates have values."""


@dataclass(frozen=True, slots=True, eq=False)
class TableUpdate:
    """One table's part of a push. `asked` has shape S, `values`, float32, S + (dim,).

    The values of delete_rows have no elements: S + (0,). `lr` is only for apply_gradients, None for
    the table's own. `if_version` LIVE_VERSION allows any live version. With `creates`, keys of an
    open table that have no row get one, also if the table doesn't create by itself.
    """

    table: str
    asked: Asked
    values: NDArray[np.float32]
    lr: float | None = None
    if_version: int = LIVE_VERSION
    creates: bool = False


@dataclass(frozen=True, slots=True)
class SessionSequence:
    """The id of a push by a client's session: 16 bytes, and 1, 2, … in the order of the pushes.

    `owner` is the name of the token that pushes, "" without one.
    """

    session: bytes
    sequence: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class OwnedKey:
    """The idempotency key of a push by the token called `owner`."""

    key: str
    owner: str


RequestId: TypeAlias = SessionSequence | OwnedKey | str | None
"""A session's id, an idempotency key (a str when no token pushes), or None: then the same push sent
again is another push."""


def owned_by(owner: str, request_id: RequestId) -> RequestId:
    """`request_id`, owned by the token called `owner`: equal ids of two tokens differ."""
    if isinstance(request_id, str):
        return OwnedKey(request_id, owner)
    if isinstance(request_id, SessionSequence):
        return replace(request_id, owner=owner)
    return request_id


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    """Updates that are made together or not at all, at most one for each table."""

    op: UpdateOp
    updates: tuple[TableUpdate, ...]
    request_id: RequestId = None
    traceparent: str = ""
    """The W3C trace context of the request, which isn't part of the push."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """A push that is durable and visible: its LSN, and the version of each table, in its order.

    In the same order, for open tables: the rows that it created; those that it removed, deleted or
    evicted; and the keys, each once, that weren't pushed often enough to get a row. Each is () when
    it is 0 for every table.
    """

    lsn: int
    versions: tuple[int, ...]
    created: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    not_admitted: tuple[int, ...] = ()

    @property
    def counts(self) -> tuple[tuple[int, int, int], ...]:
        """Created, removed and not admitted of each table; () when all are 0."""
        if not (self.created or self.removed or self.not_admitted):
            return ()
        none = (0,) * len(self.versions)
        return tuple(
            zip(
                self.created or none,
                self.removed or none,
                self.not_admitted or none,
                strict=True,
            )
        )

    @classmethod
    def of(
        cls, lsn: int, versions: tuple[int, ...], counts: Iterable[Iterable[int]] = ()
    ) -> "PushResult":
        """The result whose `counts` are these."""
        columns = tuple(zip(*counts, strict=True)) or ((), (), ())
        created, removed, not_admitted = (one if any(one) else () for one in columns)
        return cls(lsn, versions, created, removed, not_admitted)


class OnDuplicate(Enum):
    """What to do with a key that the table has already."""

    ERROR = "error"
    FIRST = "first"
    LAST = "last"


class UpdatesState(Enum):
    """Whether updates are taken."""

    NONE = "none"
    """The server has no data dir."""
    RUNNING = "running"
    STOPPED = "stopped"
    """The disk failed under the writer; the server needs a restart."""
    UNREACHABLE = "unreachable"
    """The writer is being started again."""
    DISK_FULL = "disk_full"
    """There was no room for the last update; the next one may find some."""
    HUNG = "hung"
    """The writer gives no sign of life: it was stopped, or its disk doesn't answer."""


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """An optimizer as it was requested; training/optimizer.py has the choices."""

    name: str
    options: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AddStaged:
    """A new table, of the files in the data dir's staging folder `staged`."""

    table: str
    staged: str


@dataclass(frozen=True, slots=True)
class CreateTable:
    """A new table of drawn rows. `seed` None draws one.

    With `open` it has no rows and grows: `row_count` is 0, and `init` and `seed` are those of
    `open`.
    A `frozen` one takes no updates.
    """

    table: str
    row_count: int
    dim: int
    dtype: DType
    init: Initializer
    seed: int | None
    optimizer: OptimizerSpec | None
    open: OpenSpec | None = None
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """The removal of a table with all its versions."""

    table: str


@dataclass(frozen=True, slots=True)
class Publish:
    """A new live version: the files in staging's folder `staged`; for "", a live copy."""

    table: str
    staged: str = ""
    if_version: int = LIVE_VERSION


@dataclass(frozen=True, slots=True)
class Rollback:
    """An older version made live again; LIVE_VERSION for the newest before the live one."""

    table: str
    version: int = LIVE_VERSION
    if_version: int = LIVE_VERSION


@dataclass(frozen=True, slots=True)
class SetOptimizer:
    """Another optimizer, or other options of it; without a name, of the present one."""

    table: str
    optimizer: OptimizerSpec
    if_version: int = LIVE_VERSION


@dataclass(frozen=True, slots=True)
class DeleteVersion:
    """The removal of a superseded version."""

    table: str
    version: int


TableChange: TypeAlias = (
    AddStaged | CreateTable | DeleteTable | DeleteVersion | Publish | Rollback | SetOptimizer
)


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """The version that is live after a change, 0 for none, and the change's LSN."""

    version: int
    lsn: int


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """The folder of a snapshot, and the LSN that its weights, slots and request ids are of."""

    path: str
    lsn: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What answers: the release and its commit, whether it takes traffic, and updates."""

    version: str
    commit: str
    is_ready: bool
    updates: UpdatesState


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot in a folder of them. `damaged` is empty, or why it can't be read.

    `created_seconds` is Unix time; `byte_count` is of all its files. Both are 0 for a damaged one,
    as is `lsn`.
    """

    name: str
    path: str
    lsn: int = 0
    created_seconds: int = 0
    byte_count: int = 0
    damaged: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotList:
    """The snapshots in a folder, oldest first, damaged ones before the others."""

    snapshots: tuple[SnapshotInfo, ...]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A description of a table. `refused` is empty, or why it can't be looked up.

    `key_kind` is empty, "bytes", "int64" or "uint64". `resident_bytes` are those of `rows_bytes`
    that are in memory now. `lsn` is the last update that every lookup sees.
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
    versions: tuple[int, ...] = ()
    optimizer: dict[str, Any] | None = None
    """Its name under "name", and its options; None for a table that takes no gradients."""
    lsn: int = 0
    open: OpenSpec | None = None
    """How the rows of an open table come and go; `row_count` is how many there are now."""


@dataclass(frozen=True, slots=True)
class TableSource:
    """A file served where it lies: `name=path#tensor`."""

    name: str
    path: Path
    tensor: str | None = None
    default_vector: Path | None = None
