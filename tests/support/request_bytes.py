"""Requests that ask all kinds of things, and the many ways in which protobuf may encode each."""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

from gatherd_proto.framing import varint
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.wire.compiled.answers import LOOKUP, LOOKUP_BAGS, LOOKUP_MANY

ID_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


def tensor(array: NDArray[Any]) -> tensor_pb2.Tensor:
    """`array` as a request holds it."""
    dtype = f"DTYPE_{array.dtype.name.upper()}"
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())


def string_keys(keys: Sequence[bytes], shape: Sequence[int]) -> tensor_pb2.Keys:
    """`keys` as a request holds them."""
    lengths = np.array([len(key) for key in keys], "<u4").tobytes()
    strings = tensor_pb2.StringKeys(shape=shape, lengths=lengths, data=b"".join(keys))
    return tensor_pb2.Keys(strings=strings)


def encoded(message: Message, random: Random, oddity: float = 0.0) -> bytes:
    """`message`, encoded as somebody's encoder may do it.

    With `oddity` above 0, also as nobody's does: fields in another order and given twice, longer
    varints than needed, unknown fields, groups, messages in two pieces.
    """

    def odd() -> bool:
        return random.random() < oddity

    pieces: list[bytes] = []
    for field, value in message.ListFields():
        is_many = field.is_repeated
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for one in value if is_many else [value]:
                bodies = [encoded(one, random, oddity)]
                if odd() and not is_many:
                    bodies = _in_two(one, random)
                pieces += [_field(field.number, _BYTES, body, odd()) for body in bodies]
        elif is_many:
            pieces += _repeated(field.number, value, random, oddity)
        elif field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING):
            data = value.encode() if isinstance(value, str) else value
            if odd():
                other = random.choice([b"", b"other", b"\xff"])
                pieces.append(_field(field.number, _BYTES, other, odd()))
            pieces.append(_field(field.number, _BYTES, data, odd()))
        else:
            if odd():
                pieces.append(_field(field.number, _VARINT, random.choice([0, 1, 3, 99]), odd()))
            pieces.append(_field(field.number, _VARINT, value, odd()))
    while odd():
        pieces.insert(random.randrange(len(pieces) + 1), _unknown(random))
    if odd():
        random.shuffle(pieces)
    return b"".join(pieces)


def _field(number: int, kind: int, value: Any, is_long: bool) -> bytes:
    tag = _varint(number << 3 | kind, is_long)
    if kind == _VARINT:
        return tag + _varint(int(value) % 2**64, is_long)
    return tag + _varint(len(value), is_long) + bytes(value)


def _varint(value: int, is_long: bool) -> bytes:
    made = varint(value)
    return made[:-1] + bytes((made[-1] | 0x80, 0)) if is_long and len(made) < 9 else made


