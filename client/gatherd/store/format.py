r"""Find the rows inside a .npy, safetensors or GGUF file, from its header alone.

.npy          magic "\x93NUMPY", version, header length, a Python dict literal, then the array
safetensors   u64 little-endian header length N, N bytes of JSON, then the tensors' bytes;
              each entry is {"dtype", "shape", "data_offsets": [begin, end]}, offsets from the
              end of the header
GGUF          see gguf.py

A file is recognised by its content. Only arrays that can be mapped unchanged are read here: two
dimensions, row-major, little-endian, a float type. All claims of a header are checked against the
file's size before anything is mapped. Reads use pread, so a descriptor can be shared between
processes.
"""

import ast
import io
import json
import math
import os
import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.gguf import GGUF_MAGIC, GgufHeader, read_gguf_header
from gatherd.store.mapping import not_opened
from gatherd.store.parts import pick

NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER_BYTES_MAX = 64 << 10
# The limit that the safetensors format itself sets.
SAFETENSORS_HEADER_BYTES_MAX = 100_000_000

# ml_dtypes' bfloat16 is saved as '<V2' in a .npy file.
_NPY_DTYPES = {
    "<f4": DType.FLOAT32,
    "<f2": DType.FLOAT16,
    "<f8": DType.FLOAT64,
    "<V2": DType.BFLOAT16,
    "|V2": DType.BFLOAT16,
}
_NO_TABLE_NAME = re.compile(r"[^A-Za-z0-9._-]")
_LENGTH = rb"(?:0|[1-9][0-9]{0,18})"
# The header that NumPy writes for an array of plain numbers, format 1.0, byte for byte.
_PLAIN_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>|](?:[iu][1248]|[fV][248]))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:"
    + _LENGTH
    + rb",|"
    + _LENGTH
    + rb"(?:, "
    + _LENGTH
    + rb"){1,31})?)\), \} *\n",
    re.DOTALL,
)
# Evaluating a header fails now and then if several threads do it at once
# (https://github.com/python/cpython/issues/106905).
_evaluating = threading.Lock()
# Version 3 encodes a structured dtype's field names differently. A table has none.
_NPY_VERSIONS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}
_SAFETENSORS_DTYPES = {
    "F32": DType.FLOAT32,
    "F16": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
    "F64": DType.FLOAT64,
}
_SAFETENSORS_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class RowLayout:
    """A (row_count, dim) array of `dtype` that begins `offset` bytes into a file."""

    dtype: DType
    row_count: int
    dim: int
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.dim * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.row_count * self.row_bytes


def read_layout(
    fd: int, name: str, tensor: str | None = None, table: str | None = None
) -> RowLayout:
    """Find the rows in the open file `fd`, called `name` in errors; `table` is what they're for.

    `tensor` picks one of a safetensors or GGUF file's tensors. Without it the file must hold just
    one, or be GGUF with the usual token table.
    BadFile when the file is damaged or of no known format, InvalidArgument when it is sound but
    `tensor` doesn't fit it.
    """
    head = os.pread(fd, 9, 0)
    if head.startswith(NPY_MAGIC):
        if tensor is not None:
            raise InvalidArgument(f"{name} is a .npy file: it has no tensor {tensor!r} to pick")
        return _read_npy(fd, name, table)
    if len(head) == 9 and head[8:9] == b"{":
        return _read_safetensors(fd, name, tensor)
    if head.startswith(GGUF_MAGIC):
        header = read_gguf_header(fd, name)
        shapes = {key: f"{one.kind} {one.shape}" for key, one in sorted(header.tensors.items())}
        tensor = pick(name, tensor or header.token_table, shapes)
        return gguf_layout(header, name, tensor, file_bytes(fd))
    raise BadFile(
        f"{name} is neither a .npy nor a safetensors nor a GGUF file (by its content), and no "
        f"other is served as it lies; if it is one of docs/formats.md, "
        f"{convert_by_import(name, table)}"
    )


def gguf_layout(header: GgufHeader, name: str, tensor: str, size: int) -> RowLayout:
    """The layout of a GGUF file's tensor. BadFile when its rows aren't plain numbers."""
    found = header.tensors[tensor]
    where = f"{name}#{tensor}"
    if found.kind not in _SAFETENSORS_DTYPES:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise BadFile(f"{where} is {found.kind}; a table is of {known}")
    if len(found.shape) != 2 or found.shape[1] < 1:
        raise BadFile(f"{where} has shape {found.shape}; a table has two dimensions, (rows, dim)")
    layout = RowLayout(_SAFETENSORS_DTYPES[found.kind], *found.shape, found.offset)
    if layout.offset + layout.nbytes > size:
        raise BadFile(
            f"{where} is truncated: it ends at byte {layout.offset + layout.nbytes}, "
            f"the file has {size}"
        )
    return layout


