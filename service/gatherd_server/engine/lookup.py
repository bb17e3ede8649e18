"""Lookups: limits first, then the gather."""

from collections.abc import Sequence

from gatherd.store.table import Gathered, Missing, Table
from gatherd_server.engine.tables import LiveTables
from gatherd_server.types import Limits, LookupPlan


def resolve(plans: Sequence[LookupPlan], tables: LiveTables, limits: Limits) -> list[Table]:
    """The table of each plan, once the whole request is known to stay within the limits.

    Nothing is allocated before that, so a small request can't ask for a huge reply.
    """
    limits.check("tables_max", "the request asks for", len(plans))
    limits.check("ids_max", "the request has", sum(plan.ids.size for plan in plans))
    found = [tables.get(plan.table, plan.version) for plan in plans]
    limits.check("reply_bytes_max", "the reply would have", reply_bytes(plans, found))
    return found


def reply_bytes(plans: Sequence[LookupPlan], tables: Sequence[Table]) -> int:
    """Bytes of all vectors and statuses that answer `plans`."""
    return sum(
        plan.ids.size * (table.dim * plan.dtype.itemsize + (plan.missing is not Missing.ERROR))
        for plan, table in zip(plans, tables, strict=True)
    )


def needs_mean(plans: Sequence[LookupPlan], tables: Sequence[Table]) -> bool:
    """Whether answering may first have to average a whole table, for its default vector."""
    return any(
        plan.missing is Missing.DEFAULT and not table.default_vector_is_known
        for plan, table in zip(plans, tables, strict=True)
    )


def gather(plans: Sequence[LookupPlan], tables: Sequence[Table]) -> list[Gathered]:
    """Answer every plan from its table; the first bad id of any fails them all."""
    return [
        table.lookup(plan.ids, plan.dtype, plan.missing)
        for plan, table in zip(plans, tables, strict=True)
    ]
