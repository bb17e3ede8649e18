"""Checksums, block by block, of files that training changes, taken while it goes on.

A file of a live version consists of blocks of BLOCK_BYTES, the header in the first. Before a row is
stored, its blocks are noted as moved. At a checkpoint, when the stored rows are durable, the blocks
that moved are summed up anew; a block that moves again meanwhile is left for the next checkpoint.
The sums go into the checkpoint. So a sum in a checkpoint of LSN L says what the block holds, unless
the log has one of its rows above L.

Left out on purpose: comparing a block with its sum before a row of it is stored. If a block is
damaged and moves again before anyone checks it, the damage becomes part of its new sum.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store import memory

# Each row at a random place moves a block: larger blocks would be read for a few rows.
BLOCK_BYTES = 64 << 10
FEW_ROWS = 4


@dataclass(frozen=True, slots=True, eq=False)
class FileSums:
    """The crc32 of each block of a file, uint32 (n,), and whether it is known, bool (n,)."""

    byte_count: int
    crcs: NDArray[np.uint32]
    known: NDArray[np.bool_]


VersionSums: TypeAlias = Mapping[str, FileSums]
"""The sums of a version's weights and slots, by file name."""


def block_count(byte_count: int) -> int:
    """How many blocks a file of that size has."""
    return -(-byte_count // BLOCK_BYTES)


def blocks_of(
    rows: NDArray[np.int64], begin: int, row_bytes: int
) -> Iterator[NDArray[np.signedinteger]]:
    """The blocks that hold `rows`, (n,), each a few times; the first row begins at `begin`."""
    first = begin + rows * row_bytes
    for offset in (*range(0, row_bytes, BLOCK_BYTES), max(0, row_bytes - 1)):
        yield (first + offset) // BLOCK_BYTES


def _last_block(first: int, row_bytes: int) -> int:
    return (first + max(0, row_bytes - 1)) // BLOCK_BYTES


class BlockSums:
    """The sums of one mapped file. One thread notes; another may sum up meanwhile."""

    def __init__(
        self,
        path: Path,
        data: NDArray[np.uint8],
        begin: int,
        row_bytes: int,
        before: FileSums | None,
        *,
        is_growing: bool = False,
    ) -> None:
        """`data`, (bytes,), is the whole file, whose rows begin at `begin`.

        `before` are the file's sums in the last checkpoint, None when it has none. Of a file that
        `is_growing`, only the blocks up to the last one that was ever noted have sums.
        """
        count = block_count(data.size)
        # Memory that isn't written takes no room, however long the file is.
        self._path = path
        self._data = data
        self._begin, self._row_bytes = begin, row_bytes
        self._crcs = np.zeros(count, np.uint32)
        self._known = np.zeros(count, np.bool_)
        self._moved = np.zeros(count, np.bool_)
        self._is_growing = is_growing
        self._count = 0 if is_growing else count
        if before is not None and (before.byte_count == data.size or is_growing):
            self._count = min(count, before.crcs.size)
            self._crcs[: self._count] = before.crcs[: self._count]
            self._known[: self._count] = before.known[: self._count]

    def note(self, rows: NDArray[np.int64]) -> None:
        """Note that `rows` are about to be stored."""
        if rows.size <= FEW_ROWS:
            # Their numbers one by one take less time than an array's passes.
            begin, row_bytes, moved = self._begin, self._row_bytes, self._moved
            for row in rows.tolist():
                first = begin + row * row_bytes
                last = _last_block(first, row_bytes)
                moved[first // BLOCK_BYTES : last + 1] = True
                self._count = max(self._count, last + 1)
            return
        for blocks in blocks_of(rows, self._begin, self._row_bytes):
            self._moved[blocks] = True
        last = _last_block(self._begin + int(rows.max()) * self._row_bytes, self._row_bytes)
        self._count = max(self._count, last + 1)

    def cover(self, row_count: int) -> None:
        """Sum up the blocks of the first rows of a file that is growing, noted or not."""
        if row_count:
            end = self._begin + row_count * self._row_bytes
            self._count = max(self._count, min(block_count(end), self._moved.size))

    def begin(self) -> None:
        """Start a new round of notes, at a checkpoint's LSN; blocks that moved lose their sums."""
        count = self._count
        self._known[:count] &= ~self._moved[:count]
        self._moved = np.zeros_like(self._moved)

    def sum_up(self, byte_count: int) -> int:
        """Sum up blocks that have no sum, up to `byte_count` bytes; return how many bytes.

        The file has every row that was stored before `begin`.
        """
        summed = 0
        count = self._count
        for block in np.flatnonzero(~(self._known[:count] | self._moved[:count])):
            if summed >= byte_count:
                break
            part = self._part(int(block))
            crc = zlib.crc32(part.data)
            # Else this process holds all of a table that was just made.
            memory.let_go(part)
            # A store notes its block first: a block without a note didn't change under the sum.
            if not self._moved[block]:
                self._crcs[block] = crc
                self._known[block] = True
            summed += BLOCK_BYTES
        return summed

    @property
    def is_whole(self) -> bool:
        """Whether every block has a sum."""
        return bool(self._known[: self._count].all())

    def sums(self) -> FileSums:
        """The known sums, as of the last `begin`."""
        count = self._count
        byte_count = min(self._data.size, count * BLOCK_BYTES)
        return FileSums(byte_count, self._crcs[:count].copy(), self._known[:count].copy())

    def check(self, sums: FileSums, lsn: int) -> None:
        """BadFile when a block that didn't move differs from its sum at `lsn`."""
        if sums.byte_count != self._data.size and not self._is_growing:
            raise BadFile(
                f"{self._path} has {self._data.size} bytes; at LSN {lsn} it had {sums.byte_count}"
            )
        for block in np.flatnonzero(sums.known & ~self._moved[: sums.known.size]):
            found, wanted = zlib.crc32(self._part(int(block)).data), int(sums.crcs[block])
            if found != wanted:
                raise moved_block(self._path, int(block), sums.byte_count, lsn, (found, wanted))

    def _part(self, block: int) -> NDArray[np.uint8]:
        return self._data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]


def moved_block(
    path: Path, block: int, byte_count: int, lsn: int, crcs: tuple[int, int]
) -> BadFile:
    """The error for a block that differs from its sum; `crcs` are the actual and the expected."""
    begin = block * BLOCK_BYTES
    end = min(begin + BLOCK_BYTES, byte_count)
    return BadFile(
        f"{path}: bytes {begin} to {end} aren't what they were at LSN {lsn}, and no update changed "
        f"them since (crc32 {crcs[0]:08x} instead of {crcs[1]:08x})"
    )
