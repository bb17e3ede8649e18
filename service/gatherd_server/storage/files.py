"""The fault seam: everything of ours that syncs, renames, locks or allocates goes through here."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gatherd.errors import DataDirInUse, StorageError


class Files:
    """The file operations that durability hangs on. Each raises StorageError naming the path."""

    def write_new(self, path: Path, data: bytes) -> None:
        """Make the file `path` with `data`, durable on return but for its name: see `sync_dir`."""
        with _told(path), open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def replace(self, path: Path, data: bytes) -> None:
        """Give `path` new contents at once: readers and a crash see the old file or the new one."""
        fresh = path.with_name(path.name + ".new")
        with suppress(FileNotFoundError):
            fresh.unlink()
        self.write_new(fresh, data)
        with _told(path):
            fresh.replace(path)
        self.sync_dir(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Move `source` to `target`, durable on return."""
        with _told(target):
            source.rename(target)
        self.sync_dir(target.parent)
        self.sync_dir(source.parent)

    def make_dirs(self, path: Path) -> None:
        """Make `path` and what is missing above it, durable on return."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        with _told(path):
            path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            self.sync_dir(folder.parent)

    def sync(self, fd: int, path: Path) -> None:
        """Make the open file's data and size durable."""
        with _told(path):
            os.fsync(fd)

    def sync_dir(self, path: Path) -> None:
        """Make the names in folder `path` durable."""
        with _told(path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def allocate(self, fd: int, byte_count: int, path: Path) -> None:
        """Reserve the file's blocks, so that a full disk is an error now and no SIGBUS later."""
        if byte_count:
            with _told(path):
                os.posix_fallocate(fd, 0, byte_count)

    def truncate(self, fd: int, byte_count: int, path: Path) -> None:
        """Cut the file to `byte_count`, or lengthen it."""
        with _told(path):
            os.ftruncate(fd, byte_count)

    def write_at(self, fd: int, data: memoryview, position: int, path: Path) -> int:
        """Write all of `data` at `position`; returns the position after it."""
        with _told(path):
            while data.nbytes:
                written = os.pwrite(fd, data, position)
                data = data[written:]
                position += written
        return position

    def remove_tree(self, path: Path) -> None:
        """Delete folder `path` and what is in it."""
        with _told(path):
            shutil.rmtree(path)

    def lock(self, path: Path) -> int:
        """Take the exclusive lock `path` and return the descriptor that holds it.

        DataDirInUse, naming the process, when another holds it. Closing the descriptor, or the
        holder's end, releases it.
        """
        with _told(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise DataDirInUse(
                f"data dir {path.parent} is in use by process {holder}; "
                "stop it first, or use another data dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of an OSError which path it was about, and of a full disk that it is one."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else error.strerror
        raise StorageError(f"{path}: {what}") from error
