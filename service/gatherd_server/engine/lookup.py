"""Lookups: limits first, then the gather."""

from collections.abc import Sequence

from gatherd.store import forms
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
    for lookup, table in zip(lookups, found, strict=True):
        if lookup.form is not None:
            forms.check_form(table, lookup.form)
    limits.check("reply_bytes_max", "the reply would have", reply_bytes(lookups, found))
    return found


def reply_bytes(lookups: Sequence[Lookup], tables: Sequence[Table]) -> int:
    """Bytes of all vectors and statuses that answer `lookups`."""
    return sum(
        _vector_count(lookup) * _dims(lookup, table) * lookup.dtype.itemsize
        + lookup.asked.size * (lookup.missing is not Missing.ERROR)
        for lookup, table in zip(lookups, tables, strict=True)
    )


def touched_bytes(lookups: Sequence[Lookup], tables: Sequence[Table]) -> int:
    """Bytes of rows read to answer `lookups`: with bags, many times the bytes of the reply."""
    return sum(
        lookup.asked.size * table.row_bytes for lookup, table in zip(lookups, tables, strict=True)
    )


def _dims(lookup: Lookup, table: Table) -> int:
    return lookup.form.dims or table.dim if lookup.form is not None else table.dim


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
    return [_gather(lookup, table) for lookup, table in zip(lookups, tables, strict=True)]


def _gather(lookup: Lookup, table: Table) -> Gathered:
    asked, bags, form, dtype, missing = (
        *(lookup.asked, lookup.bags, lookup.form),
        *(lookup.dtype, lookup.missing),
    )
    if form is not None and bags is not None:
        return forms.lookup_bags(table, asked, bags, form, dtype, missing)
    if form is not None:
        return forms.lookup(table, asked, form, dtype, missing)
    if bags is not None:
        return table.lookup_bags(asked, bags, dtype, missing)
    return table.lookup(asked, dtype, missing)
