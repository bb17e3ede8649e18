"""From the files of a data dir to the state in which its writer goes on.

Start: everything above the checkpoint is stored into the tables, and into the window. Restart of
the writer while the machine stayed up: the pages kept their contents, so only what was committed
and not yet applied is stored. Both also heal rows that a killed writer left half-stored. Only then
their stripes are made even.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gatherd.errors import BadFile
from gatherd.store.catalog import Catalog, read_catalog
from gatherd.store.mapping import naming
from gatherd_server.storage.catalog_writer import discard_prepared, put_catalog
from gatherd_server.storage.control_writer import ControlWriter
from gatherd_server.storage.files import Files
from gatherd_server.storage.wal_format import WAL_NAME, FrameKind, segment_paths
from gatherd_server.storage.wal_reader import LogReader, Tail
from gatherd_server.writer.checkpoint import read_checkpoint
from gatherd_server.writer.commit import remember
from gatherd_server.writer.damage import Replay
from gatherd_server.writer.versions import Versions
from gatherd_server.writer.window import Window

logger = logging.getLogger("gatherd.writer")


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """The state in which a writer goes on. `lsn` is the log's last LSN, and is applied."""

    versions: Versions
    window: Window
    lsn: int
    checkpoint_lsn: int


def recover(files: Files, data_dir: Path, control: ControlWriter, *, is_restart: bool) -> Recovered:
    """Bring the data dir's tables up to its log, and cut the log where it was torn.

    The caller holds the lock. BadFile where the log, the checkpoint or the catalog is damaged; then
    only rows that the log vouches for were changed. A damaged table is no error: from then on the
    catalog lists it as damaged (damage.py).
    """
    wal = data_dir / WAL_NAME
    # The sync of the catalog's name, below, makes this name durable too.
    files.make_dirs(wal, durable=False)
    if control.lost_power:
        raise BadFile(
            f"{data_dir}: the machine went down while updates were acknowledged before they were "
            "on the disk (--durability os); restore the last snapshot"
        )
    checkpoint = read_checkpoint(data_dir)
    catalog = read_catalog(data_dir)
    versions = Versions(files, data_dir, catalog, checkpoint.sums, checkpoint.policies)
    window = checkpoint.window
    generation = versions.catalog.generation
    _make_durable(files, wal, was_failure=control.has_failed)
    # After a failed sync the page cache differs from the disk: then nothing counts as applied.
    is_believed = is_restart and not control.has_failed
    applied = control.applied_lsn if is_believed else checkpoint.lsn
    reader = LogReader(wal, checkpoint.lsn, control.committed_lsn)
    replay = Replay(files, data_dir, versions, checkpoint.lsn)
    for frame in reader:
        if frame.kind is FrameKind.CATALOG:
            _replay_catalog(data_dir, versions, frame.record.directory["catalog"])
            continue
        # Frames that were applied before the writer was killed may not be on the disk yet.
        replay.take(frame, is_applied=frame.last_lsn <= applied)
        remember(frame, window)
    _cut(files, reader.tail)
    settled = replay.settle(checkpoint.sums)
    if settled != versions.catalog:
        versions.switch(settled)
    elif replay.has_open:
        # The indexes of open tables are other files now, which readers look for with a catalog.
        versions.switch(replace(settled, generation=settled.generation + 1))
    if versions.catalog.generation > generation or control.has_failed:
        put_catalog(files, data_dir, versions.catalog)
    else:
        discard_prepared(files, data_dir)
        # A writer that was killed inside a change may have left the name in the page cache only.
        files.sync_dir(data_dir)
    for mapped in versions.trainable():
        if healed := mapped.make_even():
            logger.info("made %d stripes readable that a killed writer held", healed)
    # A writer may have been killed after it replaced the catalog and before it notified readers.
    control.set_generation(versions.catalog.generation)
    lsn = reader.tail.last_lsn
    control.committed_lsn = lsn
    control.applied_lsn = lsn
    return Recovered(versions, window, lsn, checkpoint.lsn)


def _make_durable(files: Files, wal: Path, *, was_failure: bool) -> None:
    """Make sure that the disk has the log as it can be read now.

    A writer that was killed between write and sync leaves frames in the page cache only. Recovery
    stores rows and answers retries by them, so they must be on the disk first. After a failed sync
    the kernel takes unwritten pages for written, so the last segment is written anew.
    """
    segments = [path for _, path in segment_paths(wal)]
    if was_failure and segments:
        with naming(segments[-1]):
            data = segments[-1].read_bytes()
            fd = os.open(segments[-1], os.O_RDWR | os.O_CLOEXEC)
        try:
            files.write_at(fd, memoryview(data), 0, segments[-1])
        finally:
            os.close(fd)
    for path in segments:
        files.sync_path(path)


def _replay_catalog(data_dir: Path, versions: Versions, document: Any) -> None:
    """Go by the catalog that a frame holds, unless it is older; all but the last frame's are."""
    wal = data_dir / WAL_NAME
    try:
        is_newer = int(document["generation"]) > versions.catalog.generation
    except (LookupError, TypeError, ValueError) as error:
        raise BadFile(f"{wal} is damaged: a catalog without a generation ({error!r})") from None
    if is_newer:
        versions.switch(Catalog.from_json(document, wal))


def _cut(files: Files, tail: Tail) -> None:
    """Cut off a frame that was never whole. If a crash undoes that, the next start repeats it."""
    if tail.path is None:
        return
    if tail.is_blank:
        files.unlink(tail.path)
        return
    if not tail.torn_bytes:
        return
    logger.warning(
        "%s: cut at byte %d: the last append was interrupted, and never acknowledged (%d bytes)",
        tail.path,
        tail.position,
        tail.torn_bytes,
    )
    with naming(tail.path):
        fd = os.open(tail.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        files.truncate(fd, tail.position, tail.path)
    finally:
        os.close(fd)
