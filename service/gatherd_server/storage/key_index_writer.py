"""Writes a key index; gatherd.store.key_index has the layout.

The keys' files grow while keys are added and are mapped shared, so the kernel can write their pages
back and drop them. A growing file doubles; its blocks are allocated first, so that a full disk is
an error and never a SIGBUS. The slots are in memory, 12 to 24 bytes a key, until they are written.
When they double they are cleared and filled again from the keys, in row order. So the same keys,
seed and size always give the same slot bytes, and `rebuild_slots` can mend the slots alone.
"""

import mmap
import os
import secrets
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument, StorageError
from gatherd.store import memory
from gatherd.store.checksums import file_checksums
from gatherd.store.kernels import compiled
from gatherd.store.key_index import (
    KEYED_ROWS_MAX,
    KEYS_DATA,
    KEYS_INTS,
    KEYS_JSON,
    KEYS_OFFSETS,
    KEYS_SLOTS,
    NPY_HEADER_BYTES,
    SLOTS_MIN,
    KeyKind,
    KeysInfo,
    key_bits,
    map_array,
    npy_header,
    read_keys_info,
    verify_file,
)
from gatherd.store.keys import KEY_BYTES_MAX, Keys, StringKeys
from gatherd_server.storage.files import Files

# Keys are added in parts, so that room for no more than this many is made at once.
ADD_KEYS_MAX: Final = 64 << 10
FIRST_LENGTH: Final = 1024
# If 10 random seeds fail for a table that is two thirds full, the cause is a bug of ours.
SEEDS_MAX: Final = 10
# Rebuilt slots are written beside the old ones until they are whole.
FRESH_SUFFIX: Final = ".new"


class _GrowingArray:
    """A 1-D .npy file, mapped shared, while it is written. Its header is written last."""

    def __init__(self, files: Files, path: Path, descr: str, length: int) -> None:
        self._files = files
        self._path = path
        self._descr = descr
        files.write_new(path, bytes(NPY_HEADER_BYTES), durable=False)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map(length)
        except BaseException:
            os.close(self._fd)
            raise

    def _map(self, length: int) -> None:
        size = NPY_HEADER_BYTES + length * np.dtype(self._descr).itemsize
        self._files.allocate(self._fd, size, self._path)
        try:
            # The old mapping ends with the last array that views it.
            mapping = mmap.mmap(self._fd, size)
        except (OSError, ValueError) as error:
            raise StorageError(f"{self._path} can't be mapped: {error}") from None
        self.array: NDArray[Any] = np.ndarray((length,), self._descr, mapping, NPY_HEADER_BYTES)

    def reserve(self, length: int) -> None:
        """Make the array at least `length` long. StorageError when the disk is full."""
        if length > self.array.size:
            self._map(max(length, 2 * self.array.size))

    def finish(self, length: int) -> None:
        """Cut the file to `length`, write its header, and make it durable."""
        size = NPY_HEADER_BYTES + length * np.dtype(self._descr).itemsize
        self.array = self.array[:0].copy()
        os.ftruncate(self._fd, size)
        header = memoryview(npy_header(self._descr, length))
        self._files.write_at(self._fd, header, 0, self._path)
        self._files.sync(self._fd, self._path)

    def close(self) -> None:
        """Close the file and leave it as it is."""
        self.array = np.empty(0, np.uint8)
        os.close(self._fd)


