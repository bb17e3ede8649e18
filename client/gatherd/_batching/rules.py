"""Small lookups of one process, made at the same time, merged into one request.

The batchers of Client and AsyncClient share this: which lookups can be merged, how requests are
made of them, and how the answers are given back. The waiting is in threads.py and tasks.py.

The batching is natural: a lookup that finds no request under way is sent at once, and the lookups
that come meanwhile make up the next request. So no lookup waits for company, and under load
requests grow by themselves. Lookups of the same table, dtype, policy and version become one lookup
of all their ids; others become members of one LookupMany.

Left out on purpose: a pause to wait for more; keys and bags, whose requests are larger; merging
lookups of the same ids, which `dedup` does.
"""

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from gatherd._plans.effects import Deadline
from gatherd._requests.lookups import Answer, LookupSpec, check_out, parse_reply_type, prepare
from gatherd.errors import (
    ClientError,
    DeadlineExceeded,
    GatherdError,
    InvalidArgument,
    Overloaded,
    RetryableError,
    StorageError,
)
from gatherd.store.ids import as_id_array
from gatherd.store.query import Missing

# How many kinds of lookups are remembered.
KINDS_MAX = 1_024
# Errors of the server or of the way there: they concern every lookup of a request.
_OF_ALL = (RetryableError, DeadlineExceeded, StorageError, ClientError)

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Batching:
    """Has a client merge small concurrent lookups, within these bounds.

    lookup_ids_max: a lookup of more ids is sent alone, at once.
    ids_max: how many ids a merged request has at most, and so about how large its reply is.
    waiting_max: how many lookups may wait for the request before them; one more is Overloaded.
    """

    lookup_ids_max: int = 256
    ids_max: int = 4_096
    waiting_max: int = 65_536

    def __post_init__(self) -> None:
        for name in ("lookup_ids_max", "ids_max", "waiting_max"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidArgument(f"{name}={value!r} isn't possible: it is an integer from 1")
        if self.lookup_ids_max > self.ids_max:
            raise InvalidArgument(
                f"lookup_ids_max={self.lookup_ids_max} is more than ids_max={self.ids_max}"
            )


@dataclass(slots=True, eq=False)
class LookupKind:
    """The common part of lookups that can be merged into one: a lookup without ids."""

    like: LookupSpec
    dtype: Any
    version: int | None

    def spec(self, ids: NDArray[Any]) -> LookupSpec:
        """The lookup of `ids`."""
        like = self.like
        return LookupSpec(
            like.table, like.table_bytes, ids, like.reply, like.missing, version=like.version
        )

    @property
    def is_foreseen(self) -> bool:
        """Whether its lookups are those of _plans/foreseen.py."""
        return self.like.missing is Missing.ERROR


@dataclass(slots=True, eq=False)
class Member(Generic[F]):
    """One waiting lookup; its caller waits for `future`."""

    kind: LookupKind
    ids: NDArray[Any]
    out: NDArray[Any] | None
    deadline: Deadline
    future: F


Group: TypeAlias = tuple[LookupKind, list[Member[F]]]


class LookupKinds:
    """Finds the lookups that can be merged. Safe to use from many threads."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._kinds: dict[Any, LookupKind] = {}

    def find(
        self, table: Any, ids: Any, dtype: Any, missing: Any, out: Any, version: Any
    ) -> tuple[LookupKind, NDArray[Any]] | None:
        """The kind of a lookup and its ids as an array; None if it has to be sent alone.

        A wrong lookup is sent alone, and so raises its own error; only a wrong `out` raises here.
        """
        if ids.__class__ is not np.ndarray or not ids.flags.c_contiguous:
            try:
                ids = as_id_array(ids)
            except GatherdError:
                return None
        if not 0 < ids.size <= self._batching.lookup_ids_max:
            return None
        if version is not None and version.__class__ is not int:
            return None
        key = (table, ids.dtype, dtype, missing, version)
        try:
            kind = self._kinds.get(key)
        except TypeError:
            return None
        if kind is None:
            kind = self._new(key, ids)
            if kind is None:
                return None
        if out is not None:
            check_out(out, ids.shape, kind.like.reply.array)
        return kind, ids

    def _new(self, key: Any, ids: NDArray[Any]) -> LookupKind | None:
        table, _, dtype, missing, version = key
        if type(table) is not str or type(missing) is not str or not isinstance(dtype, str | type):
            return None
        try:
            spec = prepare(table, ids, None, parse_reply_type(dtype), missing, None, version)
        except GatherdError:
            return None
        if not isinstance(spec.asked, np.ndarray) or spec.asked.dtype != ids.dtype:
            return None
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()
        kind = LookupKind(spec, dtype, version)
        return self._kinds.setdefault(key, kind)


def take(waiting: deque[Member[F]], ids_max: int) -> list[Member[F]]:
    """The members of the next request, from the front of the queue; at least one, if any waits."""
    members: list[Member[F]] = []
    while waiting:
        ids_max -= waiting[0].ids.size
        if ids_max < 0 and members:
            break
        members.append(waiting.popleft())
    return members


def grouped(members: Sequence[Member[F]]) -> list[Group[F]]:
    """`members` by kind, in the order in which they came."""
    groups: dict[int, Group[F]] = {}
    for member in members:
        kind = member.kind
        found = groups.get(id(kind))
        if found is None:
            groups[id(kind)] = (kind, [member])
        else:
            found[1].append(member)
    return list(groups.values())


def merged_ids(members: Sequence[Member[F]]) -> NDArray[Any]:
    """All members' ids, of one dtype, flat and one after another; a single member's as they are.

    (Errors name an id by its place in their shape.)
    """
    if len(members) == 1:
        return members[0].ids
    data = b"".join([member.ids.data for member in members])
    return np.frombuffer(data, members[0].ids.dtype)


def merged_deadline(members: Sequence[Member[F]]) -> Deadline:
    """The deadline of the member with the most time left."""
    return max((member.deadline for member in members), key=lambda deadline: deadline.at)


def parts(
    members: Sequence[Member[F]], vectors: NDArray[Any], status: NDArray[np.uint8] | None
) -> list[Answer | GatherdError]:
    """Each member's answer, in its own shape and its own memory, or its error."""
    if len(members) == 1 and members[0].out is None:
        return [Answer(vectors, status)]
    vectors = vectors.reshape(-1, vectors.shape[-1])
    status = None if status is None else status.reshape(-1)
    found: list[Answer | GatherdError] = []
    start = 0
    for member in members:
        ids = member.ids
        stop = start + ids.size
        rows = vectors[start:stop]
        own = None if status is None else status[start:stop].reshape(ids.shape).copy()
        if member.out is None:
            rows = rows.copy()
            if ids.ndim != 1:
                rows = rows.reshape(*ids.shape, vectors.shape[-1])
            found.append(Answer(rows, own))
        elif member.out.shape[-1] != rows.shape[-1]:
            found.append(_wrong_out(member, rows.shape[-1]))
        else:
            member.out[...] = rows.reshape(member.out.shape)
            found.append(Answer(member.out, own))
        start = stop
    return found


def _wrong_out(member: Member[Any], dim: int) -> InvalidArgument:
    out = member.out
    assert out is not None
    return InvalidArgument(
        f"table {member.kind.like.table!r} has dim {dim}; out has shape {out.shape}, "
        f"it must be {(*member.ids.shape, dim)}"
    )


def is_of_all(error: GatherdError) -> bool:
    """Whether an error of a merged request concerns every member, not just one of them."""
    return isinstance(error, _OF_ALL)


def own_error(error: GatherdError) -> GatherdError:
    """A copy to raise in another thread or task, which adds its own traceback to it."""
    again = copy.copy(error)
    again.__traceback__ = again.__cause__ = again.__context__ = None
    return again


def too_late(deadline: Deadline) -> DeadlineExceeded:
    """The error for a lookup whose time ended before its request did."""
    seconds = deadline.timeout_seconds
    return DeadlineExceeded(f"the lookup wasn't answered within its timeout of {seconds:g} seconds")


def too_many(batching: Batching) -> Overloaded:
    """The error for a lookup that finds the queue full."""
    return Overloaded(
        f"{batching.waiting_max} lookups of this client wait to be sent; try again later, "
        "or raise waiting_max of its Batching"
    )
