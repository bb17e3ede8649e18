"""Lookups: limits first, then the gather."""

from collections.abc import Sequence

from gatherd.store.query import Missing
from gatherd.store.table import Gathered, Table
from gatherd_server.engine.tables import ServedTables
from gatherd_server.types import Limits, Lookup


def resolve(plans: Sequence[Lookup], tables: ServedTables, limits: Limits) -> list[Table]:
    """The table of each plan, once the whole request is known to stay within the limits.

    Nothing is allocated before that, so a small request can't ask for a huge reply. All tables are
    of one catalog: a request never mixes what was published together with what was before.
    """
    limits.check("tables_max", "the request asks for", len(plans))
    limits.check("ids_max", "the request has", sum(plan.asked.size for plan in plans))
    found = tables.take([(plan.table, plan.version) for plan in plans])
    limits.check("reply_bytes_max", "the reply would have", reply_bytes(plans, found))
    return found


def reply_bytes(plans: Sequence[Lookup], tables: Sequence[Table]) -> int:
    """Bytes of all vectors and statuses that answer `plans`."""
    return sum(
        _vector_count(plan) * table.dim * plan.dtype.itemsize
        + plan.asked.size * (plan.missing is not Missing.ERROR)
        for plan, table in zip(plans, tables, strict=True)
    )


def touched_bytes(plans: Sequence[Lookup], tables: Sequence[Table]) -> int:
    """Bytes of rows that are read to answer `plans`: for bags, many times those of the reply."""
    return sum(plan.asked.size * table.row_bytes for plan, table in zip(plans, tables, strict=True))


def _vector_count(plan: Lookup) -> int:
    return plan.asked.size if plan.bags is None else plan.bags.offsets.size


def needs_mean(plans: Sequence[Lookup], tables: Sequence[Table]) -> bool:
    """Whether answering may first have to average a whole table, for its default vector."""
    return any(
        plan.missing is Missing.DEFAULT and not table.default_vector_is_known
        for plan, table in zip(plans, tables, strict=True)
    )


def may_wait(plans: Sequence[Lookup], tables: Sequence[Table]) -> bool:
    """Whether answering is likely to wait for a disk."""
    return any(table.may_wait(plan.asked) for plan, table in zip(plans, tables, strict=True))


def gather(plans: Sequence[Lookup], tables: Sequence[Table]) -> list[Gathered]:
    """Answer every plan from its table; the first bad id of any fails them all."""
    return [
        table.lookup(plan.asked, plan.dtype, plan.missing)
        if plan.bags is None
        else table.lookup_bags(plan.asked, plan.bags, plan.dtype, plan.missing)
        for plan, table in zip(plans, tables, strict=True)
    ]
