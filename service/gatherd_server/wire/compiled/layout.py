"""The compiled answer's second step: the table of each lookup, its checks, and the reply's layout.

Every length of a reply follows from the request and the directory, so that the reply is written
from its first byte on, and nothing is moved.
"""

from typing import Any

import numpy as np

from gatherd.store.kernels.intrinsics import inlined
from gatherd.store.kernels.keys import equal, hash_bytes
from gatherd.store.kernels.memory import (
    WORD,
    carray,
    column,
    copy,
    int8_at,
    int16_at,
    int32_at,
    int64_at,
    part,
    pointer,
    put,
    put_uint8,
    uint8_at,
    uint16_at,
    uint32_at,
)
from gatherd_server.wire.compiled import words
from gatherd_server.wire.compiled.parsing import element_count

# Numbers of DType, Missing and Pooling in tensor.proto and embedding.proto.
FLOAT32, BFLOAT16 = 1, 3
INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 = range(5, 13)
ERROR, ZERO, DEFAULT, SKIP, INIT = 1, 2, 3, 4, 5
SUM, MAX, SQRTN = 1, 3, 4

KEY_BYTES_MAX = 1024

_VERSION, _STATUS, _VECTORS = 0x08, 0x12, 0x1A
_DTYPE, _SHAPE, _DATA = 0x08, 0x12, 0x1A
_ONE_OF_MANY = 0x0A


@inlined
def itemsize(kind: Any) -> Any:
    """Bytes of an element that a reply can have: FLOAT32, or half of it."""
    return 4 if kind == 0 else 2


@inlined
def integer_at(dtype: Any, begin: Any, index: Any) -> Any:
    """An element of a tensor of integers as 64 bits."""
    if dtype in (INT64, UINT64):
        return int64_at(begin + 8 * index)
    if dtype == INT32:
        return int32_at(begin + 4 * index)
    if dtype == UINT32:
        return uint32_at(begin + 4 * index)
    if dtype == INT16:
        return int16_at(begin + 2 * index)
    if dtype == UINT16:
        return uint16_at(begin + 2 * index)
    return int8_at(begin + index) if dtype == INT8 else uint8_at(begin + index)


@part
def hash_of(name_at: Any, name_bytes: Any, version: Any) -> Any:
    """The hash of a name and a version."""
    name = carray(pointer(name_at), (name_bytes,), np.uint8)
    hashed = hash_bytes(name, 0, name_bytes, np.uint64(version))
    return np.intp(hashed & np.uint64((1 << 62) - 1))


@part
def find_table(call: Any, name_at: Any, name_bytes: Any, version: Any) -> Any:
    """The block of a name and version, 0 for the live one; 0 when the directory has none."""
    mask = column(call, words.CALL_SLOT_COUNT) - 1
    slots = column(call, words.CALL_SLOTS_AT)
    slot = hash_of(name_at, name_bytes, version) & mask
    while True:
        number = column(slots, slot)
        if number == 0:
            return 0
        table = column(call, words.CALL_TABLES_AT) + (number - 1) * WORD * words.TABLE_WORDS
        found = column(table, words.TABLE_VERSION)
        if version == 0 and column(table, words.TABLE_IS_LIVE):
            found = 0
        if found == version and column(table, words.TABLE_NAME_BYTES) == name_bytes:
            known = carray(pointer(column(table, words.TABLE_NAME_AT)), (name_bytes,), np.uint8)
            given = carray(pointer(name_at), (name_bytes,), np.uint8)
            if equal(known, 0, given, 0, name_bytes):
                return table
        slot = (slot + 1) & mask


@inlined
def varint_bytes(value: Any) -> Any:
    """Bytes of a varint that isn't negative."""
    count = 1
    while value >= 0x80:
        value >>= 7
        count += 1
    return count


