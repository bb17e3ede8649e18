"""What the log has of one version between two LSNs, and storing it into that version's files.

A copy is brought to a later LSN this way, and so is a version whose files are back. Storing is
idempotent: the log has whole rows, not changes to them.
"""

from collections.abc import Iterator
from pathlib import Path

from gatherd_server.storage.mapped_rows import MappedVersion
from gatherd_server.storage.wal_format import FrameKind
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.writer.commit import LoggedImages, logged_images


def logged_images_of(
    wal: Path, of: tuple[str, int], after_lsn: int, until_lsn: int
) -> Iterator[LoggedImages]:
    """What the log has of the uid and version `of` above one LSN, up to another that it reaches."""
    if until_lsn <= after_lsn:
        return
    for frame in LogReader(wal, after_lsn):
        if frame.kind is FrameKind.PUSHES:
            for images in logged_images(frame.record):
                if (images.uid, images.version) == of:
                    yield images
        if frame.last_lsn >= until_lsn:
            # Not a frame further: behind what is kept for a damaged version there may be a gap.
            break


def store_logged(
    mapped: MappedVersion,
    wal: Path,
    of: tuple[str, int],
    after_lsn: int,
    until_lsn: int,
    *,
    with_slots: bool = True,
) -> None:
    """Store into `mapped` what `logged_images_of` gives; without slots, if it has others."""
    for images in logged_images_of(wal, of, after_lsn, until_lsn):
        slots, scalars = (images.slots, images.scalars) if with_slots else ({}, {})
        mapped.store(images.rows, images.weights, slots, scalars)
