"""Headers of GGUF files, llama.cpp's model format; only the parts needed to find rows.

magic "GGUF", u32 version (2 or 3), u64 tensors, u64 metadata entries; the entries: a string, u32
type, the value; for each tensor a string, u32 dimensions, u64 lengths (the innermost first), u32
kind, u64 offset; then the data, from the next multiple of `general.alignment` on. A string is u64
length and its bytes, an array u32 type, u64 count and its values. All little-endian.
"""

import math
import os
import struct
from dataclasses import dataclass

from gatherd.errors import BadFile

GGUF_MAGIC = b"GGUF"
TOKEN_TABLE = "token_embd.weight"  # noqa: S105  # the name that llama.cpp gives it
GGUF_TENSORS_MAX = 100_000
_ENTRIES_MAX = 100_000
_NAME_BYTES_MAX = 64 << 10
_DIMENSIONS_MAX = 8
_DEPTH_MAX = 4
_CHUNK_BYTES = 256 << 10

# The types of a tensor's elements, by ggml.h's enum. The others are quantised, or removed from it.
KINDS = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_QUANTISED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_STRING, _ARRAY, _UINT32 = 8, 9, 4
# struct's letter for the metadata's numbers, by type.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor: `shape` is row-major, as in NumPy; `offset` is from the file's beginning."""

    kind: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata: `code` is struct's letter of its numbers, or "" for strings."""

    code: str
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The tensors and the metadata's arrays, by name."""

    tensors: dict[str, GgufTensor]
    arrays: dict[str, GgufArray]

    @property
    def token_table(self) -> str | None:
        """The name that a token table always has, if the file has one; else None."""
        return TOKEN_TABLE if TOKEN_TABLE in self.tensors else None


def read_gguf_header(fd: int, name: str) -> GgufHeader:
    """The header of the open file `fd`, called `name` in errors. BadFile when it is damaged."""
    cursor = GgufCursor(fd, name)
    if cursor.take(4) != GGUF_MAGIC:
        raise BadFile(f"{name} isn't a GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        order = ", big-endian" if version in (2 << 24, 3 << 24) else ""
        raise BadFile(f"{name} is GGUF of version {version:#x}{order}; 2 and 3 are read")
    tensor_count, entry_count = cursor.number("Q"), cursor.number("Q")
    if tensor_count > GGUF_TENSORS_MAX or entry_count > _ENTRIES_MAX:
        raise BadFile(
            f"{name} claims {tensor_count} tensors and {entry_count} metadata entries; "
            f"{GGUF_TENSORS_MAX} and {_ENTRIES_MAX} are read"
        )
    arrays: dict[str, GgufArray] = {}
    alignment = 32
    for _ in range(entry_count):
        key, kind = cursor.name(), cursor.number("I")
        if key == "general.alignment" and kind == _UINT32:
            alignment = cursor.number("I")
        elif kind == _ARRAY:
            arrays[key] = cursor.skip_array(0)
        else:
            cursor.skip_value(kind, 0)
    if not 1 <= alignment <= 1 << 20:
        raise BadFile(f"{name} is damaged: its alignment is {alignment}")
    tensors: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        key, tensor = cursor.name(), _tensor(cursor)
        if key in tensors:
            raise BadFile(f"{name} has two tensors {key!r}")
        tensors[key] = tensor
    start = -(-cursor.position // alignment) * alignment
    return GgufHeader(
        {
            key: GgufTensor(tensor.kind, tensor.shape, start + tensor.offset)
            for key, tensor in tensors.items()
        },
        arrays,
    )


def _tensor(cursor: "GgufCursor") -> GgufTensor:
    dimensions = cursor.number("I")
    if dimensions > _DIMENSIONS_MAX:
        raise BadFile(f"{cursor.file_name} is damaged: a tensor of {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    number = cursor.number("I")
    kind = KINDS.get(number) or f"quantised {_QUANTISED.get(number, f'kind {number}')}"
    offset = cursor.number("Q")
    if math.prod(shape) >= 2**60 or offset >= 2**60:
        raise BadFile(f"{cursor.file_name} is damaged: a tensor of shape {shape} at {offset}")
    return GgufTensor(kind, shape, offset)


class GgufCursor:
    """Reads on through a GGUF file from `position`; BadFile where it ends too early."""

    def __init__(self, fd: int, file_name: str, position: int = 0) -> None:
        self.file_name = file_name
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._buffer = b""
        self._buffer_start = position
        self._at = 0

    @property
    def position(self) -> int:
        """The next byte's place in the file."""
        return self._buffer_start + self._at

    def take(self, byte_count: int) -> bytes:
        """The next bytes."""
        end = self._at + byte_count
        if end > len(self._buffer):
            self._check(byte_count)
            self._buffer_start, self._at = self.position, 0
            self._buffer = os.pread(self._fd, max(byte_count, _CHUNK_BYTES), self._buffer_start)
            end = byte_count
            if end > len(self._buffer):
                raise BadFile(f"{self.file_name} was cut while it was read")
        data = self._buffer[self._at : end]
        self._at = end
        return data

    def skip(self, byte_count: int) -> None:
        """Skip bytes."""
        self._check(byte_count)
        self._at += byte_count
        if self._at > len(self._buffer):
            self._buffer_start, self._at, self._buffer = self.position, 0, b""

    def number(self, code: str) -> int:
        """The next number, of struct's type `code`."""
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return int(value)

    def string(self, bytes_max: int) -> bytes:
        """The next string; BadFile when it is longer than `bytes_max`."""
        length = int.from_bytes(self.take(8), "little")
        if length > bytes_max:
            raise BadFile(
                f"{self.file_name}: a string of {length} bytes at byte {self.position}; "
                f"{bytes_max} are read"
            )
        return self.take(length)

    def name(self) -> str:
        """The next string as text."""
        return self.string(_NAME_BYTES_MAX).decode("utf-8", "replace")

    def skip_value(self, kind: int, depth: int) -> None:
        """Skip a value of the metadata."""
        if kind == _STRING:
            self.skip(int.from_bytes(self.take(8), "little"))
        elif kind == _ARRAY:
            self.skip_array(depth + 1)
        elif kind in _NUMBERS:
            self.skip(struct.calcsize("<" + _NUMBERS[kind]))
        else:
            raise BadFile(f"{self.file_name} is damaged: a value of type {kind}")

    def skip_array(self, depth: int) -> GgufArray:
        """Skip an array; return where its values are."""
        if depth > _DEPTH_MAX:
            raise BadFile(f"{self.file_name} has arrays nested deeper than {_DEPTH_MAX}")
        kind, count = self.number("I"), self.number("Q")
        offset = self.position
        if kind in _NUMBERS:
            self.skip(count * struct.calcsize("<" + _NUMBERS[kind]))
            return GgufArray(_NUMBERS[kind], count, offset)
        # A string takes at least 8 bytes, an array more.
        self._check(count * 8)
        for _ in range(count):
            self.skip_value(kind, depth)
        return GgufArray("" if kind == _STRING else "array", count, offset)

    def _check(self, byte_count: int) -> None:
        if self.position + byte_count > self._size:
            raise BadFile(
                f"{self.file_name} is truncated: its header goes on to byte "
                f"{self.position + byte_count} of {self._size}"
            )
