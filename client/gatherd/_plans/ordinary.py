"""Arguments of calls as they can be sent without a plan, or None: nothing here raises."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._wire import lookups
from gatherd._wire.lookups import SentStrings
from gatherd.errors import GatherdError
from gatherd.store.ids import as_id_array
from gatherd.store.keys import KEY_BYTES_MAX, StringKeys, as_keys


def rows_given(ids: Any, keys: Any) -> Any:
    """Ids, or keys, as a C-contiguous array or SentStrings; None for what can't be foreseen."""
    given = ids if keys is None else keys
    if given is None or (ids is not None and keys is not None):
        return None
    if given.__class__ is np.ndarray and given.dtype.kind in "iu" and given.flags.c_contiguous:
        return given
    if keys.__class__ is list and keys:
        sent = _sent_strings(keys)
        if sent is not None:
            return sent
    try:
        found = as_id_array(ids) if keys is None else as_keys(keys)
    except GatherdError:
        return None
    return lookups.sent_strings(found) if isinstance(found, StringKeys) else found


def are_plain(name: Any, *integers: Any) -> bool:
    """Whether they are a str, and int or None. True equals 1, and has its hash."""
    return name.__class__ is str and all(one is None or one.__class__ is int for one in integers)


def by_table(
    ids: Any, keys: Any, version: Any
) -> tuple[list[str], list[Any], dict[str, int]] | None:
    """Tables, what is asked of each, and versions; None unless they are ordinary dicts."""
    if not all(one is None or one.__class__ is dict for one in (ids, keys, version)):
        return None
    versions = version or {}
    if versions and not all(one.__class__ is int for one in versions.values()):
        return None
    ids, keys = ids or {}, keys or {}
    names, values = [*ids, *keys], [*ids.values(), *keys.values()]
    if keys and ids.keys() & keys.keys():
        return None
    if not versions.keys() <= set(names):
        return None
    return names, values, versions


def bag_arrays(flat: Any, offsets: Any, weights: Any) -> tuple[Any, ...] | None:
    """What varies in a lookup of bags, or None if it isn't ordinary arrays."""
    if flat is None or not is_ordinary(offsets):
        return None
    if weights is None:
        return flat, offsets
    return (flat, offsets, weights) if is_ordinary(weights) else None


def is_ordinary(array: Any) -> bool:
    """Whether it can be sent as it lies, if the plan would send its dtype and shape."""
    return array.__class__ is np.ndarray and array.flags.c_contiguous


def form(given: NDArray[Any] | SentStrings) -> tuple[np.dtype[Any] | None, tuple[int, ...]]:
    return None if isinstance(given, SentStrings) else given.dtype, given.shape


def pooling_key(mode: Any, weights: Any, padding_id: Any) -> tuple[Any, ...]:
    """How bags are pooled, as a part of a key: equal only for what is the same to the plan."""
    return mode.__class__, mode, weights is None, padding_id.__class__, padding_id


def _sent_strings(keys: Any) -> SentStrings | None:
    """A flat list of str, all of ASCII, as the plan would send it; None for any other keys."""
    try:
        joined = "".join(keys)
    except TypeError:
        return None
    lengths = list(map(len, keys))
    if not joined.isascii() or not 1 <= min(lengths) <= max(lengths) <= KEY_BYTES_MAX:
        return None
    packed = struct.pack(f"<{len(lengths)}I", *lengths)
    return SentStrings((len(lengths),), packed, joined.encode("ascii"))
