"""The files of an open version: one whose rows come and go by their keys.

A folder of an open version has the files of any version (catalog.py) and these. All of them have
their full length, of `rows_max` rows, from the start: readers map them once, and a size never
changes. They are sparse, and the writer reserves the blocks of rows before it uses them.

keys.npy           kinds int64 and uint64: each row's key, (rows_max,)
keys.entries.npy   kind bytes: each row's key in the heap, uint64 (rows_max,), see below
keys.heap          kind bytes: the keys' bytes, each at a multiple of 8; no header
stamps.npy         uint64 (rows_max,): microseconds since 1970 of each row's last push, 0 for a row
                   that isn't in use; strictly increasing over the table's pushes
counts.npy         uint32 (rows_max,): how many pushes changed the row since it was created
keys.index         the hash table from keys to rows, below

An entry is (position // 8) << 11 | length; 0 means no key. When a row with an integer key is
removed, its key stays where it is, because every integer is a key: only the stamp says that the row
isn't in use.

    offset  bytes  header of keys.index             all integers little-endian
    0       8      magic "gatherdI"
    8       4      format version (1)
    12      4      kind of the keys: 0 bytes, 1 int64, 2 uint64
    16      8      seed of the hash
    24      8      number of slots m, a power of two
    32      4      crc32 of the bytes 0 to 32
    36      28     zeros
    64      8      rows that are in use now
    72      8      used rows: those from this one on were never in use
    80      4016   zeros
    4096    8·m    slots, uint64

Slots, hash and probes are those of key_index.py, and a slot that was emptied while others behind it
are in use is TOMBSTONE. The index is a hint: a row's own key decides. So it is built anew from keys
and stamps when a writer starts, and nothing of it has to be durable. An index that has grown is a
new file, which is renamed to keys.index before the catalog's generation is raised: at each new
generation readers look whether keys.index is another file (`FileIdentity`).

The manifest of an open version has "rows": rows_max, and a member "open" (open_spec.py).
"""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.format import file_bytes, open_readonly
from gatherd.store.key_index import KEYED_ROWS_MAX, KEYS_INTS, NPY_HEADER_BYTES, KeyKind
from gatherd.store.keys import KEY_BYTES_MAX
from gatherd.store.mapping import MappedFile, naming

OPEN: Final = "open"
KEYS_ENTRIES: Final = "keys.entries.npy"
KEYS_HEAP: Final = "keys.heap"
KEYS_INDEX: Final = "keys.index"
STAMPS: Final = "stamps.npy"
COUNTS: Final = "counts.npy"

UNIT_BYTES: Final = 8
"""Keys lie at multiples of this in the heap."""
LENGTH_BITS: Final = 11
HEAP_BYTES_MAX: Final = 2**42
TOMBSTONE: Final = 2**40 - 1
OPEN_ROWS_MAX: Final = KEYED_ROWS_MAX
INDEX_MAGIC: Final = b"gatherdI"
INDEX_FORMAT: Final = 1
INDEX_HEADER_BYTES: Final = 4096
LIVE_ROWS_AT: Final = 64
USED_ROWS_AT: Final = 72
SLOTS_MAX: Final = 2**42

_HEADER: Final = Struct("<8sIIQQ")
_CRC: Final = Struct("<I")
_KINDS: Final = (KeyKind.BYTES, KeyKind.INT64, KeyKind.UINT64)


class FileIdentity(NamedTuple):
    """What tells one file from another of the same name."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """A 1-D .npy file with a header of NPY_HEADER_BYTES."""

    name: str
    descr: str
    length: int

    @property
    def byte_count(self) -> int:
        """Its size."""
        return NPY_HEADER_BYTES + np.dtype(self.descr).itemsize * self.length


def key_array(kind: KeyKind, rows_max: int) -> ArrayFile:
    """The file that has a key, or a key's entry, for each row."""
    if kind is KeyKind.BYTES:
        return ArrayFile(KEYS_ENTRIES, "<u8", rows_max)
    return ArrayFile(KEYS_INTS, "<i8" if kind is KeyKind.INT64 else "<u8", rows_max)


def stamp_array(rows_max: int) -> ArrayFile:
    """The file of the rows' stamps."""
    return ArrayFile(STAMPS, "<u8", rows_max)