def table_name_of(path: Path) -> str:
    """A name for a table of the file `path`, as messages propose it."""
    return _NO_TABLE_NAME.sub("_", path.stem)[:128].lstrip(".-") or "table"


def convert_by_import(source: str, table: str | None = None) -> str:
    """The advice for a sound file whose rows can't be mapped unchanged."""
    name = table or table_name_of(Path(source))
    command = shlex.join(["gatherd", "import", name, source, "--data-dir", "./data"])
    return f"`{command}` converts it, and `gatherd serve --data-dir ./data` serves it"


def open_readonly(path: Path) -> int:
    """A descriptor of the regular file `path`. BadFile when it can't be opened, or TooManyFiles."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise not_opened(path, error) from None
    if not path.is_file():
        os.close(fd)
        raise BadFile(f"{path} isn't a regular file")
    return fd


def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file (format 1.0, C order), with NumPy's room for a growing axis."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def file_bytes(fd: int) -> int:
    """The file's size now."""
    return os.fstat(fd).st_size


def _read_npy(fd: int, name: str, table: str | None) -> RowLayout:
    shape, fortran_order, dtype, offset = read_npy_header(fd, name)
    return _npy_layout(name, table, shape, fortran_order, dtype, offset, file_bytes(fd))


def read_npy_header(fd: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """The shape, Fortran order and dtype of a .npy file's array, and its offset.

    NumPy's own parser reads it. BadFile, naming `name`, when the header is damaged.
    """
    return parse_npy_header(os.pread(fd, NPY_HEADER_BYTES_MAX, 0), name)


def parse_npy_header(head: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Do the same as `read_npy_header` for a file that begins with `head`."""
    if plain := plain_npy_header(head):
        return plain.shape, plain.is_fortran, np.dtype(plain.descr), plain.offset
    stream = io.BytesIO(head)
    try:
        read_header = _NPY_VERSIONS[np.lib.format.read_magic(stream)]
        with _evaluating:
            shape, fortran_order, dtype = read_header(stream, max_header_size=NPY_HEADER_BYTES_MAX)
    except Exception as error:  # noqa: BLE001  # NumPy's parser passes on any tokenizer error
        raise BadFile(f"{name} has a damaged .npy header: {error}") from None
    return shape, fortran_order, dtype, stream.tell()


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """A .npy header in NumPy's form for plain numbers; the array begins at `offset`."""

    descr: str
    is_fortran: bool
    shape: tuple[int, ...]
    offset: int


def plain_npy_header(head: bytes) -> NpyHeader | None:
    """The header that `head` begins with; None unless NumPy writes it like this.

    Nothing is evaluated, so this is quick, and safe in many threads at once.
    """
    plain = _PLAIN_NPY.match(head)
    if plain is None or plain.end() - 10 != int.from_bytes(plain[1], "little"):
        return None
    descr, is_fortran, lengths = (group.decode() for group in plain.groups()[1:])
    shape = tuple(int(length) for length in lengths.split(",") if length)
    return NpyHeader(descr, is_fortran == "True", shape, plain.end())


def evaluate_npy_header(text: str) -> object:
    """The Python literal of a .npy header that isn't plain; raises as ast.literal_eval does."""
    with _evaluating:
        return ast.literal_eval(text)


def npy_dtype(dtype: np.dtype[Any]) -> DType | None:
    """The table type of a .npy file's elements, in either byte order; None if they have none."""
    return None if dtype.names is not None else _NPY_DTYPES.get(dtype.newbyteorder("<").str)


def _npy_layout(
    name: str,
    table: str | None,
    shape: tuple[int, ...],
    fortran_order: bool,
    dtype: np.dtype[Any],
    offset: int,
    size: int,
) -> RowLayout:
    """The layout that a .npy header describes, checked against the file's `size`."""
    if dtype.hasobject:
        raise BadFile(f"{name} holds Python objects; save a float array")
    if npy_dtype(dtype) is None:
        known = "float16, float32, float64 or bfloat16"
        raise BadFile(f"{name} has dtype {dtype}; a table is of {known}")
    if dtype.str.startswith(">"):
        raise BadFile(f"{name} is big-endian ({dtype}); {convert_by_import(name, table)}")
    if len(shape) != 2:
        raise BadFile(f"{name} has shape {shape}; a table has two dimensions, (rows, dim)")
    if fortran_order and min(shape) > 1:
        raise BadFile(f"{name} is in Fortran order; {convert_by_import(name, table)}")
    layout = RowLayout(_NPY_DTYPES[dtype.str], shape[0], shape[1], offset)
    if layout.dim < 1 or layout.row_count < 0:
        raise BadFile(f"{name} has shape {shape}; a row needs at least one element")
    if offset + layout.nbytes > size:
        raise BadFile(
            f"{name} is truncated: its header promises {offset + layout.nbytes} bytes, "
            f"the file has {size}"
        )
    return layout


def _read_safetensors(fd: int, name: str, tensor: str | None) -> RowLayout:
    header = read_safetensors_header(fd, name)
    tensor = header.resolve(pick(name, tensor, header.shapes(aliases=tensor is not None)))
    entry = header.entries[tensor]
    where = f"{name}#{tensor}"
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise BadFile(f"{where} has dtype {entry['dtype']}; a table is of {known}")
    shape = entry["shape"]
    if len(shape) != 2 or shape[1] < 1:
        raise BadFile(f"{where} has shape {tuple(shape)}; a table has two dimensions, (rows, dim)")
    begin, _ = entry["data_offsets"]
    offset = header.data_start + begin
    return RowLayout(_SAFETENSORS_DTYPES[entry["dtype"]], shape[0], shape[1], offset)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The tensors' entries, the start of their data, and other names of some tensors.

    Tied weights have other names: safetensors.torch.save_model stores one of the tied tensors and
    notes in the metadata which names share it.
    """

    entries: dict[str, dict[str, Any]]
    data_start: int
    aliases: dict[str, str]

    def names(self) -> list[str]:
        """Every name of a tensor."""
        return [*self.entries, *self.aliases]

    def resolve(self, name: str) -> str:
        """The name under which the tensor `name` is stored."""
        return self.aliases.get(name, name)

    def shapes(self, *, aliases: bool) -> dict[str, str]:
        """The dtype and the shape of each tensor, and what each alias is one of, as text."""
        shapes = {
            key: f"{entry['dtype']} {tuple(entry['shape'])}"
            for key, entry in sorted(self.entries.items())
        }
        others = {alias: f"is {stored}" for alias, stored in self.aliases.items()}
        return shapes | others if aliases else shapes


def read_safetensors_header(fd: int, name: str) -> SafetensorsHeader:
    """The tensors' entries, all of them checked.

    BadFile when the header is too large, violates the format, or claims bytes that the file lacks
    or that two tensors share.
    """
    size = file_bytes(fd)
    header_bytes = int.from_bytes(os.pread(fd, 8, 0), "little")
    if header_bytes > SAFETENSORS_HEADER_BYTES_MAX:
        raise BadFile(
            f"{name} claims a header of {header_bytes} bytes; "
            f"the format allows {SAFETENSORS_HEADER_BYTES_MAX}"
        )
    if 8 + header_bytes > size:
        raise BadFile(f"{name} is truncated: its header ends at {8 + header_bytes} of {size} bytes")
    try:
        header = json.loads(os.pread(fd, header_bytes, 8), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{name} has a damaged safetensors header: {error}") from None
    if not isinstance(header, dict):
        raise BadFile(f"{name} has a damaged safetensors header: it isn't an object")
    metadata = header.pop("__metadata__", None)
    data_bytes = size - 8 - header_bytes
    for tensor, entry in header.items():
        _check_entry(f"{name}#{tensor}", entry, data_bytes)
    spans = sorted((entry["data_offsets"], tensor) for tensor, entry in header.items())
    for ((_, end), before), ((begin, _), after) in pairwise(spans):
        if begin < end:
            raise BadFile(f"{name}: the tensors {before!r} and {after!r} overlap")
    aliases = {
        alias: stored
        for alias, stored in (metadata.items() if isinstance(metadata, dict) else ())
        if isinstance(stored, str) and stored in header and alias not in header
    }
    return SafetensorsHeader(header, 8 + header_bytes, aliases)


def _check_entry(where: str, entry: object, data_bytes: int) -> None:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise BadFile(f"{where} has a damaged entry in the safetensors header")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise BadFile(f"{where} has shape {shape}")
    if not 0 <= begin <= end <= data_bytes:
        raise BadFile(
            f"{where} claims bytes {begin} to {end}, but the file has {data_bytes} of data"
        )
    bits = _SAFETENSORS_BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise BadFile(f"{where} is {dtype} {tuple(shape)}, which isn't {end - begin} bytes")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found
