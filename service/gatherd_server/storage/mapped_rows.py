"""One version of a table as its writer has it: weights, slots and counters, mapped to be changed.

A store into a mapping is visible to every reader at once. It is durable after a sync, or when the
kernel happened to write it back. The log makes this safe: it has every image before the image is
stored here. Weights are stored row by row under their stripes' counters (the store's stripes.py).
Only the writer reads slots, so they are stored plainly.

Everything goes through the fault seam, so that a test can see each map, store and sync, and split a
store into parts.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.catalog import MANIFEST_NAME, WEIGHTS_NAME
from gatherd.store.checksums import read_document
from gatherd.store.dtypes import DType
from gatherd.store.format import file_bytes, npy_header, open_readonly, read_layout
from gatherd.store.ids import all_in_range
from gatherd.store.mapping import MappedFile
from gatherd.store.stripes import COUNTER, SEQ_NAME, seq_bytes
from gatherd_server.storage.block_sums import BlockSums, VersionSums
from gatherd_server.storage.files import Files
from gatherd_server.storage.images_record import VersionImages
from gatherd_server.training.optimizer import Optimizer, SlotSpec

NO_COUNTERS = np.empty(0, COUNTER)
"""The counters of files that no reader looks at."""

_FIRST = np.zeros(1, np.int64)


def warm() -> None:
    """Compile or load the kernels, and run each once. Takes 0.1 s from the cache."""
    from gatherd_server.storage import compiled_rows

    compiled_rows.warm()


def write_counters(files: Files, folder: Path, row_count: int) -> None:
    """Make the counters of a version that will be trained, durable but for the file's name."""
    files.write_new(folder / SEQ_NAME, bytes(seq_bytes(row_count)))


