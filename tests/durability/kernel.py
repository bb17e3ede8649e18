"""A kernel that fails at a chosen call: what is done stays in its memory, as long as it runs."""

import errno
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self
from unittest import mock

from gatherd.errors import DiskFull
from gatherd.store import memory
from gatherd.store.mapping import MappedFile
from gatherd_server.storage.files import Files


class Kernel(AbstractContextManager["Kernel"]):
    """Syncs nothing; fails one sync, or finds no room at one call that takes some.

    A write that finds no room writes half, says so, and fails when it is asked for the rest.
    """

    def __init__(self, *, sync_at: int = 0, room_at: int = 0, is_short: bool = False) -> None:
        """The calls are counted from 1. `is_short`: every write does a part of what it could."""
        self.syncs = self.rooms = 0
        self.has_failed = False
        self.is_full = False
        """Whether nothing gets room; what was reserved can be written."""
        self._sync_at, self._room_at, self._is_short = sync_at, room_at, is_short
        self._is_next_full = False
        self._stack = ExitStack()
        self._pwrite, self._allocate = os.pwrite, os.posix_fallocate

    def __enter__(self) -> Self:
        for module, name, function in (
            (os, "fsync", self._sync),
            (os, "fdatasync", self._sync),
            (memory, "sync", self._sync),
            (os, "pwrite", self._write),
            (os, "pwritev", self._write_all),
            (os, "posix_fallocate", self._reserve),
        ):
            self._stack.enter_context(mock.patch.object(module, name, function))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def takes_room(self) -> bool:
        """Count a call that takes room; whether there is none."""
        self.rooms += 1
        if self.rooms == self._room_at:
            self.has_failed = True
            return True
        return False

    def reserves(self) -> bool:
        """Count a call that needs blocks; whether there are none."""
        return self.takes_room() or self.is_full

    def _sync(self, _what: int | MappedFile) -> None:
        self.syncs += 1
        if self.syncs == self._sync_at:
            self.has_failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _reserve(self, fd: int, offset: int, byte_count: int) -> None:
        if self.reserves():
            raise _no_room()
        self._allocate(fd, offset, byte_count)

    def _write(self, fd: int, data: Any, position: int) -> int:
        if self._is_next_full:
            self._is_next_full = False
            raise _no_room()
        view = memoryview(data)
        if self.takes_room():
            self._is_next_full = True
            view = view[: view.nbytes // 2]
        elif self._is_short:
            view = view[: (view.nbytes + 1) // 2]
        return self._pwrite(fd, view, position)

    def _write_all(self, fd: int, parts: Sequence[bytes | memoryview], position: int) -> int:
        return self._write(fd, b"".join(parts), position)


class FilesOf(Files):
    """The seam over a kernel of ours, also for what is written without `pwrite`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def write_new(
        self, path: Path, data: bytes, *, durable: bool = True, mode: int | None = None
    ) -> None:
        if self._kernel.reserves():
            path.write_bytes(data[: len(data) // 2])
            raise DiskFull(f"{path}: the disk is full")
        super().write_new(path, data, durable=durable, mode=mode)


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
