"""Folders in staging that will become versions."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gatherd.errors import NotFound, StorageError
from gatherd.store.catalog import MANIFEST_NAME, STAGING_NAME, CatalogEntry, open_table, version_dir
from gatherd.store.checksums import CHECKSUMS, encode_document
from gatherd.store.open_files import OPEN
from gatherd.store.stripes import SEQ_NAME
from gatherd_server.data_dir.naming import check_staged
from gatherd_server.snapshots.copying import CatchUp, copy_files, sync_files, without_index
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import write_counters
from gatherd_server.storage.open_table_writer import write_open_slots
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.slots import write_slots
from gatherd_server.storage.trainable import read_manifest
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.writer.writer import Writer


def staged_folder(data_dir: Path, staged: str) -> Path:
    """Staging's folder `staged`; InvalidArgument for an impossible name, NotFound if absent."""
    folder = data_dir / STAGING_NAME / check_staged(staged)
    if not (folder / MANIFEST_NAME).is_file():
        raise NotFound(f"staging has no folder {staged!r}")
    return folder


def finish_manifest(files: Files, folder: Path, name: str, version: int) -> str:
    """Write into a staged folder's manifest its table and version; its uid. Durable on return."""
    manifest = read_manifest(folder)
    manifest |= {"name": name, "version": version}
    _write_manifest(files, folder, manifest)
    return str(manifest["uid"])


def _write_manifest(files: Files, folder: Path, manifest: dict[str, Any]) -> None:
    files.replace(folder / MANIFEST_NAME, encode_document(manifest))


@contextmanager
def copy_live(
    writer: Writer, name: str, entry: CatalogEntry, version: int, optimizer: Optimizer | None
) -> Iterator[tuple[Path, Callable[[], OpenVersion | None]]]:
    """Copy a table's live version to the new version `version`, while updates go on.

    Yields the folder and a function, to be called between two batches, that stores the log into the
    copy up to the last applied LSN, durably, and returns the copy as it is mapped, if it is open.
    With `optimizer` that one trains the copy: slots of both optimizers with the same shape keep
    their state, others start anew.
    """
    files, data_dir = writer.files, writer.data_dir
    source = version_dir(data_dir, name, entry.live)
    manifest = read_manifest(source)
    manifest["optimizer"] = entry.optimizer_of(entry.live) or manifest.get("optimizer")
    old = Optimizer.from_json(manifest["optimizer"]) if manifest.get("optimizer") else None
    with_slots = optimizer is None or (old is not None and old.slots == optimizer.slots)
    target = version_dir(data_dir, name, version)
    staging = data_dir / STAGING_NAME / uuid.uuid4().hex
    catch_up: CatchUp | None = None
    lsn = writer.pin_log(staging)
    try:
        with _removed_on_error(files, target):
            slots = [] if with_slots else [path.name for path in source.glob("slot_*.npy")]
            left_out = [MANIFEST_NAME, *slots, *without_index(source)]
            copy_files(files, source, staging, without=left_out)
            table = open_table(data_dir, name, entry.live)
            write = write_slots
            if OPEN in manifest:
                write = write_open_slots
                if optimizer is not None:
                    optimizer.check_open_table(table.dtype)
            elif optimizer is not None:
                optimizer.check_table(table.dtype, table.row_count)
            if not with_slots:
                assert optimizer is not None
                write(files, staging, optimizer.slots, table.row_count, table.dim)
            is_trainable = optimizer is not None or old is not None
            if is_trainable and not (staging / SEQ_NAME).exists():
                write_counters(files, staging, table.row_count)
            copied = _copied_manifest(manifest, name, version, entry.live, lsn, optimizer)
            sync_files(files, staging, but_moving=old is not None)
            _write_manifest(files, staging, copied)
            files.rename(staging, target)
            if is_trainable and old is not None:
                catch_up = CatchUp(
                    files, data_dir, entry.uid, entry.live, target, lsn, with_slots=with_slots
                )

            def finish() -> OpenVersion | None:
                if catch_up is None:
                    return None
                catch_up.to(writer.applied_lsn)
                opened = catch_up.settle()
                catch_up.sync()
                return opened

            finish()
        yield target, finish
    finally:
        writer.unpin_log(staging)
        if catch_up is not None:
            catch_up.close()
        if staging.exists():
            files.remove_tree(staging)


@contextmanager
def _removed_on_error(files: Files, folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(StorageError):
            if folder.exists():
                files.remove_tree(folder)
        raise


def _copied_manifest(
    manifest: dict[str, Any],
    name: str,
    version: int,
    source: int,
    lsn: int,
    optimizer: Optimizer | None,
) -> dict[str, Any]:
    moving = ("weights.npy", "slot_")
    checksums = manifest[CHECKSUMS]
    trained = manifest.get("optimizer") if optimizer is None else optimizer.to_json()
    if trained is not None:
        # These change from the first update on; the others are still checked by checksum.
        checksums = {file: c for file, c in checksums.items() if not file.startswith(moving)}
    return {
        **manifest,
        "uid": uuid.uuid4().hex,
        "name": name,
        "version": version,
        "optimizer": trained,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "origin": {"copy_of_version": source, "lsn": lsn},
        CHECKSUMS: checksums,
    }
