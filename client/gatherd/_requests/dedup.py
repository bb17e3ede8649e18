"""Asks for every id once: the distinct ids, and the place of each answer among theirs.

Left out on purpose: a hash of our own in place of np.unique's sort. Measured, it was slower (16,384
int64 ids: 720 µs against 530), and sorted ids are kinder to the server's memory.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import Answer, LookupSpec, check_dim
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.query import Asked, ByKey


def distinct(asked: Asked) -> tuple[Asked, NDArray[np.intp]]:
    """The distinct ids or keys, flat, and the place among them of each of `asked`, row-major."""
    if not isinstance(asked, ByKey):
        return _distinct_integers(asked.reshape(-1))
    keys: Keys = asked.keys
    if isinstance(keys, StringKeys):
        few, places = _distinct_strings(keys)
        return ByKey(few), places
    integers, places = _distinct_integers(keys.reshape(-1))
    return ByKey(integers), places


def expanded(spec: LookupSpec, answer: Answer, places: NDArray[np.intp]) -> Answer:
    """The answer to `spec`, from the `answer` to its distinct ids or keys."""
    check_dim(spec, answer.vectors.shape[-1])
    dim = answer.vectors.shape[-1]
    vectors = spec.out
    if vectors is None:
        vectors = np.empty((*spec.vectors_shape, dim), answer.vectors.dtype)
    if places.size:
        # As bits: NumPy would copy a type that isn't its own, such as bfloat16, one by one.
        bits = answer.vectors.dtype.itemsize
        flat = vectors.view(f"u{bits}").reshape(places.size, dim)
        # mode="clip" is the one that fills `out` directly; every place is in range.
        np.take(answer.vectors.view(f"u{bits}"), places, axis=0, out=flat, mode="clip")
    status = answer.status
    if status is not None:
        status = status[places].reshape(spec.asked.shape)
    return replace(answer, vectors=vectors, status=status)


def _distinct_integers(ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    few, places = np.unique(ids, return_inverse=True)
    return few, places


def _distinct_strings(keys: StringKeys) -> tuple[StringKeys, NDArray[np.intp]]:
    bounds = keys.offsets.tolist()
    data = keys.data.tobytes()
    known: dict[bytes, int] = {}
    places = [known.setdefault(data[begin:end], len(known)) for begin, end in pairwise(bounds)]
    return StringKeys.of(list(known), (len(known),)), np.array(places, np.intp)
