"""Updates that differ from an earlier one in nothing but their id, ids and values.

A trainer's updates of a table mostly are so. Of such a request the generated classes would build
five messages and as many arrays' shapes; here its bytes are compared with those of the earlier one.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gatherd.errors import GatherdError
from gatherd.store.limits import SESSION_BYTES
from gatherd.store.query import ByKey
from gatherd_proto.framing import BYTES, VARINT, tag
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.types import Limits, Push, SessionSequence, TableUpdate, UpdateOp
from gatherd_server.wire import updates

SEEN_BYTES_MAX: Final = 64 << 10
SEEN_MAX: Final = 1024
# An update of a length that is known and unlike is learnt after so many in a row.
UNLIKE_MAX: Final = 16

# How an UpdateRequest begins whose id stands first: sequence {session, sequence}.
_SEQUENCE: Final = tag(2, BYTES)[0]
_SESSION: Final = tag(1, BYTES) + bytes((SESSION_BYTES,))
_NUMBER: Final = tag(2, VARINT)[0]
_SESSION_BEGIN: Final = 2 + len(_SESSION)
_NUMBER_BEGIN: Final = _SESSION_BEGIN + SESSION_BYTES + 1
# Of a number below 2**63; a longer one is read by protobuf.
_NUMBER_BYTES_MAX: Final = 9
_VALUES: Final = np.dtype("<f4")


@dataclass(slots=True, eq=False)
class _Seen:
    """What stands before the ids, and between them and the values, which are the last bytes."""

    before: bytes
    between: bytes
    table: str
    ids_dtype: np.dtype[np.integer[Any]]
    ids_bytes: int
    ids_shape: tuple[int, ...]
    values_shape: tuple[int, ...]
    lr: float | None
    if_version: int
    unlike_count: int = 0
    """Of as many others as long, in a row, and not like it."""


class SeenUpdates:
    """The updates of one procedure whose like was read before. For one thread."""

    def __init__(self, op: UpdateOp) -> None:
        self._op = op
        # By the length of all that follows the id.
        self._seen: dict[int, _Seen | None] = {}

    def find(self, body: bytes) -> Push | None:
        """The push in `body`, when one like it was learnt."""
        found = _request_id(body)
        if found is None:
            return None
        request_id, begin = found
        seen = self._seen.get(len(body) - begin)
        if seen is None:
            return None
        ids_begin = begin + len(seen.before)
        ids_end = ids_begin + seen.ids_bytes
        values_begin = ids_end + len(seen.between)
        if not (body.startswith(seen.before, begin) and body.startswith(seen.between, ids_end)):
            return None
        seen.unlike_count = 0
        # Copies, which are aligned.
        ids = np.frombuffer(body[ids_begin:ids_end], seen.ids_dtype).reshape(seen.ids_shape)
        values = np.frombuffer(body[values_begin:], _VALUES).reshape(seen.values_shape)
        update = TableUpdate(seen.table, ids, values, seen.lr, seen.if_version)
        return Push(self._op, (update,), request_id)

    def learn(self, body: bytes, push: Push, limits: Limits) -> None:
        """Take from a request what it is like, if it is that plain.

        Where ids and values stand is tried: with two other fillings the request still has to mean
        the same, so every byte of them is among those that were filled.
        """
        found = _request_id(body)
        if found is None or len(body) > SEEN_BYTES_MAX or len(push.updates) != 1:
            return
        update = push.updates[0]
        ids = update.asked
        if isinstance(ids, ByKey) or not update.values.size:
            return
        rest = body[found[1] :]
        if not self._is_worth_learning(len(rest)):
            return
        ids_begin, values_begin = rest.find(ids.tobytes()), len(rest) - update.values.nbytes
        before, between = rest[:ids_begin], rest[ids_begin + ids.nbytes : values_begin]
        for filling in (b"\0", b"\xff"):
            filled = before + filling * ids.nbytes + between + filling * update.values.nbytes
            if len(filled) != len(rest) or not self._means(filled, filling, update, limits):
                return
        self._seen[len(rest)] = _Seen(
            before,
            between,
            update.table,
            ids.dtype,
            ids.nbytes,
            ids.shape,
            update.values.shape,
            update.lr,
            update.if_version,
        )

    def _is_worth_learning(self, nbytes: int) -> bool:
        """Whether an update of this length, which wasn't found, is to be learnt."""
        if nbytes not in self._seen:
            # At the second one: a trainer may send each length once.
            if len(self._seen) >= SEEN_MAX:
                self._seen.clear()
            self._seen[nbytes] = None
            return False
        known = self._seen[nbytes]
        if known is not None and known.unlike_count < UNLIKE_MAX:
            # As where each has another learning rate: to learn takes longer than to read.
            known.unlike_count += 1
            return False
        return True

    def _means(self, body: bytes, filling: bytes, like: Any, limits: Limits) -> bool:
        """Whether `body` is the update `like`, filled so, and has no request id."""
        try:
            push = updates.push(self._op, embedding_pb2.UpdateRequest.FromString(body), limits)
        except (DecodeError, GatherdError):
            return False
        if push.request_id is not None or len(push.updates) != 1:
            return False
        made = push.updates[0]
        return (
            not isinstance(made.asked, ByKey)
            and made.asked.dtype == like.asked.dtype
            and _is_filled(made.asked, filling, like.asked)
            and _is_filled(made.values, filling, like.values)
            and (made.table, made.lr, made.if_version) == (like.table, like.lr, like.if_version)
        )


def _is_filled(array: NDArray[Any], filling: bytes, like: Any) -> bool:
    return bool(array.shape == like.shape and array.tobytes() == filling * like.nbytes)


def _request_id(body: bytes) -> tuple[SessionSequence, int] | None:
    """The session's id that `body` begins with, and where it ends; None when it doesn't so."""
    if len(body) < _NUMBER_BEGIN or body[0] != _SEQUENCE or body[_NUMBER_BEGIN - 1] != _NUMBER:
        return None
    end = 2 + body[1]
    if not (
        _NUMBER_BEGIN < end <= _NUMBER_BEGIN + _NUMBER_BYTES_MAX
        and len(body) >= end
        and body.startswith(_SESSION, 2)
    ):
        return None
    number = shift = 0
    for byte in body[_NUMBER_BEGIN : end - 1]:
        if byte < 0x80:
            return None
        number |= (byte & 0x7F) << shift
        shift += 7
    last = body[end - 1]
    number |= last << shift
    if last >= 0x80 or not number:
        return None
    return SessionSequence(body[_SESSION_BEGIN : _NUMBER_BEGIN - 1], number), end