@inlined
def put_varint(to: Any, value: Any) -> Any:
    """Write a varint; where it ends."""
    while value >= 0x80:
        put_uint8(to, value & 0x7F | 0x80)
        value >>= 7
        to += 1
    put_uint8(to, value)
    return to + 1


@part
def _integers(tensor: Any) -> Any:
    """How many integers a tensor has; −1 when it isn't one of integers."""
    dtype = column(tensor, words.TENSOR_DTYPE)
    if dtype < INT8 or dtype > UINT64:
        return -1
    return element_count(tensor, 1 << ((dtype - INT8) & 3))


@part
def _strings(asked: Any) -> Any:
    """How many strings are asked for; −1 when lengths, data and shape contradict each other."""
    tensor = asked + WORD * words.ASKED_ROWS
    count = element_count(tensor, 0)
    if count < 0 or column(asked, words.ASKED_LENGTHS_BYTES) != 4 * count:
        return -1
    lengths, total = column(asked, words.ASKED_LENGTHS_AT), 0
    for i in range(count):
        byte_count = uint32_at(lengths + 4 * i)
        if byte_count < 1 or byte_count > KEY_BYTES_MAX:
            return -1
        total += byte_count
    return count if total == column(tensor, words.TENSOR_DATA_BYTES) else -1


@part
def _count(asked: Any, table: Any) -> Any:
    """How many rows are asked for; −1 for what the table can't be asked."""
    by = column(asked, words.ASKED_BY)
    kind = column(table, words.TABLE_KEY_KIND)
    if by == words.BY_IDS and column(table, words.TABLE_OPEN_AT) == 0:
        return _integers(asked + WORD * words.ASKED_ROWS)
    if by == words.BY_INTEGERS and (kind in (words.KEYS_INT64, words.KEYS_UINT64)):
        return _integers(asked + WORD * words.ASKED_ROWS)
    if by == words.BY_STRINGS and kind == words.KEYS_STRINGS:
        return _strings(asked)
    return -1


@part
def _bag_count(asked: Any, count: Any) -> Any:
    """How many bags; −1 when offsets, weights or pooling aren't sound."""
    offsets = asked + WORD * words.ASKED_OFFSETS
    bags = _integers(offsets)
    if bags < 0 or column(offsets, words.TENSOR_DIM_COUNT) != 1 or (bags == 0 and count > 0):
        return -1
    dtype, begin = column(offsets, words.TENSOR_DTYPE), column(offsets, words.TENSOR_DATA_AT)
    last = 0
    for i in range(bags):
        # An unsigned one that is too large for 64 bits with a sign is negative here.
        offset = integer_at(dtype, begin, i)
        if offset < last or offset > count or (i == 0 and offset != 0):
            return -1
        last = offset
    pooling = column(asked, words.ASKED_POOLING)
    if pooling > SQRTN:
        return -1
    weights = asked + WORD * words.ASKED_WEIGHTS
    if column(weights, words.TENSOR_IS_THERE) and (
        pooling == MAX
        or column(weights, words.TENSOR_DTYPE) != FLOAT32
        or column(weights, words.TENSOR_DIM_COUNT) != 1
        or element_count(weights, 4) != count
    ):
        return -1
    return bags


@part
def _is_allowed(call: Any, table: Any) -> Any:
    allowed = column(call, words.CALL_ALLOWED_AT)
    if allowed == 0:
        return True
    number = (table - column(call, words.CALL_TABLES_AT)) // (WORD * words.TABLE_WORDS)
    return (uint8_at(allowed + (number >> 3)) >> (number & 7)) & 1 == 1


