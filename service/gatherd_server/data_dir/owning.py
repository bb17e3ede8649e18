"""Owning a data dir: what the process that holds its lock can do with it."""

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gatherd.errors import AlreadyExists, BadFile, FailedPrecondition, GatherdError, StorageError
from gatherd.store.catalog import (
    LOCK_NAME,
    STAGING_NAME,
    Catalog,
    check_table_name,
    read_catalog,
    table_not_found,
)
from gatherd.store.limits import LIVE_VERSION
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.restoring import restored_lsn, stage_from_snapshot
from gatherd_server.data_dir.uploads.store import UPLOADS_NAME
from gatherd_server.snapshots.restoring import VOLUME_NAMES
from gatherd_server.snapshots.snapshot import SNAPSHOT_NAME, take_snapshot
from gatherd_server.storage.catalog_writer import init_data_dir, is_data_dir
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import StagedTable, TableFiles, stage_table
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    Publish,
    SnapshotResult,
    TableChange,
    WriterLimits,
)
from gatherd_server.writer.writer import Writer

# Without a server the log holds only a few changes before it is cut again.
SEGMENT_BYTES = 1 << 20


class DataDir(ABC):
    """A data dir to put tables into: this process owns it, or a server does."""

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self._files = files

    @property
    def catalog(self) -> Catalog:
        """The catalog as it is now."""
        return read_catalog(self.path)

    def check_is_new(self, name: str) -> None:
        """AlreadyExists when there is a table `name`, InvalidArgument when `name` is impossible."""
        if check_table_name(name) in self.catalog.tables:
            raise AlreadyExists(
                f"data dir {self.path} has a table {name!r} already", {"table": name}
            )

    def add_table(self, table: TableFiles) -> int:
        """Write a new table and publish it as version 1, durable on return; its row count.

        Atomic: nobody sees any of it before the log has it, and a crash before that leaves only
        files that the next owner sweeps away.
        """
        self.check_is_new(table.name)
        staged = self.stage(table)
        self._take_in(staged, AddStaged(table.name, staged.folder.name))
        return staged.row_count

    def publish(self, table: TableFiles, if_version: int = LIVE_VERSION) -> int:
        """Write a new version of a table and make it live; its row count. Atomic as `add_table`.

        VersionMismatch unless `if_version` is live then.
        """
        if table.name not in self.catalog.tables:
            raise table_not_found(table.name, self.catalog.tables)
        staged = self.stage(table)
        self._take_in(staged, Publish(table.name, staged.folder.name, if_version))
        return staged.row_count

    def stage(self, table: TableFiles) -> StagedTable:
        """Write a version's files in staging; see `stage_table`."""
        return stage_table(self._files, self.path / STAGING_NAME, table)

    def restore_table(self, snapshot: Path, name: str) -> tuple[ChangeResult, int]:
        """Make a snapshot's table live here, as a new version; the result, and its contents' LSN.

        It includes what the log keeps of a damaged version above the snapshot's LSN. Raises what
        `stage_from_snapshot` and a publish do.
        """
        staged, lsn = stage_from_snapshot(self._files, self.path, snapshot, name)
        entry = self.catalog.tables.get(name)
        change = AddStaged(name, staged) if entry is None else Publish(name, staged)
        try:
            done = self.change(change)
        except GatherdError as error:
            self._unstage(self.path / STAGING_NAME / staged, error)
            raise
        # Without a server the change itself finds the damage, and may drop it too.
        known = (entry, self.catalog.tables.get(name))
        return done, max(restored_lsn(one, snapshot, name, lsn) for one in known)

    @abstractmethod
    def change(self, change: TableChange) -> ChangeResult:
        """Make a change. Durable on return."""

    def _take_in(self, staged: StagedTable, change: TableChange) -> None:
        try:
            self.change(change)
        except GatherdError as error:
            self._unstage(staged.folder, error)
            raise

    def _unstage(self, folder: Path, error: GatherdError) -> None:
        # Another process may still be using the files: then they must stay.
        if error.metadata.get("outcome") != "unknown" and folder.exists():
            with suppress(StorageError):
                self._files.remove_tree(folder)

    @contextmanager
    def scratch(self) -> Iterator[Callable[[str, Iterable[bytes]], Path]]:
        """A function that saves a named stream of bytes to a temporary file in the block.

        The file is not durable, and in staging: the next owner sweeps away what a kill leaves.
        """
        folder = self.path / STAGING_NAME / f"scratch-{uuid.uuid4().hex}"
        self._files.make_dirs(folder, durable=False)

        try:
            yield saving_to(self._files, folder)
        finally:
            self._files.remove_tree(folder)


