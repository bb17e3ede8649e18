"""The compiled answer's parser: the bytes of a request to blocks `Asked`.

It reads what a peer sent, as protobuf does where it is sure: varints of up to ten bytes, the last
of a scalar's values, packed and unpacked shapes, unknown fields stepped over. Whatever is wrong,
or rare (a group, a message in several pieces, both members of a oneof), ends it with −1, and the
general way decides. Nothing is read outside of the request. A name is looked up as bytes; names of
tables are ASCII, so other ones that aren't valid UTF-8 only have to be told from valid ones.

All functions return the number of fields they saw, or −1.
"""

from typing import Any

from numba import types

from gatherd.store.kernels.intrinsics import inlined
from gatherd.store.kernels.memory import WORD, column, int64_at, part, put, uint8_at, unit
from gatherd_server.wire.compiled import words

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
TAG_BYTES_MAX = 5
TAG_MAX = (1 << 32) - 1
VARINT_BYTES_MAX = 10
# Of one message, so that none takes long to be found wrong; wire/bounds.py has as many for a table.
FIELDS_MAX = 128
NAME_BYTES_MAX = 128
# Ours end at 12; protobuf looks at 32 bits of a number.
ENUM_MAX = 127
LENGTH_MAX = (1 << 31) - 1
# With zeros among them, dimensions may multiply to this, as in ids.py.
SIZE_MAX = 1 << 40

_TENSOR_DTYPE, _TENSOR_SHAPE, _TENSOR_PACKED, _TENSOR_DATA = 0x08, 0x10, 0x12, 0x1A
_KEYS_STRINGS, _KEYS_INTEGERS = 0x0A, 0x12
_STRINGS_SHAPE, _STRINGS_PACKED, _STRINGS_LENGTHS, _STRINGS_DATA = 0x08, 0x0A, 0x12, 0x1A
_LOOKUP_TABLE, _LOOKUP_IDS, _LOOKUP_DTYPE, _LOOKUP_MISSING, _LOOKUP_VERSION, _LOOKUP_KEYS = (
    0x0A, 0x12, 0x18, 0x20, 0x28, 0x32,
)  # fmt: skip
# dims, normalize and with_lsn: the general way's.
_LOOKUP_DIMS, _LOOKUP_NORMALIZE, _LOOKUP_WITH_LSN = 0x38, 0x40, 0x48
_BAGS_LOOKUP, _BAGS_OFFSETS, _BAGS_POOLING, _BAGS_WEIGHTS, _BAGS_PADDING = (
    0x0A, 0x12, 0x18, 0x22, 0x28,
)  # fmt: skip
_MANY_ONE = 0x0A
_HIGH_BITS = -0x7F7F7F7F7F7F7F80  # the top bit of each of eight bytes


@part
def _long_varint(at: Any, end: Any) -> Any:
    value = 0
    for i in range(min(VARINT_BYTES_MAX, end - at)):
        byte = uint8_at(at + i)
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            # Of the tenth byte one bit is left.
            return (0, 0) if i == VARINT_BYTES_MAX - 1 and byte > 1 else (value, at + i + 1)
    return 0, 0


@inlined
def varint(at: Any, end: Any) -> Any:
    """The 64 bits of the varint at `at`, and where it ends; 0 when it doesn't before `end`."""
    if at < end:
        byte = uint8_at(at)
        if byte < 0x80:
            return byte, at + 1
    return _long_varint(at, end)


@inlined
def tag(at: Any, end: Any) -> Any:
    """As varint, for a field's number and wire type."""
    value, after = varint(at, end)
    if after - at > TAG_BYTES_MAX or value > TAG_MAX or value < 1 << 3:
        return 0, 0
    return value, after


@inlined
def length(at: Any, end: Any) -> Any:
    """As varint, for a length of bytes that are all there."""
    value, after = varint(at, end)
    if after == 0 or value < 0 or value > LENGTH_MAX or value > end - after:
        return 0, 0
    return value, after


@part
def skip(field: Any, at: Any, end: Any) -> Any:
    """Where the value of a field ends; 0 when it doesn't, or is a group's."""
    kind = field & 7
    after = 0
    if kind == VARINT:
        after = varint(at, end)[1]
    elif kind == BYTES:
        byte_count, after = length(at, end)
        after += byte_count
    elif kind == FIXED64:
        after = at + 8
    elif kind == FIXED32:
        after = at + 4
    return 0 if after > end else after


@inlined
def _enum(at: Any, end: Any) -> Any:
    value, after = varint(at, end)
    return (0, 0) if value < 0 or value > ENUM_MAX else (value, after)


