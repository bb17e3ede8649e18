"""The compiled loops: key lookups and pooled bags.

This module is the typed entrance to the modules beside it. They need numba and are imported at the
first call: `import gatherd` never loads numba, and a client without it can do everything but keys
and bags.

Importing them compiles all kernels, with explicit signatures that cover every table's dtype and
alignment, or loads them from numba's cache: NUMBA_CACHE_DIR if it is set before, else `__pycache__`
beside the module, else the user's cache folder. If none of these can be written, every process
compiles the kernels anew. `warm()` does that ahead of the first request.
"""

import zlib
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import Unimplemented

_HINT = "pip install 'gatherd[local]'"


class RowKind(IntEnum):
    """How the elements of a table's rows are stored; bags.py branches on the number."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    FLOAT64 = 3


def _need_numba() -> None:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise Unimplemented(
            f"lookups by key and pooled bags need numba on this machine: {_HINT} ({error})"
        ) from None


@cache
def _keys() -> ModuleType:
    _need_numba()
    from gatherd.store.kernels import keys

    return keys


@cache
def _bags() -> ModuleType:
    _need_numba()
    from gatherd.store.kernels import bags

    return bags


@cache
def _gather() -> ModuleType:
    _need_numba()
    from gatherd.store.kernels import gather

    return gather


@cache
def _initial() -> ModuleType:
    _need_numba()
    from gatherd.store.kernels import initial

    return initial


@cache
def _open_rows() -> ModuleType:
    _need_numba()
    from gatherd.store.kernels import open_rows

    return open_rows


@cache
def _open_bags() -> ModuleType:
    _need_numba()
    from gatherd.store.kernels import open_bags

    return open_bags


def fingerprint(others: Iterable[Path] = ()) -> str:
    """A hash that differs between releases' kernels, for the name of a folder that keeps them.

    numba checks only a kernel's own file for changes; parts of ours are in other files. `others`
    are sources of kernels outside the store.
    """
    own = sorted(Path(__file__).parent.glob("*.py"))
    crc = 0
    for path in (*own, *others):
        crc = zlib.crc32(path.read_bytes(), crc)
    return f"{crc:08x}"


def warm() -> None:
    """Compile or load every kernel, and run each once. Takes 0.3 s from the cache.

    Unimplemented when numba isn't installed.
    """
    _keys().warm()
    _bags().warm()
    _gather().warm()
    _initial().warm()
    _open_rows().warm()
    _open_bags().warm()
    _Loaded.gather = _gather().gather


def find_ints(
    slots: NDArray[np.uint64],
    stored: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    seed: int,
    rows: NDArray[np.int64],
) -> None:
    """Fill `rows`, (n,), with the rows of `keys`, (n,), or −1; store/key_index.py has the layout.

    `slots` may hold anything, but its length must be a power of two.
    """
    _keys().find_ints(slots, stored, keys, np.uint64(seed), rows)


def find_strings(
    slots: NDArray[np.uint64],
    stored_offsets: NDArray[np.uint64],
    stored_data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    data: NDArray[np.uint8],
    seed: int,
    rows: NDArray[np.int64],
) -> None:
    """The same as `find_ints`, for strings; the stored offsets may hold anything too."""
    _keys().find_strings(slots, stored_offsets, stored_data, offsets, data, np.uint64(seed), rows)


def insert_ints(
    slots: NDArray[np.uint64],
    stored: NDArray[np.uint64],
    count: int,
    keys: NDArray[np.uint64],
    start: int,
    seed: int,
    is_new: NDArray[np.bool_],
) -> tuple[int, int]:
    """Append those of `keys[start:]` that aren't stored yet, and mark them in `is_new`.

    Returns the position reached and the new count; it stops early at a key that finds no slot
    within PROBES_MAX. `slots` and `stored` must have room for every key.
    """
    done, count = _keys().insert_ints(slots, stored, count, keys, start, np.uint64(seed), is_new)
    return int(done), int(count)


def insert_strings(
    slots: NDArray[np.uint64],
    stored_offsets: NDArray[np.uint64],
    stored_data: NDArray[np.uint8],
    count: int,
    offsets: NDArray[np.int64],
    data: NDArray[np.uint8],
    start: int,
    seed: int,
    is_new: NDArray[np.bool_],
) -> tuple[int, int]:
    """The same as `insert_ints`, for strings."""
    done, count = _keys().insert_strings(
        slots, stored_offsets, stored_data, count, offsets, data, start, np.uint64(seed), is_new
    )
    return int(done), int(count)


def place_ints(
    slots: NDArray[np.uint64], stored: NDArray[np.uint64], start: int, count: int, seed: int
) -> int:
    """Enter the rows from `start` up to `count` into `slots`; distinct keys, so none is compared.

    Returns the row reached: less than `count` when PROBES_MAX was met.
    """
    return int(_keys().place_ints(slots, stored, start, count, np.uint64(seed)))


def place_strings(
    slots: NDArray[np.uint64],
    stored_offsets: NDArray[np.uint64],
    stored_data: NDArray[np.uint8],
    start: int,
    count: int,
    seed: int,
) -> int:
    """The same as `place_ints`, for strings; the stored offsets must be sound."""
    return int(
        _keys().place_strings(slots, stored_offsets, stored_data, start, count, np.uint64(seed))
    )


def hash_ints(keys: NDArray[np.uint64], seed: int, out: NDArray[np.uint64]) -> None:
    """Fill `out`, (n,), with the hashes of `keys`, (n,); store/key_index.py has the formula."""
    _initial().hash_ints(keys, np.uint64(seed), out)


def hash_strings(
    offsets: NDArray[np.int64], data: NDArray[np.uint8], seed: int, out: NDArray[np.uint64]
) -> None:
    """The same as `hash_ints`, for strings."""
    _initial().hash_strings(offsets, data, np.uint64(seed), out)


def draw(hashes: NDArray[np.uint64], law: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Fill `out`, (n, dim), with the initial vectors of keys with these hashes, (n,).

    `law` has the words of an `initial.Initial`.
    """
    _initial().draw(hashes, law.ctypes.data, out)