class OwnedDataDir(DataDir):
    """A data dir whose lock this process holds; got from `own_data_dir`."""

    def __init__(self, files: Files, path: Path, lock_fd: int, keep_versions: int) -> None:
        super().__init__(files, path)
        self.lock_fd = lock_fd
        """A process that inherits this descriptor shares the lock."""
        self._limits = WriterLimits(segment_bytes=SEGMENT_BYTES, keep_versions=keep_versions)
        self._writer: tuple[Writer, Changes] | None = None

    def change(self, change: TableChange) -> ChangeResult:
        """Make a change, after recovering the data dir. Durable on return."""
        _, changes = self._open()
        return changes.change(change).result()

    def snapshot(self, folder: Path, name: str) -> SnapshotResult:
        """Copy the data dir to `folder`/`name`; see `take_snapshot`."""
        writer, _ = self._open()
        return take_snapshot(writer, folder, name)

    def recover(self) -> None:
        """Store the log into tables and catalog, as any change does first."""
        self._open()

    def close(self) -> None:
        """Close the writer, if one was needed."""
        if self._writer is not None:
            writer, changes = self._writer
            changes.close()
            writer.close()

    def _open(self) -> tuple[Writer, Changes]:
        if self._writer is None:
            writer = Writer(self.path, self._files, self._limits)
            changes = Changes(writer, self._limits)
            changes.begin()
            self._writer = writer, changes
        return self._writer


@contextmanager
def own_data_dir(
    path: Path,
    *,
    create: bool = False,
    files: Files | None = None,
    keep_versions: int = WriterLimits().keep_versions,
) -> Iterator[OwnedDataDir]:
    """Hold the lock of data dir `path` for the length of a `with` block.

    With `create`, an absent or empty folder becomes one. `keep_versions` is how many superseded
    versions a change keeps. DataDirInUse when another process holds the lock, BadFile when `path`
    is no data dir, DataDirVersion when it has another format, FailedPrecondition when it is a
    snapshot, which must not change.
    """
    files = files or Files()
    if create:
        files.make_dirs(path)
    if not path.is_dir():
        raise BadFile(
            f"data dir {path} isn't there; `gatherd create` and `gatherd import` make one"
        )
    if not is_data_dir(path) and not (create and _is_blank(path)):
        raise BadFile(f"{path} isn't a data dir of gatherd (it has no catalog), and isn't empty")
    if (path / SNAPSHOT_NAME).exists():
        raise FailedPrecondition(f"{path} is a snapshot; `gatherd restore` makes a data dir of it")
    lock = files.lock(path / LOCK_NAME)
    try:
        if not is_data_dir(path):
            init_data_dir(files, path)
        read_catalog(path)
        owned = OwnedDataDir(files, path, lock, keep_versions)
        sweep_staging(files, path)
        try:
            yield owned
        finally:
            owned.close()
    finally:
        os.close(lock)


def saving_to(files: Files, folder: Path) -> Callable[[str, Iterable[bytes]], Path]:
    """A function that saves a named stream of bytes to a new file in `folder`; not durable."""

    def save(name: str, chunks: Iterable[bytes]) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}-{Path(name).name[-64:]}"
        with open(path, "xb", buffering=0) as file:
            position = 0
            for chunk in chunks:
                position = files.write_at(file.fileno(), memoryview(chunk), position, path)
        return path

    return save


def sweep_staging(files: Files, data_dir: Path) -> None:
    """Delete what a killed import or create left behind, unless one is running now.

    Uploads stay: they go on after a restart, and end by themselves (`Uploads.sweep`).
    """
    staging = data_dir / STAGING_NAME
    if not staging.is_dir():
        return
    with files.shared_folder(staging, exclusive=True) as is_alone:
        if is_alone:
            for folder in _folders(staging):
                if folder.name != UPLOADS_NAME:
                    files.remove_tree(folder)


def _is_blank(path: Path) -> bool:
    """Whether `path` contains only what an interrupted first start leaves."""
    try:
        return {entry.name for entry in path.iterdir()} <= {
            LOCK_NAME,
            "control",
            "control.new",
            "catalog.json.new",
            *VOLUME_NAMES,
        }
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