@inlined
def _add_dim(tensor: Any, value: Any) -> Any:
    """Whether one more dimension of a shape could be taken."""
    count = column(tensor, words.TENSOR_DIM_COUNT)
    if count == words.DIMS_MAX or value < 0 or value > LENGTH_MAX:
        return False
    put(tensor, words.TENSOR_DIMS + count, value)
    put(tensor, words.TENSOR_DIM_COUNT, count + 1)
    return True


@part
def _packed(at: Any, end: Any, tensor: Any) -> Any:
    """Read the dimensions in a length-delimited field; where it ends, or 0."""
    byte_count, at = length(at, end)
    stop = at + byte_count
    while at and at < stop:
        value, at = varint(at, stop)
        if at and not _add_dim(tensor, value):
            return 0
    return at


@part
def _one_dim(at: Any, end: Any, tensor: Any) -> Any:
    value, at = varint(at, end)
    return at if at and _add_dim(tensor, value) else 0


@unit(types.intp, types.intp, types.intp, returns=types.intp)
def read_tensor(at: Any, end: Any, tensor: Any) -> Any:
    """A Tensor. None was there before."""
    if column(tensor, words.TENSOR_IS_THERE):
        return -1
    put(tensor, words.TENSOR_IS_THERE, 1)
    fields = 0
    while at < end:
        fields += 1
        field, at = tag(at, end) if fields <= FIELDS_MAX else (0, 0)
        if field == _TENSOR_DTYPE:
            value, at = _enum(at, end)
            put(tensor, words.TENSOR_DTYPE, value)
        elif field == _TENSOR_PACKED:
            at = _packed(at, end, tensor)
        elif field == _TENSOR_DATA:
            byte_count, at = length(at, end)
            put(tensor, words.TENSOR_DATA_AT, at)
            put(tensor, words.TENSOR_DATA_BYTES, byte_count)
            at += byte_count
        elif field == _TENSOR_SHAPE:
            at = _one_dim(at, end, tensor)
        elif field:
            at = skip(field, at, end)
        if at == 0:
            return -1
    return fields


@part
def read_strings(at: Any, end: Any, asked: Any) -> Any:
    """StringKeys. Nothing was asked before."""
    tensor = asked + WORD * words.ASKED_ROWS
    put(tensor, words.TENSOR_IS_THERE, 1)
    fields = 0
    while at < end:
        fields += 1
        field, at = tag(at, end) if fields <= FIELDS_MAX else (0, 0)
        if field == _STRINGS_PACKED:
            at = _packed(at, end, tensor)
        elif field == _STRINGS_LENGTHS:
            byte_count, at = length(at, end)
            put(asked, words.ASKED_LENGTHS_AT, at)
            put(asked, words.ASKED_LENGTHS_BYTES, byte_count)
            at += byte_count
        elif field == _STRINGS_DATA:
            byte_count, at = length(at, end)
            put(tensor, words.TENSOR_DATA_AT, at)
            put(tensor, words.TENSOR_DATA_BYTES, byte_count)
            at += byte_count
        elif field == _STRINGS_SHAPE:
            at = _one_dim(at, end, tensor)
        elif field:
            at = skip(field, at, end)
        if at == 0:
            return -1
    return fields


@part
def read_keys(at: Any, end: Any, asked: Any) -> Any:
    """Keys, of one kind and in one piece."""
    fields = 0
    while at < end:
        fields += 1
        field, at = tag(at, end) if fields <= FIELDS_MAX else (0, 0)
        if field in (_KEYS_STRINGS, _KEYS_INTEGERS):
            byte_count, at = length(at, end)
            if at == 0 or column(asked + WORD * words.ASKED_ROWS, words.TENSOR_IS_THERE):
                return -1
            if field == _KEYS_STRINGS:
                put(asked, words.ASKED_BY, words.BY_STRINGS)
                inner = read_strings(at, at + byte_count, asked)
            else:
                put(asked, words.ASKED_BY, words.BY_INTEGERS)
                inner = read_tensor(at, at + byte_count, asked + WORD * words.ASKED_ROWS)
            if inner < 0:
                return -1
            fields += inner
            at += byte_count
        elif field:
            at = skip(field, at, end)
        if at == 0:
            return -1
    return fields


@part
def _is_ascii(at: Any, byte_count: Any) -> Any:
    done = 0
    while byte_count - done >= WORD:
        if int64_at(at + done) & _HIGH_BITS:
            return False
        done += WORD
    for i in range(done, byte_count):  # noqa: SIM110  # numba has no all()
        if uint8_at(at + i) > 0x7F:
            return False
    return True


