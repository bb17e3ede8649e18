"""What a version that is published from files takes over of the version that was live before.

Rows that stay, by their keys or else by their ids, keep their optimizer state; asked to, they keep
their contents as well, and then the files' rows count only where they are new. New rows have the
state that the files have, which is an optimizer's first one.

Contents are carried as a copy of a live version is made: the log is pinned, the rows are copied as
they change, and the log's images are stored over the copies, by their new row numbers. For state
alone pushes to the table are refused meanwhile, so that it stands still: the rows' new contents
come from elsewhere, and a push to the old ones would be lost.

Left out on purpose: keeping the table of which row becomes which. It would take 8 bytes a row;
asking the key indexes again takes as long, and only for the log's rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, FailedPrecondition
from gatherd.store.catalog import CatalogEntry, open_version, version_dir
from gatherd.store.table import Table
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.types import StateOutcome
from gatherd_server.writer.logged import logged_images_of
from gatherd_server.writer.versions import check_whole
from gatherd_server.writer.writer import Writer

# Rows that are copied at once: of 128 float32 and two slots, 12 MiB.
ROWS_AT_ONCE = 8192


class RowMap:
    """Which rows of one version are which of another: those of the same key, or else id."""

    def __init__(self, old: Table, new: Table) -> None:
        self._old, self._new = old, new

    def old_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The old version's rows that `rows` of the new one are, −1 where there is none."""
        return _mapped_rows(rows, self._new, self._old)

    def new_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The reverse of `old_of`."""
        return _mapped_rows(rows, self._old, self._new)


def _mapped_rows(rows: NDArray[np.int64], of: Table, to: Table) -> NDArray[np.int64]:
    if to.keys is None:
        return np.where(rows < to.row_count, rows, -1)
    if not rows.size:
        return rows
    return to.keys.rows_of(of.keys_of(rows)).reshape(-1)


class Carrying:
    """One version's state, or rows and state, on their way into another. Made by `carrying`."""

    def __init__(
        self, source: MappedVersion, target: MappedVersion, row_map: RowMap, *, with_rows: bool
    ) -> None:
        self._source = source
        self._target = target
        self._map = row_map
        self._with_rows = with_rows
        self._with_slots = has_same_state(source, target)
        self.state = StateOutcome.NONE
        if target.slots:
            self.state = StateOutcome.KEPT if self._with_slots else StateOutcome.NEW

    def copy(self) -> None:
        """Copy what is carried, as it is now; nothing of it is durable."""
        if not (self._with_rows or (self._with_slots and self._target.slots)):
            return
        slots = self._source.slots if self._with_slots else {}
        scalars = {name: slot.copy() for name, slot in slots.items() if slot.ndim == 1}
        for begin in range(0, self._target.row_count, ROWS_AT_ONCE):
            new = np.arange(begin, min(begin + ROWS_AT_ONCE, self._target.row_count))
            old = self._map.old_of(new)
            new, old = new[old >= 0], old[old >= 0]
            by_row = {name: slot[old] for name, slot in slots.items() if slot.ndim > 1}
            self._store(new, self._source.weights[old], by_row, scalars)

    def catch_up(self, wal: Path, of: tuple[str, int], after_lsn: int, until_lsn: int) -> None:
        """Store the log's images of the source, the version `of`, from one LSN to another."""
        for images in logged_images_of(wal, of, after_lsn, until_lsn):
            new = self._map.new_of(images.rows)
            stays = new >= 0
            slots, scalars = (images.slots, images.scalars) if self._with_slots else ({}, {})
            by_row = {name: np.ascontiguousarray(slot[stays]) for name, slot in slots.items()}
            self._store(new[stays], images.weights[stays], by_row, scalars)

    def sync(self) -> None:
        """Make what was stored durable."""
        self._target.sync()

    def _store(
        self,
        rows: NDArray[np.int64],
        weights: NDArray[np.uint8],
        slots: dict[str, NDArray[Any]],
        scalars: dict[str, NDArray[Any]],
    ) -> None:
        if self._with_rows:
            self._target.store(rows, np.ascontiguousarray(weights), slots, scalars)
        else:
            self._target.store_slots(rows, slots, scalars)


def has_same_state(source: MappedVersion, target: MappedVersion) -> bool:
    """Whether a row's state in one version means the same in the other."""
    return (source.dim, source.optimizer.slots) == (target.dim, target.optimizer.slots)


@contextmanager
def carrying(
    writer: Writer, name: str, entry: CatalogEntry, target: Path, *, keep_rows: bool
) -> Iterator[Carrying | None]:
    """Carry `entry`'s live version into the version in `target`; durable when the block begins.

    None where nothing can be carried: one of the two takes no updates, or the live version's files
    are damaged. With `keep_rows` that is FailedPrecondition or TableRefused instead, as are two
    dims or dtypes; and the block calls `catch_up_live` between two batches.
    """
    files, source = writer.files, version_dir(writer.data_dir, entry.folder_of(name), entry.live)
    if keep_rows:
        check_whole(name, entry, entry.live)
    try:
        old, new = open_version(source, name, entry.live), open_version(target, name, 0)
        is_open = old.open_spec is not None or new.open_spec is not None
        is_possible = old.is_trainable and new.is_trainable and not is_open
        mapped = _both_mapped(files, source, target) if is_possible else None
    except BadFile:
        if keep_rows:
            raise
        mapped = None
    if mapped is None:
        if keep_rows:
            raise FailedPrecondition(
                f"rows of table {name!r} can't be kept: it takes no updates, or the new version "
                "doesn't, or one of them is open; publish without keeping them",
                {"table": name},
            )
        yield None
        return
    try:
        if keep_rows:
            _check_rows_fit(name, old, new)
        carried = Carrying(*mapped, RowMap(old, new), with_rows=keep_rows)
        carried.copy()
        carried.sync()
        yield carried
    finally:
        for one in mapped:
            one.close()


def _both_mapped(files: Files, source: Path, target: Path) -> tuple[MappedVersion, MappedVersion]:
    old = MappedVersion.open(files, source)
    try:
        return old, MappedVersion.open(files, target)
    except BaseException:
        old.close()
        raise


def _check_rows_fit(name: str, old: Table, new: Table) -> None:
    """FailedPrecondition unless rows of `old` can be rows of `new` as they are."""
    if (old.dim, old.dtype) != (new.dim, new.dtype):
        raise FailedPrecondition(
            f"rows of table {name!r} have dim {old.dim} and dtype {old.dtype.value}, so they can't "
            f"be kept among new ones of dim {new.dim} and dtype {new.dtype.value}",
            {"table": name},
        )


class CarriedRows:
    """Keeps carried rows up to date with the log while pushes go on. A context manager.

    The log is pinned from its making on, so it is made before rows are copied.
    """

    def __init__(self, writer: Writer, entry: CatalogEntry, owner: object) -> None:
        self._writer = writer
        self._of = entry.uid, entry.live
        self._owner = owner
        self._lsn = writer.pin_log(owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.unpin_log(self._owner)

    def catch_up(self, carried: Carrying) -> None:
        """Store what was applied since, durably."""
        lsn = self._writer.applied_lsn
        carried.catch_up(self._writer.data_dir / WAL_NAME, self._of, self._lsn, lsn)
        carried.sync()
        self._lsn = lsn