def count_array(rows_max: int) -> ArrayFile:
    """The file of the rows' counts."""
    return ArrayFile(COUNTS, "<u4", rows_max)


def heap_bytes(rows_max: int) -> int:
    """The size of keys.heap."""
    return min(max(rows_max, 1) * KEY_BYTES_MAX, HEAP_BYTES_MAX)


def is_of_keys(name: str) -> bool:
    """Whether a file of an open version holds its keys, stamps or counts, but not their index."""
    return name in (KEYS_INTS, KEYS_ENTRIES, KEYS_HEAP, STAMPS, COUNTS)


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """The constant part of the first page of keys.index."""

    kind: KeyKind
    seed: int
    slot_count: int

    @property
    def byte_count(self) -> int:
        """The size of the whole file."""
        return INDEX_HEADER_BYTES + 8 * self.slot_count

    def encode(self) -> bytes:
        """The first page, of an index without rows."""
        number = _KINDS.index(self.kind)
        head = _HEADER.pack(INDEX_MAGIC, INDEX_FORMAT, number, self.seed, self.slot_count)
        return (head + _CRC.pack(zlib.crc32(head))).ljust(INDEX_HEADER_BYTES, b"\0")

    @classmethod
    def decode(cls, page: bytes) -> "IndexHeader | None":
        """The header that `encode` gave; None for any other bytes."""
        if len(page) < INDEX_HEADER_BYTES:
            return None
        magic, version, number, seed, slot_count = _HEADER.unpack_from(page)
        is_whole = _CRC.unpack_from(page, _HEADER.size)[0] == zlib.crc32(page[: _HEADER.size])
        if not is_whole or magic != INDEX_MAGIC or version != INDEX_FORMAT:
            return None
        if number >= len(_KINDS) or not 0 < slot_count <= SLOTS_MAX or slot_count & slot_count - 1:
            return None
        return cls(_KINDS[number], seed, slot_count)


@dataclass(frozen=True, slots=True, eq=False)
class MappedIndex:
    """keys.index, mapped read-only. `words` are the two counts of the header, uint64."""

    header: IndexHeader
    slots: NDArray[np.uint64]
    words: NDArray[np.uint64]
    identity: FileIdentity
    mapping: MappedFile

    @property
    def live_rows(self) -> int:
        """How many rows were in use after the last commit."""
        return int(self.words[0])

    @property
    def used_rows(self) -> int:
        """The first row that was never in use, after the last commit."""
        return int(self.words[1])


def map_index(folder: Path, kind: KeyKind) -> MappedIndex:
    """Map the index in `folder`. BadFile when its header or size is damaged, or of another kind."""
    path = folder / KEYS_INDEX
    fd = open_readonly(path)
    try:
        header = IndexHeader.decode(os.pread(fd, INDEX_HEADER_BYTES, 0))
        if header is None or header.kind is not kind:
            raise BadFile(
                f"{path} isn't an index of {kind.value} keys: bytes 0 to 4096 are damaged"
            )
        if file_bytes(fd) != header.byte_count:
            raise BadFile(f"{path} has {file_bytes(fd)} bytes, not {header.byte_count}")
        status = os.fstat(fd)
        with naming(path):
            mapping = MappedFile(fd, header.byte_count)
    finally:
        os.close(fd)
    page = mapping.array()
    words = page[LIVE_ROWS_AT : USED_ROWS_AT + 8].view("<u8")
    slots = page[INDEX_HEADER_BYTES:].view("<u8")
    identity = FileIdentity(status.st_dev, status.st_ino)
    return MappedIndex(header, slots, words, identity, mapping)


def index_identity(folder: Path) -> FileIdentity | None:
    """Which file keys.index is now; None when there is none."""
    try:
        found = (folder / KEYS_INDEX).stat()
    except OSError:
        return None
    return FileIdentity(found.st_dev, found.st_ino)


def map_whole(folder: Path, name: str, byte_count: int) -> tuple[MappedFile, NDArray[Any]]:
    """Map a file without a header, such as keys.heap; BadFile unless it has `byte_count` bytes."""
    path = folder / name
    fd = open_readonly(path)
    try:
        if file_bytes(fd) != byte_count:
            raise BadFile(f"{path} has {file_bytes(fd)} bytes, not {byte_count}")
        with naming(path):
            mapping = MappedFile(fd, byte_count)
    finally:
        os.close(fd)
    return mapping, mapping.array()