def _in_two(message: Message, random: Random) -> list[bytes]:
    first, second = type(message)(), type(message)()
    for field, value in message.ListFields():
        part = random.choice([first, second])
        if field.is_repeated:
            getattr(part, field.name).extend(value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(part, field.name).CopyFrom(value)
        else:
            setattr(part, field.name, value)
    return [first.SerializeToString(), second.SerializeToString()]


def _repeated(number: int, values: Sequence[int], random: Random, oddity: float) -> list[bytes]:
    if random.random() >= oddity:
        return [_field(number, _BYTES, b"".join(map(varint, values)), False)]
    cut = random.randrange(len(values) + 1)
    packed = b"".join(_varint(value, random.random() < oddity) for value in values[:cut])
    single = [_field(number, _VARINT, value, random.random() < oddity) for value in values[cut:]]
    return [_field(number, _BYTES, packed, False), *single]


def _unknown(random: Random) -> bytes:
    # Some numbers are the message's own, of another type, and others nobody's.
    number = random.choice([1, 2, 3, 4, 5, 6, 7, 15, 16, 1000, 2**29 - 1])
    kind = random.choice([_VARINT, _FIXED64, _BYTES, _FIXED32, _GROUP])
    tag = varint(number << 3 | kind)
    if kind == _VARINT:
        return tag + varint(random.choice([0, 1, 2**63, 2**64 - 1]))
    if kind == _BYTES:
        body = random.randbytes(random.randrange(5))
        return tag + varint(len(body)) + body
    if kind == _GROUP:
        return tag + _unknown(random) + varint(number << 3 | _END_GROUP)
    return tag + random.randbytes(8 if kind == _FIXED64 else 4)


class Asking:
    """Draws lookups of tables that are known by their row counts and keys."""

    def __init__(self, rows: dict[str, int], keys: dict[str, Any], random: Random) -> None:
        self._rows, self._keys, self.random = rows, keys, random

    def lookup(
        self, *, is_flat: bool = False, is_sound: bool = True
    ) -> embedding_pb2.LookupRequest:
        """A lookup; unless it `is_sound`, perhaps of what isn't there."""
        random = self.random
        table = random.choice([*self._rows])
        keys = self._keys.get(table)
        shape = self._shape(is_flat)
        policies = embedding_pb2.Missing.keys()
        is_open = table.startswith("open")
        initial = ["MISSING_INIT"] if is_open else []
        policies = [one for one in policies[:5] if is_flat or one != "MISSING_SKIP"] + initial
        policy = random.choice(policies)
        is_all_there = policy in policies[:2] and (is_sound or random.random() < 0.5)
        request = embedding_pb2.LookupRequest(
            table=table,
            dtype=random.choice(tensor_pb2.DType.keys()[:4]),
            missing=policy,
            version=random.choice([0, 0, 1]),
        )
        if keys is None or random.random() < 0.3 * (not is_open or not is_sound):
            request.ids.CopyFrom(tensor(self._ids(self._rows[table], shape, is_all_there)))
        elif isinstance(keys, list):
            known = [*keys] if is_all_there else [*keys, b"nobody", b"\xff\0", b"k" * 1024]
            drawn = random.choices(known, k=int(np.prod(shape)))
            request.keys.CopyFrom(string_keys(drawn, shape))
        else:
            numbers = keys if is_all_there else np.append(keys, np.array([5, 77], keys.dtype))
            chosen = np.array(random.choices(list(numbers), k=int(np.prod(shape))), keys.dtype)
            request.keys.integers.CopyFrom(tensor(chosen.reshape(shape)))
        return request

    def bags(self, *, is_sound: bool = True) -> embedding_pb2.LookupBagsRequest:
        """Bags of a table, as `lookup`."""
        random = self.random
        lookup = self.lookup(is_flat=True, is_sound=is_sound)
        keys = lookup.keys
        held = keys.strings if keys.HasField("strings") else keys.integers
        (count,) = (lookup.ids if lookup.HasField("ids") else held).shape
        bags = random.choice([1, 2, 5, 20])
        cuts = sorted(random.choices(range(count + 1), k=bags - 1))
        offsets = np.array([0, *cuts], random.choice(ID_DTYPES[2:]))
        if not is_sound and random.random() < 0.3:
            offsets = self._wrong(offsets, count)
        request = embedding_pb2.LookupBagsRequest(
            lookup=lookup,
            offsets=tensor(offsets),
            pooling=random.choice(embedding_pb2.Pooling.keys()),
        )
        if request.pooling != 3 and random.random() < 0.4:
            weights = [random.choice([0, 1, -1, 0.5, 1e30]) for _ in range(count)]
            request.weights.CopyFrom(tensor(np.array(weights, np.float32)))
        if random.random() < 0.4:
            is_open = lookup.table.startswith("open") and is_sound
            padding = [-1, -(2**63)] if is_open else [0, 1, -1, 2, 10**12, -(2**63)]
            request.padding_id = random.choice(padding)
        return request

    def request(self, message: int, *, is_sound: bool = True) -> Message:
        """A request of the compiled answer's kind `message`, as `lookup`."""
        count = self.random.choice([0, 1, 2, 5])
        if message == LOOKUP:
            return self.lookup(is_sound=is_sound)
        if message == LOOKUP_BAGS:
            return self.bags(is_sound=is_sound)
        if message == LOOKUP_MANY:
            many = [self.lookup(is_sound=is_sound) for _ in range(count)]
            return embedding_pb2.LookupManyRequest(lookups=many)
        bags = [self.bags(is_sound=is_sound) for _ in range(count)]
        return embedding_pb2.LookupBagsManyRequest(bags=bags)

    def _wrong(self, offsets: NDArray[Any], count: int) -> NDArray[Any]:
        """Offsets that don't begin at 0, go down, or are past the end of `count` ids; or 2-D."""
        wrong = offsets.copy()
        i = self.random.randrange(wrong.size)
        if self.random.random() < 0.2:
            return wrong[:, None]
        wrong[i] = self.random.choice([count + 1, np.iinfo(wrong.dtype).max, 1, 0])
        return wrong

    def _shape(self, is_flat: bool) -> tuple[int, ...]:
        random = self.random
        flat = (random.choice([0, 1, 2, 3, 7, 33, 64, 150]),)
        return (
            flat if is_flat else random.choice([flat, flat, (), (2, 3), (1, 1, 5), (0, 4), (4, 0)])
        )

    def _ids(self, row_count: int, shape: tuple[int, ...], is_all_there: bool) -> NDArray[Any]:
        random = self.random
        dtype = np.dtype(random.choice([*ID_DTYPES, "int64", "int64"]))
        limits = np.iinfo(dtype)
        stop = min(row_count, int(limits.max) + 1)
        ids = [random.randrange(stop) for _ in range(int(np.prod(shape)))]
        for i in range(0 if is_all_there else len(ids)):
            if random.random() < 0.2:
                ids[i] = random.choice(
                    [int(limits.min), int(limits.max), min(row_count, limits.max), 0]
                )
        return np.array(ids, dtype).reshape(shape)
