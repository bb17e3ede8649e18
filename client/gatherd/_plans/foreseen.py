"""The usual lookup, ready to be sent: all of the request but its ids, all of the reply but vectors.

What a call needs beside its ids, offsets and weights is the same every time: of the request the
rest, and, once a version of each table has answered, of the reply what isn't vectors or statuses.
A `Foreseen` has both as bytes. A transport sends `around` with the caller's arrays between; when
what comes back has `heads`, byte by byte, where they are expected, all else goes straight into new
arrays, or the caller's: nothing is left to parse.

Everything else takes the way of the plans (_plans/answering.py), which is the one that decides: a
foreseen call that fails, or is answered otherwise, becomes the first request of a plan, which then
goes on with that error or that reply. So both ways give the same results. Which calls can be
foreseen is told by _plans/foreseen_calls.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd._requests.lookups import LookupSpec, ReplyType
from gatherd._wire import lookups
from gatherd.store.dtypes import bfloat16_to_float32
from gatherd_proto.framing import LOOKUPS, lookup_head, varint

Varying: TypeAlias = Sequence[Any]
"""The arrays, C-contiguous, around which a foreseen request is always the same; or all of it."""
Known: TypeAlias = tuple[int, int]
"""The version of a table that answers, and its dim."""

# Arrays that have more bytes in all are parts of one: the allocator would give the pages of each
# back to the kernel, and have to ask for them again, at every call.
SEPARATE_BYTES_MAX = 64 << 10
_ALIGN_BYTES = 64
_UINT8 = np.dtype(np.uint8)


@dataclass(slots=True, eq=False)
class Source:
    """A table, or one version of it, and what is known of it; None before it first answered."""

    known: Known | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One table's part of a call: the shapes of its vectors, without dim, and of its ids.

    `has_status` says whether each id has a status.
    """

    source: Source
    shape: tuple[int, ...]
    ids_shape: tuple[int, ...]
    has_status: bool


