"""Whether a version's manifest says that it can be trained, and which of its files then change."""

from pathlib import Path

from gatherd.store.catalog import MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.checksums import read_document


def is_moving(name: str) -> bool:
    """Whether training changes the file `name` of a trainable version."""
    return name == WEIGHTS_NAME or name.startswith("slot_")


def moving_files(folder: Path) -> list[Path]:
    """The files of a trainable version that training changes."""
    return sorted([folder / WEIGHTS_NAME, *folder.glob("slot_*.npy")])


def read_manifest(folder: Path) -> dict[str, object]:
    """A version's manifest. BadFile when it is missing or damaged."""
    return read_document(folder / MANIFEST_NAME)


def is_trainable(folder: Path) -> bool:
    """Whether a version's contents change while it is live."""
    return read_manifest(folder).get("optimizer") is not None
