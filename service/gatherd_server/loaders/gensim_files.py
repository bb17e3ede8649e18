"""gensim's own files (KeyedVectors.save, Word2Vec.save), and arrays that were pickled alone.

Such a file is a pickle; its large arrays are beside it as FILE.ATTRIBUTE.npy (or .npz). The words
are read all at once, because a pickle can't be read in parts; the rows are read in batches.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.format import npy_dtype
from gatherd.store.key_index import KeyKind, Keys, StringKeys
from gatherd.store.parts import pick
from gatherd_server.loaders.array_pickle import Found, PickledArray, PickledDtype, read_arrays
from gatherd_server.loaders.batches import RowBatch, RowSource, array_rows, rows_per_batch
from gatherd_server.loaders.folders import Recognise
from gatherd_server.loaders.limits import ARRAY_PICKLE_BYTES_MAX
from gatherd_server.loaders.streams import Opened

PICKLE_MAGICS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
# The vectors of a KeyedVectors, and of a model that has one.
_USUAL = ("vectors", "wv.vectors")
_COMPOSED = ("vectors_ngrams", "wv.vectors_ngrams")


def pickle_source(
    opened: Opened, part: str | None, location: str, recognise: Recognise
) -> RowSource:
    """One array of a pickle by gensim or NumPy, by default the words' vectors.

    `location` is that of the file with the pickle, which may be packed.
    """
    data = opened.stream.read(ARRAY_PICKLE_BYTES_MAX + 1)
    if len(data) > ARRAY_PICKLE_BYTES_MAX:
        raise BadFile(f"{opened.name} is a pickle of more than {ARRAY_PICKLE_BYTES_MAX} bytes")
    found = read_arrays(data, opened.name)
    del data
    shown = {path: _shown(array) for path, array in found.arrays.items()}
    usual = next((path for path in _USUAL if path in shown), None)
    if part is usual is None and any(path in shown for path in _COMPOSED):
        raise BadFile(
            f"{opened.name} is a FastText model of gensim's, which saves no vectors of the words "
            "but what they are composed of; write it with save_facebook_model, or its "
            "words alone with save_word2vec_format"
        )
    chosen = pick(opened.name, part or usual, shown, "array")
    array = found.arrays[chosen]
    where = f"{opened.name}#{chosen}"
    source = (
        replace(recognise(_beside(opened.name, location, chosen), None), format="gensim")
        if array is None
        else _array_source(where, array)
    )
    return _with_keys(where, source, found, chosen)


def _beside(name: str, location: str, array: str) -> str:
    """The file that gensim puts an array in: an .npz beside a packed pickle, else a .npy."""
    packed, plain = f"{location}.{array}.npz", f"{name}.{array}.npy"
    is_packed = location.endswith((".gz", ".bz2"))
    return packed if is_packed and not Path(plain).exists() else plain


def _shown(array: PickledArray | None) -> str:
    if array is None:
        return "in a .npy file beside it"
    match array.state:
        case (_, tuple() as shape, PickledDtype() as dtype, *_) if len(shape) < 9:
            return f"{dtype.order}{dtype.text} {shape}"
    return "damaged"


def _array_source(where: str, array: PickledArray) -> RowSource:
    match array.state:
        case (_, (int(rows), int(dim)), PickledDtype() as stored, is_fortran, bytes() as data):
            pass
        case (_, tuple() as shape, PickledDtype(), _, bytes()) if len(shape) < 9:
            raise BadFile(f"{where} has shape {shape}; a table has two dimensions, (rows, dim)")
        case _:
            raise BadFile(f"{where} is damaged, or an array of objects")
    dtype, storage = _dtype(where, stored)
    if rows < 0 or dim < 1 or math.prod((rows, dim, dtype.itemsize)) != len(data):
        raise BadFile(f"{where} is damaged: {len(data)} bytes for {dtype.value} {(rows, dim)}")
    whole: NDArray[Any] = np.ndarray((rows, dim), storage, data, order="F" if is_fortran else "C")

    def read() -> Iterator[RowBatch]:
        step = rows_per_batch(dim, dtype.itemsize)
        for start in range(0, rows, step):
            part = np.ascontiguousarray(whole[start : start + step], dtype.storage)
            yield RowBatch(part, None, np.arange(start, start + len(part)), start + len(part))

    return array_rows(where, "pickle", dtype, (rows, dim), read)


def _dtype(where: str, stored: PickledDtype) -> tuple[DType, np.dtype[Any]]:
    if stored.text in ("f2", "f4", "f8") and stored.order in ("<", ">"):
        storage = np.dtype(stored.order + stored.text)
        dtype = npy_dtype(storage)
        assert dtype is not None
        return dtype, storage
    raise BadFile(f"{where} has dtype {stored.text[:16]}; a table is of float16, float32, float64")


def _with_keys(where: str, source: RowSource, found: Found, chosen: str) -> RowSource:
    """The rows, with the words of the array's object as keys if there is one per row."""
    owner, _, _ = chosen.rpartition(".")
    keys = found.keys.get(owner)
    if keys is None or source.row_count != len(keys):
        if keys is not None and chosen in _USUAL:
            raise BadFile(f"{where} has {source.row_count} rows and {len(keys)} keys")
        return source
    kind = KeyKind.BYTES if all(isinstance(key, str) for key in keys) else KeyKind.INT64
    if kind is KeyKind.INT64 and not all(
        type(key) is int and -(2**63) <= key < 2**63 for key in keys
    ):
        raise BadFile(f"{where}: its keys are neither all strings nor all integers of 64 bits")

    def read() -> Iterator[RowBatch]:
        start = 0
        for batch in source.read():
            part = keys[start : start + len(batch.rows)]
            start += len(part)
            yield replace(batch, keys=_keys(where, kind, part))

    return replace(source, name=where, format="gensim", key_kind=kind, read=read)


def _keys(where: str, kind: KeyKind, keys: list[Any]) -> Keys:
    if kind is KeyKind.INT64:
        return np.array(keys, np.int64)
    try:
        found = [key.encode() for key in keys]
    except UnicodeEncodeError as error:
        raise BadFile(f"{where}: a key isn't text: {error}") from None
    return StringKeys.of(found)
