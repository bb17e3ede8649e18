"""Owning a data dir: the one place from where its catalog is changed."""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gatherd.errors import AlreadyExists, BadFile, StorageError
from gatherd.store.catalog import (
    LOCK_NAME,
    STAGING_NAME,
    TABLES_NAME,
    Catalog,
    CatalogEntry,
    check_table_name,
    read_catalog,
    version_dir,
)
from gatherd_server.storage.catalog_writer import init_data_dir, is_data_dir, write_catalog
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import TableFiles, stage_table

FIRST_VERSION = 1


class OwnedDataDir:
    """A data dir whose lock this process holds; got from `own_data_dir`."""

    def __init__(self, files: Files, path: Path, catalog: Catalog) -> None:
        self.path = path
        self._files = files
        self._catalog = catalog

    @property
    def catalog(self) -> Catalog:
        """The catalog as it is now."""
        return self._catalog

    def check_is_new(self, name: str) -> None:
        """AlreadyExists when a table is called `name`, InvalidArgument when none can be."""
        if check_table_name(name) in self._catalog.tables:
            raise AlreadyExists(
                f"data dir {self.path} has a table {name!r} already", {"table": name}
            )

    def add_table(self, table: TableFiles) -> int:
        """Write a new table and publish it as version 1, durable on return; how many rows it has.

        Atomic: until the catalog names it nobody sees any of it, and a crash before that leaves
        only files that the next owner sweeps away.
        """
        self.check_is_new(table.name)
        staged = stage_table(self._files, self.path / STAGING_NAME, table)
        target = version_dir(self.path, table.name, FIRST_VERSION)
        self._files.make_dirs(target.parent)
        self._files.rename(staged.folder, target)
        entry = CatalogEntry(staged.uid, FIRST_VERSION, (FIRST_VERSION,))
        tables = {**self._catalog.tables, table.name: entry}
        self._catalog = write_catalog(self._files, self.path, replace(self._catalog, tables=tables))
        return staged.row_count

    @contextmanager
    def scratch(self) -> Iterator[Callable[[str, Iterable[bytes]], Path]]:
        """What writes a named stream of bytes to a temporary file, gone when the block ends.

        Not durable, and in staging: what a kill leaves of it the next owner sweeps away.
        """
        folder = self.path / STAGING_NAME / f"scratch-{uuid.uuid4().hex}"
        self._files.make_dirs(folder)

        def save(name: str, chunks: Iterable[bytes]) -> Path:
            path = folder / f"{len(list(folder.iterdir()))}-{Path(name).name[-64:]}"
            with open(path, "xb", buffering=0) as file:
                position = 0
                for chunk in chunks:
                    position = self._files.write_at(
                        file.fileno(), memoryview(chunk), position, path
                    )
            return path

        try:
            yield save
        finally:
            self._files.remove_tree(folder)

    def sweep(self) -> None:
        """Delete what a killed import or create left behind."""
        for folder in _folders(self.path / STAGING_NAME):
            self._files.remove_tree(folder)
        for folder in _folders(self.path / TABLES_NAME):
            if folder.name not in self._catalog.tables:
                self._files.remove_tree(folder)


@contextmanager
def own_data_dir(
    path: Path, *, create: bool = False, files: Files | None = None
) -> Iterator[OwnedDataDir]:
    """Hold the lock of data dir `path` for the length of a `with` block.

    With `create`, an absent or empty folder is made one. DataDirInUse when another process holds
    the lock, BadFile when `path` is no data dir, DataDirVersion when it is of another format.
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
    lock = files.lock(path / LOCK_NAME)
    try:
        if not is_data_dir(path):
            init_data_dir(files, path)
        owned = OwnedDataDir(files, path, read_catalog(path))
        owned.sweep()
        yield owned
    finally:
        os.close(lock)


def _is_blank(path: Path) -> bool:
    """Whether `path` holds nothing but what a first start that was cut short leaves."""
    try:
        return {entry.name for entry in path.iterdir()} <= {
            LOCK_NAME,
            "control",
            "control.new",
            "catalog.json.new",
        }
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
