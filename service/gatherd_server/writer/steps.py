"""A push's updates, checked against the versions that are live and resolved to rows.

Keys of closed tables have rows or not. Those of open tables get rows, or lose them, as the pushes
of a batch come one after the other: `Steps` keeps what each open table's batch came to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import (
    GatherdError,
    InvalidArgument,
    LimitExceeded,
    NoKeys,
    Unavailable,
    VersionMismatch,
)
from gatherd.store.ids import all_in_range, out_of_range_error
from gatherd.store.keys import Keys, key_not_found_error
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.query import Asked, ByKey
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.types import Push, TableUpdate, UpdateOp
from gatherd_server.writer.open_batch import Created, HalfDone, OpenBatch, TooManyPinned
from gatherd_server.writer.versions import LiveVersion, Versions, no_optimizer

SWITCHED_RETRY_SECONDS = 0.01
HELD_RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One table's part of a push, its keys and ids resolved to rows.

    `counts` are the rows that it creates and removes, and the keys that it counts and doesn't
    admit; only an open table has any. `created` are the rows that it creates.
    """

    live: LiveVersion
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    lr: float | None
    keys: Keys | None = None
    created: Created | None = None
    counts: tuple[int, int, int] = (0, 0, 0)


class Steps:
    """The steps of a batch, resolved push by push."""

    def __init__(self, versions: Versions, now_us: int) -> None:
        """`now_us` is the time of the batch, microseconds since 1970."""
        self._versions = versions
        self._now_us = now_us
        self.opened: dict[str, tuple[LiveVersion, OpenBatch]] = {}
        """By uid, the open tables whose keys or rows a push of the batch changes."""
        self._is_begun = False

    def of(self, push: Push) -> list[Step]:
        """The steps of the next push. Raises what its caller is told.

        After `HalfDone` the batch has to be resolved anew, without this push; after `EndOfBatch`,
        without this one and those behind it.
        """
        checked = [self._checked(push.op, update) for update in push.updates]
        _check_each_once(push, [live for live, _ in checked])
        steps: list[Step] = []
        has_changed = False
        for update, (live, rows) in zip(push.updates, checked, strict=True):
            try:
                steps.append(self._step(push.op, update, live, rows))
            except TooManyPinned as error:
                if self._is_begun:
                    raise EndOfBatch from error
                full = LimitExceeded(error.message, error.metadata)
                raise (HalfDone(full) if has_changed else full) from None
            except GatherdError as error:
                if has_changed:
                    raise HalfDone(error) from error
                raise
            has_changed = has_changed or any(steps[-1].counts)
        self._is_begun = True
        return steps

    def _checked(self, op: UpdateOp, update: TableUpdate) -> tuple[LiveVersion, NDArray[np.int64]]:
        """An update's live version and rows, −1 for keys that are to be created."""
        live = self._versions.live(update.table)
        if live.uid in self._versions.held:
            raise Unavailable(
                f"the rows of table {update.table!r} are being replaced; send the update again",
                {"table": update.table},
                HELD_RETRY_SECONDS,
            )
        if update.of not in ("", live.name):
            raise Unavailable(
                f"alias {update.table!r} was switched while the update was on its way; send it "
                "again",
                {"table": update.table},
                SWITCHED_RETRY_SECONDS,
            )
        if op is UpdateOp.APPLY_GRADIENTS and not live.mapped.optimizer.name.takes_gradients:
            raise no_optimizer(live.name)
        if update.if_version not in (LIVE_VERSION, live.version):
            raise VersionMismatch(
                f"table {update.table!r} has version {live.version} live; the update insists on "
                f"version {update.if_version}",
                {"table": update.table, "live": str(live.version)},
            )
        is_open = isinstance(live.mapped, OpenVersion)
        if not is_open and (update.creates or op is UpdateOp.DELETE_ROWS):
            raise _is_closed(update, live)
        dim = 0 if op is UpdateOp.DELETE_ROWS else live.mapped.dim
        if update.values.shape != (*update.asked.shape, dim):
            raise InvalidArgument(
                f"table {update.table!r} has dim {dim}: values for ids of shape "
                f"{update.asked.shape} have shape {(*update.asked.shape, dim)}, not "
                f"{update.values.shape}"
            )
        if not is_open:
            return live, _ids(update.table, update.asked, live)
        return live, self._open_rows(op, update, live)

    def _open_rows(self, op: UpdateOp, update: TableUpdate, live: LiveVersion) -> NDArray[np.int64]:
        assert isinstance(live.mapped, OpenVersion)
        if not isinstance(update.asked, ByKey):
            raise no_ids(update.table)
        batch = self._batch(live, live.mapped)
        batch.check(update.asked.keys)
        rows = batch.rows_of(update.asked.keys)
        creates = update.creates or live.mapped.spec.creates
        if op is not UpdateOp.DELETE_ROWS and not creates and (rows < 0).any():
            raise key_not_found_error(
                update.table, update.asked.keys, rows.reshape(update.asked.shape)
            )
        return rows

    def _batch(self, live: LiveVersion, version: OpenVersion) -> OpenBatch:
        found = self.opened.get(live.uid)
        if found is None:
            policy = self._versions.policies.of((live.uid, live.version), version).begin()
            found = live, OpenBatch(live.name, version, policy, self._now_us)
            self.opened[live.uid] = found
        return found[1]

    def _step(
        self, op: UpdateOp, update: TableUpdate, live: LiveVersion, rows: NDArray[np.int64]
    ) -> Step:
        shape = rows.size, update.values.shape[-1]
        values = np.ascontiguousarray(update.values.reshape(shape), np.float32)
        if not isinstance(live.mapped, OpenVersion):
            return Step(live, rows, values, update.lr)
        assert isinstance(update.asked, ByKey)
        keys, batch = update.asked.keys, self._batch(live, live.mapped)
        if op is UpdateOp.DELETE_ROWS:
            removed = batch.remove(keys)
            return Step(live, rows[:0], values[:0], None, keys, None, (0, removed, 0))
        if not (rows < 0).any():
            batch.touch(rows)
            return Step(live, rows, values, update.lr, keys)
        created = batch.create(keys, rows)
        batch.touch(rows)
        counts = (created.rows.size, created.evicted, created.not_admitted)
        if created.not_admitted:
            is_admitted = rows >= 0
            rows, values = rows[is_admitted], values[is_admitted]
        return Step(live, rows, values, update.lr, keys, created, counts)


