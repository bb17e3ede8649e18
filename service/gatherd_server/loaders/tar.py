"""The members of a tar archive: where each is in the file.

A member is a header of 512 bytes, then its data, padded to a multiple of 512; two blocks of zeros
end the archive (POSIX.1-1988 ustar, its pax extension of 2001, and GNU's long names). Links,
folders and devices have no data and are skipped, as are the "._" files that macOS adds.

Not tarfile: it reads an extended header of any length into memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gatherd.errors import BadFile
from gatherd_server.loaders.limits import ARCHIVE_ENTRIES_MAX, TAR_HEADER_BYTES_MAX
from gatherd_server.loaders.streams import ByteStream, read_at

BLOCK_BYTES = 512
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_SPARSE = b"S"


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file: `byte_count` bytes from `offset` on."""

    name: str
    offset: int
    byte_count: int


def is_tar(block: bytes) -> bool:
    """Whether a file that begins with `block`, of 512 bytes, is a tar archive."""
    return len(block) == BLOCK_BYTES and block[0] != 0 and _has_checksum(block)


def _has_checksum(block: bytes) -> bool:
    """Whether a header's checksum, the sum of its bytes with its own field blank, is right."""
    try:
        stated = _number(block[148:156])
    except ValueError:
        return False
    return stated == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """A number in octal digits, or GNU's base 256. ValueError for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits.isdigit():
        if digits:
            raise ValueError
        return 0
    return int(digits, 8)


def tar_members(fd: int, name: str) -> dict[str, TarMember]:
    """The regular files of the archive `fd`, called `name` in errors; the last one of each name.

    BadFile when it is damaged or truncated, or holds too many.
    """
    found: dict[str, TarMember] = {}
    for count, member in enumerate(_members(fd, name)):
        if count == ARCHIVE_ENTRIES_MAX:
            raise BadFile(f"{name} has more than {ARCHIVE_ENTRIES_MAX} members")
        if not member.name.rpartition("/")[2].startswith("._"):
            found[member.name] = member
    return found


def _members(fd: int, name: str) -> Iterator[TarMember]:
    size = os.fstat(fd).st_size
    offset = 0
    extended: dict[str, bytes] = {}
    while True:
        block = read_at(fd, BLOCK_BYTES, offset, name)
        if block == bytes(BLOCK_BYTES):
            return
        if len(block) < BLOCK_BYTES:
            raise BadFile(f"{name} is truncated: it ends at byte {size}, without a tar's end mark")
        if not _has_checksum(block):
            raise BadFile(f"{name} is damaged: no tar header at byte {offset}")
        kind, begin = block[156:157], offset + BLOCK_BYTES
        try:
            byte_count = int(extended.get("size", b"%d" % _number(block[124:136])))
        except ValueError:
            raise BadFile(f"{name} is damaged: no size in the header at byte {offset}") from None
        if kind in _WITHOUT_DATA:
            byte_count = 0
        end = begin + -(-byte_count // BLOCK_BYTES) * BLOCK_BYTES
        if byte_count < 0 or end > size:
            raise BadFile(f"{name} is truncated: its member at byte {offset} goes on beyond it")
        if kind in b"xLK":
            extended |= _extended(fd, name, kind, begin, byte_count)
        elif kind != b"g":
            member = TarMember(_name(block, extended), begin, byte_count)
            if kind == _SPARSE or any(key.startswith("GNU.sparse") for key in extended):
                raise BadFile(f"{name}: {member.name} is a sparse file; pack it without --sparse")
            if kind in _REGULAR and not member.name.endswith("/"):
                yield member
            extended = {}
        offset = end


def _name(block: bytes, extended: dict[str, bytes]) -> str:
    raw = extended.get("path")
    if raw is None:
        raw = block[:100].split(b"\0")[0]
        prefix = block[345:500].split(b"\0")[0]
        if block[257:263] == b"ustar\0" and prefix:
            raw = prefix + b"/" + raw
    return raw.decode("utf-8", "surrogateescape").removeprefix("./")


def _extended(fd: int, name: str, kind: bytes, begin: int, byte_count: int) -> dict[str, bytes]:
    """The data of an extended header, about the next member: pax' records, or GNU's long name."""
    if byte_count > TAR_HEADER_BYTES_MAX:
        raise BadFile(
            f"{name} has a header of {byte_count} bytes; {TAR_HEADER_BYTES_MAX} are read at most"
        )
    data = read_at(fd, byte_count, begin, name)
    if kind == b"L":
        return {"path": data.split(b"\0")[0]}
    records: dict[str, bytes] = {}
    while kind == b"x" and data:
        # "LENGTH KEY=VALUE\n", where LENGTH counts all of it.
        length = data.partition(b" ")[0]
        if not length.isdigit() or not len(length) + 2 < int(length) <= len(data):
            raise BadFile(f"{name} is damaged: its pax header at byte {begin}")
        record, data = data[len(length) + 1 : int(length) - 1], data[int(length) :]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "replace")] = value
    return records


class _Slice:
    """A part of a file, as a file."""

    def __init__(self, fd: int, offset: int, byte_count: int) -> None:
        self._fd = fd
        self._offset = offset
        self._left = byte_count

    def read(self, byte_count: int) -> bytes:
        data = os.pread(self._fd, min(byte_count, self._left), self._offset)
        self._offset += len(data)
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._left = 0


def member_stream(fd: int, name: str, member: TarMember) -> ByteStream:
    """The bytes of a member of the archive `fd`, called `name` in errors."""
    part: Any = _Slice(fd, member.offset, member.byte_count)
    return ByteStream(name, part, member.byte_count)
