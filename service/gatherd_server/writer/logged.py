"""The log's images of one version between two LSNs, and storing them into that version's files.

This brings a copy to a later LSN, and also a version whose files are back. Storing is idempotent:
the log has whole rows, not changes to them.
"""

from collections.abc import Iterator
from pathlib import Path

from gatherd_server.storage.images_record import VersionImages, logged_images
from gatherd_server.storage.trained_version import TrainedVersion
from gatherd_server.storage.wal_format import FrameKind
from gatherd_server.storage.wal_reader import LogReader


def logged_images_of(
    wal: Path, of: tuple[str, int], after_lsn: int, until_lsn: int
) -> Iterator[VersionImages]:
    """The log's images of the uid and version `of`, above one LSN and up to another in the log."""
    if until_lsn <= after_lsn:
        return
    for frame in LogReader(wal, after_lsn):
        if frame.kind is FrameKind.PUSHES:
            for images in logged_images(frame.record):
                if (images.uid, images.version) == of:
                    yield images
        if frame.last_lsn >= until_lsn:
            # Stop here: after the frames that are kept for a damaged version there may be a gap.
            break


def store_logged(
    mapped: TrainedVersion,
    wal: Path,
    of: tuple[str, int],
    after_lsn: int,
    until_lsn: int,
    *,
    with_slots: bool = True,
) -> None:
    """Store the images of `logged_images_of`; without slots if `mapped` has another optimizer."""
    for images in logged_images_of(wal, of, after_lsn, until_lsn):
        mapped.apply(images, with_slots=with_slots)
