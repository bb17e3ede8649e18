"""The fault seam: each of our syncs, renames, locks and allocations goes through here."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import DataDirInUse, DiskFull, StorageError
from gatherd.store import memory
from gatherd.store.format import file_bytes
from gatherd.store.mapping import MappedFile, naming, too_many_files
from gatherd_server.storage.sparse import data_ranges

# The most buffers that the kernel takes in one write.
IOV_MAX = 1024
COPY_BYTES = 4 << 20
# The unit of stat's st_blocks, whatever the file system's own is.
STAT_BLOCK_BYTES = 512
ZEROS_BYTES = 1 << 20
# How file systems say that a file has one name, or no more than it has.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK)


def is_read_only(folder: Path) -> bool:
    """Whether `folder` lies on a file system that is mounted read-only; False if it isn't there."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


class Files:
    """The file operations that durability depends on. Each raises StorageError naming the path."""

    def write_new(
        self, path: Path, data: bytes, *, durable: bool = True, mode: int | None = None
    ) -> None:
        """Make the file `path` with `data`, durable on return but for its name: see `sync_dir`.

        Without `durable`, the caller syncs later, after more writes. With `mode` the file has these
        permission bits, whatever the umask; until it has them, only its owner can read it.
        """
        with _Told(path), open(path, "xb", opener=None if mode is None else _private) as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if durable:
                self.sync(file.fileno(), path)

    def replace(
        self, path: Path, data: bytes, *, durable: bool = True, mode: int | None = None
    ) -> None:
        """Give `path` new contents at once: readers and a crash see the old file or the new one.

        Durable on return; without `durable`, a crash may still bring the old one back. A failure
        leaves nothing behind. `mode` as in `write_new`.
        """
        self.prepare(path, data, mode=mode)
        try:
            self.put(path, durable=durable)
        except BaseException:
            with suppress(StorageError):
                self.discard(path)
            raise

    def prepare(self, path: Path, data: bytes, *, mode: int | None = None) -> None:
        """Write the contents that `put` will give `path`, durably, to a file beside it.

        The disk space is taken here. A failure leaves nothing behind. `mode` as in `write_new`.
        """
        fresh = _beside(path)
        with suppress(FileNotFoundError):
            fresh.unlink()
        try:
            self.write_new(fresh, data, mode=mode)
        except BaseException:
            with suppress(StorageError):
                self.discard(path)
            raise

    def put(self, path: Path, *, durable: bool = True) -> None:
        """Give `path` the contents that were prepared; see `replace`."""
        with _Told(path):
            _beside(path).replace(path)
        if durable:
            self.sync_dir(path.parent, path)

    def discard(self, path: Path) -> None:
        """Delete the contents that were prepared for `path` and never put, if there are any."""
        if _beside(path).exists():
            self.unlink(_beside(path))

    def rename(self, source: Path, target: Path) -> None:
        """Move `source` to `target`, durable on return."""
        with _Told(target):
            source.rename(target)
        self.sync_dir(target.parent, target)
        if source.parent != target.parent:
            self.sync_dir(source.parent, source)

    def make_dirs(self, path: Path, *, durable: bool = True) -> None:
        """Make `path` and the missing folders above it, durable on return if `durable`.

        The name of an existing `path` is synced too: the process that made it may have been killed
        before the name was durable.
        """
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        with _Told(path):
            path.mkdir(parents=True, exist_ok=True)
        if durable:
            for folder in reversed(missing or [path]):
                self.sync_dir(folder.parent, folder)

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file to the new file `target`, its blocks reserved; not durable yet.

        A sparse file stays one: only what has data is copied, and takes blocks.
        """
        with _Told(target), open(source, "rb") as old, open(target, "xb") as new:
            status = os.fstat(old.fileno())
            if status.st_blocks * STAT_BLOCK_BYTES >= status.st_size:
                self.allocate(new.fileno(), status.st_size, target)
                shutil.copyfileobj(old, new, COPY_BYTES)
                return
            self.truncate(new.fileno(), status.st_size, target)
            for begin, end in data_ranges(old.fileno(), status.st_size):
                for position in range(begin, end, COPY_BYTES):
                    part = os.pread(old.fileno(), min(COPY_BYTES, end - position), position)
                    self.write_at(new.fileno(), memoryview(part), position, target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file the second name `target`; where names can't be shared, copy it. Not durable.

        A copy is durable, apart from its name, because its source's data is taken to be.
        """
        with _Told(target):
            try:
                target.hardlink_to(source)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
        self.copy(source, target)
        self.sync_path(target)

    def sync_path(self, path: Path) -> None:
        """Make the data of the file `path` durable, stores through mappings included."""
        with _Told(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.sync(fd, path)
        finally:
            os.close(fd)

    def sync(self, fd: int, path: Path) -> None:
        """Make the open file's data and size durable."""
        with _Told(path):
            os.fsync(fd)

    def sync_dir(
        self,
        path: Path,
        of: Path | None = None,  # noqa: ARG002  # for subclasses
    ) -> None:
        """Make the names in folder `path` durable; `of` is the name that this sync is for."""
        with _Told(path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def allocate(self, fd: int, byte_count: int, path: Path, begin: int = 0) -> None:
        """Reserve the file's blocks from `begin` up to `byte_count`.

        So a full disk is an error now and no SIGBUS later.
        """
        if byte_count > begin:
            with _Told(path):
                os.posix_fallocate(fd, begin, byte_count - begin)

    def create_allocated(self, path: Path, byte_count: int, head: bytes) -> int:
        """Make the file `path` of `byte_count` bytes, `head` and then zeros; its descriptor.

        Its blocks are reserved. Durable on return, its name too. DiskFull leaves nothing behind.
        """
        fd = self.create_reserved(path, byte_count)
        with self._unless_failed(fd, path):
            self.write_at(fd, memoryview(head), 0, path)
            self.sync(fd, path)
            self.sync_dir(path.parent, path)
        return fd

    def create_reserved(self, path: Path, byte_count: int) -> int:
        """Make the file `path` of zeros, its blocks reserved; its descriptor. Nothing is durable.

        DiskFull leaves nothing behind.
        """
        with _Told(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with self._unless_failed(fd, path):
            self.allocate(fd, byte_count, path)
        return fd

    def put_reserved(self, fd: int, source: Path, path: Path, head: bytes) -> None:
        """Give the open file `source`, which is reserved and all zeros, a head and the name `path`.

        Durable on return, its name too. A failure closes it, and leaves nothing behind.
        """
        with self._unless_failed(fd, source, path):
            self.write_at(fd, memoryview(head), 0, source)
            self.rename(source, path)
            self.sync(fd, path)

    @contextmanager
    def _unless_failed(self, fd: int, *paths: Path) -> Iterator[None]:
        """Close a file and delete it, by whichever of the names it has, if the block fails."""
        try:
            yield
        except BaseException:
            os.close(fd)
            for path in paths:
                with suppress(StorageError):
                    self.unlink(path)
            raise

    def write_zeros(self, fd: int, byte_count: int, position: int, path: Path) -> None:
        """Write zeros, and have the kernel begin to bring them to the disk; nothing is durable."""
        zeros, end = memoryview(bytes(min(byte_count, ZEROS_BYTES))), position + byte_count
        while position < end:
            begin, position = position, self.write_at(fd, zeros[: end - position], position, path)
            memory.begin_writeback(fd, begin, position - begin)

    def sync_data(self, fd: int, path: Path) -> None:
        """Make the data durable that was written within the file's size."""
        with _Told(path):
            os.fdatasync(fd)

    def unlink(self, path: Path) -> None:
        """Delete the file `path`, if it is there; a crash may bring it back."""
        with _Told(path):
            path.unlink(missing_ok=True)

    def map_writable(self, path: Path) -> MappedFile:
        """Map the whole of the file `path`, which isn't empty, so that stores change it.

        Its blocks must be reserved: a store into a hole on a full disk would be SIGBUS.
        """
        with _Told(path):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                with naming(path):
                    return MappedFile(fd, file_bytes(fd), writable=True)
            finally:
                os.close(fd)

    def msync(self, mapping: MappedFile, path: Path) -> None:
        """Make every store into `mapping` durable that was done before this call."""
        with _Told(path):
            memory.sync(mapping)

    def reserve(self, path: Path, byte_count: int, begin: int = 0) -> None:
        """Reserve the blocks of an existing file, as `allocate` does."""
        with _Told(path):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.allocate(fd, byte_count, path, begin)
        finally:
            os.close(fd)

    def store_rows(
        self,
        target: NDArray[np.uint8],
        counters: NDArray[np.uint32],
        rows: NDArray[np.int64],
        images: NDArray[np.uint8],
        path: Path,  # noqa: ARG002  # for subclasses: the file that is stored into
    ) -> None:
        """Store `images`, (n, row_bytes), as `rows`, (n,), of `target`, a view of mapped `path`.

        Each row's counter, in its stripe of `counters`, is odd meanwhile. Without counters no
        reader may look. The rows are within `target`, (row_count, row_bytes). Releases the GIL.
        """
        from gatherd_server.storage import compiled_rows  # loads numba

        compiled_rows.store_rows(target, counters, rows, images)

    def create_rows(
        self,
        target: NDArray[np.uint8],
        counters: NDArray[np.uint32],
        keys: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        rows: NDArray[np.int64],
        images: tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]],
        path: Path,  # noqa: ARG002  # as above
    ) -> None:
        """Store weights, key and stamp of `rows`, (n,), under their counters, as `store_rows` does.

        `keys` are the mapped keys and stamps, (rows_max,) each, of the rows of `target`. `images`
        are (n, row_bytes), (n,) and (n,).
        """
        from gatherd_server.storage import compiled_open  # loads numba

        compiled_open.create_rows(target, counters, *keys, rows, *images)

    def remove_rows(
        self,
        counters: NDArray[np.uint32],
        keys: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        rows: NDArray[np.int64],
        path: Path,  # noqa: ARG002  # as above
        *,
        are_entries: bool,
    ) -> None:
        """Set the stamps of `rows`, and the keys if they `are_entries`, to 0, under their counters.

        `keys` are the mapped keys and stamps.
        """
        from gatherd_server.storage import compiled_open  # loads numba

        compiled_open.remove_rows(counters, *keys, rows, are_entries)

    def put_strings(
        self,
        heap: NDArray[np.uint8],
        entries: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        data: NDArray[np.uint8],
        path: Path,  # noqa: ARG002  # as above
    ) -> None:
        """Store keys, `data` from each of `offsets` on, in their entries' places of `heap`."""
        from gatherd_server.storage import compiled_open  # loads numba

        compiled_open.put_strings(heap, entries, offsets, data)

    def make_even(
        self,
        counters: NDArray[np.uint32],
        path: Path,  # noqa: ARG002  # as above
    ) -> int:
        """Make the odd ones of `counters`, mapped from `path`, even; return how many there were."""
        from gatherd_server.storage import compiled_rows  # loads numba

        return int(compiled_rows.make_even(counters))

    def truncate(self, fd: int, byte_count: int, path: Path) -> None:
        """Cut the file to `byte_count`, or lengthen it."""
        with _Told(path):
            os.ftruncate(fd, byte_count)

    def write_at(self, fd: int, data: memoryview, position: int, path: Path) -> int:
        """Write all of `data` at `position`; returns the position after it."""
        with _Told(path):
            while data.nbytes:
                written = os.pwrite(fd, data, position)
                data = data[written:]
                position += written
        return position

    def write_all_at(
        self, fd: int, parts: Sequence[bytes | memoryview], position: int, path: Path
    ) -> int:
        """Write `parts`, of single bytes, one after another; returns the position after them."""
        end = position + sum(len(part) for part in parts)
        for start in range(0, len(parts), IOV_MAX):
            some = parts[start : start + IOV_MAX]
            byte_count = sum(len(part) for part in some)
            with _Told(path):
                written = os.pwritev(fd, some, position)
            if written < byte_count:
                rest = memoryview(b"".join(some))[written:]
                self.write_at(fd, rest, position + written, path)
            position += byte_count
        return end

    def remove_tree(self, path: Path) -> None:
        """Delete folder `path` and what is in it."""
        with _Told(path):
            shutil.rmtree(path)

    @contextmanager
    def shared_folder(self, path: Path, *, exclusive: bool, waits: bool = False) -> Iterator[bool]:
        """Hold the folder inside the block, shared or `exclusive`; yield whether that worked.

        It fails when another holder is in the way. With `waits` it waits for the others instead.
        """
        with _Told(path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
                fcntl.flock(fd, how if waits else how | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def lock(self, path: Path) -> int:
        """Take the exclusive lock `path` and return the descriptor that holds it.

        DataDirInUse, naming the process, when another one holds it. Closing the descriptor, or the
        end of the process, releases the lock.
        """
        with _Told(path):
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


class _Told:
    """Turns an OSError into a StorageError that names the path, and a full disk or limit as such.

    No generator makes it: each commit enters it several times.
    """

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A StorageError names its path already.
        if not isinstance(error, OSError) or isinstance(error, StorageError):
            return
        path = self._path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: the disk is full") from error
        if error.errno == errno.EFBIG:
            raise DiskFull(
                f"{path}: the file may not grow (`ulimit -f`, or its file system's limit)"
            ) from error
        raise too_many_files(path, error) or StorageError(f"{path}: {error.strerror}") from error