class MappedVersion:
    """The files of one version that can be trained. One thread stores; any may sync meanwhile.

    `weights` are the rows as bytes, uint8 (row_count, row_bytes). `slots`, by name, are float32
    (row_count, dim) or (row_count, 1), or int64 (1,). Change neither: `store` does.
    """

    def __init__(
        self,
        files: Files,
        dtype: DType,
        optimizer: Optimizer,
        dim: int,
        mappings: Mapping[Path, MappedFile],
        weights: tuple[Path, NDArray[np.uint8]],
        counters: tuple[Path, NDArray[np.uint32]],
        slots: Mapping[str, tuple[Path, NDArray[Any]]],
        sums: Mapping[Path, BlockSums],
    ) -> None:
        """Each array comes with the path of the file that it views."""
        self._sums = dict(sums)
        self.dtype = dtype
        self.optimizer = optimizer
        self.dim = dim
        self.weights = weights[1]
        self.row_count = self.weights.shape[0]
        self.slots = {name: slot for name, (_, slot) in slots.items()}
        self._files = files
        self._mappings = dict(mappings)
        self._weights_path = weights[0]
        self._counters_path, self._counters = counters
        self._slot_paths = {name: path for name, (path, _) in slots.items()}

    @classmethod
    def open(cls, files: Files, folder: Path, sums: VersionSums | None = None) -> Self:
        """Map the files of the version in `folder`.

        `sums` are the version's sums in the last checkpoint.
        BadFile when a file is missing or differs from the manifest, or the version can't be
        trained; DiskFull when a file has holes and there is no room to fill them.
        """
        dtype, optimizer, row_count, dim = _read_manifest(folder / MANIFEST_NAME)
        path = folder / WEIGHTS_NAME
        fd = open_readonly(path)
        try:
            layout = read_layout(fd, str(path))
        finally:
            os.close(fd)
        if (layout.dtype, layout.row_count, layout.dim) != (dtype, row_count, dim):
            raise BadFile(
                f"{path} isn't the {(row_count, dim)} {dtype.value} array of its manifest"
            )
        mappings: dict[Path, MappedFile] = {}
        raw = _map(files, path, layout.offset + layout.nbytes, mappings)
        weights = raw[layout.offset :].reshape(row_count, layout.row_bytes)
        seq = folder / SEQ_NAME
        counters = _map(files, seq, seq_bytes(row_count), mappings).view(COUNTER)
        tracked = {path: _tracked(path, raw, layout.offset, layout.row_bytes, sums)}
        slots = {}
        for slot in optimizer.slots:
            path_of_slot = folder / slot.file_name
            raw, array = _map_slot(files, folder, slot, row_count, dim, mappings)
            slots[slot.name] = (path_of_slot, array)
            begin, row_bytes = raw.size - array.nbytes, array.nbytes // max(1, len(array))
            tracked[path_of_slot] = _tracked(path_of_slot, raw, begin, row_bytes, sums)
        return cls(
            files, dtype, optimizer, dim, mappings, (path, weights), (seq, counters), slots, tracked
        )

    def store(
        self,
        rows: NDArray[np.int64],
        weights: NDArray[np.uint8],
        slots: Mapping[str, NDArray[np.float32]],
        scalars: Mapping[str, NDArray[np.int64]],
    ) -> None:
        """Make images the contents of `rows`, (n,), each of which occurs once.

        `weights` is (n, row_bytes), a slot (n, its width), a scalar (1,). Slots that aren't named
        keep their contents. All arrays are C-contiguous. No reader gets a row half old and half
        new. Nothing is durable before `sync`. BadFile when the images don't fit the version.
        """
        row_bytes = self.weights.shape[1]
        if not all_in_range(rows, self.row_count) or weights.shape != (rows.size, row_bytes):
            raise BadFile(
                f"{self._weights_path}: images {weights.shape} of {rows.size} rows don't fit "
                f"{self.weights.shape}"
            )
        self.note(rows, slots, scalars)
        for name, scalar in scalars.items():
            self._store_slot(name, _FIRST, scalar.reshape(1, 1))
        for name, images in slots.items():
            self._store_slot(name, rows, images)
        self._files.store_rows(self.weights, self._counters, rows, weights, self._weights_path)

    def apply(self, images: VersionImages, *, with_slots: bool = True) -> None:
        """Store one version's part of a frame; without `with_slots`, slots keep their contents."""
        if images.opened is not None:
            raise BadFile(f"{self._weights_path}: the log has keys of an open table for it")
        slots, scalars = (images.slots, images.scalars) if with_slots else ({}, {})
        self.store(images.rows, images.weights, slots, scalars)

    def note_images(self, images: VersionImages) -> None:
        """Note what `apply` is about to change, or has changed."""
        self.note(images.rows, images.slots, images.scalars)

    def note(self, rows: NDArray[np.int64], slots: Iterable[str], scalars: Iterable[str]) -> None:
        """Note what `store` is about to change, or has changed; slots and scalars by name."""
        if unknown := {*slots, *scalars} - self.slots.keys():
            raise BadFile(f"{self._weights_path}: the version has no slot {min(unknown)!r}")
        self._sums[self._weights_path].note(rows)
        for name in slots:
            self._sums[self._slot_paths[name]].note(rows)
        for name in scalars:
            self._sums[self._slot_paths[name]].note(_FIRST)

    def begin_sums(self) -> None:
        """Start a new round of notes, at a checkpoint's LSN; see BlockSums."""
        for one in self._sums.values():
            one.begin()

    def sum_up(self, byte_count: int) -> int:
        """Sum up blocks that have no sum, up to `byte_count` bytes; return how many bytes."""
        summed = 0
        for one in list(self._sums.values()):
            summed += one.sum_up(byte_count - summed)
        return summed

    @property
    def is_summed_up(self) -> bool:
        """Whether every block of weights and slots has a sum."""
        return all(one.is_whole for one in list(self._sums.values()))

    def sums(self) -> VersionSums:
        """The known sums of weights and slots, as of the last `begin_sums`."""
        return {path.name: one.sums() for path, one in list(self._sums.items())}

    def check(self, sums: VersionSums, lsn: int) -> None:
        """BadFile when a block that wasn't noted differs from its sum at `lsn`."""
        for path, one in self._sums.items():
            if path.name in sums:
                one.check(sums[path.name], lsn)

    def _store_slot(self, name: str, rows: NDArray[np.int64], images: NDArray[Any]) -> None:
        slot, path = self.slots[name], self._slot_paths[name]
        target = slot.reshape(len(slot), -1)
        if images.dtype != target.dtype or images.shape != (rows.size, target.shape[1]):
            raise BadFile(f"{path}: images are {images.dtype} {images.shape}")
        self._files.store_rows(_bytes_of(target), NO_COUNTERS, rows, _bytes_of(images), path)

    def make_even(self) -> int:
        """Release to readers the rows that a writer was storing when it died; how many stripes.

        Call it after the log's images were stored again, so that no row is torn.
        """
        return self._files.make_even(self._counters, self._counters_path)

    def sync(self) -> None:
        """Make everything durable that was stored before this began. StorageError if it fails."""
        for path, mapping in self._mappings.items():
            self._files.msync(mapping, path)

    def close(self) -> None:
        """Drop the mappings; each ends with the last array that views it."""
        self.weights = self.weights[:0].copy()
        self.slots = {}
        self._counters = NO_COUNTERS
        self._sums.clear()
        self._mappings.clear()