@inlined
def _lengths(asked: Any, table: Any) -> Any:
    """Find the lengths of all that is nested in a lookup's response, and its own."""
    rows = asked + WORD * words.ASKED_ROWS
    data_bytes = column(asked, words.ASKED_DATA_BYTES)
    status_bytes = column(asked, words.ASKED_STATUS_BYTES)
    dims_bytes = varint_bytes(column(table, words.TABLE_DIM))
    if column(asked, words.ASKED_IS_BAGS):
        dims_bytes += varint_bytes(column(asked, words.ASKED_VECTORS))
    else:
        for i in range(column(rows, words.TENSOR_DIM_COUNT)):
            dims_bytes += varint_bytes(column(rows, words.TENSOR_DIMS + i))
    tensor_bytes = 3 + varint_bytes(dims_bytes) + dims_bytes + data_bytes
    if data_bytes:
        tensor_bytes += 1 + varint_bytes(data_bytes)
    response_bytes = 1 + varint_bytes(tensor_bytes) + tensor_bytes
    version = column(table, words.TABLE_VERSION)
    if version:
        response_bytes += 1 + varint_bytes(version)
    if status_bytes:
        response_bytes += 1 + varint_bytes(status_bytes) + status_bytes
    put(asked, words.ASKED_DIMS_BYTES, dims_bytes)
    put(asked, words.ASKED_TENSOR_BYTES, tensor_bytes)
    put(asked, words.ASKED_RESPONSE_BYTES, response_bytes)
    return response_bytes


@inlined
def _is_answered(asked: Any, table: Any, missing: Any, dtype: Any) -> bool:
    """Whether the table can be asked for that, as far as it is known here."""
    is_bags, is_open = column(asked, words.ASKED_IS_BAGS), column(table, words.TABLE_OPEN_AT) != 0
    if dtype > BFLOAT16 or missing > INIT:
        return False
    if (missing == SKIP and not is_bags) or (missing == INIT and not is_open):
        return False
    if missing == DEFAULT and column(table, words.TABLE_DEFAULT_AT) == 0:
        return False
    # An open table has no ids, and so no padding but a negative one, which no key has.
    has_padding = column(asked, words.ASKED_HAS_PADDING) and column(asked, words.ASKED_PADDING) >= 0
    return not (is_open and is_bags and has_padding)


@part
def lay_out(call: Any, asked: Any) -> Any:
    """Find a lookup's table, check all but its ids, and add it up; the bytes of its response or −1.

    −1 also for rows that may have to come from a disk, and for a default vector not known yet.
    """
    if column(asked, words.ASKED_NAME_BYTES) == 0:
        return -1
    table = find_table(
        call,
        column(asked, words.ASKED_NAME_AT),
        column(asked, words.ASKED_NAME_BYTES),
        column(asked, words.ASKED_VERSION),
    )
    if table == 0 or not _is_allowed(call, table):
        return -1
    if not (column(table, words.TABLE_IS_NEAR) or column(call, words.CALL_TAKES_FAR)):
        return -1
    is_bags = column(asked, words.ASKED_IS_BAGS)
    missing, dtype = (
        max(column(asked, words.ASKED_MISSING), ERROR),
        max(column(asked, words.ASKED_DTYPE), 1),
    )
    if not _is_answered(asked, table, missing, dtype):
        return -1
    rows = asked + WORD * words.ASKED_ROWS
    count = _count(asked, table)
    vectors = count
    if count >= 0 and is_bags:
        vectors = _bag_count(asked, count) if column(rows, words.TENSOR_DIM_COUNT) == 1 else -1
    if count < 0 or vectors < 0:
        return -1
    put(asked, words.ASKED_TABLE, table)
    put(asked, words.ASKED_COUNT, count)
    put(asked, words.ASKED_VECTORS, vectors)
    put(asked, words.ASKED_KIND, dtype - 1)
    put(asked, words.ASKED_MISSING, missing)
    dim = column(table, words.TABLE_DIM)
    data_bytes = vectors * dim * itemsize(dtype - 1)
    status_bytes = 0 if missing == ERROR else count
    put(asked, words.ASKED_DATA_BYTES, data_bytes)
    put(asked, words.ASKED_STATUS_BYTES, status_bytes)
    _add_up(call, asked, table)
    return _lengths(asked, table)


