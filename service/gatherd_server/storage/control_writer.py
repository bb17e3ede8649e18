"""The writer's side of the control page; the store's control.py has the layout."""

import struct
import uuid
from pathlib import Path

from gatherd.store.control import (
    APPLIED_LSN_OFFSET,
    BOOT_ID_BYTES,
    BOOT_ID_OFFSET,
    CLEAN_OFFSET,
    COMMITTED_LSN_OFFSET,
    CONTROL_NAME,
    FAILED_OFFSET,
    GENERATION_OFFSET,
    UNSYNCED_OFFSET,
    initial_page,
)
from gatherd_server.storage.files import Files

_WORD = struct.Struct("<Q")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ControlWriter:
    """The control page, mapped to be written. Only the process that holds the lock has it.

    Its LSNs are never ahead of the durable ones, so any part that survives a power cut is true.
    """

    def __init__(self, files: Files, data_dir: Path) -> None:
        self._files = files
        self._path = data_dir / CONTROL_NAME
        self._mapping = files.map_writable(self._path)
        self._page = self._mapping.array().data

    def _get(self, offset: int) -> int:
        value: int = _WORD.unpack_from(self._page, offset)[0]
        return value

    def _set(self, offset: int, value: int) -> None:
        _WORD.pack_into(self._page, offset, value)

    @property
    def committed_lsn(self) -> int:
        """The LSN up to which the log is known to be durable."""
        return self._get(COMMITTED_LSN_OFFSET)

    @committed_lsn.setter
    def committed_lsn(self, lsn: int) -> None:
        self._set(COMMITTED_LSN_OFFSET, lsn)

    @property
    def applied_lsn(self) -> int:
        """The LSN up to which every lookup sees the updates."""
        return self._get(APPLIED_LSN_OFFSET)

    @applied_lsn.setter
    def applied_lsn(self, lsn: int) -> None:
        self._set(APPLIED_LSN_OFFSET, lsn)

    @property
    def has_failed(self) -> bool:
        """Whether the disk failed under the previous writer."""
        return bool(self._get(FAILED_OFFSET))

    def set_failed(self) -> None:
        """Record that the disk failed: the next start must not trust the pages in memory."""
        self._set(FAILED_OFFSET, 1)

    def set_generation(self, generation: int) -> None:
        """Tell readers that the catalog changed."""
        self._set(GENERATION_OFFSET, generation)

    @property
    def lost_power(self) -> bool:
        """Whether the machine went down under a writer that acknowledges before it syncs."""
        was_open = bool(self._get(UNSYNCED_OFFSET)) and not self._get(CLEAN_OFFSET)
        boot_id = self._page[BOOT_ID_OFFSET : BOOT_ID_OFFSET + BOOT_ID_BYTES]
        return was_open and boot_id != _boot_id()

    def open(self, *, is_unsynced: bool) -> None:
        """Record that a writer works here, and whether it syncs; durable on return."""
        self._set(UNSYNCED_OFFSET, int(is_unsynced))
        self._set(CLEAN_OFFSET, 0)
        self._set(FAILED_OFFSET, 0)
        self._page[BOOT_ID_OFFSET : BOOT_ID_OFFSET + BOOT_ID_BYTES] = _boot_id()
        self._files.msync(self._mapping, self._path)

    def close(self, *, is_clean: bool) -> None:
        """Unmap the page; `is_clean` when everything acknowledged is on the disk."""
        if is_clean:
            self._set(CLEAN_OFFSET, 1)
            self._files.msync(self._mapping, self._path)
        self._page.release()


def page_at(generation: int, lsn: int) -> bytes:
    """A control page of `generation` whose log is applied up to `lsn`."""
    page = bytearray(initial_page())
    _WORD.pack_into(page, GENERATION_OFFSET, generation)
    _WORD.pack_into(page, COMMITTED_LSN_OFFSET, lsn)
    _WORD.pack_into(page, APPLIED_LSN_OFFSET, lsn)
    return bytes(page)


def _boot_id() -> bytes:
    return uuid.UUID(_BOOT_ID.read_text().strip()).bytes
