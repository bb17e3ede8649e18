"""The numba kernels of key lookups; other modules call them through compiled.py.

store/key_index.py has the layout.

Each has one explicit signature, so that nothing is left to compile when a request is running. A
number from the mapped files is checked before it is used as a position.

Unsigned and signed integers must not meet in an expression: numba turns them into float64.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import inlined, kernel, load_u64, prefetch, read, write

PROBES_MAX = 1024
EMPTY = np.uint64(0)
ONE = np.uint64(1)
EIGHT = np.uint64(8)
ROW_MASK = np.uint64((1 << 40) - 1)
FINGERPRINT_MASK = np.uint64(((1 << 24) - 1) << 40)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
# The position that an insertion reached, and the count then.
PROGRESS = types.containers.UniTuple(types.intp, 2)  # type: ignore[no-untyped-call]  # numba's gap
# How many keys are hashed, and their slots prefetched, before the first slot is read.
AHEAD = 32


@inlined
def mix(z: Any) -> Any:
    """splitmix64's finalizer."""
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


@inlined
def hash_bytes(data: Any, begin: Any, end: Any, seed: Any) -> Any:
    """The uint64 hash of data[begin:end]."""
    h = mix(seed ^ np.uint64(end - begin))
    while end - begin >= 8:
        h = mix(h ^ load_u64(data, begin))
        begin += 8
    if begin < end:
        word = EMPTY
        shift = EMPTY
        for position in range(begin, end):
            word |= np.uint64(data[position]) << shift
            shift += EIGHT
        h = mix(h ^ word)
    return h


@inlined
def equal(a: Any, a_begin: Any, b: Any, b_begin: Any, length: Any) -> bool:
    """Whether so many bytes from `a_begin` and from `b_begin` on are the same."""
    done = 0
    while length - done >= 8:
        if load_u64(a, a_begin + done) != load_u64(b, b_begin + done):
            return False
        done += 8
    for position in range(done, length):  # noqa: SIM110  # numba has no all()
        if a[a_begin + position] != b[b_begin + position]:
            return False
    return True


@inlined
def _is_string(offsets: Any, stored: Any, row: Any, data: Any, begin: Any, length: Any) -> bool:
    """Whether the stored key of `row`, which may be any number, equals the given one."""
    if row >= offsets.size - 1:
        return False
    # A span that passes these checks is `length` bytes of `stored`, whatever the offsets are.
    first, last = offsets[row], offsets[row + 1]
    if last > np.uint64(stored.size) or first > last or last - first != np.uint64(length):
        return False
    return equal(stored, np.intp(first), data, begin, length)


@inlined
def _row_at(slot: Any) -> Any:
    """The row in a slot; for an empty slot 2**40 − 1, which never exists."""
    return np.intp((slot - ONE) & ROW_MASK)


@kernel(
    read(types.uint64),
    read(types.uint64),
    read(types.uint64),
    types.uint64,
    write(types.int64),
)
def find_ints(slots: Any, stored: Any, keys: Any, seed: Any, rows: Any) -> None:
    """Set rows[i] to the row of keys[i], or −1."""
    mask = np.uint64(slots.size - 1)
    hashes = np.empty(AHEAD, np.uint64)
    for block in range(0, keys.size, AHEAD):
        block_size = min(AHEAD, keys.size - block)
        for i in range(block_size):
            hashes[i] = mix(keys[block + i] ^ seed)
            prefetch(slots, np.intp(hashes[i] & mask) * 8)
        for i in range(block_size):
            key, h = keys[block + i], hashes[i]
            rows[block + i] = -1
            for _ in range(PROBES_MAX):
                slot = slots[np.intp(h & mask)]
                if slot == EMPTY:
                    break
                if (slot ^ hashes[i]) & FINGERPRINT_MASK == EMPTY:
                    row = _row_at(slot)
                    if row < stored.size and stored[row] == key:
                        rows[block + i] = row
                        break
                h += ONE


@inlined
def find_string(
    slots: Any,
    mask: Any,
    stored_offsets: Any,
    stored: Any,
    hashed: Any,
    data: Any,
    begin: Any,
    end: Any,
) -> Any:
    """The row of data[begin:end], whose hash is known, or −1."""
    h = hashed
    for _ in range(PROBES_MAX):
        slot = slots[np.intp(h & mask)]
        if slot == EMPTY:
            break
        if (slot ^ hashed) & FINGERPRINT_MASK == EMPTY:
            row = _row_at(slot)
            if _is_string(stored_offsets, stored, row, data, begin, end - begin):
                return row
        h += ONE
    return -1


@kernel(
    read(types.uint64),
    read(types.uint64),
    read(types.uint8),
    read(types.int64),
    read(types.uint8),
    types.uint64,
    write(types.int64),
)
def find_strings(
    slots: Any, stored_offsets: Any, stored: Any, offsets: Any, data: Any, seed: Any, rows: Any
) -> None:
    """The same as find_ints, for strings."""
    mask = np.uint64(slots.size - 1)
    hashes = np.empty(AHEAD, np.uint64)
    for block in range(0, rows.size, AHEAD):
        block_size = min(AHEAD, rows.size - block)
        for i in range(block_size):
            h = hash_bytes(data, offsets[block + i], offsets[block + i + 1], seed)
            hashes[i] = h
            prefetch(slots, np.intp(h & mask) * 8)
        for i in range(block_size):
            slot = slots[np.intp(hashes[i] & mask)]
            row = _row_at(slot)
            if row < stored_offsets.size:
                prefetch(stored_offsets, row * 8)
        for i in range(block_size):
            rows[block + i] = find_string(
                slots,
                mask,
                stored_offsets,
                stored,
                hashes[i],
                data,
                offsets[block + i],
                offsets[block + i + 1],
            )


