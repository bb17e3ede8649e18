"""Rows from arrays: .npy, the members of an .npz, and the tensors of a safetensors file.

They are read with plain reads into one buffer, not through a mapping: a mapping's pages would count
as this process's memory, and truncating a mapped file would end the process.
"""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from gatherd.errors import BadFile
from gatherd.store.format import (
    NPY_HEADER_BYTES_MAX,
    NPY_MAGIC,
    RowLayout,
    npy_dtype,
    open_readonly,
    parse_npy_header,
    read_layout,
    read_safetensors_header,
)
from gatherd.store.parts import pick
from gatherd_server.loaders.batches import RowBatch, RowSource, array_rows, rows_per_batch
from gatherd_server.loaders.limits import UnpackLimits
from gatherd_server.loaders.streams import ByteStream, Opened, unpack_member
from gatherd_server.loaders.strided import StridedLayout, strided_source


def array_source(
    name: str,
    format_name: str,
    stream: ByteStream,
    layout: RowLayout,
    is_big_endian: bool = False,
) -> RowSource:
    """The rows of `layout`, whose offset counts from the present position of `stream`."""
    shape = (layout.row_count, layout.dim)
    return array_rows(
        name,
        format_name,
        layout.dtype,
        shape,
        lambda: _read_rows(name, stream, layout, is_big_endian),
    )


def _read_rows(
    name: str, stream: ByteStream, layout: RowLayout, is_big_endian: bool
) -> Iterator[RowBatch]:
    stream.skip(layout.offset)
    step = rows_per_batch(layout.dim, layout.dtype.itemsize)
    for start in range(0, layout.row_count, step):
        wanted = min(step, layout.row_count - start)
        data = stream.read(wanted * layout.row_bytes)
        if len(data) < wanted * layout.row_bytes:
            row = start + len(data) // layout.row_bytes
            raise BadFile(
                f"{name} is truncated: it ends in row {row} of the {layout.row_count} it promises"
            )
        rows = np.frombuffer(data, layout.dtype.storage).reshape(wanted, layout.dim)
        if is_big_endian:
            rows = rows.byteswap()
        yield RowBatch(rows, None, np.arange(start, start + wanted), start + wanted)
    # Read on: a stream that ends here may have a checksum, which is checked at its end.
    stream.read(1)


def npy_source(opened: Opened, format_name: str = ".npy") -> RowSource:
    """The array of a .npy file, in either byte order and C or Fortran order."""
    name, stream = opened.name, opened.stream
    shape, is_fortran, stored, offset = read_npy_header(name, stream)
    if stored.hasobject:
        raise BadFile(f"{name} holds Python objects; save a float array")
    dtype = npy_dtype(stored)
    if dtype is None:
        raise BadFile(
            f"{name} has dtype {stored}; a table is of float16, float32, float64 or bfloat16"
        )
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 1:
        raise BadFile(f"{name} has shape {shape}; a table has two dimensions, (rows, dim)")
    is_big_endian = stored.str.startswith(">")
    rows, dim = shape
    if is_fortran and min(shape) > 1:
        strided = StridedLayout(dtype, rows, dim, (1, rows), offset, is_big_endian)
        return strided_source(name, format_name, opened, strided, opened.limits)
    layout = RowLayout(dtype, rows, dim, offset)
    size = opened.path.stat().st_size if opened.path is not None else None
    if size is not None and offset + layout.nbytes > size:
        raise BadFile(
            f"{name} is truncated: its header promises {offset + layout.nbytes} bytes, "
            f"the file has {size}"
        )
    return array_source(name, format_name, stream, layout, is_big_endian)


def read_npy_header(
    name: str, stream: ByteStream
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and header length of the .npy file in `stream`."""
    return parse_npy_header(stream.peek(NPY_HEADER_BYTES_MAX), name)


def npz_source(
    opened: Opened, archive: zipfile.ZipFile, member: str | None, limits: UnpackLimits
) -> RowSource:
    """One array of an .npz file."""
    infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    shapes = {}
    for key, info in infos.items():
        stream = unpack_member(archive, info, f"{opened.name}#{key}", limits)
        shape, _, dtype, _ = read_npy_header(f"{opened.name}#{key}", stream)
        shapes[key] = f"{dtype} {shape}"
        stream.close()
    member = pick(opened.name, member and member.removesuffix(".npy"), shapes, "array")
    name = f"{opened.name}#{member}"
    stream = unpack_member(archive, infos[member], name, limits)
    if stream.peek(len(NPY_MAGIC)) != NPY_MAGIC:
        raise BadFile(f"{name} isn't a .npy array")
    return npy_source(replace(opened, name=name, stream=stream, path=None), ".npz")


def safetensors_source(opened: Opened, tensor: str | None) -> RowSource:
    """One tensor of a safetensors file."""
    file = opened.closing.enter_context(os.fdopen(open_readonly(opened.as_file()), "rb", 0))
    header = read_safetensors_header(file.fileno(), opened.name)
    tensor = pick(opened.name, tensor, header.shapes(aliases=tensor is not None))
    layout = read_layout(file.fileno(), opened.name, tensor)
    name = f"{opened.name}#{tensor}"
    return array_source(name, "safetensors", ByteStream(name, file, None), layout)
