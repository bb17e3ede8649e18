"""The control page: changes that readers in other processes must notice, in one mapped page.

    offset  bytes  field                            all integers little-endian
    0       8      magic "gatherdC"
    8       8      format version (1)
    16      8      catalog generation
    24      8      committed LSN
    32      8      applied LSN
    40      8      1 when the disk failed under the writer, until the next start
    48      16     boot id of the machine when the writer started
    64      8      1 when the writer stopped in good order
    72      8      1 when the writer acknowledges before the disk has it (--durability os)
    80      4016   zeros

Each field is one aligned 8-byte word, so a reader sees the old value or the new one. The file is
made once and keeps its inode for the data dir's life, so a mapped page always stays current.
"""

import os
import struct
from pathlib import Path

from gatherd.errors import BadFile, DataDirVersion
from gatherd.store.mapping import MappedFile, naming

CONTROL_NAME = "control"
CONTROL_MAGIC = b"gatherdC"
CONTROL_FORMAT = 1
CONTROL_BYTES = 4096
GENERATION_OFFSET = 16
COMMITTED_LSN_OFFSET = 24
APPLIED_LSN_OFFSET = 32
FAILED_OFFSET = 40
BOOT_ID_OFFSET = 48
BOOT_ID_BYTES = 16
CLEAN_OFFSET = 64
UNSYNCED_OFFSET = 72
_WORD = struct.Struct("<Q")
_GENERATION = GENERATION_OFFSET // _WORD.size
_COMMITTED_LSN = COMMITTED_LSN_OFFSET // _WORD.size
_APPLIED_LSN = APPLIED_LSN_OFFSET // _WORD.size
_FAILED = FAILED_OFFSET // _WORD.size


def initial_page() -> bytes:
    """A control page of generation 0 and LSN 0."""
    return (CONTROL_MAGIC + _WORD.pack(CONTROL_FORMAT)).ljust(CONTROL_BYTES, b"\0")


class ControlPage:
    """A data dir's control page, mapped read-only."""

    def __init__(self, data_dir: Path) -> None:
        """BadFile when the page is absent or damaged, DataDirVersion when its format isn't ours."""
        path = data_dir / CONTROL_NAME
        with naming(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != CONTROL_BYTES:
                raise BadFile(f"{path} isn't a control page: it has {os.fstat(fd).st_size} bytes")
            with naming(path):
                page = MappedFile(fd, CONTROL_BYTES).array().data
        finally:
            os.close(fd)
        if page[:8] != CONTROL_MAGIC:
            raise BadFile(f"{path} isn't a control page")
        # In native order, which is little-endian wherever the tables' files can be mapped too.
        self._words = page.cast("Q")
        if (version := self._words[1]) != CONTROL_FORMAT:
            raise DataDirVersion(
                f"{data_dir} has control page format {version}; this release reads {CONTROL_FORMAT}"
            )

    @property
    def generation(self) -> int:
        """The number of changes of the catalog. Each request of a reader reads it: 0.1 µs."""
        return self._words[_GENERATION]

    @property
    def committed_lsn(self) -> int:
        """The last update that the log is known to hold."""
        return self._words[_COMMITTED_LSN]

    @property
    def applied_lsn(self) -> int:
        """The last update that every lookup sees."""
        return self._words[_APPLIED_LSN]

    @property
    def writer_has_failed(self) -> bool:
        """Whether the disk failed under the last writer."""
        return bool(self._words[_FAILED])

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