DONE = -1


def torn_row(found: int) -> int:
    """The torn row (from `pool`'s result) or its position (from a `Gather`'s)."""
    return -2 - found


Gather: TypeAlias = Callable[
    [NDArray[np.uint8], NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint8], int], int
]
"""gather.gather: takes rows, counters, ids, out and the byte to begin at."""


class _Loaded:
    gather: Gather | None = None


def compiled_gather() -> Gather | None:
    """The compiled gather, if this process called `warm`; else None: it may not want numba.

    It returns DONE, the position of an id without a row, or a number below DONE.
    """
    return _Loaded.gather


def pool(
    rows: NDArray[np.uint8],
    kind: RowKind,
    counters: NDArray[np.uint32],
    index: NDArray[np.int64],
    offsets: NDArray[np.int64],
    weights: NDArray[np.float32],
    mode: int,
    filler: NDArray[np.float32],
    out: NDArray[Any],
    begin: int,
) -> tuple[int, int]:
    """Pool rows, (row_count, row_bytes), into `out`, float32 (bags, dim), from bag `begin` on.

    store/bags.py has the meaning. `weights` is empty for none; `counters`, of the rows' stripes, is
    empty when the rows never change. Returns the bag reached and DONE, or the position (≥ 0) of an
    index that has no row, or a number below DONE, from which `torn_row` gets the row that stays
    torn: then call it again from that bag.
    """
    bag, found = _bags().pool(
        rows, int(kind), counters, index, offsets, weights, mode, filler, out, begin
    )
    return int(bag), int(found)


# The words of an open table, and how many of them are of its keys.
OPEN_WORDS, OPEN_KEY_WORDS = 18, 8

# Rows of open tables. `table` are the words of kernels/open_rows.py, and hold addresses; `first`
# are the keys' 64 bits, int64 (n,), or the offsets, (n + 1,), of strings in `data`.


