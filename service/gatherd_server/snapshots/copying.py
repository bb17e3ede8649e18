"""Copies of versions, taken while updates go on, that are of one LSN in the end.

The log is pinned at L0 and the files are copied as they change. A row that was changed meanwhile
may be torn in the copy, or old, or new; but then its image is in the log above L0. So the images up
to an L1 are stored into the copy, over whatever it has of them, and all of it is as it was at L1.
"""

from collections.abc import Sequence
from pathlib import Path

from gatherd.store.catalog import WEIGHTS_NAME
from gatherd.store.stripes import SEQ_NAME
from gatherd_server.snapshots.freezing import FROZEN_NAME
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.writer.logged import store_logged


def copy_files(files: Files, source: Path, target: Path, without: Sequence[str] = ()) -> None:
    """Copy a version's files to the new folder `target`; none of it is durable yet."""
    files.make_dirs(target, durable=False)
    for path in sorted(source.iterdir()):
        if path.name in without or path.name == FROZEN_NAME:
            continue
        if path.name == SEQ_NAME:
            # Nobody is writing to the copy: all even.
            files.write_new(target / path.name, bytes(path.stat().st_size), durable=False)
        else:
            files.copy(path, target / path.name)


class CatchUp:
    """A copied version that is brought from one LSN to a later one."""

    def __init__(
        self,
        files: Files,
        data_dir: Path,
        uid: str,
        version: int,
        folder: Path,
        lsn: int,
        *,
        with_slots: bool = True,
    ) -> None:
        """`folder` is the copy, begun when the log was pinned at `lsn`.

        Without `with_slots` the copy has another optimizer, whose slots stay in their first state.
        """
        self._data_dir = data_dir
        self._of = (uid, version)
        self._with_slots = with_slots
        self._mapped = MappedVersion.open(files, folder)
        self._lsn = lsn

    def to(self, lsn: int) -> None:
        """Store what the log has up to `lsn`, which is applied."""
        if lsn <= self._lsn:
            return
        wal = self._data_dir / WAL_NAME
        store_logged(self._mapped, wal, self._of, self._lsn, lsn, with_slots=self._with_slots)
        self._lsn = lsn

    def sync(self) -> None:
        """Make what was stored durable."""
        self._mapped.sync()

    def close(self) -> None:
        """Unmap the copy."""
        self._mapped.close()


def sync_files(files: Files, folder: Path, *, but_moving: bool) -> None:
    """Make durable what the files of a copy hold, but for slots and counters; not their names.

    `but_moving` leaves the weights too: for when a `CatchUp` follows, which syncs what moves.
    Slots and counters that it doesn't sync were written durably.
    """
    for path in sorted(folder.iterdir()):
        is_moving = path.name == WEIGHTS_NAME and but_moving
        if not (is_moving or path.name == SEQ_NAME or path.name.startswith("slot_")):
            files.sync_path(path)