@inlined
def _add_up(call: Any, asked: Any, table: Any) -> None:
    count = column(asked, words.ASKED_COUNT)
    index_at = column(call, words.CALL_INDEX_WORDS)
    put(asked, words.ASKED_INDEX_AT, index_at)
    # Of an open table the keys are kept behind their rows, for the second look.
    kept = count + 1 if column(table, words.TABLE_OPEN_AT) else 0
    put(call, words.CALL_INDEX_WORDS, index_at + count + kept)
    put(call, words.CALL_IDS, column(call, words.CALL_IDS) + count)
    if column(asked, words.ASKED_BY) != words.BY_IDS:
        put(call, words.CALL_KEYS, column(call, words.CALL_KEYS) + count)
    if column(table, words.TABLE_OPEN_AT):
        put(call, words.CALL_OPEN_COUNT, column(call, words.CALL_OPEN_COUNT) + 1)
    reply_bytes = column(asked, words.ASKED_DATA_BYTES) + column(asked, words.ASKED_STATUS_BYTES)
    put(call, words.CALL_REPLY_BYTES, column(call, words.CALL_REPLY_BYTES) + reply_bytes)
    touched = count * column(table, words.TABLE_ROW_BYTES)
    put(call, words.CALL_TOUCHED_BYTES, column(call, words.CALL_TOUCHED_BYTES) + touched)


@inlined
def is_open(asked: Any) -> Any:
    """Whether the rows of a lookup's table come and go."""
    return column(column(asked, words.ASKED_TABLE), words.TABLE_OPEN_AT) != 0


@inlined
def head_bytes(asked: Any, message: Any) -> Any:
    """Bytes of what is before a lookup's vectors."""
    response_bytes = column(asked, words.ASKED_RESPONSE_BYTES)
    before = 0
    if message in (words.LOOKUP_MANY, words.LOOKUP_BAGS_MANY):
        before = 1 + varint_bytes(response_bytes)
    return before + response_bytes - column(asked, words.ASKED_DATA_BYTES)


@part
def put_head(asked: Any, message: Any, to: Any) -> Any:
    """Write what is before a lookup's vectors; where they begin."""
    table = column(asked, words.ASKED_TABLE)
    rows = asked + WORD * words.ASKED_ROWS
    if message in (words.LOOKUP_MANY, words.LOOKUP_BAGS_MANY):
        put_uint8(to, _ONE_OF_MANY)
        to = put_varint(to + 1, column(asked, words.ASKED_RESPONSE_BYTES))
    version, status_bytes = (
        column(table, words.TABLE_VERSION),
        column(asked, words.ASKED_STATUS_BYTES),
    )
    if version:
        put_uint8(to, _VERSION)
        to = put_varint(to + 1, version)
    if status_bytes:
        put_uint8(to, _STATUS)
        to = put_varint(to + 1, status_bytes)
        copy(to, column(asked, words.ASKED_STATUS_AT), status_bytes)
        to += status_bytes
    put_uint8(to, _VECTORS)
    to = put_varint(to + 1, column(asked, words.ASKED_TENSOR_BYTES))
    put_uint8(to, _DTYPE)
    put_uint8(to + 1, column(asked, words.ASKED_KIND) + 1)
    put_uint8(to + 2, _SHAPE)
    to = put_varint(to + 3, column(asked, words.ASKED_DIMS_BYTES))
    if column(asked, words.ASKED_IS_BAGS):
        to = put_varint(to, column(asked, words.ASKED_VECTORS))
    else:
        for i in range(column(rows, words.TENSOR_DIM_COUNT)):
            to = put_varint(to, column(rows, words.TENSOR_DIMS + i))
    to = put_varint(to, column(table, words.TABLE_DIM))
    if column(asked, words.ASKED_DATA_BYTES):
        put_uint8(to, _DATA)
        to = put_varint(to + 1, column(asked, words.ASKED_DATA_BYTES))
    return to
