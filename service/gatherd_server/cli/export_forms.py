"""The files that `gatherd export` writes: of each format the head, and what a chunk of rows adds.

A head has one length for any number of rows up to the most that there may be, so that it can be
written before the rows and corrected after them.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.format import npy_header
from gatherd_server.storage.table_writer import NPY_DESCR

KEYS_SUFFIX = ".keys"

_TENSOR_DTYPES = {DType.FLOAT32: "F32", DType.FLOAT16: "F16", DType.BFLOAT16: "BF16"}
# The bytes that separate keys from numbers in word2vec's files, or end a line.
_BLANKS = b" \t\n\r\v\f"


class Format(Enum):
    """The format of a file."""

    NPY = "npy"
    SAFETENSORS = "safetensors"
    WORD2VEC_BINARY = "word2vec-binary"
    WORD2VEC_TEXT = "word2vec-text"


_SUFFIXES = {
    ".npy": Format.NPY,
    ".safetensors": Format.SAFETENSORS,
    ".bin": Format.WORD2VEC_BINARY,
    ".vec": Format.WORD2VEC_TEXT,
    ".txt": Format.WORD2VEC_TEXT,
}


@dataclass(frozen=True, slots=True)
class Exported:
    """The rows that are written. `key_kind` is as in TableInfo, `dtype` the file's."""

    table: str
    key_kind: str
    dim: int
    dtype: DType
    row_count_max: int
    """The most rows that there may be."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dim * self.dtype.itemsize


class Chunk(NamedTuple):
    """Rows in the order of their ids.

    `keys`, (n,), are int64, uint64 or objects of bytes, None for a table without. `rows`, (n, dim),
    are in the storage of the file's dtype.
    """

    ids: NDArray[np.int64]
    keys: NDArray[Any] | None
    rows: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Output:
    """A file to write.

    `head` gives its first bytes, of one length for any number of rows up to `row_count_max`; `body`
    gives what a chunk adds.
    """

    path: Path
    head: Callable[[Exported, int], bytes]
    body: Callable[[Exported, Chunk], Iterable[bytes]]


def format_of(out: Path, given: str | None) -> Format:
    """The format that is given, or else that of the suffix. InvalidArgument when it has none."""
    if given is not None:
        return Format(given)
    found = _SUFFIXES.get(out.suffix.lower())
    if found is None:
        known = ", ".join(_SUFFIXES)
        raise InvalidArgument(f"{out} says no format by its suffix ({known}); give --format")
    return found


def outputs_of(kind: Format, out: Path, rows: Exported) -> list[Output]:
    """The file `out` and, unless it has the keys, the one beside it. InvalidArgument without keys.

    The error is for formats made of keys.
    """
    head, body = _FORMS[kind]
    outputs = [Output(out, head, body)]
    if kind in (Format.WORD2VEC_BINARY, Format.WORD2VEC_TEXT):
        if not rows.key_kind:
            raise InvalidArgument(
                f"table {rows.table!r} has no keys, which {kind.value} is made of; "
                "export it to .npy or .safetensors"
            )
    elif rows.key_kind == "bytes":
        path = out.with_name(out.name + KEYS_SUFFIX)
        outputs.append(Output(path, lambda _rows, _count: b"", _key_lines))
    elif rows.key_kind:
        path = out.with_name(out.name + KEYS_SUFFIX + ".npy")
        outputs.append(Output(path, _key_integers_head, _key_integers))
    return outputs


def _key_lines(rows: Exported, chunk: Chunk) -> Iterator[bytes]:
    for row, key in _keyed_ids(chunk):
        if b"\n" in key or key.endswith(b"\r"):
            raise _unwritable(rows, row, key, "a line of its own")
        yield key + b"\n"


def _key_integers_head(rows: Exported, row_count: int) -> bytes:
    return npy_header(np.dtype(rows.key_kind).str, (row_count,))


def _key_integers(rows: Exported, chunk: Chunk) -> list[bytes]:
    assert chunk.keys is not None
    return [chunk.keys.astype(rows.key_kind, copy=False).tobytes()]


def _array_rows(_exported: Exported, chunk: Chunk) -> list[bytes]:
    return [chunk.rows.tobytes()]


def _npy_head(rows: Exported, row_count: int) -> bytes:
    return npy_header(NPY_DESCR[rows.dtype], (row_count, rows.dim))


def _safetensors_head(rows: Exported, row_count: int) -> bytes:
    """The layout of safetensors: 8 bytes of length, JSON padded by blanks to 8, the tensor."""
    longest = len(_safetensors_json(rows, rows.row_count_max))
    longest += -longest % 8
    return struct.pack("<Q", longest) + _safetensors_json(rows, row_count).ljust(longest)


def _safetensors_json(rows: Exported, row_count: int) -> bytes:
    entry = {
        "dtype": _TENSOR_DTYPES[rows.dtype],
        "shape": [row_count, rows.dim],
        "data_offsets": [0, row_count * rows.row_bytes],
    }
    return json.dumps({rows.table: entry}, separators=(",", ":")).encode()


def _word2vec_head(rows: Exported, row_count: int) -> bytes:
    # Zeros rather than blanks: some readers split the line at each blank.
    digits = len(str(rows.row_count_max))
    return b"%0*d %d\n" % (digits, row_count, rows.dim)


def _word2vec_binary(rows: Exported, chunk: Chunk) -> Iterator[bytes]:
    for token, row in zip(_tokens(rows, chunk), chunk.rows, strict=True):
        yield token + b" " + row.tobytes() + b"\n"


def _word2vec_text(rows: Exported, chunk: Chunk) -> Iterator[bytes]:
    for token, row in zip(_tokens(rows, chunk), chunk.rows, strict=True):
        yield token + b" " + _decimals(row) + b"\n"


def _decimals(row: NDArray[np.float32]) -> bytes:
    if not np.isfinite(row).all():
        return " ".join(map(str, row)).encode()
    # The shortest decimals that read as the same float32, as repr() gives for float64.
    listed = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
    return listed[1:-1].replace(b",", b" ")


def _keyed_ids(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    assert chunk.keys is not None
    return zip(chunk.ids.tolist(), chunk.keys, strict=True)


def _tokens(rows: Exported, chunk: Chunk) -> Iterator[bytes]:
    for row, key in _keyed_ids(chunk):
        token = key if isinstance(key, bytes) else b"%d" % key
        if any(blank in token for blank in _BLANKS):
            raise _unwritable(rows, row, token, "a blank in it")
        yield token


def _unwritable(rows: Exported, row: int, key: bytes, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"table {rows.table!r}: the key {key[:64]!r} of row {row} can't be written: {why}"
    )


_FORMS = {
    Format.NPY: (_npy_head, _array_rows),
    Format.SAFETENSORS: (_safetensors_head, _array_rows),
    Format.WORD2VEC_BINARY: (_word2vec_head, _word2vec_binary),
    Format.WORD2VEC_TEXT: (_word2vec_head, _word2vec_text),
}
