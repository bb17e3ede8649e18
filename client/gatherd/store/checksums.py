"""Checksums of a table's files: written with them, compared with them by `gatherd verify`.

A file's checksum is the crc32 (zlib's) of each of its blocks of BLOCK_BYTES, the last one shorter,
so that damage is located, not only found. In manifest.json:

    "checksums": {FILE: {"bytes": n, "block_bytes": 4194304, "crc32": [c, …]}, …}

    "crc32": c          of the rest of the manifest, see `document_crc`

A document with such a member is read by `read_document`, which accepts only the exact bytes that
`encode_document` gives: it finds a flipped bit even if the JSON still means the same.

The files are weights.npy and default.npy; a key index carries its own checksums (key_index.py).
The checksums are those of the published files: a live table that was trained since differs.
"""

import errno
import functools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _text
from pathlib import Path
from typing import Any

from gatherd.errors import BadFile
from gatherd.store.format import open_readonly
from gatherd.store.mapping import not_opened

CHECKSUMS = "checksums"
BLOCK_BYTES = 4 << 20
# A block is read in pieces that stay in a core's cache.
READ_BYTES = 256 << 10
_compact = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class FileChecksums:
    """The checksums of a file's bytes, as they were published."""

    byte_count: int
    block_bytes: int
    crcs: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The manifest's entry for the file."""
        return {
            "bytes": self.byte_count,
            "block_bytes": self.block_bytes,
            "crc32": list(self.crcs),
        }

    @classmethod
    def from_json(cls, entry: object, name: str) -> "FileChecksums":
        """The manifest's `entry` for the file `name`; BadFile when it is invalid."""
        match entry:
            case {"bytes": int(byte_count), "block_bytes": int(block_bytes), "crc32": list(crcs)}:
                if (
                    block_bytes >= 1
                    and len(crcs) == -(-byte_count // block_bytes)
                    and all(type(crc) is int for crc in crcs)
                ):
                    return cls(byte_count, block_bytes, tuple(crcs))
        raise BadFile(f"{name}: its checksums in the manifest are damaged")


def document_crc(document: Mapping[str, Any]) -> int:
    """The crc32 of a JSON object without its own member "crc32": compact, its keys sorted."""
    rest = {key: value for key, value in document.items() if key != "crc32"}
    return zlib.crc32(_compact(rest).encode())


def encode_document(document: Mapping[str, Any], indent: int = 1) -> bytes:
    """A JSON object as a file, with its own checksum as the last member, "crc32"."""
    rest = {key: value for key, value in document.items() if key != "crc32"}
    return _indented({**rest, "crc32": document_crc(rest)}, " " * indent, "\n").encode()


def _indented(value: Any, step: str, line: str) -> str:
    """The text that `json.dumps` gives with an indent, for which it has no compiled code."""
    if isinstance(value, str):
        return _text(value)
    if type(value) is int:
        return str(value)
    inner = line + step
    if isinstance(value, dict) and value:
        shown = [f"{_text(name)}: {_indented(one, step, inner)}" for name, one in value.items()]
        return f"{{{inner}{(',' + inner).join(shown)}{line}}}"
    if isinstance(value, list) and value:
        shown = [_indented(one, step, inner) for one in value]
        return f"[{inner}{(',' + inner).join(shown)}{line}]"
    return json.dumps(value)


def read_document(path: Path) -> dict[str, Any]:
    """Read a file that `encode_document` made. BadFile when a single bit of it differs."""
    return decode_document(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a small file. BadFile when it isn't there or can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadFile(f"{path} isn't there") from None
    except OSError as error:
        raise not_opened(path, error) from None


def decode_document(encoded: bytes, where: str, indent: int = 1) -> dict[str, Any]:
    """The reverse of `encode_document`. BadFile, naming `where` it is from, for other bytes."""
    document = decode_object(encoded, where)
    if "crc32" not in document:
        raise BadFile(f"{where} is damaged: it has no crc32 in it")
    # Compare the bytes themselves too: "\\u00e9" and "\\u00E9" are the same to JSON.
    if (
        document["crc32"] != document_crc(document)
        or _indented(document, " " * indent, "\n").encode() != encoded
    ):
        raise BadFile(f"{where} isn't what was written (crc32): it is damaged")
    return document


def decode_object(encoded: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a file's bytes. BadFile, naming `where` it is from, for anything else."""
    try:
        document = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where} is damaged: {error}") from None
    if not isinstance(document, dict):
        raise BadFile(f"{where} is damaged: it isn't an object")
    return document


class BlockChecksums:
    """The checksums of bytes as they are written, one after the other."""

    def __init__(self) -> None:
        self._crcs: list[int] = []
        self._crc = 0
        self._filled = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes; `data` is of single bytes."""
        while data.nbytes:
            part = data[: BLOCK_BYTES - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += part.nbytes
            data = data[part.nbytes :]
            if self._filled == BLOCK_BYTES:
                self._crcs.append(self._crc)
                self._crc = self._filled = 0

    def update_zeros(self, byte_count: int) -> None:
        """Take so many zeros."""
        head = min(byte_count, -self._filled % BLOCK_BYTES)
        self.update(memoryview(bytes(head)))
        blocks, rest = divmod(byte_count - head, BLOCK_BYTES)
        if blocks:
            self._crcs += [_zeros_crc(BLOCK_BYTES)] * blocks
        self.update(memoryview(bytes(rest)))

    def finish(self) -> FileChecksums:
        """The checksums of all bytes taken."""
        byte_count = len(self._crcs) * BLOCK_BYTES + self._filled
        last = [self._crc] if self._filled else []
        return FileChecksums(byte_count, BLOCK_BYTES, (*self._crcs, *last))


def checksums_of(data: bytes) -> FileChecksums:
    """The checksums of a file that holds `data`."""
    blocks = BlockChecksums()
    blocks.update(memoryview(data))
    return blocks.finish()


def crc_of(fd: int, begin: int, end: int) -> int:
    """The crc32 of the bytes from `begin` up to `end`, or to the file's end if that is sooner.

    Of a hole, nothing is read.
    """
    if _is_hole(fd, begin, end):
        return _zeros_crc(min(end, os.fstat(fd).st_size) - begin)
    crc = 0
    while begin < end:
        data = os.pread(fd, min(READ_BYTES, end - begin), begin)
        if not data:
            break
        crc = zlib.crc32(data, crc)
        begin += len(data)
    return crc


def _is_hole(fd: int, begin: int, end: int) -> bool:
    """Whether the file has no data there."""
    try:
        return os.lseek(fd, begin, os.SEEK_DATA) >= end
    except OSError as error:
        # No data up to the end of the file, or a file system that doesn't tell.
        return error.errno == errno.ENXIO and begin < os.fstat(fd).st_size


@functools.lru_cache(maxsize=8)
def _zeros_crc(byte_count: int) -> int:
    return zlib.crc32(bytes(byte_count))


def block_crcs(fd: int) -> list[int]:
    """The crc32 of every block of the open file, as it is now."""
    size = os.fstat(fd).st_size
    return [
        crc_of(fd, begin, min(begin + BLOCK_BYTES, size)) for begin in range(0, size, BLOCK_BYTES)
    ]


def file_checksums(path: Path) -> FileChecksums:
    """The checksums of the file `path` as it is now. BadFile when it can't be read."""
    fd = open_readonly(path)
    try:
        return FileChecksums(os.fstat(fd).st_size, BLOCK_BYTES, tuple(block_crcs(fd)))
    except OSError as error:
        raise BadFile(f"{path} can't be read: {error.strerror}") from None
    finally:
        os.close(fd)


def verify_blocks(path: Path, recorded: FileChecksums) -> Iterator[int]:
    """Compare the file `path` with its checksums, yielding how many bytes are verified so far.

    BadFile naming the first range of bytes that differs, or the size if it differs.
    """
    fd = open_readonly(path)
    try:
        size = os.fstat(fd).st_size
        if size != recorded.byte_count:
            raise BadFile(f"{path} has {size} bytes; {recorded.byte_count} were published")
        for block, wanted in enumerate(recorded.crcs):
            begin = block * recorded.block_bytes
            end = min(begin + recorded.block_bytes, size)
            try:
                found = crc_of(fd, begin, end)
            except OSError as error:
                raise BadFile(
                    f"{path}: bytes {begin} to {end} can't be read: {error.strerror}"
                ) from None
            if found != wanted:
                raise BadFile(
                    f"{path}: bytes {begin} to {end} aren't what was published "
                    f"(crc32 {found:08x} instead of {wanted:08x})"
                )
            yield end
    finally:
        os.close(fd)


def verify_folder(
    folder: Path,
    manifest: Mapping[str, Any],
    document: str = "manifest.json",
    without: Callable[[str], bool] | None = None,
) -> Iterator[int]:
    """Verify every file that `manifest` has checksums of, as `verify_blocks` does.

    `document` is the file that `manifest` was read from; files for which `without` is true are
    left out.
    """
    if manifest.get("crc32") != document_crc(manifest):
        raise BadFile(f"{folder / document} isn't what was published (crc32)")
    entries = manifest.get(CHECKSUMS)
    if not isinstance(entries, dict):
        raise BadFile(f"{folder / document} has no checksums in it")
    done = 0
    for name, entry in sorted(entries.items()):
        if name != Path(name).name:
            raise BadFile(f"{folder / document} has checksums of {name!r}, outside of its folder")
        if without is not None and without(name):
            continue
        recorded = FileChecksums.from_json(entry, str(folder / name))
        for verified in verify_blocks(folder / name, recorded):
            yield done + verified
        done += recorded.byte_count
