"""From the files of a data dir to the state that its writer goes on from.

Start: everything above the checkpoint is stored into the tables, and into the window. Restart of
the writer while the machine stayed up: the pages are what they were, so only what was committed and
not yet applied is stored. Either way rows that a killed writer left half-stored are healed by that,
and only then their stripes made even.
"""

import logging
import os
from dataclasses import dataclass
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
    """What a writer goes on from. `lsn` is the last of the log, and applied."""

    versions: Versions
    window: Window
    lsn: int
    checkpoint_lsn: int


def recover(files: Files, data_dir: Path, control: ControlWriter, *, is_restart: bool) -> Recovered:
    """Bring the data dir's tables up to its log, and cut the log where it was torn.

    The caller holds the lock. BadFile where the log, the checkpoint or the catalog is damaged, with
    nothing changed by this but rows that the log vouches for. A damaged table is no error: the
    catalog says so from then on (damage.py).
    """
    wal = data_dir / WAL_NAME
    # Its own name is durable when that of the catalog is, below.
    files.make_dirs(wal, durable=False)
    if control.lost_power:
        raise BadFile(
            f"{data_dir}: the machine went down while updates were acknowledged before they were "
            "on the disk (--durability os); restore the last snapshot"
        )
    checkpoint = read_checkpoint(data_dir)
    versions = Versions(files, data_dir, read_catalog(data_dir), checkpoint.sums)
    window = checkpoint.window
    generation = versions.catalog.generation
    _make_durable(files, wal, was_failure=control.has_failed)
    # After a failed sync the page cache isn't what the disk has: then nothing is believed applied.
    is_believed = is_restart and not control.has_failed
    applied = control.applied_lsn if is_believed else checkpoint.lsn
    reader = LogReader(wal, checkpoint.lsn, control.committed_lsn)
    replay = Replay(files, data_dir, versions, checkpoint.lsn)
    for frame in reader:
        if frame.kind is FrameKind.CATALOG:
            _replay_catalog(data_dir, versions, frame.record.directory["catalog"])
            continue
        # What was applied before the writer was killed may not be on the disk yet.
        replay.take(frame, is_applied=frame.last_lsn <= applied)
        remember(frame, window)
    _cut(files, reader.tail)
    settled = replay.settle(checkpoint.sums)
    if settled != versions.catalog:
        versions.switch(settled)
    if versions.catalog.generation > generation or control.has_failed:
        put_catalog(files, data_dir, versions.catalog)
    else:
        discard_prepared(files, data_dir)
        # A writer that was killed inside a change may have left its name to the page cache alone.
        files.sync_dir(data_dir)
    for mapped in versions.trainable():
        if healed := mapped.make_even():
            logger.info("made %d stripes readable that a killed writer held", healed)
    # A writer that was killed between the two had replaced the catalog and told nobody.
    control.set_generation(versions.catalog.generation)
    lsn = reader.tail.last_lsn
    control.committed_lsn = lsn
    control.applied_lsn = lsn
    return Recovered(versions, window, lsn, checkpoint.lsn)


def _make_durable(files: Files, wal: Path, *, was_failure: bool) -> None:
    """Make sure that the disk has the log as it can be read now.

    A writer that was killed between write and sync leaves frames that the page cache alone has.
    Once they are believed, rows are stored and retries answered by them. After a failed sync the
    kernel takes what the disk lacks for written: the segment it was about is written anew.
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
    """Cut off a frame that was never whole. Should a crash undo that, the next start does it."""
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
