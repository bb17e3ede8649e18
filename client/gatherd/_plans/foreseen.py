"""The usual lookup, ready to be sent: ids of one table in an ordinary array, none of them missing.

All of the request but the ids is the same every time, and, once a version has answered, so is all
of the reply but the vectors. A `Foreseen` has both as bytes. A transport sends `before`, the ids
and `after`. When the reply begins with exactly `prefix`, the rest is the vectors, and goes straight
into the caller's array: nothing is left to parse.

The plans (answering.py) decide everything else: a foreseen lookup that fails, or gets another
reply, becomes the first request of a plan, which then goes on with that error or that reply. So
both ways give the same results.

Left out on purpose: keys, bags, statuses and lookups that may be over a limit; there the vectors
outweigh what this saves, or the reply can't be foreseen.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._plans.answering import Answering
from gatherd._plans.effects import Deadline, Plan
from gatherd._requests.lookups import LookupSpec, ReplyType, parse_reply_type, prepare
from gatherd._wire import lookups
from gatherd.errors import GatherdError
from gatherd.store.dtypes import bfloat16_to_float32
from gatherd_proto.framing import lookup_head

# Up to this many ids a lookup is sent without asking for the limits first.
IDS_UNASKED_MAX = 65_536
# How many kinds of lookups a client keeps ready.
KINDS_MAX = 1_024


@dataclass(slots=True, eq=False)
class _Source:
    """A table, or one version of it. `known`: the version that answers, and dim; None at first."""

    known: tuple[int, int] | None = None


@dataclass(slots=True, eq=False)
class Foreseen:
    """The lookups of one table with ids of one dtype and shape, answered in one dtype.

    The fields from `known` on are of the reply to come; `prefix` is empty as long as nothing is
    known of it. Nothing but `wire` changes: learning makes a new Foreseen.
    """

    source: _Source
    like: LookupSpec  # the same but for its ids
    before: bytes
    after: bytes
    nbytes: int  # of the whole request
    shape: tuple[int, ...]
    reply: ReplyType
    known: tuple[int, int] | None = None
    prefix: bytes = b""
    vectors_shape: tuple[int, ...] = ()
    data_bytes: int = 0
    # A transport's cached encoding of this lookup; replaced, never mutated.
    wire: Any = field(default=None)

    def request(self, ids: NDArray[Any]) -> bytes:
        """The request's body."""
        return b"".join((self.before, ids.data, self.after))

    def fills(self, out: NDArray[Any]) -> bool:
        """Whether the reply to come can be received into `out`, which may be of any type."""
        return (
            out.__class__ is np.ndarray
            and out.dtype is self.reply.array
            and out.shape == self.vectors_shape
            and out.flags.carray
        )

    def target(self, out: NDArray[Any] | None) -> NDArray[Any]:
        """The array to receive the vectors into: their bits, of shape `vectors_shape`."""
        storage = self.reply.wire.storage
        if out is None or self.reply.widened:
            return np.empty(self.vectors_shape, storage)
        return out if out.dtype is storage else out.view(storage)

    def result(self, target: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
        """The caller's array, once `target` was filled."""
        reply = self.reply
        if reply.widened:
            wide: NDArray[Any] = np.empty(self.vectors_shape, np.float32) if out is None else out
            bfloat16_to_float32(target, wide)
            return wide
        if out is not None:
            return out
        return target if target.dtype is reply.array else target.view(reply.array)

    def learn(self, body: memoryview) -> None:
        """Learn from a reply that was found good how the next ones will begin."""
        reply = lookups.decode_lookup(body)
        known = (reply.version, reply.shape[-1])
        if known != self.source.known:
            self.source.known = known


class ForeseenLookups:
    """The kinds of lookups that a client makes. Safe to use from many threads."""

    def __init__(self) -> None:
        self._kinds: dict[Any, Foreseen] = {}
        self._sources: dict[tuple[str, int | None], _Source] = {}

    def find(
        self, table: str, ids: Any, dtype: Any, version: int | None, out: NDArray[Any] | None
    ) -> Foreseen | None:
        """The Foreseen of a lookup, or None when it can't be foreseen.

        The arguments are a caller's, right or wrong. When it can be, `ids` is a C-contiguous array,
        and the reply to come fits `out`, if there is one.
        """
        if ids.__class__ is not np.ndarray or not ids.flags.c_contiguous:
            return None
        # True equals 1, and has its hash.
        if version is not None and version.__class__ is not int:
            return None
        key = (table, ids.dtype, ids.shape, dtype, version)
        try:
            kind = self._kinds.get(key)
        except TypeError:  # the plan refuses what can't be hashed
            return None
        if kind is None or kind.known is not kind.source.known:
            kind = self._made(key, kind, ids)
        if out is None or kind is None:
            return kind
        # A resend after a part of the reply came needs the ids unharmed.
        return kind if kind.fills(out) and not np.may_share_memory(ids, out) else None

    def _made(self, key: Any, kind: Foreseen | None, ids: NDArray[Any]) -> Foreseen | None:
        if kind is None:
            kind = self._new(key, ids)
        if kind is None:
            return None
        if kind.known is not kind.source.known:
            kind = _foreseeing(kind)
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()
        self._kinds[key] = kind
        return kind

    def _new(self, key: Any, ids: NDArray[Any]) -> Foreseen | None:
        table, _, _, dtype, version = key
        if type(table) is not str or not isinstance(dtype, str | type):
            return None
        if not 0 < ids.size <= IDS_UNASKED_MAX:
            return None
        try:
            spec = prepare(table, ids, None, parse_reply_type(dtype), "error", None, version)
        except GatherdError:
            return None  # the plan raises it too, and in its own order
        asked = spec.asked
        if not isinstance(asked, np.ndarray) or asked.dtype != ids.dtype:
            return None
        before, after = lookups.around_ids(spec)
        if len(self._sources) >= KINDS_MAX:
            self._sources.clear()
        source = self._sources.setdefault((table, version), _Source())
        nbytes = len(before) + ids.nbytes + len(after)
        return Foreseen(source, spec, before, after, nbytes, ids.shape, spec.reply)


def foreseen_plan(
    answering: Answering,
    foreseen: Foreseen,
    ids: NDArray[Any],
    out: NDArray[Any] | None,
    deadline: Deadline,
) -> Plan[Any]:
    """The plan of a foreseen lookup; its first effect is the send that was made already."""
    spec = replace(foreseen.like, asked=ids, out=out)
    answers = yield from answering.gather((spec,), deadline)
    return answers[0].vectors


def _foreseeing(kind: Foreseen) -> Foreseen:
    """`kind` with what its source knows by now."""
    known = kind.source.known
    assert known is not None
    version, dim = known
    shape = (*kind.shape, dim)
    data_bytes = math.prod(shape) * kind.reply.wire.itemsize
    prefix = b""
    if data_bytes:
        code = lookups.DTYPE_CODES[kind.reply.wire]
        prefix = lookup_head(version, code, shape, data_bytes)
    return replace(
        kind, known=known, prefix=prefix, vectors_shape=shape, data_bytes=data_bytes, wire=None
    )
