"""What a disk is sure to have of a folder, what it may have, and a draw among that."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gatherd.store.control import BOOT_ID_BYTES, BOOT_ID_OFFSET, CONTROL_NAME

PAGE = 4096
SECTOR = 512
IMAGES_MAX = 24


@dataclass(slots=True, eq=False)
class DiskFile:
    """What the disk is sure to have, and what the file was at each look since; the last is now."""

    synced: bytes
    images: list[bytes]
    is_mapped: bool = False
    looked: bool = True


@dataclass(slots=True, eq=False)
class DiskFolder:
    synced: "dict[str, DiskNode]"
    now: "dict[str, DiskNode]"
    pending: "list[dict[str, DiskNode | None]]" = field(default_factory=list)


DiskNode = DiskFile | DiskFolder


def change(folder: DiskFolder, found: dict[str, DiskNode]) -> None:
    """Note what happened to the names of a folder since they were looked at."""
    gone: dict[str, DiskNode | None] = dict.fromkeys(folder.now.keys() - found.keys())
    new: dict[str, DiskNode | None] = {
        name: node for name, node in found.items() if folder.now.get(name) is not node
    }
    if gone and new:
        folder.pending.append(gone | new)
    else:
        folder.pending += [{name: node} for name, node in sorted((gone | new).items())]
    folder.now = found


def look(file: DiskFile, path: Path) -> None:
    data = path.read_bytes()
    if data != file.images[-1]:
        if len(file.images) >= IMAGES_MAX:
            del file.images[IMAGES_MAX // 2]
        file.images.append(data)


class Cutter:
    """Chooses among what a disk could have."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        extremes = {0: (0.0, 0.0), 1: (1.0, 1.0), 2: (1.0, 0.0), 3: (0.0, 1.0)}
        drawn = self._random.choice((0.1, 0.5, 0.5, 0.9)), self._random.choice((0.1, 0.5, 0.9))
        self._names, self._contents = extremes.get(seed % 8, drawn)

    def write(self, top: DiskFolder, target: Path) -> None:
        chosen: dict[int, dict[str, DiskNode]] = {}
        seen: Counter[int] = Counter()
        self._written: dict[int, Path] = {}
        self._choose(top, chosen, seen)
        self._write(top, target, chosen, seen)

    def _is_done(self, share: float) -> bool:
        return self._random.random() < share

    def _choose(
        self, folder: DiskFolder, chosen: dict[int, dict[str, DiskNode]], seen: Counter[int]
    ) -> None:
        seen[id(folder)] += 1
        if seen[id(folder)] > 1:
            return
        names: dict[str, DiskNode | None] = dict(folder.synced)
        for operation in folder.pending:
            if self._is_done(self._names):
                names |= operation
        here = {name: node for name, node in sorted(names.items()) if node is not None}
        chosen[id(folder)] = here
        for node in here.values():
            if isinstance(node, DiskFolder):
                self._choose(node, chosen, seen)

    def _write(
        self,
        folder: DiskFolder,
        target: Path,
        chosen: dict[int, dict[str, DiskNode]],
        seen: Counter[int],
    ) -> None:
        target.mkdir()
        if seen[id(folder)] > 1:
            return
        for name, node in chosen[id(folder)].items():
            if isinstance(node, DiskFolder):
                self._write(node, target / name, chosen, seen)
            elif id(node) in self._written:
                (target / name).hardlink_to(self._written[id(node)])
            else:
                self._written[id(node)] = target / name
                (target / name).write_bytes(_on_another_boot(name, self._contents_of(node)))

    def _contents_of(self, file: DiskFile) -> bytes:
        images = [file.synced, *file.images]
        if all(image == file.synced for image in file.images):
            return file.synced
        if self._contents in (0.0, 1.0):
            return images[-1] if self._contents else images[0]
        if not file.is_mapped and self._is_done(0.2):
            return self._random.choice(images)
        sizes = {len(image) for image in images}
        size = len(images[-1] if self._is_done(self._contents) else images[0])
        padded = [image.ljust(max(sizes), b"\0") for image in images]
        unit = PAGE if file.is_mapped else SECTOR
        parts = []
        for begin in range(0, size, unit):
            choices = [image[begin : begin + unit] for image in padded]
            parts.append(self._part(choices, is_torn=not file.is_mapped))
        return b"".join(parts)[:size]

    def _part(self, choices: list[bytes], *, is_torn: bool) -> bytes:
        old, new = choices[0], choices[-1]
        if not is_torn:
            return self._random.choice(choices)
        if not self._is_done(self._contents):
            return self._random.choice(choices) if self._is_done(0.2) else old
        if old != new and self._is_done(0.2):
            differ = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
            begin, end = differ[0], differ[-1] + 1
            return new[:begin] + self._random.randbytes(end - begin) + new[end:]
        return new


def _on_another_boot(name: str, data: bytes) -> bytes:
    """The control page as a machine sees it that was started anew."""
    if name != CONTROL_NAME or not any(data[BOOT_ID_OFFSET : BOOT_ID_OFFSET + BOOT_ID_BYTES]):
        return data
    return data[:BOOT_ID_OFFSET] + b"\x01" * BOOT_ID_BYTES + data[BOOT_ID_OFFSET + BOOT_ID_BYTES :]
