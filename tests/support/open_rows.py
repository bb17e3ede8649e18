"""An open version without a server: made, and changed as its writer changes it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd.store.catalog import version_dir
from gatherd.store.dtypes import DType, convert
from gatherd.store.keys import Keys, StringKeys, as_keys
from gatherd.store.open_spec import OpenSpec
from gatherd_server.storage.files import Files
from gatherd_server.storage.images_record import OpenImages, VersionImages, no_keys
from gatherd_server.storage.open_index import build_index, unit_counts
from gatherd_server.storage.open_table_writer import OpenTable, stage_open_table
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.training.optimizer import Optimizer

Key = int | str


def make_open_table(
    data_dir: Path,
    name: str,
    spec: OpenSpec,
    dim: int,
    dtype: DType = DType.FLOAT32,
    default_vector: NDArray[np.float32] | None = None,
) -> Path:
    """The folder of an open version without rows, where `open_table` finds it; no data dir else."""
    table = OpenTable(name, dtype, dim, spec, Optimizer.parse("sgd", {}), {}, default_vector)
    staged = stage_open_table(Files(), data_dir, table)
    folder = version_dir(data_dir, name, 1)
    folder.parent.mkdir(parents=True)
    staged.folder.rename(folder)
    return folder


class OpenWriter:
    """Creates, changes and removes rows of an open version. One thread's."""

    def __init__(self, folder: Path) -> None:
        """Maps the version; its index becomes another file, as at each start of a writer."""
        self.version = OpenVersion.open(Files(), folder)
        self.version.settle()
        self._folder = folder
        self._row_of: dict[Key, int] = {}
        self._free = list(range(self.version.spec.rows_max))[::-1]
        self._place = 0
        self._places: dict[int, list[int]] = {}
        self._place_of: dict[Key, tuple[int, int]] = {}
        self._stamp = 0

    @property
    def keys(self) -> list[Key]:
        """Those that have a row, in the order of creation."""
        return list(self._row_of)

    def put(
        self, keys: Iterable[Key], vectors: NDArray[np.float32], remove: Iterable[Key] = ()
    ) -> None:
        """Remove rows, then give keys a vector each, in rows that may be those removed."""
        gone = [key for key in remove if key in self._row_of]
        removed = np.array([self._row_of.pop(key) for key in gone], np.int64)
        free_places = [self._place_of.pop(key) for key in gone if key in self._place_of]
        self._free += removed.tolist()
        wanted = list(keys)
        created = [i for i, key in enumerate(wanted) if key not in self._row_of]
        words = np.array([self._word(wanted[i]) for i in created], np.uint64)
        for i in created:
            self._row_of[wanted[i]] = self._free.pop()
        rows = np.array([self._row_of[key] for key in wanted], np.int64)
        stored = np.empty(vectors.shape, self.version.dtype.storage)
        convert(
            np.ascontiguousarray(vectors, np.float32), DType.FLOAT32, stored, self.version.dtype
        )
        stamps = self._stamp + 1 + np.arange(rows.size, dtype=np.uint64)
        self._stamp += rows.size
        opened = OpenImages(
            self.version.spec.kind,
            stamps,
            np.ones(rows.size, np.uint32),
            np.array(created, np.int64),
            self._keys([wanted[i] for i in created]),
            words,
            removed,
            self._keys(gone),
            np.empty(0, np.uint64),
        )
        used = max(self.version.space.used_rows, int(rows.max(initial=-1)) + 1)
        self.version.space.used_rows = used
        self.version.reserve(used, self._place)
        self.version.apply(VersionImages("", 1, rows, stored.view(np.uint8), {}, {}, opened))
        for begin, units in free_places:
            self._places.setdefault(units, []).append(begin)
        assert self.version.index is not None
        if self.version.needs_index or self.version.index.wants_growth:
            self.renew_index()
        self.version.index.publish_counts(len(self._row_of), used)

    def remove(self, keys: Iterable[Key]) -> None:
        """Remove rows."""
        self.put([], np.empty((0, self.version.dim), np.float32), keys)

    def renew_index(self) -> None:
        """Put another index, with another seed, in place of the one there is."""
        version = self.version
        used = version.space.used_rows
        version.index = build_index(Files(), self._folder, version.keys, used, len(self._row_of))
        version.needs_index = False

    def close(self) -> None:
        """Unmap."""
        self.version.close()

    def _word(self, key: Key) -> int:
        if isinstance(key, int):
            return key & (2**64 - 1)
        length = len(key.encode("utf-8", "surrogateescape"))
        units = int(unit_counts(np.array([length]))[0])
        free = self._places.get(units)
        if free:
            begin = free.pop(0)
        else:
            begin, self._place = self._place, self._place + units
        self._place_of[key] = (begin, units)
        return begin << 11 | length

    def _keys(self, keys: list[Key]) -> Keys:
        kind = self.version.spec.kind
        if not keys:
            return no_keys(kind)
        given = as_keys(keys)
        return given if isinstance(given, StringKeys) else given.astype(f"<{kind.value[0]}8")
