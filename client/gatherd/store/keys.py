"""Batches of keys as callers give them: checked, never coerced; the counterpart of ids.py.

A batch is either an array of integers, unchanged, or `StringKeys`. A string key is its UTF-8 bytes;
any other bytes can be a key too, and appear as `str` with `surrogateescape`. Left out on purpose:
Unicode normalisation. Two spellings of one character are two keys, as in a dict.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument, KeyNotFound
from gatherd.store.given import (
    NESTING_MAX,
    OFFENDERS_MAX,
    as_given_array,
    has_array,
    position,
)
from gatherd.store.ids import check_shape

# A longer token is a parser's mistake, not a word. A request's keys need a bound, too.
KEY_BYTES_MAX = 1024
KEY_CHARS_SHOWN_MAX = 64
# Keys that are copied together. If they are the longest, their bytes' positions take 32 MB.
KEYS_AT_ONCE = 4096
# What ends a KeyNotFound's message, in its metadata.
HINT = "hint"

_INT64 = np.iinfo(np.int64)
_UINT64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True, eq=False)
class StringKeys:
    """A batch of string keys of shape S, row-major.

    Key i is `data[offsets[i]:offsets[i + 1]]`; `data` is uint8, `offsets` int64, (n + 1,).
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of keys."""
        return self.offsets.size - 1

    def tolist(self) -> list[bytes]:
        """The keys' bytes, flat."""
        data = self.data.tobytes()
        bounds = self.offsets.tolist()
        return [data[begin:end] for begin, end in pairwise(bounds)]

    def texts(self) -> list[str]:
        """The keys as text, flat; bytes that aren't UTF-8 become lone surrogates."""
        return [key_text(key) for key in self.tolist()]

    def take(self, positions: NDArray[np.intp]) -> "StringKeys":
        """The keys at `positions`, (n,), flat."""
        begins = self.offsets[positions]
        lengths = self.offsets[positions + 1] - begins
        offsets = np.zeros(positions.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        source = np.arange(int(offsets[-1])) + np.repeat(begins - offsets[:-1], lengths)
        return StringKeys(self.data[source], offsets, (positions.size,))

    @classmethod
    def of(cls, keys: list[bytes], shape: tuple[int, ...] | None = None) -> "StringKeys":
        """A batch of `keys`; their lengths aren't checked."""
        offsets = np.zeros(len(keys) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)), out=offsets[1:])
        data = np.frombuffer(b"".join(keys), np.uint8)
        return cls(data, offsets, (len(keys),) if shape is None else shape)


Keys = StringKeys | NDArray[np.integer[Any]]
"""A batch of keys: strings, or 64-bit integers of any integer dtype."""


def key_text(key: bytes) -> str:
    """`key` as text; bytes that aren't UTF-8 become lone surrogates, which encode back."""
    return key.decode("utf-8", "surrogateescape")


def strings_at(
    data: NDArray[np.uint8],
    begins: NDArray[np.int64],
    offsets: NDArray[np.int64],
    shape: tuple[int, ...],
) -> StringKeys:
    """The strings of `data` that begin at `begins`, (n,), as keys of `shape` with such offsets."""
    copied = np.empty(int(offsets[-1]), np.uint8)
    shifts = begins - offsets[:-1]
    # In parts, because the positions of all bytes take many times the bytes' memory.
    for first in range(0, begins.size, KEYS_AT_ONCE):
        part = offsets[first : first + KEYS_AT_ONCE + 1]
        # Each byte's position in `data`: its position in the result, plus its key's shift.
        shift = np.repeat(shifts[first : first + KEYS_AT_ONCE], np.diff(part))
        copied[part[0] : part[-1]] = data[np.arange(part[0], part[-1]) + shift]
    return StringKeys(copied, offsets, shape)


