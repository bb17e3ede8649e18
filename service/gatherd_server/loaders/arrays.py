"""Rows from arrays: .npy, the members of an .npz, and the tensors of a safetensors file.

They are read with plain reads into one buffer, not through a mapping: a mapping's pages would count
as this process's memory, and a file that is cut while it is mapped would end it.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.format import (
    NPY_HEADER_BYTES_MAX,
    NPY_MAGIC,
    RowLayout,
    open_readonly,
    read_layout,
    read_safetensors_header,
)
from gatherd_server.loaders.batches import RowBatch, RowSource, pick, rows_per_batch
from gatherd_server.loaders.limits import UnpackLimits
from gatherd_server.loaders.streams import ByteStream, Opened, unpack_member

_DTYPES = {
    "<f4": DType.FLOAT32,
    "<f2": DType.FLOAT16,
    "<f8": DType.FLOAT64,
    "<V2": DType.BFLOAT16,
    "|V2": DType.BFLOAT16,
}
_NPY_VERSIONS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def array_source(name: str, format_name: str, stream: ByteStream, layout: RowLayout) -> RowSource:
    """The rows of `layout`, whose offset is from where `stream` stands now."""
    return RowSource(
        name,
        format_name,
        layout.dtype,
        layout.dtype,
        layout.dim,
        layout.row_count,
        None,
        "row",
        layout.row_count,
        lambda: _read_rows(name, stream, layout),
    )


def _read_rows(name: str, stream: ByteStream, layout: RowLayout) -> Iterator[RowBatch]:
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
        yield RowBatch(rows, None, np.arange(start, start + wanted), start + wanted)
    # Read to the end, if it is near: where a stream carries a checksum it is checked there.
    stream.read(1)


def npy_source(opened: Opened) -> RowSource:
    """The array of a .npy file."""
    stream = opened.stream
    if opened.path is not None:
        fd = open_readonly(opened.path)
        try:
            layout = read_layout(fd, opened.name)
        finally:
            os.close(fd)
    else:
        layout = _npy_header(opened.name, stream)
    return array_source(opened.name, ".npy", stream, layout)


def _npy_header(name: str, stream: ByteStream) -> RowLayout:
    """The layout that the .npy header at the front of `stream`, which isn't moved, tells of."""
    shape, fortran_order, dtype, offset = read_npy_header(name, stream)
    if dtype.hasobject:
        raise BadFile(f"{name} holds Python objects; save a float array")
    if dtype.names is not None or dtype.str not in _DTYPES:
        raise BadFile(
            f"{name} has dtype {dtype}; a table is of little-endian float16, float32, "
            "float64 or bfloat16"
        )
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 1:
        raise BadFile(f"{name} has shape {shape}; a table has two dimensions, (rows, dim)")
    if fortran_order and min(shape) > 1:
        raise BadFile(f"{name} is in Fortran order; save np.ascontiguousarray(…) of it")
    return RowLayout(_DTYPES[dtype.str], shape[0], shape[1], offset)


def read_npy_header(
    name: str, stream: ByteStream
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and header length of the .npy file that `stream` begins with."""
    head = io.BytesIO(stream.peek(NPY_HEADER_BYTES_MAX))
    try:
        read_header = _NPY_VERSIONS[np.lib.format.read_magic(head)]
        shape, fortran_order, dtype = read_header(head, max_header_size=NPY_HEADER_BYTES_MAX)
    except Exception as error:  # noqa: BLE001  # NumPy's parser lets any tokenizer error through
        raise BadFile(f"{name} has a damaged .npy header: {error}") from None
    return shape, fortran_order, dtype, head.tell()


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
    return array_source(name, ".npz", stream, _npy_header(name, stream))


def safetensors_source(opened: Opened, tensor: str | None) -> RowSource:
    """One tensor of a safetensors file."""
    file = opened.closing.enter_context(os.fdopen(open_readonly(opened.as_file()), "rb", 0))
    entries, _ = read_safetensors_header(file.fileno(), opened.name)
    shapes = {
        key: f"{entry['dtype']} {tuple(entry['shape'])}" for key, entry in sorted(entries.items())
    }
    tensor = pick(opened.name, tensor, shapes)
    layout = read_layout(file.fileno(), opened.name, tensor)
    name = f"{opened.name}#{tensor}"
    return array_source(name, "safetensors", ByteStream(name, file, None), layout)
