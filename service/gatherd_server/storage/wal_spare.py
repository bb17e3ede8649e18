"""The log's next segment, made before it is needed: reserved, and filled with zeros.

A sync of blocks that were reserved and never written makes the file system record that they are
written now. In blocks that hold written zeros only the data is left to sync. Left out on purpose:
segments that are used again, whose old bytes would look like the rest of an interrupted append.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from gatherd.errors import StorageError
from gatherd_server.storage.files import Files

SPARE_NAME: Final = "next"


class SpareSegment:
    """The file data/wal/next. One thread fills it, another may take it. Nothing in it is durable.

    A crash leaves it behind. Nobody reads it, and the next writer deletes it.
    """

    def __init__(self, files: Files, wal: Path, byte_count: int) -> None:
        """Of `byte_count` bytes; nothing is made yet."""
        self.path = wal / SPARE_NAME
        """Its name until it is taken."""
        self._files = files
        self._byte_count = byte_count
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._filled = 0
        if self.path.exists():
            files.unlink(self.path)

    @property
    def is_ready(self) -> bool:
        """Whether it is complete. On any thread."""
        return self._fd is not None and self._filled == self._byte_count

    def size(self) -> int:
        """The file's bytes, 0 if there is none. On any thread."""
        return self._byte_count if self._fd is not None else 0

    def fill(self, byte_count: int) -> None:
        """Go on by up to `byte_count` bytes. After a StorageError, as DiskFull, nothing is left."""
        with self._lock:
            try:
                if self._fd is None:
                    self._filled = 0
                    self._fd = self._files.create_reserved(self.path, self._byte_count)
                some = min(byte_count, self._byte_count - self._filled)
                if some:
                    self._files.write_zeros(self._fd, some, self._filled, self.path)
                    self._filled += some
            except BaseException:
                self._drop()
                raise

    def take(self) -> int | None:
        """Its descriptor if it is ready, now the caller's; the file has its name still."""
        if not self.is_ready:
            return None
        with self._lock:
            fd, self._fd = self._fd, None
            return fd

    def close(self) -> None:
        """Delete it."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
            with suppress(StorageError):
                self._files.unlink(self.path)