def as_keys(keys: object) -> Keys:
    """`keys` as a batch of the same shape.

    Takes a str, bytes or int, a range, (nested) lists or tuples of one of these, or anything with a
    NumPy array interface that holds strings, bytes or integers. InvalidArgument, naming keys[i][j],
    for mixed kinds, empty and overlong keys, floats, bools, entries that are masked or null, ragged
    lists and integers that no 64-bit type holds.
    NumPy's own fixed-width strings have already lost their trailing NULs.
    """
    if isinstance(keys, StringKeys):
        return keys
    if not isinstance(keys, list | tuple | str | bytes | bytearray | int | float | None):
        keys = as_given_array(keys, "keys")
        if keys.size == 0:
            check_shape("keys", keys.shape)
        if keys.dtype.kind in "iu":
            native = keys.dtype.newbyteorder("=")
            return np.ascontiguousarray(keys, dtype=native).reshape(keys.shape)
        if keys.size == 0:
            return np.empty(keys.shape, np.int64)
        if keys.dtype.kind not in "bfUSTO":
            raise InvalidArgument(f"keys are strings or integers, not {keys.dtype}")
        keys = keys.tolist()
    leaves, shape = _flatten(keys)
    return keys_from_leaves(leaves, shape, lambda flat: _where(flat, shape))


def keys_from_leaves(
    leaves: list[Any],
    shape: tuple[int, ...],
    where: Callable[[int], str],
    what: str = "keys are strings or integers",
) -> Keys:
    """A batch of `shape` from flat `leaves`; `where` names the one at a position in errors."""
    kinds = set(map(type, leaves))
    if kinds <= {str}:
        return _from_texts(leaves, shape, where) if leaves else np.empty(shape, np.int64)
    if kinds <= {str, bytes, np.str_, np.bytes_}:
        return _from_bytes(_encoded(leaves, where), shape, where)
    _check_kinds(leaves, where, what)
    if isinstance(leaves[0], str | bytes):
        return _from_bytes(_encoded(leaves, where), shape, where)
    return _from_integers([int(leaf) for leaf in leaves], shape, where)


def _flatten(keys: object) -> tuple[list[Any], tuple[int, ...]]:
    if not isinstance(keys, list | tuple):
        return [keys], ()
    level: list[Any] = list(keys)
    shape: tuple[int, ...] = (len(level),)
    while _is_nested(level, shape):
        if len(shape) >= NESTING_MAX:
            raise InvalidArgument(f"keys are nested deeper than {NESTING_MAX} levels")
        lengths = {len(item) if isinstance(item, list | tuple) else None for item in level}
        if len(lengths) != 1:
            raise InvalidArgument(
                "keys are ragged: every list on one level must be equally long "
                "(lists of different lengths are bags: see lookup_bags)"
            )
        shape = (*shape, len(level[0]))
        level = list(chain.from_iterable(level))
    return level, shape


def _is_nested(level: list[Any], shape: tuple[int, ...]) -> bool:
    """Whether `level` has lists in it; arrays in it become lists first."""
    kinds = set(map(type, level))
    if any(has_array(kind) and not issubclass(kind, np.generic) for kind in kinds):
        for flat, item in enumerate(level):
            if has_array(item) and not isinstance(item, np.generic):
                level[flat] = as_given_array(item, _where(flat, shape)).tolist()
        return _is_nested(level, shape)
    return any(issubclass(kind, list | tuple) for kind in kinds)


def _from_texts(texts: list[str], shape: tuple[int, ...], where: Callable[[int], str]) -> Keys:
    joined = "".join(texts)
    if not joined.isascii():
        return _from_bytes(_encoded(texts, where), shape, where)
    # One byte per character, so these are the lengths in bytes, and one encode serves all keys.
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return _checked(np.frombuffer(joined.encode("ascii"), np.uint8), lengths, shape, where)


def _from_bytes(keys: list[bytes], shape: tuple[int, ...], where: Callable[[int], str]) -> Keys:
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    return _checked(np.frombuffer(b"".join(keys), np.uint8), lengths, shape, where)


def _encoded(keys: list[Any], where: Callable[[int], str]) -> list[bytes]:
    encoded = []
    for flat, key in enumerate(keys):
        try:
            encoded.append(
                key.encode("utf-8", "surrogateescape") if isinstance(key, str) else bytes(key)
            )
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"{where(flat)}={key[:KEY_CHARS_SHOWN_MAX]!a} isn't text: "
                "it has a lone surrogate that stands for no byte"
            ) from None
    return encoded


def _checked(
    data: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    shape: tuple[int, ...],
    where: Callable[[int], str],
) -> StringKeys:
    if lengths.size and not (lengths.min() >= 1 and lengths.max() <= KEY_BYTES_MAX):
        flat = int(np.flatnonzero((lengths < 1) | (lengths > KEY_BYTES_MAX))[0])
        if lengths[flat] < 1:
            raise InvalidArgument(f"{where(flat)} is empty; a key has at least one byte")
        raise InvalidArgument(
            f"{where(flat)} has {lengths[flat]} bytes; a key has at most {KEY_BYTES_MAX}"
        )
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return StringKeys(data, offsets, shape)


