"""The numba kernels that read rows of open tables by key; other modules call them by compiled.py.

store/open_files.py has the layout, and the order in which the writer stores. Rows come and go
meanwhile, so what the index says is a hint: by its fingerprint a slot names a row that may have a
key, and only the row's own key, compared under the row's counter (stripes.py), says that it has it.
If the counter is the same after the copy, what was copied is that key's vector: the second look.

What is asked for is given by addresses: `first` of the keys as 64 bits each, or of the offsets of
strings that are at `data`.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.initial import LAW_WORDS, draw_vector
from gatherd.store.kernels.intrinsics import address, inlined, kernel, read, write
from gatherd.store.kernels.keys import (
    AHEAD,
    EMPTY,
    FINGERPRINT_MASK,
    ONE,
    PROBES_MAX,
    ROW_MASK,
    hash_bytes,
    mix,
)
from gatherd.store.kernels.memory import (
    WORD,
    carray,
    column,
    copy,
    int64_at,
    int64_first,
    part,
    pointer,
    prefetch,
    put,
    uint8_at,
    uint32_first,
    unit,
)
from gatherd.store.kernels.row_intrinsics import fence_loads

# The words of an open table.
SLOTS_AT, SLOT_MASK, SEED, ARE_STRINGS, KEYS_AT, HEAP_AT, HEAP_BYTES, ROW_COUNT = range(8)
ROWS_AT, ROW_BYTES, COUNTERS_AT, COUNTER_MASK, DIM, KIND = range(8, 14)
INITIAL_SEED, INITIAL_LAW = 14, 15
OPEN_WORDS = INITIAL_LAW + LAW_WORDS

# What is done for a key without a row: numbers of Missing in embedding.proto.
ERROR, ZERO, DEFAULT, SKIP, INIT = range(1, 6)

# An entry is (position // 8) << 11 | length.
UNIT_BYTES = 8
LENGTH_BITS = 11
LENGTH_MASK = (1 << LENGTH_BITS) - 1

# How many keys ahead a row's first line, its key and what its key is in are prefetched.
ROWS_AHEAD = 8
HEAP_AHEAD = 8
LINE_BYTES = 64
# How often a row is looked at again before the caller has to sleep: tens of microseconds.
SPINS_MAX = 1000
DONE = -1
MISSING, TORN = -1, -2


@inlined
def hash_of(table: Any, first: Any, data: Any, i: Any, seed: Any) -> Any:
    """The hash of the key at position `i` of those asked for."""
    if column(table, ARE_STRINGS) == 0:
        return mix(np.uint64(column(first, i)) ^ seed)
    end = column(first, i + 1)
    return hash_bytes(carray(pointer(data), (end,), np.uint8), column(first, i), end, seed)


@inlined
def _row_of(table: Any, slot: Any, hashed: Any) -> Any:
    """The row that a slot names for a hash, or −1."""
    if (slot ^ hashed) & FINGERPRINT_MASK != EMPTY:
        return np.intp(-1)
    row = np.intp((slot - ONE) & ROW_MASK)
    return row if row < column(table, ROW_COUNT) else np.intp(-1)


@inlined
def _has_key(table: Any, row: Any, first: Any, data: Any, i: Any) -> Any:
    """Whether the row's own key is the one at position `i`."""
    stored = int64_at(column(table, KEYS_AT) + WORD * row)
    if column(table, ARE_STRINGS) == 0:
        return stored == column(first, i)
    begin = column(first, i)
    length = column(first, i + 1) - begin
    at = ((stored >> LENGTH_BITS) & ((1 << (64 - LENGTH_BITS)) - 1)) * UNIT_BYTES
    if stored & LENGTH_MASK != length or at + length > column(table, HEAP_BYTES):
        return False
    at += column(table, HEAP_AT)
    begin += data
    done = 0
    while length - done >= WORD:
        if int64_at(at + done) != int64_at(begin + done):
            return False
        done += WORD
    while done < length:
        if uint8_at(at + done) != uint8_at(begin + done):
            return False
        done += 1
    return True


@part
def _find(table: Any, first: Any, data: Any, i: Any) -> Any:
    """The row whose own key is that at position `i`, or −1. The hint was another key's."""
    slots, mask = column(table, SLOTS_AT), np.uint64(column(table, SLOT_MASK))
    hashed = hash_of(table, first, data, i, np.uint64(column(table, SEED)))
    h = hashed
    for _ in range(PROBES_MAX):
        slot = np.uint64(int64_first(slots + WORD * np.intp(h & mask)))
        if slot == EMPTY:
            break
        row = _row_of(table, slot, hashed)
        if row >= 0 and _has_key(table, row, first, data, i):
            return row
        h += ONE
    return np.intp(-1)


