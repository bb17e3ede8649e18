"""A version that changes while it is live, closed or open, as its writer has it."""

from pathlib import Path
from typing import TypeAlias

from gatherd.store.open_files import OPEN
from gatherd_server.storage.block_sums import VersionSums
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.trainable import read_manifest

TrainedVersion: TypeAlias = MappedVersion | OpenVersion


def open_trained(files: Files, folder: Path, sums: VersionSums | None = None) -> TrainedVersion:
    """Map the files of the version in `folder`, to be changed.

    `sums` are the version's sums in the last checkpoint. Raises what the two classes do.
    """
    kind = OpenVersion if OPEN in read_manifest(folder) else MappedVersion
    return kind.open(files, folder, sums)
