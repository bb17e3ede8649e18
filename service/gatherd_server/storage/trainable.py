"""Whether a version's manifest says that it can be trained, and which of its files then change."""

from pathlib import Path

from gatherd.store.catalog import MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.checksums import read_document
from gatherd.store.open_files import KEYS_INDEX, OPEN, is_of_keys


def is_moving(name: str) -> bool:
    """Whether updates change the file `name` of a trainable version."""
    return name == WEIGHTS_NAME or name.startswith("slot_")


def is_key_file(name: str) -> bool:
    """Whether a file of an open version has its keys, stamps or counts, or their index."""
    return is_of_keys(name) or name == KEYS_INDEX


def moving_files(folder: Path) -> list[Path]:
    """The files of a trainable version that training changes."""
    moving = [folder / WEIGHTS_NAME, *folder.glob("slot_*.npy")]
    if OPEN in read_manifest(folder):
        moving += [path for path in folder.iterdir() if is_key_file(path.name)]
    return sorted(moving)


def read_manifest(folder: Path) -> dict[str, object]:
    """A version's manifest. BadFile when it is missing or damaged."""
    return read_document(folder / MANIFEST_NAME)


def is_trainable(folder: Path) -> bool:
    """Whether a version's contents change while it is live."""
    return read_manifest(folder).get("optimizer") is not None