@unit(types.intp, types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def find_hints(table: Any, first: Any, data: Any, count: Any, hints: Any) -> Any:
    """Put for each key the first row with its fingerprint, or −1, which says that it has none."""
    slots, mask = column(table, SLOTS_AT), np.uint64(column(table, SLOT_MASK))
    seed = np.uint64(column(table, SEED))
    hashes = np.empty(AHEAD, np.uint64)
    for block in range(0, count, AHEAD):
        block_size = min(AHEAD, count - block)
        for i in range(block_size):
            hashes[i] = hash_of(table, first, data, block + i, seed)
            prefetch(slots + WORD * np.intp(hashes[i] & mask))
        for i in range(block_size):
            h, row = hashes[i], np.intp(-1)
            for _ in range(PROBES_MAX):
                slot = np.uint64(int64_first(slots + WORD * np.intp(h & mask)))
                if slot == EMPTY:
                    break
                row = _row_of(table, slot, hashes[i])
                if row >= 0:
                    break
                h += ONE
            put(hints, block + i, row)
    return DONE


@inlined
def take(table: Any, first: Any, data: Any, i: Any, hint: Any, to: Any) -> Any:
    """Copy the row of the key at position `i` to an address; the row, MISSING or TORN."""
    row, row_bytes = hint, column(table, ROW_BYTES)
    counters, mask = column(table, COUNTERS_AT), column(table, COUNTER_MASK)
    for _ in range(SPINS_MAX):
        if row < 0:
            return MISSING
        counter = counters + 4 * (row & mask)
        before = uint32_first(counter)
        if before & 1:
            continue
        if not _has_key(table, row, first, data, i):
            row = _find(table, first, data, i)
            continue
        copy(to, column(table, ROWS_AT) + row * row_bytes, row_bytes)
        fence_loads()
        if uint32_first(counter) == before:
            return row
    return TORN


@inlined
def ask_ahead(table: Any, hints: Any, count: Any, i: Any) -> None:
    """Prefetch what rows after position `i` need."""
    far = i + ROWS_AHEAD + HEAP_AHEAD
    if column(table, ARE_STRINGS) and far < count:
        prefetch(column(table, KEYS_AT) + WORD * column(hints, far))
    near = i + ROWS_AHEAD
    if near < count:
        row = column(hints, near)
        if row >= 0:
            begin = column(table, ROWS_AT) + row * column(table, ROW_BYTES)
            prefetch(begin)
            prefetch(begin + LINE_BYTES)
            key = column(table, KEYS_AT) + WORD * row
            if column(table, ARE_STRINGS):
                entry = int64_at(key)
                prefetch(column(table, HEAP_AT) + (entry >> LENGTH_BITS) * UNIT_BYTES)
            else:
                prefetch(key)


@inlined
def draw(table: Any, first: Any, data: Any, i: Any, to: Any) -> None:
    """Put the initial vector of the key at position `i` at an address, as its row would be."""
    hashed = hash_of(table, first, data, i, np.uint64(column(table, INITIAL_SEED)))
    law = table + WORD * INITIAL_LAW
    draw_vector(np.intp(hashed), law, column(table, DIM), column(table, KIND), to)


@unit(*[types.intp] * 7, returns=types.intp)
def take_rows(
    table: Any, first: Any, data: Any, count: Any, hints: Any, missing: Any, to: Any
) -> Any:
    """Copy each key's row as it is stored, one after the other, to an address.

    Each hint becomes the row, or −1 for a key that has none: its place stays as it is or, with INIT
    as `missing`, gets its initial vector. Returns DONE, or −2 − the position of a row that stays
    torn.
    """
    row_bytes = column(table, ROW_BYTES)
    for i in range(count):
        ask_ahead(table, hints, count, i)
        row = take(table, first, data, i, column(hints, i), to)
        if row == TORN:
            return -2 - i
        if row < 0 and missing == INIT:
            draw(table, first, data, i, to)
        put(hints, i, row)
        to += row_bytes
    return DONE


@kernel(*[types.intp] * 5)
def find_first(table: Any, first: Any, data: Any, count: Any, hints: Any) -> None:
    """find_hints, for Python."""
    find_hints(table, first, data, count, hints)


@kernel(*[types.intp] * 7, returns=types.intp)
def take_open(
    table: Any, first: Any, data: Any, count: Any, hints: Any, missing: Any, to: Any
) -> Any:
    """take_rows, for Python."""
    return take_rows(table, first, data, count, hints, missing, to)


@kernel(*[types.intp] * 5)
def find_open(table: Any, first: Any, data: Any, count: Any, rows: Any) -> None:
    """Put the row whose own key is each of the keys, or −1, as they are at this moment."""
    for i in range(count):
        put(rows, i, _find(table, first, data, i))


@kernel(
    read(types.int64),
    read(types.int64),
    read(types.uint8),
    write(types.int64),
    types.intp,
    types.intp,
    returns=types.intp,
)
def look_up(words: Any, first: Any, data: Any, rows: Any, missing: Any, to: Any) -> Any:
    """Both, for Python: how many keys have no row, or what take_rows returns if it isn't done."""
    table, keys, hints = address(words, 0), address(first, 0), address(rows, 0)
    count, text = rows.size, address(data, 0)
    find_hints(table, keys, text, count, hints)
    missed = 0
    if missing == ERROR:
        for i in range(count):
            missed += rows[i] < 0
        if missed:
            return missed
    taken = take_rows(table, keys, text, count, hints, missing, to)
    if taken != DONE:
        return taken
    for i in range(count):
        missed += rows[i] < 0
    # Named again, or they could be freed before.
    return missed + 0 * (words.size + first.size + data.size)


def warm() -> None:
    """Run each kernel once, on a table of integer keys that has none."""
    words, hints = np.zeros(OPEN_WORDS, np.int64), np.zeros(1, np.int64)
    slots, keys = np.zeros(1, np.uint64), np.zeros(1, np.int64)
    words[SLOTS_AT] = slots.ctypes.data
    table, given = words.ctypes.data, keys.ctypes.data
    find_first(table, given, 0, 1, hints.ctypes.data)
    take_open(table, given, 0, 1, hints.ctypes.data, ZERO, 0)
    find_open(table, given, 0, 1, hints.ctypes.data)
    look_up(words, keys, np.empty(0, np.uint8), hints, ZERO, 0)