def _read_manifest(path: Path) -> tuple[DType, Optimizer, int, int]:
    manifest = read_document(path)
    try:
        dtype, row_count, dim = (
            DType(manifest["dtype"]),
            int(manifest["rows"]),
            int(manifest["dim"]),
        )
        optimizer = manifest["optimizer"]
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise BadFile(f"{path} can't be read: {error!r}") from None
    if optimizer is None:
        raise BadFile(f"{path}: the version has no optimizer, so that it can't be trained")
    return dtype, Optimizer.from_json(optimizer), row_count, dim


def _map(
    files: Files, path: Path, byte_count: int, mappings: dict[Path, MappedFile]
) -> NDArray[np.uint8]:
    """Map the file, which must have `byte_count` bytes, and add its mapping to `mappings`."""
    fd = open_readonly(path)
    try:
        found = file_bytes(fd)
        # A copy of the file may have lost its reserved blocks.
        has_holes = found > 0 and os.lseek(fd, 0, os.SEEK_HOLE) < found
    finally:
        os.close(fd)
    if found != byte_count:
        raise BadFile(f"{path} has {found} bytes; it must have {byte_count}")
    if has_holes:
        files.reserve(path, byte_count)
    mapping = files.map_writable(path)
    mappings[path] = mapping
    return mapping.array()


def _map_slot(
    files: Files,
    folder: Path,
    slot: SlotSpec,
    row_count: int,
    dim: int,
    mappings: dict[Path, MappedFile],
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A slot's whole file, and its array."""
    path = folder / slot.file_name
    dtype, shape = slot.array(row_count, dim)
    header = npy_header(dtype.str, shape)
    raw = _map(files, path, slot.file_bytes(row_count, dim), mappings)
    if raw[: len(header)].tobytes() != header:
        raise BadFile(f"{path} isn't the {shape} {dtype} array of its manifest's optimizer")
    return raw, raw[len(header) :].view(dtype).reshape(shape)


def _tracked(
    path: Path, raw: NDArray[np.uint8], begin: int, row_bytes: int, sums: VersionSums | None
) -> BlockSums:
    return BlockSums(path, raw, begin, row_bytes, (sums or {}).get(path.name))


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A C-contiguous (n, width) array as (n, bytes), the same memory."""
    return array.reshape(-1).view(np.uint8).reshape(len(array), array.itemsize * array.shape[1])