@unit(types.intp, types.intp, types.intp, returns=types.intp)
def read_lookup(at: Any, end: Any, asked: Any) -> Any:  # noqa: C901  # a branch a field
    """A LookupRequest. None was there before."""
    if column(asked, words.ASKED_HAS_LOOKUP):
        return -1
    put(asked, words.ASKED_HAS_LOOKUP, 1)
    fields = 0
    while at < end:
        fields += 1
        field, at = tag(at, end) if fields <= FIELDS_MAX else (0, 0)
        if field == _LOOKUP_TABLE:
            byte_count, at = length(at, end)
            if at == 0 or byte_count > NAME_BYTES_MAX or not _is_ascii(at, byte_count):
                return -1
            put(asked, words.ASKED_NAME_AT, at)
            put(asked, words.ASKED_NAME_BYTES, byte_count)
            at += byte_count
        elif field in (_LOOKUP_IDS, _LOOKUP_KEYS):
            byte_count, at = length(at, end)
            if at == 0 or column(asked, words.ASKED_BY):
                return -1
            if field == _LOOKUP_IDS:
                put(asked, words.ASKED_BY, words.BY_IDS)
                inner = read_tensor(at, at + byte_count, asked + WORD * words.ASKED_ROWS)
            else:
                inner = read_keys(at, at + byte_count, asked)
                if column(asked, words.ASKED_BY) == words.BY_NOTHING:
                    return -1
            if inner < 0:
                return -1
            fields += inner
            at += byte_count
        elif field == _LOOKUP_DTYPE:
            value, at = _enum(at, end)
            put(asked, words.ASKED_DTYPE, value)
        elif field == _LOOKUP_MISSING:
            value, at = _enum(at, end)
            put(asked, words.ASKED_MISSING, value)
        elif field == _LOOKUP_VERSION:
            value, at = varint(at, end)
            put(asked, words.ASKED_VERSION, value)
        elif field in (_LOOKUP_DIMS, _LOOKUP_NORMALIZE, _LOOKUP_WITH_LSN):
            return -1
        elif field:
            at = skip(field, at, end)
        if at == 0:
            return -1
    return fields


@part
def read_bags(at: Any, end: Any, asked: Any) -> Any:
    """A LookupBagsRequest."""
    put(asked, words.ASKED_IS_BAGS, 1)
    fields = 0
    while at < end:
        fields += 1
        field, at = tag(at, end) if fields <= FIELDS_MAX else (0, 0)
        if field in (_BAGS_LOOKUP, _BAGS_OFFSETS, _BAGS_WEIGHTS):
            byte_count, at = length(at, end)
            if at == 0:
                return -1
            if field == _BAGS_LOOKUP:
                inner = read_lookup(at, at + byte_count, asked)
            else:
                block = words.ASKED_OFFSETS if field == _BAGS_OFFSETS else words.ASKED_WEIGHTS
                inner = read_tensor(at, at + byte_count, asked + WORD * block)
            if inner < 0:
                return -1
            fields += inner
            at += byte_count
        elif field == _BAGS_POOLING:
            value, at = _enum(at, end)
            put(asked, words.ASKED_POOLING, value)
        elif field == _BAGS_PADDING:
            value, at = varint(at, end)
            put(asked, words.ASKED_PADDING, value)
            put(asked, words.ASKED_HAS_PADDING, 1)
        elif field:
            at = skip(field, at, end)
        if at == 0:
            return -1
    return fields


@part
def count_many(at: Any, end: Any, count_max: Any) -> Any:
    """How many lookups a LookupManyRequest or a LookupBagsManyRequest has; −1 as all."""
    count, others = 0, 0
    while at < end:
        field, at = tag(at, end)
        if field == _MANY_ONE:
            count += 1
        else:
            others += 1
        if count > count_max or others > FIELDS_MAX:
            return -1
        if at:
            at = skip(field, at, end)
        if at == 0:
            return -1
    return count


@part
def read_many(at: Any, end: Any, message: Any, asked: Any) -> Any:
    """The lookups that `count_many` counted, to as many blocks from `asked` on."""
    fields = 0
    while at < end:
        fields += 1
        field, at = tag(at, end)
        if field == _MANY_ONE:
            byte_count, at = length(at, end)
            if message == words.LOOKUP_MANY:
                inner = read_lookup(at, at + byte_count, asked)
            else:
                inner = read_bags(at, at + byte_count, asked)
            if inner < 0:
                return -1
            fields += inner
            asked += WORD * words.ASKED_WORDS
            at += byte_count
        else:
            at = skip(field, at, end)
    return fields


@part
def element_count(tensor: Any, itemsize: Any) -> Any:
    """How many elements a tensor has, of so many bytes each; −1 when its data are of another size.

    Of an itemsize of 0 the data are looked at elsewhere.
    """
    count, others = 1, 1
    for i in range(column(tensor, words.TENSOR_DIM_COUNT)):
        value = column(tensor, words.TENSOR_DIMS + i)
        if value > SIZE_MAX // others:
            return -1
        count *= value
        others *= max(value, 1)
    if itemsize and count * itemsize != column(tensor, words.TENSOR_DATA_BYTES):
        return -1
    return count