class _Slots:
    """The slots, in the process's own memory until they are written as a whole.

    Insertions go all over them. In a mapped file each makes a page dirty: where memory is short,
    the kernel writes many times what the file has.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self._path = path
        self.array = np.zeros(SLOTS_MIN, np.uint64)

    def enlarge(self, length: int) -> None:
        """Make them so many, all empty. StorageError when there isn't memory for them."""
        self.array = np.empty(0, np.uint64)  # the old ones go before the new ones come
        available = memory.available_bytes()
        if 0 < available < 8 * length:
            raise StorageError(
                f"{self._path}: the index of the keys takes {8 * length} bytes of memory while it "
                f"is made, and {available} are left"
            )
        self.array = np.zeros(length, np.uint64)

    def finish(self) -> None:
        """Write the file, durable but for its name."""
        header = npy_header("<u8", self.array.size)
        self._files.write_new(self._path, header, durable=False)
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            data = self.array.data.cast("B")
            self._files.allocate(fd, len(header) + data.nbytes, self._path)
            self._files.write_at(fd, data, len(header), self._path)
            self._files.sync(fd, self._path)
        finally:
            os.close(fd)


class KeyIndexBuilder:
    """Builds a key index in a staging folder, where no reader looks; a context manager.

    Without `finish` the files in the folder are no index; the caller removes the folder.
    StorageError from any method when the disk is full or fails, or memory is short; Unimplemented
    without numba.
    """

    def __init__(self, files: Files, folder: Path, kind: KeyKind) -> None:
        self.kind = kind
        self.count = 0
        self._files = files
        self._folder = folder
        self._seed = secrets.randbits(64)
        self._data_bytes = 0
        self._finished = False
        self._stack = ExitStack()
        with ExitStack() as opening:
            self._slots = _Slots(files, folder / KEYS_SLOTS)
            if kind is KeyKind.BYTES:
                self._data = self._array(opening, KEYS_DATA, "|u1", FIRST_LENGTH)
                self._offsets = self._array(opening, KEYS_OFFSETS, "<u8", FIRST_LENGTH)
            else:
                descr = "<i8" if kind is KeyKind.INT64 else "<u8"
                self._ints = self._array(opening, KEYS_INTS, descr, FIRST_LENGTH)
            self._stack = opening.pop_all()

    def _array(self, stack: ExitStack, name: str, descr: str, length: int) -> _GrowingArray:
        array = _GrowingArray(self._files, self._folder / name, descr, length)
        stack.callback(array.close)
        return array

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, keys: Keys) -> NDArray[np.bool_]:
        """Give the next rows to the new ones of `keys`, in order; return their mask, (n,).

        A key that was added before, or occurs earlier in the batch, isn't added again.
        InvalidArgument when the keys are of another kind than the index, or an integer is out of
        range; nothing is added then.
        """
        self._check_kind(keys)
        is_new = np.zeros(keys.size, np.bool_)
        for start in range(0, keys.size, ADD_KEYS_MAX):
            part = slice(start, min(start + ADD_KEYS_MAX, keys.size))
            if self.count + part.stop - part.start > KEYED_ROWS_MAX:
                raise InvalidArgument(f"a key index has at most {KEYED_ROWS_MAX} keys")
            self._make_room(self.count + part.stop - part.start)
            if isinstance(keys, StringKeys):
                self._add_strings(keys, part, is_new[part])
            else:
                self._add_ints(keys.reshape(-1)[part], is_new[part])
        return is_new

    def _check_kind(self, keys: Keys) -> None:
        if keys.size == 0:
            return
        if isinstance(keys, StringKeys) is not (self.kind is KeyKind.BYTES):
            given = "strings" if isinstance(keys, StringKeys) else "integers"
            raise InvalidArgument(f"keys are {given}; this index is of {self.kind.value}")
        if not isinstance(keys, StringKeys):
            fits = key_bits(keys.reshape(-1), self.kind)[1]
            if fits is not None and not fits.all():
                first = int(keys.reshape(-1)[np.flatnonzero(~fits)[0]])
                raise InvalidArgument(f"key {first} doesn't fit into {self.kind.value}")
            return
        lengths = np.diff(keys.offsets)
        if lengths.min() < 1 or lengths.max() > KEY_BYTES_MAX:
            raise InvalidArgument(f"a key has 1 to {KEY_BYTES_MAX} bytes")

    def _add_ints(self, keys: NDArray[np.integer[Any]], is_new: NDArray[np.bool_]) -> None:
        bits = key_bits(keys, self.kind)[0]
        self._ints.reserve(self.count + keys.size)
        done = 0
        while True:
            done, self.count = compiled.insert_ints(
                self._slots.array, self._ints.array.view("<u8"), self.count, bits, done,
                self._seed, is_new,
            )  # fmt: skip
            if done == keys.size:
                return
            self._place(secrets.randbits(64))

    def _add_strings(self, keys: StringKeys, part: slice, is_new: NDArray[np.bool_]) -> None:
        offsets = keys.offsets[part.start : part.stop + 1]
        self._offsets.reserve(self.count + is_new.size + 1)
        self._data.reserve(self._data_bytes + int(offsets[-1] - offsets[0]))
        done = 0
        while True:
            done, self.count = compiled.insert_strings(
                self._slots.array, self._offsets.array, self._data.array, self.count, offsets,
                keys.data, done, self._seed, is_new,
            )  # fmt: skip
            self._data_bytes = int(self._offsets.array[self.count])
            if done == is_new.size:
                return
            self._place(secrets.randbits(64))

    def rows_of(self, keys: Keys) -> NDArray[np.int64]:
        """The rows of `keys`, flat, int64 (n,). All of the keys were added before."""
        rows = np.empty(keys.size, np.int64)
        slots, count = self._slots.array, self.count
        if isinstance(keys, StringKeys):
            stored = self._offsets.array[: count + 1], self._data.array[: self._data_bytes]
            compiled.find_strings(slots, *stored, keys.offsets, keys.data, self._seed, rows)
        else:
            bits = key_bits(keys.reshape(-1), self.kind)[0]
            stored_ints = self._ints.array.view("<u8")[:count]
            compiled.find_ints(slots, stored_ints, bits, self._seed, rows)
        return rows

    def _make_room(self, count: int) -> None:
        slot_count = slots_for(count)
        if slot_count > self._slots.array.size:
            self._slots.enlarge(slot_count)
            self._place(self._seed)

    def _place(self, seed: int) -> None:
        """Fill the slots anew from the keys, with another seed if `seed` fails."""
        offsets, data = None, None
        if self.kind is KeyKind.BYTES:
            offsets, data = self._offsets.array, self._data.array
        ints = None if self.kind is KeyKind.BYTES else self._ints.array
        self._seed = _place(self._slots.array, ints, offsets, data, self.count, seed)

    def finish(self) -> None:
        """Complete the files to an index; everything but the names is durable on return."""
        assert not self._finished
        self._finished = True
        slot_count = self._slots.array.size
        self._slots.finish()
        if self.kind is KeyKind.BYTES:
            self._data.finish(self._data_bytes)
            self._offsets.finish(self.count + 1)
        else:
            self._ints.finish(self.count)
        info = KeysInfo(self.kind, self.count, self._seed, self._data_bytes, slot_count, {})
        self._files.write_new(
            self._folder / KEYS_JSON, _with_checksums(self._folder, info).encode()
        )


