"""The numba kernels of an open version's keys: its index, its heap, and rows that come and go.

open_index.py and open_version.py are their doors, the store's open_files.py has the layout. Only
the writer calls them. Readers look on meanwhile, so a slot is one 8-byte store after the row that
it leads to is whole, and a row's key changes under the row's counter (the store's stripes.py).

Unsigned and signed integers must not meet in an expression: numba turns them into float64.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import address, inlined, kernel, prefetch, read, write
from gatherd.store.kernels.keys import (
    AHEAD,
    EMPTY,
    FINGERPRINT_MASK,
    ONE,
    PROBES_MAX,
    PROGRESS,
    ROW_MASK,
    equal,
    find_string,
    hash_bytes,
    mix,
    slot_of,
)
from gatherd.store.kernels.row_intrinsics import (
    begin_row,
    copy_bytes,
    end_row,
    fence_stores,
    load_counter,
    touch,
)
from gatherd.store.open_files import LENGTH_BITS, TOMBSTONE, UNIT_BYTES
from gatherd_server.storage.compiled_rows import CACHED_COPY_BYTES, ODD, PAGE_BYTES

GONE = np.uint64(TOMBSTONE)
SHIFT = np.uint64(LENGTH_BITS)
LENGTH_MASK = np.uint64((1 << LENGTH_BITS) - 1)
UNIT = UNIT_BYTES


@inlined
def _begin(entry: Any) -> Any:
    return np.intp(entry >> SHIFT) * UNIT


@inlined
def _length(entry: Any) -> Any:
    return np.intp(entry & LENGTH_MASK)


@kernel(
    read(types.uint64), read(types.uint64), read(types.uint64), read(types.uint64),
    write(types.int64),
)  # fmt: skip
def find_ints(slots: Any, stored: Any, keys: Any, hashes: Any, rows: Any) -> None:
    """Set each of `rows` to the row of its key, or −1."""
    mask = np.uint64(slots.size - 1)
    for i in range(keys.size):
        if i + AHEAD < keys.size:
            prefetch(slots, np.intp(hashes[i + AHEAD] & mask) * 8)
        hashed = hashes[i]
        h = hashed
        rows[i] = -1
        for _ in range(PROBES_MAX):
            slot = slots[np.intp(h & mask)]
            if slot == EMPTY:
                break
            if (slot ^ hashed) & FINGERPRINT_MASK == EMPTY:
                row = np.intp((slot - ONE) & ROW_MASK)
                if row < stored.size and stored[row] == keys[i]:
                    rows[i] = row
                    break
            h += ONE


@kernel(
    read(types.uint64), read(types.uint64), read(types.uint8), read(types.int64),
    read(types.uint8), read(types.uint64), write(types.int64),
)  # fmt: skip
def find_strings(
    slots: Any, entries: Any, heap: Any, offsets: Any, data: Any, hashes: Any, rows: Any
) -> None:
    """The same for strings."""
    mask = np.uint64(slots.size - 1)
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(slots, np.intp(hashes[i + AHEAD] & mask) * 8)
        hashed = hashes[i]
        h = hashed
        length = offsets[i + 1] - offsets[i]
        rows[i] = -1
        for _ in range(PROBES_MAX):
            slot = slots[np.intp(h & mask)]
            if slot == EMPTY:
                break
            if (slot ^ hashed) & FINGERPRINT_MASK == EMPTY:
                row = np.intp((slot - ONE) & ROW_MASK)
                if row < entries.size:
                    entry = entries[row]
                    begin = _begin(entry)
                    is_long = _length(entry) == length and begin + length <= heap.size
                    if is_long and equal(heap, begin, data, offsets[i], length):
                        rows[i] = row
                        break
            h += ONE


@kernel(write(types.uint64), read(types.uint64), read(types.int64), returns=PROGRESS)
def insert(slots: Any, hashes: Any, rows: Any) -> Any:
    """Lead each hash to its row; return how many were entered, and how many slots that filled.

    It stops early at one that finds no slot within PROBES_MAX. A slot that is there already counts
    as entered. The keys of the hashes lead to no other row.
    """
    mask = np.uint64(slots.size - 1)
    filled = 0
    fence_stores()
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(slots, np.intp(hashes[i + AHEAD] & mask) * 8)
        h = hashes[i]
        value = slot_of(h, rows[i])
        free = np.intp(-1)
        was_empty = False
        for _ in range(PROBES_MAX):
            position = np.intp(h & mask)
            slot = slots[position]
            if slot == value:
                free = np.intp(-2)
                break
            if slot == EMPTY:
                if free < 0:
                    free, was_empty = position, True
                break
            if slot == GONE and free < 0:
                free = position
            h += ONE
        if free == -1:
            return i, filled
        if free >= 0:
            slots[free] = value
            filled += was_empty
    return rows.size, filled


@kernel(write(types.uint64), read(types.uint64), read(types.int64), returns=types.intp)
def remove(slots: Any, hashes: Any, rows: Any) -> Any:
    """Empty the slots that lead the hashes to their rows; return how many slots became EMPTY.

    A slot with another one in use behind it becomes a TOMBSTONE: probes go on there.
    """
    mask = np.uint64(slots.size - 1)
    emptied = 0
    for i in range(rows.size):
        h = hashes[i]
        value = slot_of(h, rows[i])
        for _ in range(PROBES_MAX):
            position = np.intp(h & mask)
            slot = slots[position]
            if slot == EMPTY:
                break
            if slot == value:
                if slots[np.intp((h + ONE) & mask)] == EMPTY:
                    # No probe goes on behind it, nor behind the tombstones in front of it.
                    slots[position] = EMPTY
                    emptied += 1
                    h -= ONE
                    while slots[np.intp(h & mask)] == GONE:
                        slots[np.intp(h & mask)] = EMPTY
                        emptied += 1
                        h -= ONE
                else:
                    slots[position] = GONE
                break
            h += ONE
    return emptied


@inlined
def _enter(slots: Any, mask: Any, hashed: Any, row: Any) -> bool:
    h = hashed
    for _ in range(PROBES_MAX):
        position = np.intp(h & mask)
        if slots[position] == EMPTY:
            slots[position] = slot_of(hashed, row)
            return True
        h += ONE
    return False


@kernel(
    write(types.uint64), read(types.uint64), read(types.uint64), types.intp, types.intp,
    types.uint64, returns=PROGRESS,
)  # fmt: skip
def build_ints(slots: Any, stored: Any, stamps: Any, begin: Any, end: Any, seed: Any) -> Any:
    """Enter the rows from `begin` up to `end` that are in use; the row reached, and how many."""
    mask = np.uint64(slots.size - 1)
    count = 0
    for row in range(begin, end):
        if row + AHEAD < end:
            prefetch(slots, np.intp(mix(stored[row + AHEAD] ^ seed) & mask) * 8)
        if stamps[row] == EMPTY:
            continue
        if not _enter(slots, mask, mix(stored[row] ^ seed), row):
            return row, count
        count += 1
    return end, count


@kernel(
    write(types.uint64), read(types.uint64), read(types.uint8), read(types.uint64), types.intp,
    types.intp, types.uint64, returns=PROGRESS,
)  # fmt: skip
def build_strings(
    slots: Any, entries: Any, heap: Any, stamps: Any, begin: Any, end: Any, seed: Any
) -> Any:
    """The same for strings."""
    mask = np.uint64(slots.size - 1)
    count = 0
    hashes = np.empty(AHEAD, np.uint64)
    used = np.empty(AHEAD, np.bool_)
    for block in range(begin, end, AHEAD):
        block_size = min(AHEAD, end - block)
        for i in range(block_size):
            entry = entries[block + i]
            first, length = _begin(entry), _length(entry)
            used[i] = stamps[block + i] != EMPTY and length > 0 and first + length <= heap.size
            if used[i]:
                hashes[i] = hash_bytes(heap, first, first + length, seed)
                prefetch(slots, np.intp(hashes[i] & mask) * 8)
        for i in range(block_size):
            if used[i]:
                if not _enter(slots, mask, hashes[i], block + i):
                    return block + i, count
                count += 1
    return end, count


@kernel(
    write(types.uint64), write(types.uint64), types.intp, read(types.uint64), read(types.bool_),
    types.uint64, write(types.int64), returns=types.intp,
)  # fmt: skip
def note_ints(
    slots: Any, stored: Any, count: Any, keys: Any, wanted: Any, seed: Any, positions: Any
) -> Any:
    """Find or append each wanted key among the stored ones; set its position, return the count.

    −1 as the count says that a key found no slot.
    """
    mask = np.uint64(slots.size - 1)
    for i in range(keys.size):
        if not wanted[i]:
            continue
        hashed = mix(keys[i] ^ seed)
        h = hashed
        found = np.intp(-1)
        for _ in range(PROBES_MAX):
            position = np.intp(h & mask)
            slot = slots[position]
            if slot == EMPTY:
                found = np.intp(count)
                stored[found] = keys[i]
                slots[position] = slot_of(hashed, found)
                count += 1
                break
            at = np.intp((slot - ONE) & ROW_MASK)
            if (slot ^ hashed) & FINGERPRINT_MASK == EMPTY and stored[at] == keys[i]:
                found = at
                break
            h += ONE
        if found < 0:
            return -1
        positions[i] = found
    return count


@kernel(
    write(types.uint64), write(types.uint64), write(types.uint8), types.intp, read(types.int64),
    read(types.uint8), read(types.bool_), types.uint64, write(types.int64), returns=types.intp,
)  # fmt: skip
def note_strings(
    slots: Any, stored_offsets: Any, stored: Any, count: Any, offsets: Any, data: Any,
    wanted: Any, seed: Any, positions: Any,
) -> Any:  # fmt: skip
    """The same for strings; the last stored offset is where the next key begins."""
    mask = np.uint64(slots.size - 1)
    for i in range(wanted.size):
        if not wanted[i]:
            continue
        begin, end = offsets[i], offsets[i + 1]
        hashed = hash_bytes(data, begin, end, seed)
        found = np.intp(
            find_string(slots, mask, stored_offsets[: count + 1], stored, hashed, data, begin, end)
        )
        if found < 0:
            if not _enter(slots, mask, hashed, count):
                return -1
            first = np.intp(stored_offsets[count])
            copy_bytes(stored, first, data, begin, end - begin)
            stored_offsets[count + 1] = np.uint64(first + end - begin)
            found = np.intp(count)
            count += 1
        positions[i] = found
    return count


@kernel(read(types.uint64), read(types.uint8), read(types.int64), write(types.uint8))
def take_strings(entries: Any, heap: Any, offsets: Any, out: Any) -> None:
    """Copy the key of each entry to `out`, at its offset; its length is known to be right."""
    for i in range(entries.size):
        begin, length = _begin(entries[i]), offsets[i + 1] - offsets[i]
        if begin + length <= heap.size:
            copy_bytes(out, offsets[i], heap, begin, length)


@kernel(write(types.uint8), read(types.uint64), read(types.int64), read(types.uint8))
def put_strings(heap: Any, entries: Any, offsets: Any, data: Any) -> None:
    """Copy each key to its place in the heap, with zeros up to the next unit."""
    for i in range(entries.size):
        begin, length = _begin(entries[i]), offsets[i + 1] - offsets[i]
        copy_bytes(heap, begin, data, offsets[i], length)
        for position in range(begin + length, begin + (length + UNIT - 1) // UNIT * UNIT):
            heap[position] = np.uint8(0)


@kernel(
    write(types.uint8, 2), write(types.uint32), write(types.uint64), write(types.uint64),
    read(types.int64), read(types.uint8, 2), read(types.uint64), read(types.uint64),
)  # fmt: skip
def create_rows(
    target: Any, counters: Any, keys: Any, stamps: Any, rows: Any, images: Any, key_images: Any,
    stamp_images: Any,
) -> None:  # fmt: skip
    """Store key, stamp and image of each row under its counter."""
    row_bytes = target.shape[1]
    for i in range(rows.size):
        row = rows[i]
        begin = row * row_bytes
        # Page faults happen before the counter is odd.
        touch(keys, row * 8)
        touch(stamps, row * 8)
        for position in range(begin, begin + row_bytes, PAGE_BYTES):
            touch(target, position)
        if (address(target, begin) & (PAGE_BYTES - 1)) + row_bytes > PAGE_BYTES:
            touch(target, begin + row_bytes - 1)
        stripe = row & (counters.size - 1)
        counter = np.uint32(load_counter(counters, stripe) | ODD)
        begin_row(counters, stripe, counter)
        keys[row] = key_images[i]
        stamps[row] = stamp_images[i]
        for done in range(0, row_bytes, CACHED_COPY_BYTES):
            byte_count = min(CACHED_COPY_BYTES, row_bytes - done)
            copy_bytes(target, begin + done, images, i * row_bytes + done, byte_count)
        end_row(counters, stripe, np.uint32(counter + ODD))


@kernel(
    write(types.uint32), write(types.uint64), write(types.uint64), read(types.int64), types.bool_
)
def remove_rows(counters: Any, keys: Any, stamps: Any, rows: Any, are_entries: Any) -> None:
    """Take stamp, and the entry if `are_entries`, from each row, under its counter."""
    for i in range(rows.size):
        row = rows[i]
        touch(keys, row * 8)
        touch(stamps, row * 8)
        stripe = row & (counters.size - 1)
        counter = np.uint32(load_counter(counters, stripe) | ODD)
        begin_row(counters, stripe, counter)
        if are_entries:
            keys[row] = EMPTY
        stamps[row] = EMPTY
        end_row(counters, stripe, np.uint32(counter + ODD))


@kernel(read(types.uint64), read(types.uint64), write(types.bool_), returns=types.intp)
def mark_units(entries: Any, stamps: Any, marks: Any) -> Any:
    """Mark the heap's units that rows in use have; return the first row whose entry is damaged.

    That is an entry without a key, or one that ends behind the marks; −1 when none is.
    """
    for row in range(entries.size):
        if stamps[row] == EMPTY:
            continue
        first = np.intp(entries[row] >> SHIFT)
        units = (_length(entries[row]) + UNIT - 1) // UNIT
        if units == 0 or first + units > marks.size:
            return row
        for unit in range(first, first + units):
            marks[unit] = True
    return -1


@kernel(read(types.bool_), write(types.int64), write(types.int64), returns=types.intp)
def find_gaps(marks: Any, begins: Any, lengths: Any) -> Any:
    """Set begin and length of each run of unmarked units, as many as there is room; how many."""
    count = 0
    unit = 0
    while unit < marks.size:
        if marks[unit]:
            unit += 1
            continue
        begin = unit
        while unit < marks.size and not marks[unit]:
            unit += 1
        if count < begins.size:
            begins[count], lengths[count] = begin, unit - begin
        count += 1
    return count


def warm() -> None:
    """Run each kernel once, so that nothing of it is left to load."""
    slots, stored = np.zeros(8, np.uint64), np.zeros(8, np.uint64)
    stamps = np.ones(8, np.uint64)
    keys, hashes, seed = np.ones(1, np.uint64), np.zeros(1, np.uint64), np.uint64(1)
    rows, wanted = np.zeros(1, np.int64), np.ones(1, np.bool_)
    offsets, data, heap = np.array([0, 1]), np.ones(1, np.uint8), np.zeros(8, np.uint8)
    insert(slots, hashes, rows)
    find_ints(slots, stored, keys, hashes, rows.copy())
    remove(slots, hashes, rows)
    build_ints(slots, stored, stamps, 0, 1, seed)
    put_strings(heap, keys, offsets, data)
    find_strings(slots, stored, heap, offsets, data, hashes, rows.copy())
    build_strings(slots, stored, heap, stamps, 0, 1, seed)
    take_strings(keys, heap, offsets, data.copy())
    note_ints(np.zeros(8, np.uint64), np.zeros(8, np.uint64), 0, keys, wanted, seed, rows.copy())
    places = np.zeros(8, np.uint64), np.zeros(8, np.uint8)
    note_strings(np.zeros(8, np.uint64), *places, 0, offsets, data, wanted, seed, rows.copy())
    counters, image = np.zeros(1, np.uint32), np.zeros((1, 1), np.uint8)
    create_rows(image.copy(), counters, stored, stamps, rows, image, keys, keys)
    remove_rows(counters, stored, stamps, rows, True)
    marks = np.zeros(8, np.bool_)
    mark_units(stored, stamps[:0], marks)
    find_gaps(marks, rows.copy(), rows.copy())
