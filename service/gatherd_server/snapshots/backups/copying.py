"""Copies snapshots to a store: those that it lacks, each as a whole or not at all."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gatherd.errors import AlreadyExists, BadFile, GatherdError, InvalidArgument, StorageError
from gatherd.store.checksums import BLOCK_BYTES, BlockChecksums, FileChecksums
from gatherd.store.mapping import naming
from gatherd.store.open_files import STAMPS
from gatherd_server.snapshots.backups.contents import (
    UPLOAD_SECONDS_MAX,
    Backup,
    StoreContents,
    drop_old,
    list_store,
    upload_document,
)
from gatherd_server.snapshots.backups.store import FILE_PIECE_BYTES, UPLOAD_NAME, FolderStore, Store
from gatherd_server.snapshots.snapshot import (
    SNAPSHOT_NAME,
    SnapshotFiles,
    decode_snapshot,
    snapshots_in,
    timed_names,
)
from gatherd_server.storage.files import Files
from gatherd_server.storage.sparse import data_ranges

Progress = Callable[[int], None]
"""Called with the byte count of each piece that was copied."""


@dataclass(frozen=True, slots=True)
class Copied:
    """One snapshot's outcome: `error` is "" when it is in the store."""

    name: str
    lsn: int
    byte_count: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one round. `newest` is the newest backup in the store after it, or None."""

    copied: list[Copied]
    removed: list[str]
    newest: Backup | None


def copy_snapshots(
    folder: Path, store: Store, keep: int | None, progress: Progress = lambda _count: None
) -> Outcome:
    """Copy the snapshots in `folder` that `store` lacks: the newest unnamed one, all named ones.

    `folder` may also be one snapshot itself. `keep` unnamed ones stay, or all if it is None. A
    snapshot that fails doesn't stop the others. StorageError when the store can't be listed.
    """
    _check_apart(folder, store)
    contents = list_store(store)
    copied = []
    for snapshot in _chosen(folder):
        try:
            done = _copy_if_new(snapshot, store, contents, progress)
        except GatherdError as error:
            copied.append(Copied(snapshot.name, 0, 0, error.message))
            continue
        if done is not None:
            copied.append(done)
    removed: list[str] = []
    if keep is not None and not any(one.error for one in copied):
        contents = list_store(store)
        removed = drop_old(store, contents, keep, copied[0].name if copied else "")
    return Outcome(copied, removed, list_store(store).newest)


def _check_apart(folder: Path, store: Store) -> None:
    if isinstance(store, FolderStore):
        root, source = store.root.resolve(), folder.resolve()
        if root.is_relative_to(source) or source.is_relative_to(root):
            raise InvalidArgument(
                f"backups can't go to {store.root}: the snapshots themselves are in {folder}; "
                "choose a folder on another disk"
            )


def _chosen(folder: Path) -> list[Path]:
    """The newest unnamed snapshot, and then the named ones.

    Older unnamed ones that were never copied are skipped: after a long failure only the newest
    counts.
    """
    if (folder / SNAPSHOT_NAME).is_file():
        return [folder]
    found = {path.name: path for path in snapshots_in(folder)}
    timed = timed_names(found)
    named = sorted(set(found) - set(timed))
    return [found[name] for name in (*timed[-1:], *named)]


def _copy_if_new(
    snapshot: Path, store: Store, contents: StoreContents, progress: Progress
) -> Copied | None:
    # The lock keeps it from being deleted meanwhile; a kill releases it.
    with Files().shared_folder(snapshot, exclusive=False) as is_held:
        if not is_held:
            raise StorageError(f"{snapshot} is being deleted")
        try:
            document = (snapshot / SNAPSHOT_NAME).read_bytes()
        except OSError as error:
            raise BadFile(f"{snapshot / SNAPSHOT_NAME}: {error.strerror}") from None
        there = contents.backups.get(snapshot.name)
        if there is not None:
            if there.document == document:
                return None
            raise AlreadyExists(
                f"{store.shown} has another backup called {snapshot.name!r}; "
                "delete it there, or take a snapshot of another name"
            )
        if snapshot.name in contents.damaged:
            # Its snapshot.json is damaged; it is replaced like any other file.
            store.remove(snapshot.name)
        return _copy(snapshot, document, store, progress)


def _copy(snapshot: Path, document: bytes, store: Store, progress: Progress) -> Copied:
    begun = time.monotonic()
    found = decode_snapshot(document, str(snapshot / SNAPSHOT_NAME))
    name = snapshot.name
    upload = upload_document()
    store.put(f"{name}/{UPLOAD_NAME}", lambda: iter((upload,)), len(upload))

    def pieces(path: str, recorded: FileChecksums, byte_count: int) -> Iterator[bytes]:
        source = snapshot / path
        is_sparse = is_of_open_version(path, found)
        read = _read(source, byte_count)
        for piece in checked_pieces(read, recorded, str(source), is_sparse=is_sparse):
            progress(len(piece))
            if time.monotonic() - begun > UPLOAD_SECONDS_MAX:
                raise StorageError(f"{name} takes longer than {UPLOAD_SECONDS_MAX:g} seconds")
            yield piece

    for path, recorded in found.files.items():
        byte_count = recorded.byte_count
        if is_of_open_version(path, found):
            byte_count = min(byte_count, _stored_bytes(snapshot / path))
        source = partial(pieces, path, recorded, byte_count)
        store.put(f"{name}/{path}", source, byte_count)
    store.seal(name, document)
    return Copied(name, found.lsn, found.byte_count)


def is_of_open_version(path: str, snapshot: SnapshotFiles) -> bool:
    """Whether a file of a snapshot is of an open version, whose files end with a hole."""
    return str(Path(path).parent / STAMPS) in snapshot.files


def _stored_bytes(path: Path) -> int:
    """Where the data of a file ends: a backup leaves out the hole at an open table's end."""
    with naming(path), open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return max((end for _, end in data_ranges(file.fileno(), size)), default=0)


def _read(path: Path, byte_count: int) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(min(FILE_PIECE_BYTES, byte_count)):
                byte_count -= len(piece)
                yield piece
    except OSError as error:
        raise BadFile(f"{path} can't be read: {error.strerror}") from None


def checked_pieces(
    pieces: Iterator[bytes], recorded: FileChecksums, where: str, *, is_sparse: bool = False
) -> Iterator[bytes]:
    """The pieces. BadFile, at the latest after the last, if they differ from what was recorded.

    Zeros at the end of a file that `is_sparse` may be left out.
    """
    blocks = BlockChecksums()
    byte_count = 0
    for piece in pieces:
        byte_count += len(piece)
        if byte_count > recorded.byte_count:
            break
        blocks.update(memoryview(piece))
        yield piece
    if byte_count != recorded.byte_count and not (is_sparse and byte_count < recorded.byte_count):
        more = " or more" if byte_count > recorded.byte_count else ""
        raise BadFile(f"{where} has {byte_count} bytes{more}; it had {recorded.byte_count}")
    if recorded.block_bytes != BLOCK_BYTES:
        raise BadFile(f"{where}: its checksums are of blocks of {recorded.block_bytes} bytes")
    blocks.update_zeros(recorded.byte_count - byte_count)
    found = blocks.finish().crcs
    for block, (crc, wanted) in enumerate(zip(found, recorded.crcs, strict=True)):
        if crc != wanted:
            begin = block * BLOCK_BYTES
            end = min(begin + BLOCK_BYTES, byte_count)
            raise BadFile(
                f"{where}: bytes {begin} to {end} aren't what was written "
                f"(crc32 {crc:08x} instead of {wanted:08x})"
            )