def _check_kinds(leaves: list[Any], where: Callable[[int], str], what: str) -> None:
    first_is_text = isinstance(leaves[0], str | bytes)
    for flat, leaf in enumerate(leaves):
        text = isinstance(leaf, str | bytes)
        integer = isinstance(leaf, int | np.integer) and not isinstance(leaf, bool)
        if not text and not integer:
            raise InvalidArgument(f"{where(flat)} is {_kind(leaf)}; {what}")
        if text is not first_is_text:
            first, other = (
                ("a string", "an integer") if first_is_text else ("an integer", "a string")
            )
            raise InvalidArgument(
                f"{where(0)} is {first} and {where(flat)} {other}; keys are of one kind"
            )


def _kind(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return f"the bool {value}"
    if isinstance(value, float):
        return f"the float {value}"
    return "null" if value is None else f"a {type(value).__name__}"


def _from_integers(values: list[int], shape: tuple[int, ...], where: Callable[[int], str]) -> Keys:
    low, high = min(values), max(values)
    if low < _INT64.min or high > _UINT64_MAX:
        flat = values.index(low if low < _INT64.min else high)
        raise InvalidArgument(f"{where(flat)}={values[flat]} doesn't fit into 64 bits")
    if high <= _INT64.max:
        return np.array(values, np.int64).reshape(shape)
    if low < 0:
        raise InvalidArgument(
            f"{where(values.index(low))}={low} is negative and {where(values.index(high))}={high} "
            "above 2**63 − 1: no 64-bit type holds both"
        )
    return np.array(values, np.uint64).reshape(shape)


def _where(flat: int, shape: tuple[int, ...]) -> str:
    return position("keys", flat, shape)


def string_keys_from_wire(
    data: bytes | memoryview, lengths: bytes | memoryview, shape: tuple[int, ...]
) -> StringKeys:
    """String keys as they came off a wire; `data` isn't copied.

    `lengths` are little-endian uint32, one per key. InvalidArgument when they, `data` and `shape`
    contradict each other, or a key is empty or overlong.
    """
    check_shape("keys", shape)
    if len(lengths) != math.prod(shape) * 4:
        raise InvalidArgument(
            f"keys of shape {shape} have lengths of {math.prod(shape) * 4} bytes "
            f"(uint32 each); {len(lengths)} were sent"
        )
    each = np.frombuffer(lengths, "<u4").astype(np.int64)
    total = int(each.sum())
    if total != len(data):
        raise InvalidArgument(f"the keys' lengths add up to {total} bytes; {len(data)} were sent")
    return _checked(np.frombuffer(data, np.uint8), each, shape, lambda flat: _where(flat, shape))


def key_not_found_error(
    table: str, keys: Keys, rows: NDArray[np.integer[Any]], hint: str = ""
) -> KeyNotFound:
    """The error that names the first keys without a row; `rows` has −1 for each of them.

    `hint` ends the message, and is kept in the metadata for whoever restates the error.
    """
    bad = np.flatnonzero(rows.reshape(-1) < 0)
    shown = [int(flat) for flat in bad[:OFFENDERS_MAX]]
    named = dict(
        zip((_where(flat, rows.shape) for flat in shown), shown_keys(keys, shown), strict=True)
    )
    listed = ", ".join(f"{where}={key}" for where, key in named.items())
    more = f" (and {bad.size - len(named)} more)" if bad.size > len(named) else ""
    hinted = {HINT: hint} if hint else {}
    return KeyNotFound(
        f"table {table!r} has no key {listed}{more}{hint}",
        {"table": table, "offenders": str(bad.size), **named, **hinted},
    )


def shown_keys(keys: Keys, positions: Iterable[int]) -> Iterator[str]:
    """The keys at flat `positions` as an error shows them."""
    for flat in positions:
        if isinstance(keys, StringKeys):
            begin, end = int(keys.offsets[flat]), int(keys.offsets[flat + 1])
            text = key_text(keys.data[begin:end].tobytes())
            cut = "…" if len(text) > KEY_CHARS_SHOWN_MAX else ""
            yield repr(text[:KEY_CHARS_SHOWN_MAX]) + cut
        else:
            yield str(int(keys.reshape(-1)[flat]))