@dataclass(slots=True, eq=False)
class Foreseen:
    """The calls of one method with ids of the same dtypes and shapes, answered in one dtype.

    The second half is of the reply to come; `heads` is empty as long as nothing is known of it.
    What is learnt makes a new Foreseen.
    """

    method: str
    members: tuple[Member, ...]
    many: bool
    like: LookupSpec  # the first table's lookup, but for its ids
    strings: lookups.AroundStrings | None  # if rows are asked for by string keys
    # What stands before each part that varies, and after the last one. Empty when their lengths
    # vary as well, as of strings: then what varies is the whole request.
    around: tuple[bytes, ...]
    nbytes: int  # of the whole request, if that is always the same
    reply: ReplyType
    # When `known` was last seen to hold, in ForeseenLookups' count of what it learnt.
    checked: int = -1
    known: tuple[Known | None, ...] = ()
    # What stands before each status and vectors, and what those are.
    heads: tuple[bytes, ...] = ()
    parts: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...] = ()
    prefix: bytes = b""  # the first head
    later_heads: bytes = b""  # the others
    places: tuple[slice, ...] = ()  # and of each of them, in that
    later_bytes: int = 0  # of the reply, after the prefix
    is_carved: bool = False  # whether its arrays are parts of one
    is_as_sent: bool = False  # whether its arrays are the vectors, and nothing else
    # What a transport makes of all this, for itself.
    wire: Any = field(default=None)

    def request(self, varying: Varying) -> bytes:
        """The request's body."""
        if not self.around:
            return b"".join(varying)
        pieces: list[Any] = [b""] * (2 * len(varying) + 1)
        pieces[0::2] = self.around
        pieces[1::2] = varying
        return b"".join(pieces)

    def fills(self, out: NDArray[Any]) -> bool:
        """Whether the reply to come can be received into `out`, of whatever type it is."""
        return (
            out.__class__ is np.ndarray
            and out.dtype is self.reply.array
            and bool(self.parts)
            and out.shape == self.parts[-1][0]
            and out.flags.carray
        )

    def targets(self, out: NDArray[Any] | None) -> list[NDArray[Any]]:
        """Where to receive statuses and vectors, as bits: an array for each of `parts`."""
        if self.is_carved:
            return _carved(self.parts)
        if out is None or self.reply.widened:
            return [np.empty(shape, dtype) for shape, dtype in self.parts]
        made = [np.empty(shape, dtype) for shape, dtype in self.parts[:-1]]
        storage = self.reply.wire.storage
        made.append(out if out.dtype is storage else out.view(storage))
        return made

    def landing(self, targets: list[NDArray[Any]]) -> tuple[Sequence[Any], bytes | bytearray]:
        """Buffers for all that follows the prefix, and the memory that the later heads come to."""
        if not self.later_heads:
            return targets, b""
        heads = bytearray(self.later_heads)
        buffers: list[Any] = [None] * (2 * len(targets) - 1)
        buffers[0::2] = targets
        buffers[1::2] = map(memoryview(heads).__getitem__, self.places)
        return buffers, heads

    def split(self, later: memoryview, out: NDArray[Any] | None) -> list[NDArray[Any]] | None:
        """The targets, filled with what follows the prefix; None when it isn't as foreseen."""
        if len(later) != self.later_bytes:
            return None
        targets, at = self.targets(out), 0
        for head, target in zip((b"", *self.heads[1:]), targets, strict=True):
            begin = at + len(head)
            if later[at:begin] != head:
                return None
            at = begin + target.nbytes
            if at > begin:
                target.data.cast("B")[:] = later[begin:at]
        return targets

    def vectors(self, targets: list[NDArray[Any]], out: NDArray[Any] | None) -> list[NDArray[Any]]:
        """What the caller gets, a table each, once `targets` were filled."""
        if self.is_as_sent and out is None:
            return targets
        reply = self.reply
        bits = targets[1::2] if self.members[0].has_status else targets
        if reply.widened:
            return [_widened(one, out) for one in bits]
        if out is not None:
            return [out]
        return [one if one.dtype is reply.array else one.view(reply.array) for one in bits]

    def statuses(self, targets: list[NDArray[Any]]) -> list[NDArray[np.uint8]]:
        """A table's each, all 0 where no id may be missing."""
        if self.members[0].has_status:
            return targets[0::2]
        return [np.zeros(member.ids_shape, np.uint8) for member in self.members]

    def result(
        self, targets: list[NDArray[Any]], out: NDArray[Any] | None, return_status: object
    ) -> Any:
        """What the caller of one table gets."""
        vectors = self.vectors(targets, out)[0]
        return (vectors, self.statuses(targets)[0]) if return_status else vectors

    def with_known(self, known: tuple[Known | None, ...], checked: int) -> "Foreseen":
        """The same with what its sources know by now."""
        if None in known:
            return replace(self, known=known, checked=checked)
        heads: list[bytes] = []
        parts: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        for member, each in zip(self.members, known, strict=True):
            assert each is not None
            of_member, kinds = _reply_of(member, each, self.reply)
            if self.many:
                size = sum(map(len, of_member)) + sum(map(_nbytes, kinds))
                of_member[0] = LOOKUPS + varint(size) + of_member[0]
            heads += of_member
            parts += kinds
        later = b"".join(heads[1:])
        later_bytes = len(later) + sum(map(_nbytes, parts))
        if not later_bytes:  # a dim of 0: nothing would be received
            return replace(self, known=known, checked=checked)
        ends = list(accumulate(map(len, heads[1:])))
        return replace(
            self,
            known=known,
            checked=checked,
            heads=tuple(heads),
            parts=tuple(parts),
            prefix=heads[0],
            later_heads=later,
            places=tuple(map(slice, [0, *ends], ends)),
            later_bytes=later_bytes,
            is_carved=later_bytes > SEPARATE_BYTES_MAX and len(parts) > 2,
            is_as_sent=self.reply.array is self.reply.wire.storage and len(parts) == len(known),
            wire=None,
        )


def _reply_of(
    member: Member, known: Known, reply: ReplyType
) -> tuple[list[bytes], list[tuple[tuple[int, ...], np.dtype[Any]]]]:
    """Heads and parts of a LookupResponse."""
    version, dim = known
    vectors = ((*member.shape, dim), reply.wire.storage)
    code, nbytes = lookups.DTYPE_CODES[reply.wire], _nbytes(vectors)
    if not member.has_status:
        return [lookup_head(version, code, vectors[0], nbytes)], [vectors]
    count = math.prod(member.ids_shape)
    whole = lookup_head(version, code, vectors[0], nbytes, bytes(count))
    tail = lookup_head(0, code, vectors[0], nbytes)
    before = whole[: len(whole) - len(tail) - count]
    return [before, tail], [(member.ids_shape, _UINT8), vectors]


def _nbytes(part: tuple[tuple[int, ...], np.dtype[Any]]) -> int:
    return math.prod(part[0]) * part[1].itemsize


def _carved(parts: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[NDArray[Any]]:
    """An array for each of `parts`, aligned, all in one piece of memory."""
    *begins, end = accumulate(
        (-(-_nbytes(part) // _ALIGN_BYTES) * _ALIGN_BYTES for part in parts), initial=0
    )
    memory = np.empty(end, np.uint8)
    return [
        np.ndarray(shape, dtype, memory, begin)
        for (shape, dtype), begin in zip(parts, begins, strict=True)
    ]


def _widened(bits: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    wide: NDArray[Any] = np.empty(bits.shape, np.float32) if out is None else out
    bfloat16_to_float32(bits, wide)
    return wide
