"""Checksums of a version whose contents don't change any more.

While a trainable version is live its weights and slots change. When another version replaces it,
their checksums go into frozen.json beside them, and `gatherd verify` checks them against it:

    {"checksums": as in manifest.json, "crc32": of the rest}
"""

from pathlib import Path

from gatherd.store.checksums import CHECKSUMS, encode_document, file_checksums
from gatherd.store.open_files import KEYS_INDEX, OPEN
from gatherd_server.storage.files import Files
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.trainable import is_trainable, moving_files, read_manifest

FROZEN_NAME = "frozen.json"


def unfrozen(folder: Path) -> bool:
    """Whether a superseded version still has to be frozen."""
    return folder.exists() and not (folder / FROZEN_NAME).exists() and is_trainable(folder)


def freeze(files: Files, folder: Path) -> None:
    """Take the checksums of a version that nobody stores into any more.

    After a crash frozen.json is complete or missing; if missing, the next start makes it. The files
    themselves needn't be durable: the log still has what the disk lacks of them.
    """
    if OPEN in read_manifest(folder):
        # No writer will build the index of a superseded version anew after a power cut.
        version = OpenVersion.open(files, folder)
        version.settle()
        version.close()
        files.sync_path(folder / KEYS_INDEX)
        files.sync_dir(folder, folder / KEYS_INDEX)
    found = {}
    for path in moving_files(folder):
        found[path.name] = file_checksums(path).to_json()
    files.replace(folder / FROZEN_NAME, encode_document({CHECKSUMS: found}), durable=False)


def thaw(files: Files, folder: Path) -> None:
    """Delete a frozen version's checksums, before it is live again; durable on return."""
    files.unlink(folder / FROZEN_NAME)
    files.sync_dir(folder)
