"""Makes a data dir from a snapshot's files: the whole of it, or nothing."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gatherd.errors import AlreadyExists, StorageError
from gatherd.store.catalog import CATALOG_NAME, STAGING_NAME
from gatherd_server.snapshots.snapshot import (
    SnapshotFiles,
    read_snapshot,
    reading,
    sync_tree,
    verify_snapshot,
)
from gatherd_server.storage.files import Files

# mkfs leaves these in the root of a volume: a folder with nothing else is empty.
VOLUME_NAMES = frozenset({"lost+found"})


def restore(files: Files, snapshot: Path, data_dir: Path) -> int:
    """Make the new or empty folder `data_dir` a copy of the snapshot's data dir; its LSN.

    The snapshot is verified first. The catalog comes last: without it the folder is no data dir, so
    a kill leaves none. An error leaves the folder as it was. AlreadyExists when it contains
    anything.
    """
    contents = read_snapshot(snapshot)
    check_is_empty(data_dir)

    def place(name: str, target: Path) -> None:
        files.copy(snapshot / name, target)

    with reading(files, snapshot):
        for _ in verify_snapshot(snapshot):
            pass
        catalog = (snapshot / CATALOG_NAME).read_bytes()
        files.make_dirs(data_dir)
        fill_data_dir(files, data_dir, contents, catalog, place)
    return contents.lsn


def check_is_empty(data_dir: Path) -> None:
    """AlreadyExists unless `data_dir` is an empty folder, or doesn't exist."""
    if data_dir.exists() and not data_dir.is_dir():
        raise AlreadyExists(f"{data_dir} is there and no folder; restore to a new one")
    if data_dir.exists() and (held := _held(data_dir)):
        raise AlreadyExists(
            f"{data_dir} isn't empty (there is {held[0].name!r}); restore to a new folder, or "
            "delete what is in it first if a restore was cut short there"
        )


def fill_data_dir(
    files: Files,
    data_dir: Path,
    contents: SnapshotFiles,
    catalog: bytes,
    place: Callable[[str, Path], None],
) -> None:
    """Make the folder `data_dir` a data dir of a snapshot's files, each of which `place` writes.

    Durable on return. `catalog`, the contents of that file, comes last. Whatever is raised, the
    folder is empty again.
    """
    try:
        _copy_contents(files, data_dir, contents, catalog, place)
    except BaseException:
        for left in _held(data_dir):
            with suppress(StorageError):
                if left.is_dir():
                    files.remove_tree(left)
                else:
                    files.unlink(left)
        raise


def _copy_contents(
    files: Files,
    data_dir: Path,
    contents: SnapshotFiles,
    catalog: bytes,
    place: Callable[[str, Path], None],
) -> None:
    for name in contents.files:
        if name == CATALOG_NAME:
            continue
        target = data_dir / name
        files.make_dirs(target.parent, durable=False)
        place(name, target)
    files.make_dirs(data_dir / STAGING_NAME, durable=False)
    for path in _held(data_dir):
        sync_tree(files, path)
    files.sync_dir(data_dir)
    files.replace(data_dir / CATALOG_NAME, catalog)


def _held(folder: Path) -> list[Path]:
    """The contents of the folder, without what every volume has."""
    return sorted(path for path in folder.iterdir() if path.name not in VOLUME_NAMES)
