"""A model of what a disk has when the power goes, over a real folder.

`Power` is the fault seam itself: everything works on the folder, and beside it a model says what of
that is durable. `cut` then writes, to another folder, what a disk could have:

- Bytes of a file are durable as they were at its last sync. Of what was changed since, each sector
  of 512 bytes is old, new, as it was at any moment since or random, or all of the file is as it was
  at one moment; each page of 4 KiB of a mapped file is as it was at any moment since, but never
  random. The size is old or new.
- Names in a folder are durable as they were at its last sync. What was done to them since, whatever
  the order, each was done or not; only the two halves of a rename within one folder are one. Halves
  of a rename between folders aren't. A folder that then stands under two names is emptied: whoever
  deletes it by one name deletes it by both.

That is more than any file system does to us, but for one thing: bytes next to those that are being
written stay as they are, also within a sector (SQLite calls that a powersafe overwrite).

Each sync has a name, the label of the place in the code that asks for it and of what it makes
durable; `Power(ignores=…)` takes one away. Other things than syncs are seen by looking at the
folder at the begin of every call of the seam, and amid those that store and append.
"""

import os
import random
import re
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from durability.disk import Cutter, DiskFile, DiskFolder, DiskNode, change, look
from gatherd.errors import StorageError
from gatherd.store.mapping import MappedFile
from gatherd_server.storage.files import Files

Watch = Callable[[str, Path], None]
# Who only passes a sync on: the label names who asked.
THROUGH = {
    ("mapped_rows", "sync"),
    ("open_arrays", "sync"),
    ("mapped_rows", "write_counters"),
    ("slots", "write_slots"),
    ("catalog_writer", "prepare_catalog"),
    ("catalog_writer", "put_catalog"),
    ("catalog_writer", "put_prepared"),
    ("checkpoint", "write_checkpoint"),
    ("copying", "sync"),
    ("copying", "sync_files"),
    ("staging", "_write_manifest"),
}
_SEAM = {"files", "power", "contextlib"}


class PowerCut(StorageError):
    """The power went, in the model: nothing of the seam works any more."""


