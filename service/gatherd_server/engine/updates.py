"""Updates, as far as a worker can check them before the writer sees them.

What is wrong here is refused without a trip, and the pass over the values for NaN and infinity is
made by every worker rather than by the one writer. The writer checks again what may change on the
way: which version is live, how many rows it has.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import (
    InvalidArgument,
    NonfiniteValues,
    VersionMismatch,
)
from gatherd.store.table import Table
from gatherd_server.types import LIVE_VERSION, Limits, Push, TableUpdate, UpdateOp
from gatherd_server.writer.versions import read_only

ROWS_NAMED_MAX = 5


def check_sizes(push: Push, limits: Limits) -> None:
    """LimitExceeded when a push holds more than the server takes."""
    limits.check("tables_max", "the update is of", len(push.updates))
    limits.check("ids_max", "the update has", sum(update.asked.size for update in push.updates))


def check_updates(push: Push, tables: Sequence[Table]) -> None:
    """Hold each update against its live table.

    TableReadOnly, VersionMismatch, InvalidArgument for shapes and the learning rate, and
    NonfiniteValues naming the first positions.
    """
    for update, table in zip(push.updates, tables, strict=True):
        if not table.is_trainable:
            raise read_only(table.name)
        if update.if_version not in (LIVE_VERSION, table.version):
            raise VersionMismatch(
                f"table {table.name!r} has version {table.version} live; "
                f"the update insists on version {update.if_version}",
                {"table": table.name, "live": str(table.version)},
            )
        _check_values(update, push.op, table)


def _check_values(update: TableUpdate, op: UpdateOp, table: Table) -> None:
    shape = (*update.asked.shape, table.dim)
    if update.values.shape != shape:
        raise InvalidArgument(
            f"table {table.name!r} has dim {table.dim}: the values of ids of shape "
            f"{update.asked.shape} have shape {shape}, not {update.values.shape}"
        )
    if update.lr is not None:
        if op is not UpdateOp.APPLY_GRADIENTS:
            raise InvalidArgument(f"{op.value} has no learning rate; apply_gradients has")
        if not 0 < update.lr < float("inf"):
            raise InvalidArgument(f"the learning rate is {update.lr}; it must be above 0")
    if not np.isfinite(update.values).all():
        raise _nonfinite(table.name, update.values.reshape(-1, table.dim))


def _nonfinite(table: str, values: NDArray[np.float32]) -> NonfiniteValues:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    named = ", ".join(map(str, bad[:ROWS_NAMED_MAX]))
    more = f" and {bad.size - ROWS_NAMED_MAX} more" if bad.size > ROWS_NAMED_MAX else ""
    return NonfiniteValues(
        f"table {table!r}: the update has NaN or infinity in its values' rows {named}{more}",
        {"table": table, "rows": named},
    )
