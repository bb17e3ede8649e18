"""Checksums of files that training changes, block by block, while it goes on.

A file of a live version falls into blocks of BLOCK_BYTES, the header in the first. Whoever stores a
row notes its blocks as moved before. At a checkpoint, when what was stored is durable, those that
moved are summed up anew; one that moves again meanwhile is left for the next time. What was summed
up goes into the checkpoint. So a checkpoint of LSN L with a sum of a block says: that is what the
block holds, unless the log has a row of it above L.

Left out on purpose: to hold a block against its sum before a row of it is stored. Damage that comes
before the block moves again, and isn't looked for until then, is summed up with it.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile

# Rows that are picked at random move a block each: larger ones would be read for a few rows.
BLOCK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, eq=False)
class FileSums:
    """The crc32 of each block of a file, uint32 (n,), and whether it is known, bool (n,)."""

    byte_count: int
    crcs: NDArray[np.uint32]
    known: NDArray[np.bool_]


VersionSums: TypeAlias = Mapping[str, FileSums]
"""Those of a version's weights and slots, by the names of their files."""


def block_count(byte_count: int) -> int:
    """How many blocks a file of that size has."""
    return -(-byte_count // BLOCK_BYTES)


def blocks_of(
    rows: NDArray[np.int64], begin: int, row_bytes: int
) -> Iterator[NDArray[np.signedinteger]]:
    """The blocks that `rows`, (n,), lie in, each a few times; the first row begins at `begin`."""
    first = begin + rows * row_bytes
    for offset in (*range(0, row_bytes, BLOCK_BYTES), max(0, row_bytes - 1)):
        yield (first + offset) // BLOCK_BYTES


class BlockSums:
    """The sums of one mapped file. One thread notes; another may sum up meanwhile."""

    def __init__(
        self,
        path: Path,
        data: NDArray[np.uint8],
        begin: int,
        row_bytes: int,
        before: FileSums | None,
    ) -> None:
        """Of the whole file as `data`, (bytes,), whose rows begin at `begin`.

        `before` are the sums of the last checkpoint, None when there are none of this file.
        """
        count = block_count(data.size)
        self._path = path
        self._data = data
        self._begin, self._row_bytes = begin, row_bytes
        self._crcs = np.zeros(count, np.uint32)
        self._known = np.zeros(count, np.bool_)
        self._moved = np.zeros(count, np.bool_)
        if before is not None and before.byte_count == data.size:
            self._crcs, self._known = before.crcs.copy(), before.known.copy()

    def note(self, rows: NDArray[np.int64]) -> None:
        """Note that `rows` are about to be stored."""
        for blocks in blocks_of(rows, self._begin, self._row_bytes):
            self._moved[blocks] = True

    def begin(self) -> None:
        """Begin anew to note, at the LSN of a checkpoint: what moved has no sum any more."""
        self._known &= ~self._moved
        self._moved = np.zeros_like(self._moved)

    def sum_up(self, byte_count: int) -> int:
        """Sum up what has no sum, up to so many bytes; returns how many.

        What was stored before `begin` is in the file.
        """
        summed = 0
        for block in np.flatnonzero(~(self._known | self._moved)):
            if summed >= byte_count:
                break
            crc = self._crc(int(block))
            # Noted before it is stored: if it isn't now, nothing was stored under our hands.
            if not self._moved[block]:
                self._crcs[block] = crc
                self._known[block] = True
            summed += BLOCK_BYTES
        return summed

    @property
    def is_whole(self) -> bool:
        """Whether every block has a sum."""
        return bool(self._known.all())

    def sums(self) -> FileSums:
        """What is known, as of the last `begin`."""
        return FileSums(self._data.size, self._crcs.copy(), self._known.copy())

    def check(self, sums: FileSums, lsn: int) -> None:
        """BadFile when a block that didn't move isn't what it was at `lsn`."""
        if sums.byte_count != self._data.size:
            raise BadFile(
                f"{self._path} has {self._data.size} bytes; at LSN {lsn} it had {sums.byte_count}"
            )
        for block in np.flatnonzero(sums.known & ~self._moved):
            found, wanted = self._crc(int(block)), int(sums.crcs[block])
            if found != wanted:
                raise moved_block(self._path, int(block), sums.byte_count, lsn, (found, wanted))

    def _crc(self, block: int) -> int:
        return zlib.crc32(self._data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES].data)


def moved_block(
    path: Path, block: int, byte_count: int, lsn: int, crcs: tuple[int, int]
) -> BadFile:
    """The error for a block that isn't what it was; `crcs` are what was found, and wanted."""
    begin = block * BLOCK_BYTES
    end = min(begin + BLOCK_BYTES, byte_count)
    return BadFile(
        f"{path}: bytes {begin} to {end} aren't what they were at LSN {lsn}, and no update was of "
        f"them since (crc32 {crcs[0]:08x} instead of {crcs[1]:08x})"
    )