def slots_for(count: int) -> int:
    """How many slots `count` keys are given: a power of two, at most two thirds full."""
    return max(SLOTS_MIN, 1 << (count + count // 2).bit_length())


def _place(
    slots: NDArray[np.uint64],
    ints: NDArray[Any] | None,
    offsets: NDArray[Any] | None,
    data: NDArray[Any] | None,
    count: int,
    seed: int,
) -> int:
    """Fill `slots` with rows 0 to `count`; returns the seed that worked, if possible `seed`."""
    for _ in range(SEEDS_MAX):
        slots[:] = 0
        if ints is not None:
            done = compiled.place_ints(slots, ints.view("<u8"), 0, count, seed)
        else:
            assert offsets is not None
            assert data is not None
            done = compiled.place_strings(slots, offsets, data, 0, count, seed)
        if done == count:
            return seed
        seed = secrets.randbits(64)
    raise StorageError(f"{count} keys find no place in {slots.size} slots")


def _with_checksums(folder: Path, info: KeysInfo) -> KeysInfo:
    blocks = {name: list(file_checksums(folder / name).crcs) for name in info.arrays()}
    return KeysInfo(info.kind, info.count, info.seed, info.data_bytes, info.slot_count, blocks)


def rebuild_slots(files: Files, folder: Path) -> None:
    """Write the slots, and keys.json if it is damaged, anew from the keys. Durable on return.

    With a sound keys.json the keys are compared with its checksums first, and the new slots have
    the same bytes as the old ones had. Without one, any possible keys are accepted.
    BadFile when the keys themselves are damaged or missing; nothing is changed then.
    Readers that have the old slots mapped keep them.
    """
    fresh = folder / (KEYS_SLOTS + FRESH_SUFFIX)
    with suppress(FileNotFoundError):
        fresh.unlink()
    try:
        info = read_keys_info(folder)
    except BadFile:
        info = None
    known = info is not None
    if info is None:
        info = _info_from_keys(folder)
    else:
        for name in info.arrays():
            if name != KEYS_SLOTS:
                verify_file(folder / name, info)
    arrays = {
        name: map_array(folder / name, descr, length)[1]
        for name, (descr, length) in info.arrays().items()
        if name != KEYS_SLOTS
    }
    slots = _Slots(files, fresh)
    slots.enlarge(info.slot_count)
    ints, offsets, data = (arrays.get(name) for name in (KEYS_INTS, KEYS_OFFSETS, KEYS_DATA))
    seed = _place(slots.array, ints, offsets, data, info.count, info.seed)
    slots.finish()
    files.rename(fresh, folder / KEYS_SLOTS)
    if not known or seed != info.seed:
        info = KeysInfo(info.kind, info.count, seed, info.data_bytes, info.slot_count, {})
        files.replace(folder / KEYS_JSON, _with_checksums(folder, info).encode())


def _info_from_keys(folder: Path) -> KeysInfo:
    """The contents of keys.json, derived from the key files' sizes and headers."""
    seed = secrets.randbits(64)
    if (folder / KEYS_OFFSETS).exists():
        data_bytes = _array_bytes(folder / KEYS_DATA)
        count = _array_bytes(folder / KEYS_OFFSETS) // 8 - 1
        if count < 0:
            raise BadFile(f"{folder / KEYS_OFFSETS} is truncated")
        _check_offsets(folder / KEYS_OFFSETS, count, data_bytes)
        return KeysInfo(KeyKind.BYTES, count, seed, data_bytes, slots_for(count), {})
    path = folder / KEYS_INTS
    count = _array_bytes(path) // 8
    for kind in (KeyKind.INT64, KeyKind.UINT64):
        info = KeysInfo(kind, count, seed, 0, slots_for(count), {})
        with suppress(BadFile):
            map_array(path, *info.arrays()[KEYS_INTS])
            return info
    raise BadFile(f"{path} isn't an array of int64 or uint64 keys")


def _array_bytes(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadFile(f"{path} can't be read: {error.strerror}") from None
    if size < NPY_HEADER_BYTES:
        raise BadFile(f"{path} is truncated: it has {size} bytes")
    return size - NPY_HEADER_BYTES


def _check_offsets(path: Path, count: int, data_bytes: int) -> None:
    offsets = map_array(path, "<u8", count + 1)[1]
    sound = offsets[0] == 0 and offsets[-1] == data_bytes
    for start in range(0, count, ADD_KEYS_MAX):
        part = offsets[start : start + ADD_KEYS_MAX + 1]
        # Unsigned: where the offsets fall, the difference is a huge length.
        lengths = np.diff(part)
        if not sound or lengths.min() < 1 or lengths.max() > KEY_BYTES_MAX:
            raise BadFile(f"{path} is damaged in rows {start} to {start + part.size - 2}")
    if not sound:
        raise BadFile(f"{path} is damaged")
