"""The requests of the mixes as calls of the SDK, and what they are made of.

They are sent to other processes, which may have another tree's SDK (elsewhere.py): so this module
has nothing of this tree but the SDK's public names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd import Client

Array = NDArray[Any]
Ids = NDArray[np.int64]

EVERYTHING: Final = "everything"
STRINGS: Final = "strings"
BAGS, BAG = 32, 20


@dataclass(frozen=True, slots=True)
class OneTable:
    """Ids of EVERYTHING; of a table of its first rows; and with some that have no row."""

    ids: Ids
    small: Ids
    holes: Ids


@dataclass(frozen=True, slots=True)
class Many:
    """Ids of each of the tables, and the same in EVERYTHING."""

    tables: Mapping[str, Ids]
    ids: Ids


@dataclass(frozen=True, slots=True)
class ByKeys:
    """Keys as a caller has them, and the rows that they are of."""

    keys: Any
    rows: Ids


@dataclass(frozen=True, slots=True)
class ManyBags:
    """Bags of each of the tables, and their ids in EVERYTHING."""

    bags: Mapping[str, tuple[Ids, Ids]]
    ids: Ids


def ask_rows(client: Client, batch: OneTable, dtype: Any = "float32") -> Array:
    """Of EVERYTHING."""
    return client.lookup(EVERYTHING, batch.ids, dtype=dtype)


def ask_small(client: Client, batch: OneTable, table: str) -> Array:
    """Of a table that is stored in another way."""
    return client.lookup(table, batch.small)


def ask_statuses(client: Client, batch: OneTable) -> tuple[Array, NDArray[np.uint8]]:
    """With some ids missing."""
    return client.lookup(EVERYTHING, batch.holes, missing="zero", return_status=True)


def ask_many(client: Client, batch: Many, dtype: Any = "float32") -> dict[str, Array]:
    """Of all the tables at once."""
    return client.lookup_many(batch.tables, dtype=dtype)


def ask_many_statuses(client: Client, batch: Many) -> dict[str, tuple[Array, NDArray[np.uint8]]]:
    """The same with statuses."""
    return client.lookup_many(batch.tables, missing="zero", return_status=True)


def ask_flat(client: Client, batch: Many) -> Array:
    """As many rows of one table."""
    return client.lookup(EVERYTHING, batch.ids)


def ask_keys(client: Client, batch: ByKeys, table: str) -> Array:
    """By key."""
    return client.lookup(table, keys=batch.keys)


def ask_key_bags(client: Client, batch: ByKeys) -> Array:
    """Bags of keys."""
    offsets = np.arange(0, BAGS * BAG, BAG)
    return client.lookup_bags(STRINGS, keys=batch.keys, offsets=offsets, mode="mean")


def ask_bags(client: Client, batch: OneTable) -> Array:
    """Bags of one table."""
    offsets = np.arange(0, BAGS * BAG, BAG)
    return client.lookup_bags(EVERYTHING, batch.ids, offsets, mode="mean")


def ask_many_bags(client: Client, batch: ManyBags) -> dict[str, Array]:
    """Bags of all the tables at once."""
    return client.lookup_bags_many(batch.bags, mode="mean")
