"""Holds the files of a data dir against their checksums, and mends what can be mended."""

import json
from collections.abc import Iterator
from pathlib import Path

from gatherd.errors import BadFile
from gatherd.store.catalog import MANIFEST_NAME, open_table, version_dir
from gatherd.store.checksums import verify_folder
from gatherd.store.key_index import KeyIndex
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import rebuild_slots


def verify_table(data_dir: Path, name: str, version: int) -> Iterator[int]:
    """Check every byte of a table's version, yielding how many were checked so far.

    BadFile naming the first file and range of bytes that isn't what was published, or what in its
    structure contradicts itself.
    """
    folder = version_dir(data_dir, name, version)
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise BadFile(f"{folder / MANIFEST_NAME} can't be read: {error}") from None
    if not isinstance(manifest, dict):
        raise BadFile(f"{folder / MANIFEST_NAME} is damaged: it isn't an object")
    done = 0
    for done in verify_folder(folder, manifest):
        yield done
    keys = KeyIndex.open(folder)
    if (keys is not None) is not (manifest.get("keys") is not None):
        raise BadFile(f"{folder} has keys where its manifest has none, or the reverse")
    if keys is not None:
        keys.verify()
        yield done + keys.nbytes
    open_table(data_dir, name, version)


def repair_keys(data_dir: Path, name: str, version: int, files: Files | None = None) -> None:
    """Build a key index's hash slots anew from its keys; the caller holds the data dir's lock.

    BadFile when the keys themselves are damaged, or there are none.
    """
    rebuild_slots(files or Files(), version_dir(data_dir, name, version))
