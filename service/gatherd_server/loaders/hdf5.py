"""Datasets of HDF5 files, Keras' .weights.h5 among them. Needs h5py (gatherd[formats]).

Only data in the file itself is read: no external or soft links, no external storage, no virtual
datasets, and no filters but HDF5's own, so that a file can't make us open other files or plugins.
The parser itself is the HDF5 library, in C.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gatherd.errors import BadFile, GatherdError, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.parts import pick
from gatherd_server.loaders.batches import RowBatch, RowSource, array_rows, rows_per_batch
from gatherd_server.loaders.limits import (
    HDF5_CHUNK_BYTES_MAX,
    HDF5_DEPTH_MAX,
    RATIO_FREE_BYTES,
    TENSORS_MAX,
    UnpackLimits,
)

LINK = "a link to elsewhere, which isn't followed"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# deflate, shuffle, fletcher32, szip, nbit, scaleoffset, and h5py's lzf.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
_DTYPES = {"f2": DType.FLOAT16, "f4": DType.FLOAT32, "f8": DType.FLOAT64}


def hdf5_source(
    name: str, path: Path, dataset: str | None, limits: UnpackLimits, format_name: str = "HDF5"
) -> RowSource:
    """One dataset of the HDF5 file `path`, called `name` in errors."""
    h5py = _h5py(name)
    with _told(name), h5py.File(path, "r", locking=False) as file:
        shapes: dict[str, str] = {}
        _collect(h5py, file, "", shapes, set(), name)
        wanted = dataset.strip("/") if dataset is not None else None
        chosen = pick(name, wanted, shapes, "dataset")
        if shapes[chosen] == LINK:
            raise BadFile(f"{name}#{chosen} is {LINK}")
        where = f"{name}#{chosen}"
        _check(file[chosen], where, limits)
        shape, dtype = file[chosen].shape, file[chosen].dtype
        chunks = file[chosen].chunks
    kept = _DTYPES[dtype.str[1:]]
    # Whole chunks at a time, or a chunk would be unpacked for every batch that has rows of it.
    step = rows_per_batch(shape[1], kept.itemsize)
    if chunks is not None:
        step = max(1, step // chunks[0]) * chunks[0]

    def read() -> Iterator[RowBatch]:
        with _told(where), h5py.File(path, "r", locking=False) as file:
            for start in range(0, shape[0], step):
                rows = file[chosen][start : start + step].astype(kept.storage, copy=False)
                yield RowBatch(
                    np.ascontiguousarray(rows),
                    None,
                    np.arange(start, start + len(rows)),
                    start + len(rows),
                )

    return array_rows(where, format_name, kept, shape, read)


def _h5py(name: str) -> Any:
    # The library reads this when it loads; the value stops it from looking for plugins.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    try:
        import h5py
    except ImportError:
        raise InvalidArgument(
            f"{name} is an HDF5 file; reading it needs h5py: pip install 'gatherd[formats]'"
        ) from None
    return h5py


def _collect(
    h5py: Any, group: Any, prefix: str, shapes: dict[str, str], groups: set[int], name: str
) -> None:
    """List the targets of hard links, each group once: a group can contain itself."""
    if prefix.count("/") > HDF5_DEPTH_MAX:
        raise BadFile(f"{name} has groups nested deeper than {HDF5_DEPTH_MAX}")
    for key in group:
        if len(shapes) + len(groups) >= TENSORS_MAX:
            raise BadFile(f"{name} holds more than {TENSORS_MAX} datasets and groups")
        path = f"{prefix}{key}"
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            shapes[path] = LINK
            continue
        child = group[key]
        if isinstance(child, h5py.Dataset):
            shapes[path] = f"{child.dtype} {child.shape}"
        elif isinstance(child, h5py.Group):
            address = h5py.h5o.get_info(child.id).addr
            if address not in groups:
                groups.add(address)
                _collect(h5py, child, f"{path}/", shapes, groups, name)


def _check(dataset: Any, where: str, limits: UnpackLimits) -> None:
    shape, dtype = dataset.shape, dataset.dtype
    if shape is None or len(shape) != 2 or shape[1] < 1:
        raise BadFile(f"{where} has shape {shape}; a table has two dimensions, (rows, dim)")
    if dtype.kind != "f" or dtype.str[1:] not in _DTYPES:
        raise BadFile(f"{where} has dtype {dtype}; a table is of float16, float32 or float64")
    if dataset.external or dataset.is_virtual:
        raise BadFile(f"{where} lies in other files; copy it into one")
    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        number = properties.get_filter(index)[0]
        if number not in _FILTERS:
            raise BadFile(f"{where} is packed by filter {number}; we read HDF5's own and lzf")
    if dataset.chunks is not None:
        chunk_bytes = int(np.prod(dataset.chunks, dtype=object)) * dtype.itemsize
        if chunk_bytes > HDF5_CHUNK_BYTES_MAX:
            raise BadFile(
                f"{where} has chunks of {chunk_bytes} bytes; {HDF5_CHUNK_BYTES_MAX} are unpacked"
            )
    unpacked = shape[0] * shape[1] * dtype.itemsize
    stored = dataset.id.get_storage_size()
    if unpacked > max(RATIO_FREE_BYTES, stored * limits.ratio_max) or unpacked > limits.bytes_max:
        raise BadFile(
            f"{where} is {unpacked} bytes, of which the file stores {stored} "
            "(raise --unpacked-ratio-max or --unpacked-bytes-max if that is meant)"
        )
    if unpacked and not stored:
        raise BadFile(f"{where} was never written")


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except GatherdError:
        raise
    except Exception as error:  # noqa: BLE001  # damage makes h5py raise errors of any class
        raise BadFile(f"{name} can't be read as HDF5: {type(error).__name__}: {error}") from None
