"""One version's part of a frame of pushes: the new contents of its rows; see wal_format.py.

An open version's part has more: which rows got their keys, and which lost them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, StringKeys
from gatherd_server.storage.records import Record

_MALFORMED = (LookupError, ValueError, TypeError, AttributeError, StopIteration)


@dataclass(frozen=True, slots=True, eq=False)
class OpenImages:
    """What a frame holds of an open version beside the images of its n rows.

    `created` are the positions, among the n, of the rows that got a key: `created_keys` and, as
    stored, `words` (the keys' bits, or their entries in the heap). `removed` are the rows that were
    in use before the frame and lost `removed_keys`; one that is created too has its new key.
    `counted` are hashes of keys that were pushed and not admitted.
    """

    kind: KeyKind
    stamps: NDArray[np.uint64]
    counts: NDArray[np.uint32]
    created: NDArray[np.int64]
    created_keys: Keys
    words: NDArray[np.uint64]
    removed: NDArray[np.int64]
    removed_keys: Keys
    counted: NDArray[np.uint64]

    def arrays(self) -> list[NDArray[Any]]:
        """Its arrays, as a record has them."""
        listed: list[NDArray[Any]] = [self.stamps, self.counts, self.created]
        listed += [*_key_arrays(self.created_keys), self.words, self.removed]
        return [*listed, *_key_arrays(self.removed_keys), self.counted]

    @classmethod
    def read(cls, kind: KeyKind, arrays: Iterator[NDArray[Any]], count: int) -> "OpenImages":
        """What `arrays` listed, for images of `count` rows. ValueError when they contradict."""
        stamps, counts, created = next(arrays), next(arrays), next(arrays)
        created_keys, words, removed = _read_keys(kind, arrays), next(arrays), next(arrays)
        removed_keys, counted = _read_keys(kind, arrays), next(arrays)
        found = cls(
            kind, stamps, counts, created, created_keys, words, removed, removed_keys, counted
        )
        sizes = (stamps.size, counts.size, created_keys.size, words.size, removed_keys.size)
        if sizes != (count, count, created.size, created.size, removed.size):
            raise ValueError(f"the arrays of an open table have sizes {sizes} for {count} rows")
        if created.size and not 0 <= int(created.min()) <= int(created.max()) < count:
            raise ValueError("a created row has no image")
        return found


@dataclass(frozen=True, slots=True, eq=False)
class VersionImages:
    """One version's part of a frame.

    `rows` are int64 (n,), each once, `weights` uint8 (n, row bytes), each slot float32 (n, width),
    each scalar int64 (1,). All of them are contiguous.
    """

    uid: str
    version: int
    rows: NDArray[np.int64]
    weights: NDArray[np.uint8]
    slots: dict[str, NDArray[np.float32]]
    scalars: dict[str, NDArray[np.int64]]
    opened: OpenImages | None = None


def list_images(
    images: Sequence[VersionImages],
) -> tuple[list[list[object]], list[NDArray[Any]]]:
    """The directory's member "images", and the arrays that follow it."""
    listed: list[list[object]] = []
    arrays: list[NDArray[Any]] = []
    for one in images:
        entry: list[object] = [one.uid, one.version, list(one.slots), list(one.scalars)]
        arrays += [one.rows, one.weights, *one.slots.values(), *one.scalars.values()]
        if one.opened is not None:
            entry.append(one.opened.kind.value)
            arrays += one.opened.arrays()
        listed.append(entry)
    return listed, arrays


def logged_images(record: Record) -> list[VersionImages]:
    """The images of a frame of pushes. BadFile when its directory and its arrays disagree."""
    arrays = iter(record.arrays)
    found = []
    try:
        for uid, version, slots, scalars, *kind in record.directory["images"]:
            rows, weights = next(arrays), next(arrays)
            by_slot = {name: next(arrays) for name in slots}
            by_scalar = {name: next(arrays) for name in scalars}
            opened = OpenImages.read(KeyKind(kind[0]), arrays, rows.size) if kind else None
            found.append(VersionImages(uid, version, rows, weights, by_slot, by_scalar, opened))
    except _MALFORMED as error:
        raise BadFile(f"a frame of the log contradicts itself: {error!r}") from None
    return found


def no_keys(kind: KeyKind) -> Keys:
    """No keys at all, of a kind."""
    if kind is KeyKind.BYTES:
        return StringKeys(np.empty(0, np.uint8), np.zeros(1, np.int64), (0,))
    return np.empty(0, np.int64 if kind is KeyKind.INT64 else np.uint64)


def _key_arrays(keys: Keys) -> list[NDArray[Any]]:
    return [keys.data, keys.offsets] if isinstance(keys, StringKeys) else [keys]


def _read_keys(kind: KeyKind, arrays: Iterator[NDArray[Any]]) -> Keys:
    if kind is not KeyKind.BYTES:
        return next(arrays)
    data, offsets = next(arrays), next(arrays)
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != data.size or (lengths.size and lengths.min() < 1):
        raise ValueError("the offsets of keys don't fit their bytes")
    return StringKeys(data, offsets, (lengths.size,))
