"""Files mapped into memory, without a descriptor that stays open.

Up to Python 3.12, `mmap.mmap` keeps a copy of the descriptor as long as the mapping lives. A server
would need several for each of its tables, and most systems allow a process 1,024. The kernel needs
none, so this module makes the system call itself.
"""

import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, StorageError, TooManyFiles

_FAILED = ctypes.c_void_p(-1).value
# Errors of the process's or the machine's limits; the file itself is sound.
_NO_MORE = {
    errno.EMFILE: "this process has as many files open as it may; raise `ulimit -n`",
    errno.ENFILE: "the machine has as many files open as it may; raise fs.file-max",
}
_NO_MAPPING = "this process has as much mapped as it may; raise vm.max_map_count or `ulimit -v`"


class MappedFile:
    """The bytes of a file, mapped. Unmapped when the last array from `array` is freed."""

    __slots__ = ("__array_interface__", "__weakref__", "address", "nbytes")

    def __init__(
        self,
        fd: int,
        byte_count: int,
        *,
        offset: int = 0,
        writable: bool = False,
        populate: bool = False,
    ) -> None:
        """Map `byte_count` bytes, not 0, of an open file, which can be closed afterwards.

        `offset` is a multiple of mmap.ALLOCATIONGRANULARITY. With `populate`, the pages are in
        memory on return. OSError when the kernel refuses.
        """
        self.nbytes = 0  # for `__del__`, if the rest raises
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        address = _libc().mmap(None, byte_count, protection, flags, fd, offset)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address = int(address)
        self.nbytes = byte_count
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (byte_count,),
            "typestr": "|u1",
            "data": (self.address, not writable),
        }

    def array(self) -> NDArray[np.uint8]:
        """All its bytes, (nbytes,); read-only unless it is writable."""
        return np.asarray(self)

    def __len__(self) -> int:
        return self.nbytes

    def __del__(self) -> None:
        if self.nbytes:
            _libc().munmap(self.address, self.nbytes)


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Turn an OSError inside into one that names the file `what`: BadFile, or TooManyFiles."""
    try:
        yield
    except StorageError:
        raise  # it names its file already
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise TooManyFiles(f"{what} can't be mapped: {_NO_MAPPING}") from None
        raise not_opened(what, error) from None


def not_opened(what: object, error: OSError) -> StorageError:
    """The error for a file that can't be opened or mapped, perhaps through no fault of the file."""
    return too_many_files(what, error) or BadFile(f"{what} can't be opened: {error.strerror}")


def too_many_files(what: object, error: OSError) -> TooManyFiles | None:
    """The error for `what` if `error` means too many open files or mappings; else None."""
    reason = _NO_MORE.get(error.errno or 0)
    return None if reason is None else TooManyFiles(f"{what} can't be opened: {reason}")


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    size, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = ctypes.c_void_p
    # off_t has 64 bits wherever Python is built with large file support.
    libc.mmap.argtypes = (ctypes.c_void_p, size, number, number, number, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_void_p, size)
    return libc