@inlined
def _free_slot(slots: Any, mask: Any, hashed: Any) -> Any:
    """The first empty slot for a hash, or −1 if none is within PROBES_MAX."""
    h = hashed
    for _ in range(PROBES_MAX):
        position = np.intp(h & mask)
        if slots[position] == EMPTY:
            return position
        h += ONE
    return -1


@inlined
def slot_of(hashed: Any, row: Any) -> Any:
    """The slot that leads a hash to a row."""
    return (hashed & FINGERPRINT_MASK) | (np.uint64(row) + ONE)


@kernel(
    write(types.uint64),
    write(types.uint64),
    types.intp,
    read(types.uint64),
    types.intp,
    types.uint64,
    write(types.bool_),
    returns=PROGRESS,
)
def insert_ints(
    slots: Any, stored: Any, count: Any, keys: Any, start: Any, seed: Any, is_new: Any
) -> Any:
    """Append the new keys; return the position reached, and the count."""
    mask = np.uint64(slots.size - 1)
    for i in range(start, keys.size):
        hashed = mix(keys[i] ^ seed)
        h = hashed
        known = False
        free = np.intp(-1)
        for _ in range(PROBES_MAX):
            slot = slots[np.intp(h & mask)]
            if slot == EMPTY:
                free = np.intp(h & mask)
                break
            if (slot ^ hashed) & FINGERPRINT_MASK == EMPTY and stored[_row_at(slot)] == keys[i]:
                known = True
                break
            h += ONE
        if not known and free < 0:
            return i, count
        is_new[i] = not known
        if not known:
            stored[count] = keys[i]
            slots[free] = slot_of(hashed, count)
            count += 1
    return keys.size, count


@kernel(
    write(types.uint64),
    write(types.uint64),
    write(types.uint8),
    types.intp,
    read(types.int64),
    read(types.uint8),
    types.intp,
    types.uint64,
    write(types.bool_),
    returns=PROGRESS,
)
def insert_strings(
    slots: Any,
    stored_offsets: Any,
    stored: Any,
    count: Any,
    offsets: Any,
    data: Any,
    start: Any,
    seed: Any,
    is_new: Any,
) -> Any:
    """The same as insert_ints, for strings."""
    mask = np.uint64(slots.size - 1)
    for i in range(start, is_new.size):
        begin, end = offsets[i], offsets[i + 1]
        hashed = hash_bytes(data, begin, end, seed)
        known = (
            find_string(slots, mask, stored_offsets[: count + 1], stored, hashed, data, begin, end)
            >= 0
        )
        free = -1 if known else _free_slot(slots, mask, hashed)
        if not known and free < 0:
            return i, count
        is_new[i] = not known
        if not known:
            first = np.intp(stored_offsets[count])
            stored[first : first + end - begin] = data[begin:end]
            stored_offsets[count + 1] = np.uint64(first + end - begin)
            slots[free] = slot_of(hashed, count)
            count += 1
    return is_new.size, count


@kernel(
    write(types.uint64),
    read(types.uint64),
    types.intp,
    types.intp,
    types.uint64,
    returns=types.intp,
)
def place_ints(slots: Any, stored: Any, start: Any, count: Any, seed: Any) -> Any:
    """Enter rows into empty slots; return the row reached."""
    mask = np.uint64(slots.size - 1)
    for row in range(start, count):
        if row + AHEAD < count:
            prefetch(slots, np.intp(mix(stored[row + AHEAD] ^ seed) & mask) * 8)
        hashed = mix(stored[row] ^ seed)
        free = _free_slot(slots, mask, hashed)
        if free < 0:
            return row
        slots[free] = slot_of(hashed, row)
    return count


@kernel(
    write(types.uint64),
    read(types.uint64),
    read(types.uint8),
    types.intp,
    types.intp,
    types.uint64,
    returns=types.intp,
)
def place_strings(
    slots: Any, stored_offsets: Any, stored: Any, start: Any, count: Any, seed: Any
) -> Any:
    """The same as place_ints, for strings."""
    mask = np.uint64(slots.size - 1)
    for row in range(start, count):
        begin, end = np.intp(stored_offsets[row]), np.intp(stored_offsets[row + 1])
        hashed = hash_bytes(stored, begin, end, seed)
        free = _free_slot(slots, mask, hashed)
        if free < 0:
            return row
        slots[free] = slot_of(hashed, row)
    return count


def warm() -> None:
    """Run every kernel once, so that it is loaded completely."""
    slots, stored = np.zeros(8, np.uint64), np.zeros(8, np.uint64)
    data, one = np.ones(8, np.uint8), np.array([0, 1])
    keys, seed = np.arange(1, 2, dtype=np.uint64), np.uint64(1)
    is_new, rows = np.zeros(1, np.bool_), np.zeros(1, np.int64)
    insert_ints(slots, stored, 0, keys, 0, seed, is_new)
    find_ints(slots, stored, keys, seed, rows)
    slots[:] = 0
    place_ints(slots, stored, 0, 1, seed)
    slots[:], stored[:] = 0, 0
    insert_strings(slots, stored, data, 0, one, data, 0, seed, is_new)
    find_strings(slots, stored, data, one, data, seed, rows)
    slots[:] = 0
    place_strings(slots, stored, data, 0, 1, seed)
