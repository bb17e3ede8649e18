"""Finds the calls that can be foreseen, and keeps a Foreseen for each kind of them.

A call can be foreseen if its ids, integer keys, offsets and weights are ordinary arrays, or its
keys strings, and it is surely within the limits. Nothing here raises: the plan refuses what is
wrong with an argument. The server finds offsets that aren't in order, and then the plan does.

Left out on purpose: jagged bags, `dedup`, many tables by string keys, and the keys of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gatherd._plans.answering import Answering
from gatherd._plans.effects import Deadline, Plan
from gatherd._plans.foreseen import Foreseen, Member, Source, Varying
from gatherd._plans.ordinary import (
    are_plain,
    bag_arrays,
    by_table,
    form,
    is_ordinary,
    pooling_key,
    rows_given,
)
from gatherd._requests.bags import prepare_bags
from gatherd._requests.lookups import Answer, LookupSpec, parse_reply_type, prepare
from gatherd._wire import lookups
from gatherd._wire.lookups import AroundStrings, SentStrings
from gatherd.errors import GatherdError
from gatherd.store.query import Missing

# Up to this many ids, or tables, a lookup is sent without asking for the limits first.
IDS_UNASKED_MAX = 65_536
TABLES_UNASKED_MAX = 64
# How many kinds of calls a client keeps ready, and of how many tables in all.
KINDS_MAX = 4_096
MEMBERS_MAX = 16_384

Specs: TypeAlias = Callable[[], list[LookupSpec]]


class Asking:
    """A call that can be foreseen, with what varies in it."""

    __slots__ = ("foreseen", "names", "out", "varying")

    def __init__(
        self,
        foreseen: Foreseen,
        varying: Varying,
        names: list[str] | None = None,
        out: NDArray[Any] | None = None,
    ) -> None:
        """`names` are the tables if the result is a dict by table."""
        self.foreseen, self.varying, self.names, self.out = foreseen, varying, names, out

    def result(self, targets: list[NDArray[Any]], return_status: object) -> Any:
        """The result of the call, once the targets of its Foreseen are filled."""
        if self.names is None:
            return self.foreseen.result(targets, self.out, return_status)
        found: list[Any] = self.foreseen.vectors(targets, None)
        if return_status:
            found = list(zip(found, self.foreseen.statuses(targets), strict=True))
        return dict(zip(self.names, found, strict=True))


class ForeseenCalls:
    """The kinds of calls that a client makes. Safe to use from many threads.

    The arguments of all methods are a caller's, right or wrong.
    """

    def __init__(self) -> None:
        self._kinds: dict[Any, Foreseen] = {}
        self._members = 0  # of all kinds; about, for nothing locks
        self._sources: dict[tuple[str, int], Source] = {}
        self._learnt = 0  # counts what `learn` found out

    def plain(
        self,
        table: str,
        ids: Any,
        dtype: Any,
        missing: str,
        version: int | None,
        out: NDArray[Any] | None,
    ) -> Foreseen | None:
        """A lookup by ids, with `missing` a str; None if it can't be foreseen.

        If it can, `ids` is a C-contiguous array, and `out`, if given, is what the reply to come
        fills.
        """
        if ids.__class__ is not np.ndarray or not ids.flags.c_contiguous:
            return None
        # True equals 1, and has its hash.
        if version is not None and version.__class__ is not int:
            return None
        key = (table, ids.dtype, ids.shape, dtype, missing, version)
        try:
            kind = self._kinds.get(key)
        except TypeError:  # what can't be hashed is the plan's to refuse
            return None
        if kind is None or kind.checked != self._learnt:
            kind = self._find(
                key,
                (ids,),
                lambda: [
                    prepare(table, ids, None, parse_reply_type(dtype), missing, None, version)
                ],
            )
        if out is None or kind is None:
            return kind
        # Sending ids again, after a part of the reply came, needs them whole.
        return kind if kind.fills(out) and not np.may_share_memory(ids, out) else None

    def rows(
        self, table: str, ids: Any, keys: Any, dtype: Any, missing: Any, version: Any, out: Any
    ) -> Asking | None:
        """A lookup of one table, by ids or by keys; `plain` is faster by ids."""
        given = rows_given(ids, keys)
        if given is None or not are_plain(missing, version):
            return None
        dtype_given = None if given.__class__ is SentStrings else given.dtype
        key = ("rows", table, keys is None, dtype_given, given.shape, dtype, missing, version)
        found = self._find(
            key,
            (given,),
            lambda: [prepare(table, ids, keys, parse_reply_type(dtype), missing, None, version)],
        )
        return None if found is None else _asking(found, (given,), out)

    def many(self, ids: Any, keys: Any, dtype: Any, missing: Any, version: Any) -> Asking | None:
        """A lookup of many tables."""
        tables = by_table(ids, keys, version)
        if tables is None or missing.__class__ is not str:
            return None
        names, values, versions = tables
        by_id = len(ids) if ids else 0
        given = []
        for i, value in enumerate(values):
            one = value
            if one.__class__ is not np.ndarray or not one.flags.c_contiguous:
                one = rows_given(value, None) if i < by_id else rows_given(None, value)
                if one is None or one.__class__ is SentStrings:
                    return None
            given.append(one)
        key = (
            "many",
            by_id,
            tuple(names),
            tuple([one.dtype for one in given]),
            tuple([one.shape for one in given]),
            dtype,
            missing,
            tuple(versions.items()),
        )

        def specs() -> list[LookupSpec]:
            reply = parse_reply_type(dtype)
            return [
                prepare(
                    name,
                    one if i < by_id else None,
                    None if i < by_id else one,
                    reply,
                    missing,
                    version=versions.get(name),
                )
                for i, (name, one) in enumerate(zip(names, given, strict=True))
            ]

        found = self._find(key, given, specs)
        return None if found is None else Asking(found, given, names)

    def bags(
        self,
        table: str,
        bags: tuple[Any, Any],
        keys: Any,
        pooled: tuple[Any, Any, Any],
        dtype: Any,
        missing: Any,
        version: Any,
        out: Any,
    ) -> Asking | None:
        """A lookup of bags, which are ids or keys, and offsets; `pooled` is as in `pooling_key`."""
        ids, offsets = bags
        if not are_plain(missing, version):
            return None
        given = bag_arrays(rows_given(ids, keys), offsets, pooled[1])
        if given is None:
            return None
        key = (
            "bags",
            table,
            keys is None,
            tuple(map(form, given)),
            dtype,
            missing,
            version,
            *pooling_key(*pooled),
        )
        mode, weights, padding_id = pooled
        found = self._find(
            key,
            given,
            lambda: [
                prepare_bags(
                    table,
                    ids,
                    offsets,
                    keys,
                    mode=mode,
                    weights=weights,
                    padding_id=padding_id,
                    reply=parse_reply_type(dtype),
                    missing=missing,
                    version=version,
                )
            ],
        )
        return None if found is None else _asking(found, given, out)

    def bags_many(
        self,
        bags: Any,
        keys: Any,
        pooled: tuple[Any, Any, Any],
        dtype: Any,
        missing: Any,
        version: Any,
    ) -> Asking | None:
        """Bags of many tables; `pooled` is as in `pooling_key`, with weights by table."""
        tables = by_table(bags, keys, version)
        mode, weights, padding_id = pooled
        if tables is None or missing.__class__ is not str:
            return None
        if weights is not None and (weights.__class__ is not dict or not weights):
            return None
        names, values, versions = tables
        by_id = len(bags) if bags else 0
        weights = weights or {}
        given: list[Any] = []
        for i, (name, pair) in enumerate(zip(names, values, strict=True)):
            if pair.__class__ is not tuple or len(pair) != 2:
                return None
            if not weights and is_ordinary(pair[0]) and is_ordinary(pair[1]):
                given += pair
                continue
            flat = rows_given(pair[0], None) if i < by_id else rows_given(None, pair[0])
            arrays = bag_arrays(flat, pair[1], weights.get(name))
            if arrays is None or arrays[0].__class__ is SentStrings:
                return None
            given += arrays
        key = (
            "bags many",
            by_id,
            tuple(names),
            tuple([one.dtype for one in given]),
            tuple([one.shape for one in given]),
            dtype,
            missing,
            tuple(versions.items()),
            tuple(weights),
            *pooling_key(mode, None, padding_id),
        )

        def specs() -> list[LookupSpec]:
            reply = parse_reply_type(dtype)
            if not weights.keys() <= set(names):
                return []
            return [
                prepare_bags(
                    name,
                    pair[0] if i < by_id else None,
                    pair[1],
                    None if i < by_id else pair[0],
                    mode=mode,
                    weights=weights.get(name),
                    padding_id=padding_id,
                    reply=reply,
                    missing=missing,
                    version=versions.get(name),
                )
                for i, (name, pair) in enumerate(zip(names, values, strict=True))
            ]

        found = self._find(key, given, specs)
        return None if found is None else Asking(found, given, names)

    def learn(self, foreseen: Foreseen, body: memoryview) -> None:
        """Learn from a reply that a plan has accepted what the next ones will look like."""
        replies = lookups.decode_lookups(body, many=foreseen.many)
        is_new = False
        for member, reply in zip(foreseen.members, replies, strict=True):
            known = (reply.version, reply.shape[-1])
            if known != member.source.known:
                member.source.known = known
                is_new = True
        if is_new:
            self._learnt += 1

    def _find(self, key: Any, given: Sequence[Any], specs: Specs) -> Foreseen | None:
        """The Foreseen of `key`; `specs` are made of the `given` arrays if it is the first one."""
        try:
            kind = self._kinds.get(key)
        except TypeError:  # what can't be hashed is the plan's to refuse
            return None
        if kind is None:
            kind = self._made(specs, given)
            if kind is None:
                return None
        learnt = self._learnt  # before what it counts
        if kind.checked == learnt:
            return kind
        known = tuple(member.source.known for member in kind.members)
        if kind.known == known:
            kind.checked = learnt
            return kind
        kind = kind.with_known(known, learnt)
        if len(self._kinds) >= KINDS_MAX or self._members >= MEMBERS_MAX:
            self._kinds.clear()
            self._members = 0
        self._members += len(known)
        self._kinds[key] = kind
        return kind

    def _made(self, specs: Specs, given: Sequence[Any]) -> Foreseen | None:
        try:
            found = specs()
        except GatherdError:
            return None  # the plan says so too, and in its order
        if not 0 < len(found) <= TABLES_UNASKED_MAX:
            return None
        size = sum(max(spec.asked.size, spec.vector_count) for spec in found)
        if not 0 < size <= IDS_UNASKED_MAX or not all(type(spec.table) is str for spec in found):
            return None
        strings, many = given[0].__class__ is SentStrings, len(found) > 1
        around: tuple[bytes, ...] = ()
        if not strings:
            around, arrays = lookups.around_arrays(found, many=many)
        else:
            bags = found[0].bags
            arrays = [] if bags is None else [bags.offsets]
            arrays += [] if bags is None or bags.weights is None else [bags.weights]
        # What the plan would send otherwise, such as offsets of another dtype, is left to it.
        if list(map(form, arrays)) != list(map(form, given[int(strings) :])):
            return None
        if not many and not (found[0].asked.size and found[0].vector_count):
            return None  # there is no reply to foresee
        if len(self._sources) >= MEMBERS_MAX:
            self._sources.clear()
        members = tuple(
            Member(
                self._sources.setdefault((spec.table, spec.version), Source()),
                spec.vectors_shape,
                spec.asked.shape,
                spec.missing is not Missing.ERROR,
            )
            for spec in found
        )
        nbytes = sum(map(len, around)) + sum(one.nbytes for one in given) if around else 0
        like = replace(found[0], asked=np.empty(0, np.int64), bags=None)
        method = lookups.method_of(found, many=many)
        by_strings = AroundStrings.of(found[0]) if strings else None
        return Foreseen(method, members, many, like, by_strings, around, nbytes, found[0].reply)


def foreseen_plan(
    answering: Answering,
    foreseen: Foreseen,
    ids: NDArray[Any],
    out: NDArray[Any] | None,
    deadline: Deadline,
) -> Plan[Answer]:
    """The plan of a `plain` lookup; its first effect is to send what the lookup sent already."""
    spec = replace(foreseen.like, asked=ids, out=out)
    answers = yield from answering.gather((spec,), deadline)
    return answers[0]


def _asking(foreseen: Foreseen, given: Sequence[Any], out: Any) -> Asking | None:
    """The Asking of one table; None if `out` can't be received into."""
    if out is not None and not (
        foreseen.fills(out)
        # Sending what varies again, after a part of the reply came, needs it whole.
        and not any(one.__class__ is np.ndarray and np.may_share_memory(one, out) for one in given)
    ):
        return None
    varying: Varying = given
    if foreseen.strings is not None:
        keys, *pooled = given
        varying = (foreseen.strings.request(keys, pooled),)
    return Asking(foreseen, varying, out=out)
