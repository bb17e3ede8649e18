"""Tensors of torch .pt and .pth files, read without torch.

Since torch 1.6 such a file is a zip archive: NAME/data.pkl describes the tensors, NAME/data/KEY
holds a storage's bytes, little-endian.
"""

import zipfile
from dataclasses import replace

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.format import RowLayout
from gatherd.store.parts import pick
from gatherd_server.loaders.arrays import array_source
from gatherd_server.loaders.batches import RowSource
from gatherd_server.loaders.limits import PICKLE_BYTES_MAX
from gatherd_server.loaders.streams import Opened, reading, unpack_member
from gatherd_server.loaders.strided import StridedLayout, strided_source
from gatherd_server.loaders.torch_pickle import OtherTensor, TensorRef, read_tensors

PICKLE_ENTRY = "data.pkl"
# The beginning of the format before the zip archives: a pickled magic number.
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


def torch_root(names: list[str]) -> str | None:
    """The folder of a torch archive's entries, or None when `names` are another archive's."""
    for name in names:
        root, _, entry = name.rpartition("/")
        if entry == PICKLE_ENTRY and "/" not in root:
            return f"{root}/" if root else ""
    return None


def torch_source(
    opened: Opened, archive: zipfile.ZipFile, root: str, tensor: str | None
) -> RowSource:
    """One tensor of the torch file that is open as `archive`."""
    name, limits = opened.name, opened.limits
    infos = {info.filename: info for info in archive.infolist()}
    with reading(name):
        stream = unpack_member(archive, infos[root + PICKLE_ENTRY], name, limits)
        tensors = read_tensors(stream.read(PICKLE_BYTES_MAX + 1), name)
        if f"{root}byteorder" in infos:
            order = unpack_member(archive, infos[f"{root}byteorder"], name, limits).read(16)
            if order != b"little":
                raise BadFile(f"{name} is {order.decode(errors='replace')}-endian; save it anew")
    tensor = pick(name, tensor, {key: shown_tensor(found) for key, found in tensors.items()})
    where = f"{name}#{tensor}"
    found = tensors[tensor]
    if isinstance(found, OtherTensor):
        raise BadFile(f"{where} is a {found.kind}; {found.advice}")
    layout = _layout(where, found)
    entry = f"{root}data/{found.storage.key}"
    if entry not in infos:
        raise BadFile(f"{where}: the entry {entry} isn't there")
    if infos[entry].file_size < layout.end:
        raise BadFile(
            f"{where} ends at byte {layout.end} of its storage, which has {infos[entry].file_size}"
        )
    stream = unpack_member(archive, infos[entry], where, opened.limits)
    if layout.is_row_major:
        rows = RowLayout(layout.dtype, layout.row_count, layout.dim, layout.offset)
        return array_source(where, "torch", stream, rows)
    storage = replace(opened, name=where, stream=stream, path=None)
    return strided_source(where, "torch", storage, layout, opened.limits)


def shown_tensor(tensor: TensorRef | OtherTensor) -> str:
    """Type and shape of a tensor, as text."""
    if isinstance(tensor, OtherTensor):
        return tensor.kind
    return f"{tensor.dtype} {tensor.shape}"


def _layout(where: str, tensor: TensorRef) -> StridedLayout:
    try:
        dtype = DType(tensor.dtype)
    except ValueError:
        raise BadFile(
            f"{where} has dtype {tensor.dtype}; a table is of float16, float32, float64 or bfloat16"
        ) from None
    if len(tensor.shape) != 2 or tensor.shape[1] < 1:
        raise BadFile(f"{where} has shape {tensor.shape}; a table has two dimensions, (rows, dim)")
    strides = (tensor.strides[0], tensor.strides[1])
    return StridedLayout(dtype, *tensor.shape, strides, tensor.offset * dtype.itemsize)