class EndOfBatch(Exception):
    """The next push belongs into another batch: this one changes the rows that it may evict.

    `number` is its place in the batch.
    """

    number = 0


def no_ids(table: str) -> InvalidArgument:
    """The error for ids of an open table."""
    return InvalidArgument(
        f"table {table!r} is open: its rows are asked for by key only (`keys=`), because a row is "
        "used again for another key",
        {"table": table},
    )


def _is_closed(update: TableUpdate, live: LiveVersion) -> GatherdError:
    """The error for an update that would create or delete rows of a closed table."""
    if live.keys is None:
        return _no_keys(update.table)
    verb = "create" if update.creates else "delete"
    return InvalidArgument(
        f"table {update.table!r} is closed: its rows are those that it was made with, so an update "
        f"can't {verb} any; `gatherd create NAME --keys …` makes an open table",
        {"table": update.table},
    )


def _no_keys(table: str) -> NoKeys:
    return NoKeys(f"table {table!r} has no keys; its rows have ids", {"table": table})


def _check_each_once(push: Push, lives: Sequence[LiveVersion]) -> None:
    """InvalidArgument if two updates are of one table, by an alias."""
    named: dict[str, str] = {}
    for update, live in zip(push.updates, lives, strict=True):
        other = named.setdefault(live.uid, update.table)
        if other != update.table:
            raise InvalidArgument(
                f"{other!r} and {update.table!r} are the same table {live.name!r}, which a push "
                "updates once",
                {"table": update.table},
            )


def _ids(table: str, asked: Asked, live: LiveVersion) -> NDArray[np.int64]:
    if isinstance(asked, ByKey):
        if live.keys is None:
            raise _no_keys(table)
        rows: NDArray[Any] = live.keys.rows_of(asked.keys)
        if (rows < 0).any():
            raise key_not_found_error(table, asked.keys, rows)
        return rows.reshape(-1)
    if not all_in_range(asked, live.mapped.row_count):
        raise out_of_range_error(table, asked, live.mapped.row_count)
    return np.ascontiguousarray(asked.reshape(-1), np.int64)
