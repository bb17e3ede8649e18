"""Copies of versions, taken while updates go on, that end at one LSN.

The log is pinned at L0 and the files are copied as they change. A row that was changed meanwhile
may be torn in the copy, or old, or new; but then its image is in the log above L0. So the images up
to an L1 are stored over the copy's rows, and the whole copy has its contents at L1.
"""

from collections.abc import Sequence
from pathlib import Path

from gatherd.store.catalog import WEIGHTS_NAME
from gatherd.store.open_files import KEYS_INDEX, STAMPS
from gatherd.store.stripes import SEQ_NAME
from gatherd_server.snapshots.freezing import FROZEN_NAME
from gatherd_server.storage.files import Files
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.trainable import is_key_file
from gatherd_server.storage.trained_version import open_trained
from gatherd_server.storage.wal_format import WAL_NAME
from gatherd_server.writer.logged import store_logged


def copy_files(files: Files, source: Path, target: Path, without: Sequence[str] = ()) -> None:
    """Copy a version's files to the new folder `target`; none of it is durable yet."""
    files.make_dirs(target, durable=False)
    for path in sorted(source.iterdir()):
        if path.name in without or path.name == FROZEN_NAME:
            continue
        if path.name == SEQ_NAME:
            # Nobody is writing to the copy, so all counters are even.
            files.write_new(target / path.name, bytes(path.stat().st_size), durable=False)
        else:
            files.copy(path, target / path.name)


def without_index(folder: Path) -> list[str]:
    """The names of an open version's index: `CatchUp.settle` builds that of a copy."""
    return [path.name for path in folder.glob(f"{KEYS_INDEX}*")]


class CatchUp:
    """A copied version that catches up from one LSN to a later one."""

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
        self._mapped = open_trained(files, folder)
        if isinstance(self._mapped, OpenVersion) and not with_slots:
            self._mapped.store_first_slots(self._mapped.live_rows())
        self._lsn = lsn

    def to(self, lsn: int) -> None:
        """Store the log's images up to `lsn`, which is applied."""
        if lsn <= self._lsn:
            return
        wal = self._data_dir / WAL_NAME
        store_logged(self._mapped, wal, self._of, self._lsn, lsn, with_slots=self._with_slots)
        self._lsn = lsn

    def settle(self) -> OpenVersion | None:
        """Build the index of an open version's copy; the copy, None if it isn't open.

        The images that are stored later go into the index too.
        """
        mapped = self._mapped
        if not isinstance(mapped, OpenVersion):
            return None
        if mapped.index is None or mapped.needs_index:
            mapped.settle()
        else:
            mapped.find_space()
        return mapped

    def sync(self) -> None:
        """Make the stored images durable."""
        self._mapped.sync()

    def close(self) -> None:
        """Unmap the copy, unless it is open: then the writer may have it by now."""
        if not isinstance(self._mapped, OpenVersion):
            self._mapped.close()


def sync_files(files: Files, folder: Path, *, but_moving: bool) -> None:
    """Make the contents of a copy's files durable, but not slots, counters and the files' names.

    `but_moving` skips the weights too: then a `CatchUp` follows and syncs the files that move. The
    slots and counters that it doesn't sync were written durably.
    """
    is_open = (folder / STAMPS).exists()
    for path in sorted(folder.iterdir()):
        moves = but_moving and (path.name == WEIGHTS_NAME or (is_open and is_key_file(path.name)))
        if not (moves or path.name == SEQ_NAME or path.name.startswith("slot_")):
            files.sync_path(path)
