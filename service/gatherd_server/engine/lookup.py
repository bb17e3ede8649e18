"""Lookups: limits first, then the gather."""

from collections.abc import Sequence

from gatherd.store.query import Missing
from gatherd.store.table import Gathered, Table
from gatherd_server.engine.tables import ServedTables
from gatherd_server.types import Limits, Lookup


def resolve(lookups: Sequence[Lookup], tables: ServedTables, limits: Limits) -> list[Table]:
    """The table of each lookup, once the whole request is known to stay within the limits.

    Nothing is allocated before that, so a small request can't ask for a huge reply. All tables are
    of one catalog: if versions were published together, a request never mixes them with older ones.
    """
    limits.check("tables_max", "the request asks for", len(lookups))
    limits.check("ids_max", "the request has", sum(lookup.asked.size for lookup in lookups))
    found = tables.take([(lookup.table, lookup.version) for lookup in lookups])
    limits.check("reply_bytes_max", "the reply would have", reply_bytes(lookups, found))
    return found


def reply_bytes(lookups: Sequence[Lookup], tables: Sequence[Table]) -> int:
    """Bytes of all vectors and statuses that answer `lookups`."""
    return sum(
        _vector_count(lookup) * table.dim * lookup.dtype.itemsize
        + lookup.asked.size * (lookup.missing is not Missing.ERROR)
        for lookup, table in zip(lookups, tables, strict=True)
    )


def touched_bytes(lookups: Sequence[Lookup], tables: Sequence[Table]) -> int:
    """Bytes of rows read to answer `lookups`: with bags, many times the bytes of the reply."""
    return sum(
        lookup.asked.size * table.row_bytes for lookup, table in zip(lookups, tables, strict=True)
    )


def _vector_count(lookup: Lookup) -> int:
    return lookup.asked.size if lookup.bags is None else lookup.bags.offsets.size


def needs_mean(lookups: Sequence[Lookup], tables: Sequence[Table]) -> bool:
    """Whether answering may first have to average a whole table, for its default vector."""
    return any(
        lookup.missing is Missing.DEFAULT and not table.default_vector_is_known
        for lookup, table in zip(lookups, tables, strict=True)
    )


def may_wait(lookups: Sequence[Lookup], tables: Sequence[Table]) -> bool:
    """Whether answering is likely to wait for a disk."""
    return any(table.may_wait(lookup.asked) for lookup, table in zip(lookups, tables, strict=True))


def gather(lookups: Sequence[Lookup], tables: Sequence[Table]) -> list[Gathered]:
    """Answer every lookup from its table; the first bad id of any fails them all."""
    return [
        table.lookup(lookup.asked, lookup.dtype, lookup.missing)
        if lookup.bags is None
        else table.lookup_bags(lookup.asked, lookup.bags, lookup.dtype, lookup.missing)
        for lookup, table in zip(lookups, tables, strict=True)
    ]
