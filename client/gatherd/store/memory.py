"""Memory policy: the allocator's thresholds, and advice to the kernel about mapped files.

Page faults, not arithmetic, decide the speed of a gather; docs/performance.md has the figures.
"""

import ctypes
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gatherd.store.mapping import MappedFile

# Not in the mmap module before Python 3.14; the number is Linux's (5.14 and later).
_MADV_POPULATE_READ = 22
_MS_SYNC = 4
_SYNC_FILE_RANGE_WRITE = 2
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
# glibc accepts thresholds up to half of its heap maximum: 32 MiB on 64-bit.
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 512 << 20
_TOP_PAD_BYTES = 64 << 20
_POPULATE_BYTES = 64 << 20


def tune_allocator() -> bool:
    """Keep freed buffers mapped for reuse, instead of faulting them in again for every reply.

    Sets glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD for the whole process, which
    then holds up to 512 MiB of freed memory. Returns False where the C library has no `mallopt`.
    """
    return _set_options(
        {
            _M_MMAP_THRESHOLD: _MMAP_THRESHOLD_BYTES,
            _M_TRIM_THRESHOLD: _TRIM_THRESHOLD_BYTES,
            _M_TOP_PAD: _TOP_PAD_BYTES,
        }
    )


def give_back_large_buffers() -> bool:
    """Have every buffer of a megabyte or more given back to the system as soon as it is freed.

    By default glibc keeps ever larger ones, up to 32 MiB, and what lies between them stays. Meant
    for a process that reads a long file. Returns False where the C library has no `mallopt`.
    """
    return _set_options({_M_MMAP_THRESHOLD: 1 << 20})


def _set_options(options: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in options.items())


def populate(mapping: MappedFile, byte_count: int | None = None) -> None:
    """Map every page of `mapping` now, reading those that aren't in the page cache.

    Or only those of its first `byte_count` bytes.

    Afterwards a gather takes no page fault. OSError when the file ends before the mapping does.

    Done in steps, because each step locks the process's memory map: between them other threads'
    lookups and allocations go on.
    """
    address, end = mapping.address, len(mapping)
    if byte_count is not None:
        end = min(end, byte_count)
    for start in range(0, end, _POPULATE_BYTES):
        length = ctypes.c_size_t(min(_POPULATE_BYTES, end - start))
        try:
            _call_at("madvise", address + start, length, ctypes.c_int(_MADV_POPULATE_READ))
        except OSError as error:
            if error.errno not in (22, 95):  # EINVAL, ENOTSUP: before Linux 5.14
                raise
            _advise(mapping, mmap.MADV_WILLNEED)  # reads ahead instead
            return


def advise_random(mapping: MappedFile) -> None:
    """Tell the kernel not to read ahead: rows are picked at random, and don't all fit in RAM."""
    with suppress(OSError):
        _advise(mapping, mmap.MADV_RANDOM)


def is_resident(mapping: MappedFile, begin: int, byte_count: int) -> bool:
    """Whether all pages of a range of `mapping` are in memory; True when the kernel doesn't say.

    Takes a microsecond or two. The kernel answers only a file's owners, and users who may write it.
    """
    first = begin - begin % mmap.PAGESIZE
    length = begin + byte_count - first
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    try:
        _call_at("mincore", mapping.address + first, ctypes.c_size_t(length), pages)
    except OSError:
        return True
    return all(page & 1 for page in pages)


def let_go(part: NDArray[np.uint8]) -> None:
    """Take whole pages of a shared mapping out of this process's memory; the page cache keeps them.

    The next access maps them again. `part` begins at a page.
    """
    with suppress(OSError):
        length = ctypes.c_size_t(part.nbytes - part.nbytes % mmap.PAGESIZE)
        _call_at("madvise", part.ctypes.data, length, ctypes.c_int(mmap.MADV_DONTNEED))


def begin_writeback(fd: int, position: int, byte_count: int) -> None:
    """Have the kernel begin to write a range of a file to the disk, where it can be asked to.

    Nothing is durable by that; a later sync has less to do.
    """
    with suppress(OSError, AttributeError):
        begin = ctypes.CDLL(None).sync_file_range
        place = ctypes.c_int64(position), ctypes.c_int64(byte_count)
        begin(ctypes.c_int(fd), *place, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def resident(mapping: MappedFile) -> int:
    """Bytes of `mapping` that are in memory now. OSError when the kernel doesn't say."""
    pages = np.empty(-(-len(mapping) // mmap.PAGESIZE), np.uint8)
    _call("mincore", mapping, ctypes.c_void_p(pages.ctypes.data))
    return int(np.count_nonzero(pages & 1)) * mmap.PAGESIZE


def lock(mapping: MappedFile, byte_count: int | None = None) -> None:
    """Keep every page of `mapping`, or of its first `byte_count` bytes, in RAM.

    OSError when RLIMIT_MEMLOCK doesn't allow it.
    """
    length = len(mapping) if byte_count is None else min(len(mapping), byte_count)
    _call_at("mlock", mapping.address, ctypes.c_size_t(length))


def sync(mapping: MappedFile) -> None:
    """Write stores into `mapping` to the disk, without holding the GIL. OSError on failure."""
    _call("msync", mapping, ctypes.c_int(_MS_SYNC))


def _advise(mapping: MappedFile, advice: int) -> None:
    _call("madvise", mapping, ctypes.c_int(advice))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, mapping: MappedFile, *more: object) -> None:
    _call_at(name, mapping.address, ctypes.c_size_t(len(mapping)), *more)


def _call_at(name: str, address: int, *more: object) -> None:
    function = getattr(_libc(), name)
    if function(ctypes.c_void_p(address), *more) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def available_bytes(proc: str = "/proc", groups: str = "/sys/fs/cgroup") -> int:
    """Bytes of memory available without swapping, or 0 when unknown.

    The machine's MemAvailable or, if less, the rest that the limits of this process's control
    groups leave. Only a group's memory that can't be dropped counts as used: not mapped tables.
    """
    available = _first_number(f"{proc}/meminfo", "MemAvailable:") * 1024
    return min([available, *_left_by_groups(proc, groups)])


def _left_by_groups(proc: str, groups: str) -> list[int]:
    """Bytes left by each limit on this process's memory, of either version of control groups."""
    left = []
    with suppress(OSError), open(f"{proc}/self/cgroup") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers == "":
                root, limit, kept = groups, "memory.max", ("anon", "shmem")
            elif controllers == "memory":
                root, limit = f"{groups}/memory", "memory.limit_in_bytes"
                kept = ("total_rss", "total_shmem")
            else:
                continue
            # A group's ancestors limit it, too. In a container the path may be the host's, and the
            # group itself is mounted at the root; the last step reads that.
            while True:
                folder = root + path.rstrip("/")
                with suppress(OSError, ValueError), open(f"{folder}/{limit}") as file:
                    byte_count = int(file.read())  # or "max"
                    used = sum(_first_number(f"{folder}/memory.stat", name) for name in kept)
                    left.append(max(0, byte_count - used))
                if path in ("", "/"):
                    break
                path = path.rpartition("/")[0]
    return left


def _first_number(path: str, name: str) -> int:
    """The number in a file's line that begins with `name`; 0 without such a line."""
    with suppress(OSError), open(path) as lines:
        for line in lines:
            if line.split(maxsplit=1)[:1] == [name]:
                return int(line.split()[1])
    return 0
