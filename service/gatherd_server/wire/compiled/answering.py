"""The compiled answer: the kernel that is called with a request, and the one for the directory.

It reads the request, lays the reply out, finds the rows, and copies them behind their heads. It
raises nothing and answers no error: for those, and for whatever is rare, it gives NOT_MINE, and the
general way answers. Nothing that anybody reads was changed by then.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import address, kernel, read, write
from gatherd.store.kernels.memory import WORD, column, part, put, unit
from gatherd_server.wire.compiled import words
from gatherd_server.wire.compiled.layout import hash_of, is_open, lay_out, varint_bytes
from gatherd_server.wire.compiled.open_rows import find_open
from gatherd_server.wire.compiled.parsing import (
    FIELDS_MAX,
    count_many,
    read_bags,
    read_lookup,
    read_many,
)
from gatherd_server.wire.compiled.pieces import find_units, index_words, write_piece
from gatherd_server.wire.compiled.rows import find_rows

# What wire/bounds.py takes of more tables.
FIELDS_PER_TABLE = FIELDS_MAX


@unit(types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def read_request(at: Any, end: Any, message: Any, asked: Any) -> Any:
    """Read a request into zeroed blocks from `asked` on; how many fields it has, or −1."""
    if message == words.LOOKUP:
        return read_lookup(at, end, asked)
    if message == words.LOOKUP_BAGS:
        return read_bags(at, end, asked)
    return read_many(at, end, message, asked)


@unit(types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def lay_out_all(call: Any, message: Any, asked: Any, count: Any) -> Any:
    """Lay out the reply to `count` lookups; its length, NOT_MINE or below."""
    for sum_of in range(words.CALL_IDS, words.CALL_WORDS):
        put(call, sum_of, 0)
    total = 0
    for i in range(count):
        response_bytes = lay_out(call, asked + i * WORD * words.ASKED_WORDS)
        if response_bytes < 0:
            return words.NOT_MINE
        total += response_bytes
        if message in (words.LOOKUP_MANY, words.LOOKUP_BAGS_MANY):
            total += 1 + varint_bytes(response_bytes)
    reply_bytes = column(call, words.CALL_REPLY_BYTES)
    if column(call, words.CALL_IDS) > column(call, words.CALL_IDS_MAX):
        return words.NOT_MINE
    if reply_bytes > column(call, words.CALL_REPLY_BYTES_MAX):
        return words.NOT_MINE
    work_bytes = max(reply_bytes, column(call, words.CALL_TOUCHED_BYTES))
    if (
        total > column(call, words.CALL_OUT_BYTES)
        or work_bytes > column(call, words.CALL_WORK_BYTES_MAX)
        or column(call, words.CALL_KEYS) > column(call, words.CALL_KEYS_MAX)
    ):
        return words.ELSEWHERE - total
    return total


@part
def _find(call: Any, asked: Any, count: Any, index_at: Any) -> Any:
    """Find the rows of all lookups; False for what the general way answers."""
    statuses = index_at + WORD * column(call, words.CALL_INDEX_WORDS)
    for i in range(count):
        one = asked + i * WORD * words.ASKED_WORDS
        put(one, words.ASKED_STATUS_AT, statuses + column(one, words.ASKED_INDEX_AT))
        is_found = find_open(one, index_at) if is_open(one) else find_rows(one, index_at)
        if not is_found:
            return False
    return True


@part
def _count(call: Any, asked: Any, count: Any) -> None:
    """Count each lookup under its table, as the engine does."""
    counted = column(call, words.CALL_COUNTED_AT)
    for i in range(count):
        one = asked + i * WORD * words.ASKED_WORDS
        number = (column(one, words.ASKED_TABLE) - column(call, words.CALL_TABLES_AT)) // (
            WORD * words.TABLE_WORDS
        )
        cells = counted + number * WORD * words.COUNTED_WORDS
        put(cells, words.COUNTED_LOOKUPS, column(cells, words.COUNTED_LOOKUPS) + 1)
        put(
            cells,
            words.COUNTED_ROWS,
            column(cells, words.COUNTED_ROWS) + column(one, words.ASKED_COUNT),
        )
        put(
            cells,
            words.COUNTED_BYTES,
            column(cells, words.COUNTED_BYTES) + column(one, words.ASKED_DATA_BYTES),
        )
        is_by_key = np.intp(column(one, words.ASKED_BY) != words.BY_IDS)
        missing = words.COUNTED_MISSING_IDS + is_by_key
        put(cells, missing, column(cells, missing) + column(one, words.ASKED_MISSED))


@unit(types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def _read(at: Any, end: Any, call: Any, asked: Any) -> Any:
    """Read a request that was counted, and lay out its reply; as lay_out_all."""
    message, count = column(call, words.CALL_MESSAGE), column(call, words.CALL_COUNT)
    fields = read_request(at, end, message, asked)
    if fields < 0 or fields > FIELDS_PER_TABLE * (count + 1):
        return words.NOT_MINE
    return lay_out_all(call, message, asked, count)


@unit(types.intp, types.intp, types.intp, returns=types.intp)
def _find_all(call: Any, asked: Any, index_at: Any) -> Any:
    """Find all rows, and stand before the first lookup; False as find_rows."""
    count = column(call, words.CALL_COUNT)
    if not _find(call, asked, count, index_at):
        return False
    put(call, words.CALL_ASKED_AT, asked)
    put(call, words.CALL_INDEX_AT, index_at)
    put(call, words.CALL_REACHED, 0)
    put(call, words.CALL_REACHED_VECTORS, words.HEAD)
    return True


@part
def _count_lookups(at: Any, end: Any, message: Any, call: Any) -> Any:
    """How many lookups a request has, which is kept in the call; −1 as read_request."""
    count = 1
    if message in (words.LOOKUP_MANY, words.LOOKUP_BAGS_MANY):
        count = count_many(at, end, column(call, words.CALL_TABLES_MAX))
    put(call, words.CALL_MESSAGE, message)
    put(call, words.CALL_COUNT, count)
    return count


@kernel(read(types.uint8), types.intp, types.intp, returns=types.intp)
def answer(request: Any, message: Any, call: Any) -> Any:
    """Answer one of Messages with the block Call at an address; as lay_out_all."""
    at = address(request, 0)
    end = at + request.size
    count = _count_lookups(at, end, message, call)
    if count < 0:
        return words.NOT_MINE
    blocks = np.zeros(max(1, count * words.ASKED_WORDS), np.int64)
    asked = address(blocks, 0)
    total = _read(at, end, call, asked)
    if total < 0:
        return total
    index = np.empty(index_words(column(call, words.CALL_INDEX_WORDS)), np.int64)
    if not _find_all(call, asked, address(index, 0)):
        return words.NOT_MINE
    if write_piece(call, words.NO_LIMIT) != total:
        return words.NOT_MINE
    _count(call, asked, count)
    # Named again, or they could be freed before.
    index[0] = blocks[0]
    return total + 0 * request.size


@kernel(
    read(types.uint8),
    types.intp,
    types.intp,
    write(types.int64),
    write(types.int64),
    types.intp,
    returns=types.intp,
)
def begin(request: Any, message: Any, call: Any, blocks: Any, index: Any, work: Any) -> Any:
    """Find what an answer in pieces is made of, and write the first; its length, or NOT_MINE.

    `blocks` is zeroed and has ASKED_WORDS for each lookup that `answer` counted, `index` has
    index_words of its ids. Both have to be kept, and the request.
    """
    at = address(request, 0)
    end = at + request.size
    count = _count_lookups(at, end, message, call)
    if count < 0 or count * words.ASKED_WORDS > blocks.size:
        return words.NOT_MINE
    asked = address(blocks, 0)
    total = _read(at, end, call, asked)
    if total <= words.ELSEWHERE:
        total = words.ELSEWHERE - total
    if total < 0 or index_words(column(call, words.CALL_INDEX_WORDS)) > index.size:
        return words.NOT_MINE
    if not _find_all(call, asked, address(index, 0)):
        return words.NOT_MINE
    write_piece(call, work)
    if column(call, words.CALL_IS_TORN):
        return words.NOT_MINE
    find_units(call)
    _count(call, asked, count)
    return total + 0 * (request.size + blocks.size + index.size)


@kernel(types.intp, types.intp, returns=types.intp)
def go_on(call: Any, work: Any) -> Any:
    """As write_piece."""
    return write_piece(call, work)


@kernel(types.intp, types.intp, types.intp, types.intp)
def enter_names(tables: Any, count: Any, slots: Any, slot_count: Any) -> None:
    """Fill a directory's zeroed hash table: each version, and live ones under version 0 too."""
    for number in range(count):
        table = tables + number * WORD * words.TABLE_WORDS
        for is_live in range(1 + column(table, words.TABLE_IS_LIVE)):
            version = 0 if is_live else column(table, words.TABLE_VERSION)
            name_at, name_bytes = (
                column(table, words.TABLE_NAME_AT),
                column(table, words.TABLE_NAME_BYTES),
            )
            slot = hash_of(name_at, name_bytes, version) & (slot_count - 1)
            while column(slots, slot):
                slot = (slot + 1) & (slot_count - 1)
            put(slots, slot, number + 1)
