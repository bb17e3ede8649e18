"""The update log in words: each frame's contents, but for those that differ between runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType, convert
from gatherd_server.storage.images_record import VersionImages, logged_images
from gatherd_server.storage.wal_format import WAL_NAME, FrameKind, segment_paths
from gatherd_server.storage.wal_reader import Frame, LogReader
from gatherd_server.writer.checkpoint import read_checkpoint


class LogDump:
    """Dumps the log of one data dir; it keeps the names of tables that it has seen."""

    def __init__(self, data_dir: Path, dtypes: dict[str, DType]) -> None:
        """`dtypes` are the tables', by name; an image alone is just bytes."""
        self._data_dir = data_dir
        self._dtypes = dtypes
        self._names: dict[str, str] = {}
        self._last_lsn = 0

    def know(self, tables: dict[str, str]) -> None:
        """Take the names of tables, by uid."""
        self._names |= tables

    def lines(self) -> Iterator[str]:
        """The checkpoint and segments on the disk, and the frames that are new."""
        checkpoint = read_checkpoint(self._data_dir)
        yield f"checkpoint at LSN {checkpoint.lsn}"
        segments = segment_paths(self._data_dir / WAL_NAME)
        for _, path in segments:
            yield f"segment {path.name}"
        if segments:
            for frame in LogReader(self._data_dir / WAL_NAME, segments[0][0] - 1):
                if frame.last_lsn > self._last_lsn:
                    yield from self._frame(frame)
                    self._last_lsn = frame.last_lsn

    def _frame(self, frame: Frame) -> Iterator[str]:
        lsns = f"{frame.first_lsn}" + f"-{frame.last_lsn}" * (frame.last_lsn > frame.first_lsn)
        yield f"frame LSN {lsns}, {frame.kind.name.lower()}"
        directory = frame.record.directory
        if frame.kind is FrameKind.CATALOG:
            yield from self._catalog(directory["catalog"])
            return
        for lsn, (request_id, digest, versions) in enumerate(directory["pushes"], frame.first_lsn):
            yield f"  push {lsn} id {request_id}, digest {digest}, versions {versions}"
        for images in logged_images(frame.record):
            yield from self._images(images)

    def _catalog(self, catalog: dict[str, Any]) -> Iterator[str]:
        yield f"  generation {catalog['generation']}"
        for name, entry in catalog["tables"].items():
            self._names[entry["uid"]] = name
            yield f"  table {name}: live {entry['live']}, versions {entry['versions']}"

    def _images(self, images: VersionImages) -> Iterator[str]:
        name = self._names[images.uid]
        yield f"  images of {name} v{images.version}"
        weights = _widened(images.weights, self._dtypes[name])
        for number, row in enumerate(images.rows.tolist()):
            slots = [f", {slot} {_shown(rows[number])}" for slot, rows in images.slots.items()]
            yield f"    row {row}: {_shown(weights[number])}{''.join(slots)}"
        for scalar, value in images.scalars.items():
            yield f"    {scalar} {int(value[0])}"


def _widened(weights: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32]:
    stored = np.ascontiguousarray(weights).view(dtype.storage)
    wide = np.empty(stored.shape, np.float32)
    convert(stored, dtype, wide, DType.FLOAT32)
    return wide


def _shown(row: NDArray[np.float32]) -> str:
    return " ".join(f"{value:.6g}" for value in row)
