"""crc32 of a whole from the crc32s of its parts, so that bytes are read once for two checksums.

After zlib's crc32_combine, which Python's zlib module doesn't have: appending n bytes multiplies
the checksum by x**(8n), modulo the CRC's polynomial over GF(2).
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from gatherd.store.checksums import BLOCK_BYTES

_POLYNOMIAL: Final = 0xEDB88320
_ONE: Final = 1 << 31


def combine(first: int, second: int, second_bytes: int) -> int:
    """The crc32 of two runs of bytes, one after the other, from theirs."""
    return _times(_power(second_bytes), first) ^ second


def _times(a: int, b: int) -> int:
    """The product of two polynomials, whose bits are reflected."""
    product, bit = 0, _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=64)
def _power(byte_count: int) -> int:
    """The polynomial x**(8 * byte_count)."""
    power, square = _ONE, _ONE >> 8
    while byte_count:
        if byte_count & 1:
            power = _times(power, square)
        square = _times(square, square)
        byte_count >>= 1
    return power


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes that were appended to a file.

    `crc` is theirs, `block_crc` that of the last block so far, and `full` are the crc32s of the
    blocks that they completed.
    """

    crc: int
    block_crc: int
    full: tuple[int, ...]


def take(data: memoryview, position: int, block_crc: int) -> Taken:
    """Checksum `data`, of single bytes, that comes at `position` of a file.

    `block_crc` is that of the file's last block of BLOCK_BYTES, up to `position`.
    """
    crc, full = 0, []
    while data.nbytes:
        filled = position % BLOCK_BYTES
        part = data[: BLOCK_BYTES - filled]
        found = zlib.crc32(part)
        crc = combine(crc, found, part.nbytes)
        block_crc = combine(block_crc, found, part.nbytes) if filled else found
        position += part.nbytes
        data = data[part.nbytes :]
        if position % BLOCK_BYTES == 0:
            full.append(block_crc)
    return Taken(crc, block_crc, tuple(full))


def crc_of_parts(parts: Iterable[bytes | memoryview]) -> int:
    """The crc32 of bytes in several pieces."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc
