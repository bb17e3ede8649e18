r"""The index from keys to rows of a table version: files that every process maps, not a dict.

keys.json          {"format": 1, "kind": "bytes" | "int64" | "uint64", "count": n, "seed": HEX,
                   "data_bytes": d, "slot_count": m, "block_bytes": b,
                   "files": {NAME: [crc32 of each b bytes of the file]}, "crc32": c};
                   c is the crc32 of the others as compact JSON with sorted keys
keys.npy           kinds int64 and uint64: the keys in row order, (n,)
keys.data.npy      kind bytes: the keys one after the other, uint8 (d,)
keys.offsets.npy   kind bytes: where each begins, and the end of the last, uint64 (n + 1,)
keys.slots.npy     the hash table, uint64 (m,); m is a power of two, m > n

Every .npy file has the 128-byte header that `npy_header` makes, so the header is compared whole.

A slot is 0 when empty, else fingerprint << 40 | row + 1: 24 bits of the key's hash, 40 of its row.
A key's slots are (hash + i) mod m, i = 0, 1, …: its row is in one of them before the first empty
one, and within PROBES_MAX. The fingerprint saves all but one in 2**24 comparisons with other keys.

    mix(z)       z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB;
                 z ^= z >> 31                  (splitmix64's finalizer, Steele et al. 2014)
    integer k    mix(k ^ seed), k as unsigned
    bytes        h = mix(seed ^ length); then h = mix(h ^ word) for each 8 bytes, little-endian,
                 the last ones padded with zeros

Each index has a random seed, so that nobody can choose colliding keys beforehand. Someone who knows
the seed can; the builder then meets PROBES_MAX and takes another seed. A lookup never takes more
than PROBES_MAX probes, whatever the files hold.

Opening reads only keys.json and the headers. The mapped files' contents are checked before they are
used: a damaged slot or offset makes a key missing, and never gives another row. `verify` reads
everything. A file that is truncated in place while it is mapped ends the process with SIGBUS.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd._suggestions import did_you_mean
from gatherd.errors import BadFile, InvalidArgument, KeyNotFound
from gatherd.store import memory
from gatherd.store.checksums import BLOCK_BYTES, FileChecksums, document_crc, verify_blocks
from gatherd.store.format import file_bytes, open_readonly
from gatherd.store.kernels import compiled
from gatherd.store.keys import (
    KEY_BYTES_MAX,
    Keys,
    StringKeys,
    as_keys,
    key_not_found_error,
    key_text,
    string_keys_from_wire,
    strings_at,
)
from gatherd.store.mapping import MappedFile, naming, not_opened
from gatherd.store.near_keys import near_keys

__all__ = [
    "KEY_BYTES_MAX",
    "KeyIndex",
    "KeyKind",
    "Keys",
    "StringKeys",
    "as_keys",
    "string_keys_from_wire",
]

KEYS_FORMAT: Final = 1
KEYS_JSON: Final = "keys.json"
KEYS_JSON_BYTES_MAX: Final = 64 << 20
KEYS_INTS: Final = "keys.npy"
KEYS_DATA: Final = "keys.data.npy"
KEYS_OFFSETS: Final = "keys.offsets.npy"
KEYS_SLOTS: Final = "keys.slots.npy"
NPY_HEADER_BYTES: Final = 128
KEYED_ROWS_MAX: Final = 2**40 - 2
SLOTS_MIN: Final = 8


class KeyKind(Enum):
    """The kinds of a table's keys."""

    BYTES = "bytes"
    INT64 = "int64"
    UINT64 = "uint64"


def npy_header(descr: str, length: int) -> bytes:
    """The first 128 bytes of a .npy file, format 1.0, of a 1-D array of `descr` and `length`."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({length},), }}"
    padded = text.ljust(NPY_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little") + padded.encode()


@dataclass(frozen=True, slots=True)
class KeysInfo:
    """The contents of keys.json; `blocks` are the crc32 of each file's blocks."""

    kind: KeyKind
    count: int
    seed: int
    data_bytes: int
    slot_count: int
    blocks: Mapping[str, list[int]]
    block_bytes: int = BLOCK_BYTES

    def arrays(self) -> dict[str, tuple[str, int]]:
        """The index's files: name → (descr, length)."""
        slots = {KEYS_SLOTS: ("<u8", self.slot_count)}
        if self.kind is KeyKind.BYTES:
            return {
                KEYS_DATA: ("|u1", self.data_bytes),
                KEYS_OFFSETS: ("<u8", self.count + 1),
                **slots,
            }
        return {KEYS_INTS: ("<i8" if self.kind is KeyKind.INT64 else "<u8", self.count), **slots}

    def file_bytes(self, name: str) -> int:
        """The size of one of the index's files."""
        descr, length = self.arrays()[name]
        return NPY_HEADER_BYTES + np.dtype(descr).itemsize * length

    def encode(self) -> bytes:
        """The contents of keys.json."""
        document = {
            "format": KEYS_FORMAT,
            "kind": self.kind.value,
            "count": self.count,
            "seed": f"{self.seed:016x}",
            "data_bytes": self.data_bytes,
            "slot_count": self.slot_count,
            "block_bytes": self.block_bytes,
            "files": dict(self.blocks),
        }
        return json.dumps({**document, "crc32": document_crc(document)}).encode()


def read_keys_info(folder: Path) -> KeysInfo | None:
    """The contents of `folder`'s keys.json; None if it is absent. BadFile when it is damaged."""
    path = folder / KEYS_JSON
    try:
        with open(path, "rb") as file:
            raw = file.read(KEYS_JSON_BYTES_MAX + 1)
    except FileNotFoundError:
        for name in (KEYS_SLOTS, KEYS_INTS, KEYS_OFFSETS, KEYS_DATA):
            if (folder / name).exists():
                raise BadFile(f"{path} isn't there, but {name} is") from None
        return None
    except OSError as error:
        raise not_opened(path, error) from None
    if len(raw) > KEYS_JSON_BYTES_MAX:
        raise BadFile(f"{path} has more than {KEYS_JSON_BYTES_MAX} bytes")
    try:
        document = json.loads(raw)
        if document["crc32"] != document_crc(document):
            raise BadFile(f"{path} is damaged: its checksum doesn't fit")
        if document["format"] != KEYS_FORMAT:
            raise BadFile(f"{path} has format {document['format']}; this reads {KEYS_FORMAT}")
        info = KeysInfo(
            KeyKind(document["kind"]),
            int(document["count"]),
            int(document["seed"], 16),
            int(document["data_bytes"]),
            int(document["slot_count"]),
            {str(name): [int(crc) for crc in crcs] for name, crcs in document["files"].items()},
            int(document["block_bytes"]),
        )
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
        raise BadFile(f"{path} is damaged: {type(error).__name__}: {error}") from None
    _check_info(path, info)
    return info


def _check_info(path: Path, info: KeysInfo) -> None:
    sound = 0 <= info.count <= KEYED_ROWS_MAX and 0 <= info.seed < 2**64
    if info.kind is KeyKind.BYTES:
        sound = sound and info.count <= info.data_bytes <= info.count * KEY_BYTES_MAX
    slots = info.slot_count
    if not (sound and slots > info.count and slots & (slots - 1) == 0 and info.block_bytes > 0):
        raise BadFile(f"{path} contradicts itself: {info.count} keys, {slots} slots")
    for name in info.arrays():
        if len(info.blocks.get(name, ())) != -(-info.file_bytes(name) // info.block_bytes):
            raise BadFile(f"{path} has the wrong number of checksums for {name}")


def map_array(path: Path, descr: str, length: int) -> tuple[MappedFile, NDArray[Any]]:
    """Map the 1-D .npy file `path`, read-only; BadFile unless header and size are as expected."""
    fd = open_readonly(path)
    try:
        expected = NPY_HEADER_BYTES + np.dtype(descr).itemsize * length
        if file_bytes(fd) != expected:
            raise BadFile(f"{path} has {file_bytes(fd)} bytes, not {expected}")
        if os.pread(fd, NPY_HEADER_BYTES, 0) != npy_header(descr, length):
            raise BadFile(f"{path} isn't a {descr} array of {length}: bytes 0 to 128 are damaged")
        with naming(path):
            mapping = MappedFile(fd, expected)
    finally:
        os.close(fd)
    return mapping, mapping.array()[NPY_HEADER_BYTES:].view(descr)


class KeyIndex:
    """The mapped index of one table version. Safe to use from many threads."""

    def __init__(self, folder: Path, info: KeysInfo) -> None:
        """Maps the files; see `open`."""
        self.kind = info.kind
        self.count = info.count
        self._folder = folder
        self.info = info
        self._mappings: list[MappedFile] = []
        arrays: dict[str, NDArray[Any]] = {}
        for name, (descr, length) in info.arrays().items():
            mapping, arrays[name] = map_array(folder / name, descr, length)
            self._mappings.append(mapping)
        self.slots: NDArray[np.uint64] = arrays[KEYS_SLOTS]
        self.arrays = arrays
        """Each mapped array by its file's name: the slots, and the keys in the order of rows."""

    @classmethod
    def open(cls, folder: Path) -> "KeyIndex | None":
        """Map the index in `folder`; None when the table has no keys.

        BadFile when the files' sizes, headers or keys.json are damaged; contents aren't read.
        """
        info = read_keys_info(folder)
        return None if info is None else cls(folder, info)

    @property
    def row_count(self) -> int:
        """How many rows it is of."""
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes mapped, which all processes share."""
        return sum(len(mapping) for mapping in self._mappings)

    def populate(self) -> None:
        """Map every page now, so that lookups take no page fault. OSError when a file is short."""
        for mapping in self._mappings:
            memory.populate(mapping)

    def lock(self) -> None:
        """Keep every page in RAM. OSError when RLIMIT_MEMLOCK doesn't allow it."""
        for mapping in self._mappings:
            memory.lock(mapping)

    def rows_of(self, keys: Keys) -> NDArray[np.int64]:
        """The row of each key, shape S; −1 for a missing key.

        InvalidArgument when the keys are strings and the index holds integers, or the reverse. An
        integer that the index's kind can't hold is missing. Unimplemented without numba.
        """
        if keys.size == 0:
            return np.empty(keys.shape, np.int64)
        check_kind(keys, self.kind)
        rows = np.empty(keys.size, np.int64)
        seed = self.info.seed
        if isinstance(keys, StringKeys):
            stored = (self.arrays[KEYS_OFFSETS], self.arrays[KEYS_DATA])
            compiled.find_strings(self.slots, *stored, keys.offsets, keys.data, seed, rows)
            return rows.reshape(keys.shape)
        bits, fits = key_bits(keys.reshape(-1), self.kind)
        compiled.find_ints(self.slots, self.arrays[KEYS_INTS].view("<u8"), bits, seed, rows)
        if fits is not None:
            rows[~fits] = -1
        return rows.reshape(keys.shape)

    def not_found(self, table: str, keys: Keys, rows: NDArray[np.integer[Any]]) -> KeyNotFound:
        """The error for keys without a row, of which `rows` has −1; see the function."""
        return not_found(table, keys, rows, self.rows_of)

    def keys_of(
        self,
        rows: NDArray[np.integer[Any]],
        check_bytes: Callable[[int], None] = lambda _nbytes: None,
    ) -> Keys:
        """The key of each row, shape S: StringKeys, or integers of the index's kind.

        `check_bytes` is called with the size of strings before they are copied, and may raise.

        The rows must be valid: from `rows_of`, or checked against `count`. BadFile when a row's
        stored offsets are damaged.
        """
        flat = rows.reshape(-1).astype(np.intp, copy=False)
        if self.kind is not KeyKind.BYTES:
            found: NDArray[Any] = self.arrays[KEYS_INTS][flat].reshape(rows.shape)
            return found
        data = self.arrays[KEYS_DATA]
        begins, lengths = self.bounds(flat)
        offsets = np.zeros(flat.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        check_bytes(int(offsets[-1]))
        return strings_at(data, begins, offsets, rows.shape)

    def bounds(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the string keys of `rows`, (n,), begin in the data, and their lengths.

        The rows must be valid. BadFile when the stored offsets of one are damaged.
        """
        stored = self.arrays[KEYS_OFFSETS]
        return self._bounds(stored[rows], stored[rows + 1], rows)

    def bounds_between(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `bounds`, of the rows from `first` up to `last`."""
        stored = self.arrays[KEYS_OFFSETS]
        return self._bounds(stored[first:last], stored[first + 1 : last + 1], range(first, last))

    def _bounds(
        self,
        begins: NDArray[np.uint64],
        ends: NDArray[np.uint64],
        rows: Sequence[int] | NDArray[np.intp],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lengths = (ends - begins).view(np.int64)
        bad = (begins > ends) | (ends > self.arrays[KEYS_DATA].size) | (lengths > KEY_BYTES_MAX)
        if bad.any():
            row = int(rows[np.flatnonzero(bad)[0]])
            raise BadFile(f"{self._folder / KEYS_OFFSETS} is damaged at row {row}")
        return begins.view(np.int64), lengths

    def verify(self) -> None:
        """Read and checksum every file; BadFile names the first damaged one and its byte range."""
        for name in self.info.arrays():
            verify_file(self._folder / name, self.info)


def check_kind(keys: Keys, kind: KeyKind) -> None:
    """InvalidArgument when `keys` are strings and `kind` is of integers, or the reverse."""
    if isinstance(keys, StringKeys) is not (kind is KeyKind.BYTES):
        given = "strings" if isinstance(keys, StringKeys) else "integers"
        held = "strings" if kind is KeyKind.BYTES else kind.value
        raise InvalidArgument(f"keys are {given}; the keys of this table are {held}")


def not_found(
    table: str,
    keys: Keys,
    rows: NDArray[np.integer[Any]],
    rows_of: Callable[[StringKeys], NDArray[np.int64]],
) -> KeyNotFound:
    """The error for keys without a row, of which `rows` has −1, with keys like the first one.

    Only with the first, so that it costs the same however many are missing. `rows_of` has the row
    of each key, −1 for none.
    """
    hint = ""
    if isinstance(keys, StringKeys):
        first = int(np.flatnonzero(rows.reshape(-1) < 0)[0])
        begin, end = int(keys.offsets[first]), int(keys.offsets[first + 1])
        text = key_text(keys.data[begin:end].tobytes())
        hint = did_you_mean(near_keys(text, rows_of))
    return key_not_found_error(table, keys, rows, hint)


def key_bits(
    keys: NDArray[np.integer[Any]], kind: KeyKind
) -> tuple[NDArray[np.uint64], NDArray[np.bool_] | None]:
    """1-D integer keys as the 64 bits that `kind` stores, and which of them it can hold.

    None means all of them.
    """
    signed = keys.dtype.kind == "i"
    wide = np.require(keys, np.int64 if signed else np.uint64, ["C", "A"])
    bits = wide.view(np.uint64)
    if signed is (kind is KeyKind.INT64) or int(bits.max(initial=0)) < 2**63:
        return bits, None
    return bits, bits < 2**63


def verify_file(path: Path, info: KeysInfo) -> None:
    """Compare one of the index's files with `info`; BadFile naming the first damaged range."""
    name = path.name
    blocks = tuple(info.blocks[name])
    for _ in verify_blocks(path, FileChecksums(info.file_bytes(name), info.block_bytes, blocks)):
        pass
