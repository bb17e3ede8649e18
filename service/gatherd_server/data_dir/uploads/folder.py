"""One upload's files, in a folder of staging/uploads that is named after it.

    upload.json   what it is to become (spec.py), durable
    progress      how far it is (progress.py)
    weights.npy   as the table's, but for the header: room for it, then the rows
    sums          the crc32 of each full block of weights.npy, <u4
    keys.raw      the keys: integers of 8 bytes, or strings one after the other
    keys.ends     of strings: where each ends in keys.raw, <u8

Whoever uses it holds its lock. Any worker may: nothing is kept in memory between two calls.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, GatherdError, NotFound
from gatherd.store import memory
from gatherd.store.catalog import WEIGHTS_NAME
from gatherd.store.checksums import (
    BLOCK_BYTES,
    FileChecksums,
    crc_of,
    encode_document,
    read_document,
)
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, StringKeys
from gatherd_server.data_dir.uploads.checks import check_chunk, gap, not_the_same
from gatherd_server.data_dir.uploads.crc import Taken, take
from gatherd_server.data_dir.uploads.progress import (
    PROGRESS_NAME,
    Mark,
    Progress,
    first_progress,
    read_progress,
    write_progress,
)
from gatherd_server.data_dir.uploads.spec import Chunk, UploadSpec
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import weights_header, weights_header_bytes

SPEC_NAME: Final = "upload.json"
SUMS_NAME: Final = "sums"
KEYS_NAME: Final = "keys.raw"
ENDS_NAME: Final = "keys.ends"
KEY_BYTES: Final = 8
# Rows without an announced number are reserved in steps of this size, or an eighth of the file's.
RESERVE_BYTES: Final = 64 << 20
# At least so often is what came made durable, so that little comes twice after a power cut.
SYNC_BYTES: Final = 256 << 20
# Rows are read back, and keys indexed, in batches of so many bytes or keys.
READ_BYTES: Final = 8 << 20
READ_KEYS: Final = 64 << 10


class UploadFolder:
    """An upload's open files. A context manager; made by `create` or `open`."""

    def __init__(self, files: Files, folder: Path, spec: UploadSpec) -> None:
        self.spec = spec
        self.path = folder
        self._files = files
        self._fds: dict[str, int] = {}
        self._header_bytes = weights_header_bytes(spec.dtype, spec.dim)
        names = [WEIGHTS_NAME, SUMS_NAME, PROGRESS_NAME]
        if spec.key_kind is not None:
            names.append(KEYS_NAME)
        if spec.key_kind is KeyKind.BYTES:
            names.append(ENDS_NAME)
        try:
            for name in names:
                self._fds[name] = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
            self.progress = read_progress(self._fds[PROGRESS_NAME], folder / PROGRESS_NAME)
        except OSError as error:
            self.close()
            raise BadFile(f"{error.filename or folder}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, files: Files, folder: Path, spec: UploadSpec) -> None:
        """Make an upload's folder, with room for the rows that are announced. Durable on return.

        Its upload.json comes last: without it, the folder is none. DiskFull leaves nothing.
        """
        header = weights_header(spec.dtype, 0, spec.dim)
        files.make_dirs(folder)
        try:
            # What these have is made durable with the first rows.
            for name in (WEIGHTS_NAME, SUMS_NAME, KEYS_NAME, ENDS_NAME):
                data = header if name == WEIGHTS_NAME else b""
                files.write_new(folder / name, data, durable=False)
            files.reserve(
                folder / WEIGHTS_NAME, len(header) + (spec.row_count or 0) * spec.row_bytes
            )
            # In a table's checksums, zeros are in the header's place until it is written.
            start = Mark(0, 0, take(memoryview(bytes(len(header))), 0, 0).block_crc)
            files.write_new(folder / PROGRESS_NAME, first_progress(start))
            files.sync_dir(folder, folder / PROGRESS_NAME)
            files.replace(folder / SPEC_NAME, encode_document(spec.to_json()))
        except BaseException:
            with suppress(OSError):
                files.remove_tree(folder)
            raise

    @classmethod
    def open(cls, files: Files, folder: Path) -> Self:
        """Open an upload. NotFound when there is none, BadFile when it is damaged."""
        return cls(files, folder, read_spec(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its files."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    # ------------------------------------------------------------------ chunks

    def append(self, chunk: Chunk, check_room: Callable[[int], None]) -> int:
        """Write a chunk, and return the offset of the next one. What was there is never changed.

        A chunk that is there already, with the same bytes, changes nothing. `check_room` raises if
        the files may not grow by so many bytes. FailedPrecondition for another offset than the
        next, InvalidArgument or NonfiniteValues for wrong rows or keys; DiskFull. Nothing is
        changed by a chunk that is refused.
        """
        now, count = self.progress.now, len(chunk.rows)
        data = chunk.rows.reshape(-1).view(np.uint8).data
        position = self._header_bytes + now.rows * self.spec.row_bytes
        taken = take(data, position, now.block_crc)
        check_chunk(self.spec, chunk, taken.crc)
        if not count:
            return now.rows
        if chunk.offset != now.rows:
            if chunk.offset + count > now.rows:
                raise gap(chunk, count, now.rows)
            if not self._has(chunk):
                raise not_the_same(chunk, count, now.rows)
            return now.rows
        self._make_room(position + data.nbytes, check_room)
        key_bytes = self._write_keys(chunk.keys, check_room)
        self._write(WEIGHTS_NAME, data, position)
        memory.begin_writeback(self._fds[WEIGHTS_NAME], position, data.nbytes)
        self._write_sums(position, taken)
        mark = Mark(now.rows + count, now.key_bytes + key_bytes, taken.block_crc)
        written = (mark.rows - self.progress.synced.rows) * self.spec.row_bytes + mark.key_bytes
        self._advance(mark, syncs=written - self.progress.synced.key_bytes >= SYNC_BYTES)
        return mark.rows

    def _write_sums(self, position: int, taken: Taken) -> None:
        if taken.full:
            sums = np.array(taken.full, "<u4").view(np.uint8).data
            self._write(SUMS_NAME, sums, position // BLOCK_BYTES * 4)

    def _write_keys(self, keys: Keys | None, check_room: Callable[[int], None]) -> int:
        if keys is None:
            return 0
        now = self.progress.now
        if not isinstance(keys, StringKeys):
            assert self.spec.key_kind is not None
            ints = np.ascontiguousarray(keys, _int_dtype(self.spec.key_kind))
            data = ints.reshape(-1).view(np.uint8).data
        else:
            data = keys.data[int(keys.offsets[0]) : int(keys.offsets[-1])].data
            ends = (keys.offsets[1:] - keys.offsets[0] + now.key_bytes).astype("<u8")
            self._write(ENDS_NAME, ends.view(np.uint8).data, now.rows * 8)
        check_room(data.nbytes)
        self._write(KEYS_NAME, data, now.key_bytes)
        return data.nbytes

    def _has(self, chunk: Chunk) -> bool:
        """Whether a chunk of rows that are there has their bytes."""
        end = chunk.offset + len(chunk.rows)
        here = chunk.rows.view(np.uint8).reshape(len(chunk.rows), -1)
        if not np.array_equal(
            self._rows(chunk.offset, end).view(np.uint8).reshape(here.shape), here
        ):
            return False
        if chunk.keys is None:
            return True
        stored = self._keys(chunk.offset, end)
        if isinstance(stored, StringKeys):
            assert isinstance(chunk.keys, StringKeys)
            return stored.tolist() == chunk.keys.tolist()
        assert not isinstance(chunk.keys, StringKeys)
        return bool(np.array_equal(stored, chunk.keys.reshape(-1)))

    def _make_room(self, end: int, check_room: Callable[[int], None]) -> None:
        size = os.fstat(self._fds[WEIGHTS_NAME]).st_size
        if end <= size:
            return
        grown = max(end, size + max(RESERVE_BYTES, size // 8))
        try:
            check_room(grown - size)
        except GatherdError:
            grown = end
            check_room(grown - size)
        self._files.allocate(self._fds[WEIGHTS_NAME], grown, self.path / WEIGHTS_NAME)

    def _advance(self, mark: Mark, *, syncs: bool) -> None:
        synced = self.progress.synced
        if syncs:
            self._sync_rows()
            synced = mark
        self._set_progress(replace(self.progress, now=mark, synced=synced), syncs=syncs)

    def begin_commit(self) -> None:
        """Take no more rows. Those that came are durable on return, so it can be done again."""
        self._sync_rows()
        now = self.progress.now
        self._set_progress(replace(self.progress, synced=now, is_committing=True), syncs=True)

    def reopen(self) -> None:
        """Take rows again, after a commit that came to nothing."""
        self._set_progress(replace(self.progress, is_committing=False), syncs=True)

    def _sync_rows(self) -> None:
        for name, fd in self._fds.items():
            if name != PROGRESS_NAME:
                self._files.sync(fd, self.path / name)

    def _set_progress(self, progress: Progress, *, syncs: bool) -> None:
        fd, path = self._fds[PROGRESS_NAME], self.path / PROGRESS_NAME
        self.progress = write_progress(self._files, fd, path, progress, syncs=syncs)

    def _write(self, name: str, data: memoryview, position: int) -> None:
        self._files.write_at(self._fds[name], data, position, self.path / name)

    # --------------------------------------------------------------- reading back

    def finish(self) -> FileChecksums:
        """Make weights.npy the file of a table, durable but for its name; its checksums."""
        now, fd, path = self.progress.now, self._fds[WEIGHTS_NAME], self.path / WEIGHTS_NAME
        end = self._header_bytes + now.rows * self.spec.row_bytes
        header = weights_header(self.spec.dtype, now.rows, self.spec.dim)
        self._write(WEIGHTS_NAME, memoryview(header), 0)
        self._files.truncate(fd, end, path)
        self._files.sync(fd, path)
        full = end // BLOCK_BYTES
        sums = np.frombuffer(os.pread(self._fds[SUMS_NAME], full * 4, 0), "<u4").tolist()
        if len(sums) != full:
            raise BadFile(f"{self.path / SUMS_NAME} is truncated")
        crcs = [*sums, now.block_crc] if end % BLOCK_BYTES else sums
        crcs[0] = crc_of(fd, 0, min(BLOCK_BYTES, end))
        return FileChecksums(end, BLOCK_BYTES, tuple(crcs))

    def row_batches(self) -> Iterator[tuple[NDArray[Any], Keys | None]]:
        """All rows, (n, dim) in the dtype's storage, with their keys, a batch at a time."""
        step = max(1, READ_BYTES // self.spec.row_bytes)
        for begin, end in self._steps(step):
            keys = None if self.spec.key_kind is None else self._keys(begin, end)
            yield self._rows(begin, end), keys

    def key_batches(self) -> Iterator[Keys]:
        """All keys, a batch at a time."""
        for begin, end in self._steps(READ_KEYS):
            yield self._keys(begin, end)

    def _steps(self, step: int) -> Iterator[tuple[int, int]]:
        rows = self.progress.now.rows
        for begin in range(0, rows, step):
            yield begin, min(begin + step, rows)

    def _rows(self, begin: int, end: int) -> NDArray[Any]:
        row_bytes = self.spec.row_bytes
        data = self._read(
            WEIGHTS_NAME, self._header_bytes + begin * row_bytes, (end - begin) * row_bytes
        )
        return np.frombuffer(data, self.spec.dtype.storage).reshape(end - begin, self.spec.dim)

    def _keys(self, begin: int, end: int) -> Keys:
        kind = self.spec.key_kind
        assert kind is not None
        if kind is not KeyKind.BYTES:
            data = self._read(KEYS_NAME, begin * KEY_BYTES, (end - begin) * KEY_BYTES)
            return np.frombuffer(data, _int_dtype(kind))
        first = max(begin - 1, 0)
        ends = np.frombuffer(self._read(ENDS_NAME, first * 8, (end - first) * 8), "<i8")
        offsets = ends if begin else np.concatenate((np.zeros(1, "<i8"), ends))
        start, stop = int(offsets[0]), int(offsets[-1])
        data = self._read(KEYS_NAME, start, stop - start)
        return StringKeys(np.frombuffer(data, np.uint8), offsets - start, (end - begin,))

    def _read(self, name: str, position: int, byte_count: int) -> bytes:
        data = os.pread(self._fds[name], byte_count, position)
        if len(data) != byte_count:
            raise BadFile(f"{self.path / name} is truncated")
        return data


def read_spec(folder: Path) -> UploadSpec:
    """What an upload is to become. NotFound when there is none, BadFile when it is damaged."""
    path = folder / SPEC_NAME
    if not path.is_file():
        raise NotFound(
            f"there is no upload {folder.name}: it was cancelled, or nothing came for too long",
            {"upload": folder.name},
        )
    return UploadSpec.from_json(read_document(path), str(path))


def stored_bytes(folder: Path) -> int:
    """The bytes that an upload's files take."""
    total = 0
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def _int_dtype(kind: KeyKind) -> np.dtype[Any]:
    return np.dtype("<i8" if kind is KeyKind.INT64 else "<u8")