class Power(Files):
    """The seam over the folder `root`, which is durable as it is when this begins."""

    def __init__(self, root: Path, seed: int = 0, ignores: str = "") -> None:
        self.root = root
        self.labels: dict[str, list[int]] = {}
        """The syncs that were met, each with the numbers of the calls that it came in."""
        self.calls = 0
        self.watch: Watch | None = None
        """Called at the begin of each call of the seam, with its name and path; may raise."""
        self.is_off = False
        self._ignores = ignores
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._top: DiskFolder = DiskFolder({}, {})
        self._inodes: dict[int, DiskNode] = {}
        self._files: dict[Path, DiskFile] = {}
        self._folders: dict[Path, DiskFolder] = {}
        self._scan()
        for folder in self._folders.values():
            folder.synced, folder.pending = dict(folder.now), []
        for file in self._files.values():
            file.synced = file.images[-1]

    # --------------------------------------------------------------- what the test asks for

    def cut(self, folder: Path, seed: int) -> None:
        """Write what a disk could have now to the new folder `folder`; `seed` chooses.

        Seeds 0 to 3, modulo 8, are the extremes: none of what isn't durable, all of it, names
        alone, contents alone.
        """
        with self._lock:
            if not self.is_off:
                self._scan()
            Cutter(seed).write(self._top, folder)

    def killed(self, folder: Path, seed: int = 0, ignores: str | None = None) -> "Power":
        """The same disk over a copy of the folder as it is now, as when the process was killed."""
        with self._lock:
            self._scan()
            shutil.copytree(self.root, folder)
            other = Power(folder, seed, self._ignores if ignores is None else ignores)
            other.adopt(deepcopy(self._top))
            return other

    def adopt(self, top: DiskFolder) -> None:
        """Go by the model `top` of a folder that looked the same."""
        self._top = top
        self._inodes = {}
        stack: list[tuple[Path, DiskNode]] = [(self.root, top)]
        while stack:
            path, node = stack.pop()
            if node is not top:
                self._inodes[path.stat().st_ino] = node
            if isinstance(node, DiskFolder):
                stack += [(path / name, below) for name, below in node.now.items()]
        self._scan()

    def turn_off(self) -> None:
        """From here on every call fails, and nothing changes in the model."""
        self.is_off = True

    # ------------------------------------------------------------------------- the model

    def _step(self, method: str, path: Path) -> None:
        """The begin of a call: look at everything, let the test look too."""
        if self.is_off:
            raise PowerCut(f"{path}: the power is off")
        with self._lock:
            self.calls += 1
            self._scan(path)
        if self.watch is not None:
            self.watch(method, path)
        if self.is_off:
            raise PowerCut(f"{path}: the power is off")

    def _scan(self, subject: Path | None = None) -> None:
        """Take in what is in the folder now: names, and contents of what may have changed."""
        inodes: dict[int, DiskNode] = {}
        self._files, self._folders = {}, {}
        before = {id(node): node for node in self._inodes.values()}
        self._scan_folder(self.root, self._top, inodes)
        self._inodes = inodes
        for node in before.keys() - {id(node) for node in inodes.values()}:
            gone = before[node]
            if isinstance(gone, DiskFolder):
                change(gone, {})
        for path, file in self._files.items():
            if file.is_mapped or path == subject or not file.looked:
                file.looked = True
                look(file, path)

    def _scan_folder(self, path: Path, folder: DiskFolder, inodes: dict[int, DiskNode]) -> None:
        self._folders[path] = folder
        found: dict[str, DiskNode] = {}
        with os.scandir(path) as entries:
            listed = sorted((e.name, e.inode(), e.is_dir(follow_symlinks=False)) for e in entries)
        for name, inode, is_folder in listed:
            node = self._inodes.get(inode)
            if node is None or isinstance(node, DiskFolder) is not is_folder:
                node = DiskFolder({}, {}) if is_folder else DiskFile(b"", [b""], looked=False)
            inodes[inode] = node
            found[name] = node
            below = path / name
            if isinstance(node, DiskFolder):
                self._scan_folder(below, node, inodes)
            else:
                self._files[below] = node
        change(folder, found)

    def _synced(self, path: Path) -> None:
        """The data of the file is durable."""
        what = _kind(path)
        with self._lock:
            if self._takes(what) and (file := self._files.get(path)) is not None:
                file.synced = file.images[-1]
                file.images = [file.synced]

    def _takes(self, what: str) -> bool:
        label = f"{_caller()}: {what}"
        self.labels.setdefault(label, []).append(self.calls)
        return label != self._ignores

    # -------------------------------------------------------------------------- the seam

    def write_new(
        self, path: Path, data: bytes, *, durable: bool = True, mode: int | None = None
    ) -> None:
        self._step("write_new", path)
        super().write_new(path, data, durable=durable, mode=mode)

    def put(self, path: Path, *, durable: bool = True) -> None:
        self._step("put", path)
        super().put(path, durable=durable)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", target)
        super().rename(source, target)

    def make_dirs(self, path: Path, *, durable: bool = True) -> None:
        self._step("make_dirs", path)
        super().make_dirs(path, durable=durable)

    def copy(self, source: Path, target: Path) -> None:
        self._step("copy", source)
        super().copy(source, target)

    def sync(self, fd: int, path: Path) -> None:
        self._step("sync", path)
        self._synced(path)

    def sync_data(self, fd: int, path: Path) -> None:
        self._step("sync_data", path)
        self._synced(path)

    def sync_dir(self, path: Path, of: Path | None = None) -> None:
        self._step("sync_dir", path)
        what = f"name of {_kind(of)}" if of is not None else f"names in {_kind(path)}"
        with self._lock:
            folder = self._folders.get(path)
            if self._takes(what) and folder is not None:
                folder.synced, folder.pending = dict(folder.now), []

    def allocate(self, fd: int, byte_count: int, path: Path, begin: int = 0) -> None:
        self._step("allocate", path)
        super().allocate(fd, byte_count, path, begin)

    def unlink(self, path: Path) -> None:
        self._step("unlink", path)
        super().unlink(path)

    def map_writable(self, path: Path) -> MappedFile:
        self._step("map_writable", path)
        with self._lock:
            self._files[path].is_mapped = True
        return super().map_writable(path)

    def msync(self, mapping: MappedFile, path: Path) -> None:
        self._step("msync", path)
        self._synced(path)

    def store_rows(
        self,
        target: NDArray[np.uint8],
        counters: NDArray[np.uint32],
        rows: NDArray[np.int64],
        images: NDArray[np.uint8],
        path: Path,
    ) -> None:
        self._step("store_rows", path)
        if rows.size:
            some = self._random.randrange(rows.size)
            super().store_rows(target, counters, rows[:some], images[:some], path)
            row, part = int(rows[some]), self._random.randint(0, images.shape[1])
            stripe = row & (counters.size - 1)
            if counters.size:
                counters[stripe] |= 1
            target[row, :part] = images[some, :part]
            self._step("in store_rows", path)
            # The rest of the row, and the counter even again.
            super().store_rows(target, counters, rows[some:], images[some:], path)

    def create_rows(
        self,
        target: NDArray[np.uint8],
        counters: NDArray[np.uint32],
        keys: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        rows: NDArray[np.int64],
        images: tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]],
        path: Path,
    ) -> None:
        self._step("create_rows", path)
        some = self._random.randrange(rows.size)
        first, rest = (
            (rows[part], tuple(image[part].copy() for image in images))
            for part in (slice(0, some), slice(some, None))
        )
        super().create_rows(target, counters, keys, first[0], first[1], path)  # type: ignore[arg-type]
        row, part = int(rows[some]), self._random.randint(0, target.shape[1])
        counters[row & (counters.size - 1)] |= 1
        if self._random.random() < 0.5:
            keys[0][row], keys[1][row] = images[1][some], images[2][some]
            target[row, :part] = images[0][some, :part]
        self._step("in create_rows", path)
        super().create_rows(target, counters, keys, rest[0], rest[1], path)  # type: ignore[arg-type]

    def remove_rows(
        self,
        counters: NDArray[np.uint32],
        keys: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        rows: NDArray[np.int64],
        path: Path,
        *,
        are_entries: bool,
    ) -> None:
        self._step("remove_rows", path)
        some = self._random.randrange(rows.size)
        super().remove_rows(counters, keys, rows[:some], path, are_entries=are_entries)
        counters[int(rows[some]) & (counters.size - 1)] |= 1
        self._step("in remove_rows", path)
        super().remove_rows(counters, keys, rows[some:], path, are_entries=are_entries)

    def put_strings(
        self,
        heap: NDArray[np.uint8],
        entries: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        data: NDArray[np.uint8],
        path: Path,
    ) -> None:
        self._step("put_strings", path)
        super().put_strings(heap, entries, offsets, data, path)

    def make_even(self, counters: NDArray[np.uint32], path: Path) -> int:
        self._step("make_even", path)
        return super().make_even(counters, path)

    def truncate(self, fd: int, byte_count: int, path: Path) -> None:
        self._step("truncate", path)
        super().truncate(fd, byte_count, path)

    def write_at(self, fd: int, data: memoryview, position: int, path: Path) -> int:
        self._step("write_at", path)
        some = self._random.randint(0, data.nbytes)
        super().write_at(fd, data[:some], position, path)
        self._step("in write_at", path)
        return super().write_at(fd, data[some:], position + some, path)

    def write_all_at(
        self, fd: int, parts: Sequence[bytes | memoryview], position: int, path: Path
    ) -> int:
        self._step("write_all_at", path)
        return self.write_at(fd, memoryview(b"".join(parts)), position, path)

    def remove_tree(self, path: Path) -> None:
        self._step("remove_tree", path)
        super().remove_tree(path)


def _caller() -> str:
    """The function that asked for the sync."""
    frame = sys._getframe(2)  # noqa: SLF001 - the interpreter's own
    while frame.f_back is not None:
        module, function = Path(frame.f_code.co_filename).stem, frame.f_code.co_name
        if module not in _SEAM and (module, function) not in THROUGH:
            return f"{module}.{function}"
        frame = frame.f_back
    raise AssertionError("no caller")


def _kind(path: Path) -> str:
    """What a file or a folder of a data dir is, for a label."""
    name = path.name.removesuffix(".new")
    if path.parent.name == "uploads":
        return "upload"
    for pattern, kind in (
        (r"slot_.*", "slots"),
        (r"keys\..*\.npy", "keys"),
        (r"(weights|default)\.npy", name.removesuffix(".npy")),
        (r"\d{20}\.log", "segment"),
        (r"v\d{6}", "version"),
        (r"[0-9a-f]{32}", "staged folder"),
        (r".*\.partial", "partial snapshot"),
        (r"again-.*", "restored data dir"),
        (r"snaps", "folder of snapshots"),
    ):
        if re.fullmatch(pattern, name):
            return kind
    return {"tables": "table", "snaps": "snapshot"}.get(path.parent.name, name)
