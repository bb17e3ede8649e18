"""The compiled answer's last step: heads and vectors to the reply, whole or a piece of it.

An answer in pieces goes on where the last one ended. A piece ends behind a head or a vector: when
its room or its work is used up, or before a row that stays torn. Work is counted in bytes that are
read or written; at least one head or vector is written, whatever it takes, if there is room. An
open table's vectors are written at once, because their rows may be gone by the next piece.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import inlined
from gatherd.store.kernels.memory import WORD, column, part, put, unit
from gatherd_server.wire.compiled import words
from gatherd_server.wire.compiled.layout import head_bytes, is_open, itemsize, put_head
from gatherd_server.wire.compiled.open_rows import copy_open, pool_open_bags
from gatherd_server.wire.compiled.rows import copy_rows, offset_of, pool_bags


@inlined
def index_words(count: Any) -> Any:
    """How many words so many of CALL_INDEX_WORDS take, and behind them a status for each."""
    return count + count // WORD + 1


@inlined
def _vector_bytes(asked: Any) -> Any:
    table = column(asked, words.ASKED_TABLE)
    return column(table, words.TABLE_DIM) * itemsize(column(asked, words.ASKED_KIND))


@part
def _bags_within(asked: Any, first: Any, count_max: Any, work: Any) -> Any:
    """How many bags from `first` on take so much work, up to `count_max`."""
    row_bytes = column(column(asked, words.ASKED_TABLE), words.TABLE_ROW_BYTES)
    vector_bytes = _vector_bytes(asked)
    count, begin = 0, offset_of(asked, first)
    while count < count_max:
        end = offset_of(asked, first + count + 1)
        work -= (end - begin) * row_bytes + vector_bytes
        if work < 0:
            break
        count, begin = count + 1, end
    return count


@part
def _vectors_within(asked: Any, first: Any, room: Any, work: Any) -> Any:
    """How many vectors from `first` on fit into so much room and work."""
    vector_bytes = _vector_bytes(asked)
    count = min(column(asked, words.ASKED_VECTORS) - first, room // vector_bytes)
    if column(asked, words.ASKED_IS_BAGS):
        return _bags_within(asked, first, count, work)
    row_bytes = column(column(asked, words.ASKED_TABLE), words.TABLE_ROW_BYTES)
    return min(count, max(work, 0) // (row_bytes + vector_bytes))


@inlined
def _put_vectors(asked: Any, index_at: Any, first: Any, count: Any, to: Any) -> Any:
    if column(asked, words.ASKED_IS_BAGS):
        return pool_bags(asked, index_at, first, count, to)
    return copy_rows(asked, index_at, first, count, to)


@inlined
def _put_open(asked: Any, message: Any, index_at: Any, to: Any) -> Any:
    """Write a lookup of an open table; False as copy_open. Its statuses are known at the end."""
    data = to + head_bytes(asked, message)
    if column(asked, words.ASKED_IS_BAGS):
        is_put = pool_open_bags(asked, index_at, data)
    else:
        is_put = copy_open(asked, index_at, data)
    if is_put:
        put_head(asked, message, to)
    return is_put


@unit(types.intp, types.intp, returns=types.intp)
def write_piece(call: Any, work: Any) -> Any:  # noqa: C901  # one function, for it is one state
    """Go on with the reply that was laid out and whose rows were found; how many bytes of it.

    CALL_IS_TORN then says whether a torn row ended it.
    """
    message, index_at = column(call, words.CALL_MESSAGE), column(call, words.CALL_INDEX_AT)
    number, first = column(call, words.CALL_REACHED), column(call, words.CALL_REACHED_VECTORS)
    begin = column(call, words.CALL_OUT_AT)
    to, end = begin, begin + column(call, words.CALL_OUT_BYTES)
    left_work, is_torn = work, 0
    while number < column(call, words.CALL_COUNT):
        asked = column(call, words.CALL_ASKED_AT) + number * WORD * words.ASKED_WORDS
        if is_open(asked):
            whole = head_bytes(asked, message) + column(asked, words.ASKED_DATA_BYTES)
            if whole > end - to:
                break
            if not _put_open(asked, message, index_at, to):
                is_torn = 1
                break
            left_work -= 2 * whole
            to, number = to + whole, number + 1
            continue
        if first == words.HEAD:
            if head_bytes(asked, message) > end - to:
                break
            left_work -= head_bytes(asked, message)
            to = put_head(asked, message, to)
            first = 0
        left = column(asked, words.ASKED_VECTORS) - first
        if left:
            vector_bytes = _vector_bytes(asked)
            count = _vectors_within(asked, first, end - to, left_work)
            if count == 0 and to == begin and vector_bytes <= end - to:
                count = 1
            if count == 0:
                break
            done = _put_vectors(asked, index_at, first, count, to)
            row_bytes = column(column(asked, words.ASKED_TABLE), words.TABLE_ROW_BYTES)
            rows = done
            if column(asked, words.ASKED_IS_BAGS):
                rows = offset_of(asked, first + done) - offset_of(asked, first)
            left_work -= done * vector_bytes + rows * row_bytes
            to += done * vector_bytes
            first += done
            if done < count:
                is_torn = 1
                break
            if done < left:
                break
        number, first = number + 1, words.HEAD
    put(call, words.CALL_REACHED, number)
    put(call, words.CALL_REACHED_VECTORS, first)
    put(call, words.CALL_IS_TORN, is_torn)
    put(call, words.CALL_WRITTEN, to - begin)
    put(call, words.CALL_WORKED, work - left_work)
    return to - begin


@part
def find_units(call: Any) -> None:
    """Find the most room that a head or a vector takes, and the most work.

    Rows that may have to come from a disk are NO_LIMIT.
    """
    message = column(call, words.CALL_MESSAGE)
    room: Any = np.intp(0)
    work: Any = np.intp(0)
    for number in range(column(call, words.CALL_COUNT)):
        asked = column(call, words.CALL_ASKED_AT) + number * WORD * words.ASKED_WORDS
        table = column(asked, words.ASKED_TABLE)
        row_bytes = column(table, words.TABLE_ROW_BYTES)
        room = max(room, head_bytes(asked, message), _vector_bytes(asked))
        if is_open(asked):
            room = max(room, head_bytes(asked, message) + column(asked, words.ASKED_DATA_BYTES))
        work = max(work, row_bytes)
        if not column(table, words.TABLE_IS_NEAR):
            work = words.NO_LIMIT
        if column(asked, words.ASKED_IS_BAGS):
            begin = 0
            for bag in range(column(asked, words.ASKED_VECTORS)):
                end = offset_of(asked, bag + 1)
                work = max(work, (end - begin) * row_bytes)
                begin = end
    put(call, words.CALL_UNIT_BYTES, room)
    put(call, words.CALL_UNIT_WORK, work)
