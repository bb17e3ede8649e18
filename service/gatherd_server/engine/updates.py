"""The checks of updates that a worker can make before the writer sees them.

Every worker looks for NaN and infinity in the values, so that the one writer needn't. Only the
writer checks what depends on the state of tables, after it has looked whether the push was done
already: a retry gets its first answer, whatever was published meanwhile.
"""

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import NonfiniteValues
from gatherd.store.given import position
from gatherd_server.types import Limits, Push, TableUpdate

ROWS_NAMED_MAX = 5


def check_push(push: Push, limits: Limits) -> None:
    """LimitExceeded or NonfiniteValues when no table could take the push."""
    limits.check("tables_max", "the update is of", len(push.updates))
    limits.check("ids_max", "the update has", sum(update.asked.size for update in push.updates))
    for update in push.updates:
        _check_values(update)


def _check_values(update: TableUpdate) -> None:
    if not np.isfinite(update.values).all():
        raise _nonfinite(update.table, update.values)


def _nonfinite(table: str, values: NDArray[np.float32]) -> NonfiniteValues:
    finite = np.isfinite(values).reshape(-1, values.shape[-1])
    bad = np.flatnonzero(~finite.all(axis=1))
    named = ", ".join(map(str, bad[:ROWS_NAMED_MAX]))
    more = f" and {bad.size - ROWS_NAMED_MAX} more" if bad.size > ROWS_NAMED_MAX else ""
    return NonfiniteValues(
        f"table {table!r}: the update has NaN or infinity in its values' rows {named}{more}",
        {"table": table, "rows": named, **_places(values, finite, bad[:ROWS_NAMED_MAX])},
    )


def _places(
    values: NDArray[np.float32], finite: NDArray[np.bool_], rows: NDArray[np.int64]
) -> dict[str, str]:
    """The first wrong element of each of `rows`, by its place as in values[3][0]."""
    places = {}
    for row in rows.tolist():
        flat = row * finite.shape[1] + int(np.argmin(finite[row]))
        places[position("values", flat, values.shape)] = str(values.reshape(-1)[flat])
    return places