def look_up(
    table: NDArray[np.int64],
    first: NDArray[np.int64],
    data: NDArray[np.uint8],
    rows: NDArray[np.int64],
    missing: int,
    out: NDArray[Any],
) -> int:
    """Find hints and take rows: `find_hints` and `take_open` in one call.

    Returns how many keys have no row, or a number below DONE as `take_open` does. If all have to be
    there, and one has no hint, nothing is copied.
    """
    return int(_open_rows().look_up(table, first, data, rows, missing, _at(out)))


def key_words(
    slots: NDArray[np.uint64],
    seed: int,
    stored: NDArray[np.uint64],
    heap: NDArray[np.uint8],
    *,
    are_strings: bool,
) -> NDArray[np.int64]:
    """The words of an open table's keys. The arrays have to be kept as long as they are used."""
    words = np.zeros(OPEN_WORDS, np.int64)
    words[:OPEN_KEY_WORDS] = (
        *(_at(slots), slots.size - 1, np.uint64(seed).astype(np.int64), are_strings),
        *(_at(stored), _at(heap), heap.size, stored.size),
    )
    return words


def table_words(
    keys: NDArray[np.int64],
    rows: NDArray[np.uint8],
    counters: NDArray[np.uint32],
    dim: int,
    kind: RowKind,
    initial_seed: int,
    initial_law: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The words of an open table whose keys have the words `keys`; as `key_words`."""
    words = keys.copy()
    words[OPEN_KEY_WORDS:] = (
        *(_at(rows), rows.shape[1], _at(counters), counters.size - 1, dim, kind),
        *(np.uint64(initial_seed).astype(np.int64), *initial_law),
    )
    return words


def find_hints(
    table: NDArray[np.int64],
    first: NDArray[np.int64],
    data: NDArray[np.uint8],
    hints: NDArray[np.int64],
) -> None:
    """Fill `hints`, (n,), with a row that may have each key, or −1: no row has it."""
    _open_rows().find_first(_at(table), _at(first), _at(data), hints.size, _at(hints))


def find_open(
    table: NDArray[np.int64],
    first: NDArray[np.int64],
    data: NDArray[np.uint8],
    rows: NDArray[np.int64],
) -> None:
    """Fill `rows`, (n,), with the row that had each key a moment ago, or −1."""
    _open_rows().find_open(_at(table), _at(first), _at(data), rows.size, _at(rows))


def take_open(
    table: NDArray[np.int64],
    first: NDArray[np.int64],
    data: NDArray[np.uint8],
    hints: NDArray[np.int64],
    missing: int,
    out: NDArray[Any],
) -> int:
    """Fill `out`, (n, row_bytes) bytes, with each key's row as it is stored.

    Each of `hints` becomes the row, or −1 for a key without one: its part of `out` stays as it is,
    or gets the key's initial vector if `missing` says so. Returns DONE, or a number below it, from
    which `torn_row` gets the position of a row that stays torn.
    """
    return int(
        _open_rows().take_open(
            _at(table), _at(first), _at(data), hints.size, _at(hints), missing, _at(out)
        )
    )


class OpenPooling:
    """Bags of an open table that are pooled; kernels/open_bags.py has the words. Used once."""

    def __init__(
        self,
        table: NDArray[np.int64],
        first: NDArray[np.int64],
        data: NDArray[np.uint8],
        hints: NDArray[np.int64],
        offsets: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
        mode: int,
        missing: int,
        filler: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None:
        """Everything is C-contiguous; `out` is (bags, dim)."""
        self._held = (table, first, data, hints, offsets, weights, filler, out)
        words = (
            *(_at(table), _at(first), _at(data), hints.size, _at(hints)),
            *(_at(offsets), offsets.size, 0 if weights is None else _at(weights)),
            *(mode, missing, _at(filler), _at(out)),
        )
        self._words = np.array(words, np.int64)

    def run(self, begin: int) -> int:
        """Fill the rows of `out` from bag `begin` on; each hint becomes the row, or −1.

        Returns DONE; the position of a key without a row that has to be there; or a number below
        DONE, from which `torn_row` gets the position of a row that stays torn: then run from its
        bag.
        """
        return int(_open_bags().pool_by_key(_at(self._words), begin))


def _at(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
