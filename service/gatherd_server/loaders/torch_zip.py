"""Tensors of torch .pt and .pth files, read without torch.

Since torch 1.6 such a file is a zip archive: NAME/data.pkl describes the tensors, NAME/data/KEY
holds a storage's bytes, little-endian. A table's tensor has to lie in one piece, row after row.
"""

import zipfile

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.format import RowLayout
from gatherd_server.loaders.arrays import array_source
from gatherd_server.loaders.batches import RowSource, pick
from gatherd_server.loaders.limits import PICKLE_BYTES_MAX, UnpackLimits
from gatherd_server.loaders.streams import reading, unpack_member
from gatherd_server.loaders.torch_pickle import TensorRef, read_tensors

PICKLE_ENTRY = "data.pkl"
# What the format before the zip archives begins with: a pickled magic number.
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


def torch_root(names: list[str]) -> str | None:
    """The folder that a torch archive with these entries has its own in, or None for another."""
    for name in names:
        root, _, entry = name.rpartition("/")
        if entry == PICKLE_ENTRY and "/" not in root:
            return f"{root}/" if root else ""
    return None


def torch_source(
    name: str, archive: zipfile.ZipFile, root: str, tensor: str | None, limits: UnpackLimits
) -> RowSource:
    """One tensor of the torch file `name`, open as `archive`."""
    infos = {info.filename: info for info in archive.infolist()}
    with reading(name):
        stream = unpack_member(archive, infos[root + PICKLE_ENTRY], name, limits)
        tensors = read_tensors(stream.read(PICKLE_BYTES_MAX + 1), name)
        if f"{root}byteorder" in infos:
            order = unpack_member(archive, infos[f"{root}byteorder"], name, limits).read(16)
            if order != b"little":
                raise BadFile(f"{name} is {order.decode(errors='replace')}-endian; save it anew")
    tensor = pick(name, tensor, {key: f"{ref.dtype} {ref.shape}" for key, ref in tensors.items()})
    where = f"{name}#{tensor}"
    layout = _layout(where, tensors[tensor])
    entry = f"{root}data/{tensors[tensor].storage.key}"
    if entry not in infos:
        raise BadFile(f"{where}: the entry {entry} isn't there")
    if infos[entry].file_size < layout.offset + layout.nbytes:
        raise BadFile(
            f"{where} ends at byte {layout.offset + layout.nbytes} of its storage, "
            f"which has {infos[entry].file_size}"
        )
    stream = unpack_member(archive, infos[entry], where, limits)
    return array_source(where, "torch", stream, layout)


def _layout(where: str, tensor: TensorRef) -> RowLayout:
    try:
        dtype = DType(tensor.dtype)
    except ValueError:
        raise BadFile(
            f"{where} has dtype {tensor.dtype}; a table is of float16, float32, float64 or bfloat16"
        ) from None
    if len(tensor.shape) != 2 or tensor.shape[1] < 1:
        raise BadFile(f"{where} has shape {tensor.shape}; a table has two dimensions, (rows, dim)")
    rows, dim = tensor.shape
    row_stride, stride = tensor.strides
    if (rows > 1 and row_stride != dim) or (dim > 1 and rows > 0 and stride != 1):
        raise BadFile(
            f"{where} doesn't lie in one piece (strides {tensor.strides}); save tensor.contiguous()"
        )
    return RowLayout(dtype, rows, dim, tensor.offset * dtype.itemsize)
