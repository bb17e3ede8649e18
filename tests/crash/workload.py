"""What clients push in the crash suite: every push is drawn from its number alone.

So a client's log needs no more than numbers and LSNs, and whoever reads it has the very arrays.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd import Client
from gatherd.store.query import ByKey
from gatherd_server.types import Push, TableUpdate, UpdateOp

OPS = (UpdateOp.SCATTER_ADD, UpdateOp.APPLY_GRADIENTS, UpdateOp.ASSIGN)
# So many keys are pushed to the open table. It may have so many rows that its index never grows,
# which would take an LSN that nobody is told of.
OPEN_KEYS, OPEN_ROWS_MAX = 600, 20_000


@dataclass(frozen=True, slots=True)
class TrainedTable:
    """A table as it is created."""

    name: str
    rows: int
    dim: int
    dtype: str
    optimizer: str
    options: dict[str, float] = field(default_factory=dict)
    is_open: bool = False


TABLES = (
    TrainedTable("momentum", 2_000, 16, "float32", "sgd", {"momentum": 0.9}),
    TrainedTable("adagrad", 500, 8, "float32", "adagrad"),
    TrainedTable("adam", 300, 32, "bfloat16", "adam", {"padding_id": 0}),
    TrainedTable("plain", 40, 4, "bfloat16", "sgd"),
    TrainedTable("open", OPEN_KEYS, 8, "float32", "adagrad", is_open=True),
)
OPEN = TABLES[-1]


class Way(Enum):
    """How a push is sent."""

    SESSION = "session"  # by the client's own request id; the SDK tries until it is answered
    KEY = "key"  # by an idempotency key, with hardly any patience, and again later by that key
    ABANDONED = "abandoned"  # by an idempotency key, with hardly any patience, and never again
    REFUSED = "refused"  # one of its tables would hold infinity: none of it may be done


@dataclass(frozen=True, slots=True, eq=False)
class DrawnPush:
    """A push: {table: (ids, values)}, and for apply_gradients the learning rate or None.

    The open table, which is the last, has integer keys instead of ids; rows that aren't there are
    created.
    """

    op: UpdateOp
    updates: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
    lr: float | None
    way: Way
    patience_seconds: float
    """How long the first try of Way.KEY waits, and the only one of Way.ABANDONED."""

    def send(self, client: Client, key: str | None, timeout: float) -> tuple[int, dict[str, int]]:
        """Push it; its LSN and the versions that it changed. Raises what the client does."""
        ids = {name: update for name, update in self.updates.items() if name != OPEN.name}
        keys = {OPEN.name: self.updates[OPEN.name]} if OPEN.name in self.updates else None
        how: dict[str, Any] = {"keys": keys, "idempotency_key": key, "timeout": timeout}
        if keys is not None:
            how["create"] = True
        match self.op:
            case UpdateOp.SCATTER_ADD:
                result = client.scatter_add_many(ids or None, **how)
            case UpdateOp.ASSIGN:
                result = client.assign_many(ids or None, **how)
            case UpdateOp.APPLY_GRADIENTS:
                result = client.apply_gradients_many(ids or None, lr=self.lr, **how)
            case UpdateOp.DELETE_ROWS:
                gone = self.updates[OPEN.name][0]
                result = client.delete_rows(OPEN.name, gone, idempotency_key=key, timeout=timeout)
        return result.lsn, result.versions

    def as_the_server_has_it(self, key: str) -> Push:
        """What `send` has the server read."""
        lr = self.lr if self.op is UpdateOp.APPLY_GRADIENTS else None
        updates = [
            TableUpdate(name, ByKey(ids), values, lr, creates=self.op is not UpdateOp.DELETE_ROWS)
            if name == OPEN.name
            else TableUpdate(name, ids, values, lr)
            for name, (ids, values) in self.updates.items()
        ]
        return Push(self.op, tuple(updates), key)


def drawn_push(number: int) -> DrawnPush:
    """Push number `number`, always the same."""
    rng = np.random.default_rng([20, number])
    way = list(Way)[int(rng.choice(4, p=[0.57, 0.3, 0.1, 0.03]))]
    op = UpdateOp.ASSIGN if way is Way.REFUSED else OPS[int(rng.integers(3))]
    table_count = 1 if rng.random() < 0.7 else int(rng.integers(2, len(TABLES) + 1))
    chosen = [TABLES[int(number)] for number in rng.permutation(len(TABLES))[:table_count]]
    chosen.sort(key=lambda table: table.is_open)
    if chosen == [OPEN] and way is not Way.REFUSED and rng.random() < 0.5:
        op = UpdateOp.DELETE_ROWS
    updates = {}
    for table in chosen:
        most = int(rng.choice([8, 64, 1_500], p=[0.6, 0.32, 0.08]))
        ids = rng.integers(0, table.rows, int(rng.integers(1, most + 1)))
        values = rng.normal(0, 0.1, (ids.size, table.dim)).astype(np.float32)
        if op is UpdateOp.DELETE_ROWS:
            values = values[:, :0].copy()
        if table.dtype == "float32" and rng.random() < 0.2:
            values = values.astype(np.float16).astype(np.float32)
        updates[table.name] = (ids, values)
    if way is Way.REFUSED:
        # Finite in float32, infinite once it is rounded to bfloat16. Other tables come before it.
        updates.pop("plain", None)
        opened = updates.pop(OPEN.name, None)
        updates["plain"] = (np.array([3]), np.full((1, 4), 3.4e38, np.float32))
        if opened is not None:
            updates[OPEN.name] = opened
    # As the wire has it.
    lr = float(np.float32(rng.uniform(0.001, 0.1))) if rng.random() < 0.2 else None
    return DrawnPush(op, updates, lr, way, float(rng.uniform(0.001, 0.03)))


def key_of(number: int) -> str:
    """The idempotency key of push `number`."""
    return f"push-{number}"
