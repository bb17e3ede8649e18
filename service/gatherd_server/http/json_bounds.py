"""Bounds the values in a JSON body, counted in its text before a parser reads it.

`{}` is a thousandth of the object that a parser makes of it, and parsers hold the GIL until the
last one is made: a short body, or a shorter one that is gzipped, could stop a worker for seconds.
The characters that begin or separate values are counted at memory speed. The first count takes them
wherever they are; only when it is too high does another leave out those inside strings, such as
keys. The parsers themselves bound the depth of nesting.
"""

from typing import Final, NamedTuple

import numpy as np

from gatherd.errors import InvalidArgument, LimitExceeded, MalformedRequest
from gatherd_server.types import Limits

# Members of one table's part of a request: ids, dtype and so on. Twice as many, and some spare, are
# let through, so that a body that is a little too long gets the exact error.
_MEMBERS: Final = 16
_SLACK: Final = 2
_SPARE: Final = 16
# The same in Connect's JSON, where tensors are objects; with the elements of their shapes.
_CONNECT_MEMBERS: Final = 160
_CONNECT_OBJECTS: Final = 8


class JsonCounts(NamedTuple):
    """How many of each kind a body has, or may have."""

    objects: int
    lists: int
    members: int
    strings: int
    commas: int


# A name, a size, how rows are drawn, and an optimizer with its options.
_CHANGE: Final = JsonCounts(16, 16, 64, 128, 64)


def check_rest(
    body: bytes, limits: Limits, tables: int, values_per_id: int = 1, value_bytes: int = 0
) -> None:
    """LimitExceeded for a REST body with more values than `tables` tables and `ids_max` ids have.

    Each id makes up to `values_per_id` values; or, with `value_bytes` bytes each, the values have
    at most `request_bytes_max` bytes in all.
    """
    members = _MEMBERS * tables
    if value_bytes:
        commas = limits.request_bytes_max // value_bytes
    else:
        commas = limits.ids_max * values_per_id + members
    most = JsonCounts(
        _SLACK * tables + _SPARE,
        limits.ids_max + members,
        _SLACK * members + _SPARE,
        limits.ids_max + 2 * (_SLACK * members + _SPARE),
        commas,
    )
    found = _counts(body, most)
    _check_tables(found, most, tables)
    if found.lists > most.lists:
        raise LimitExceeded(
            f"the request's JSON has {found.lists} lists; at most {most.lists} are taken, "
            "some more than ids (ids_max); send raw bytes",
            {"limit": "ids_max", "value": str(found.lists), "max": str(most.lists)},
        )
    limits.check(
        "ids_max", "the request has at least", found.strings - most.strings + limits.ids_max
    )
    if value_bytes:
        found_bytes = found.commas * value_bytes
        limits.check("request_bytes_max", "the request's numbers would have", found_bytes)
    else:
        least = (found.commas + 1 - members) // values_per_id
        limits.check("ids_max", "the request has at least", least)


def check_connect(body: bytes, limits: Limits) -> None:
    """LimitExceeded for Connect's JSON with more values than `tables_max` tables can have."""
    tables = limits.tables_max + 1
    members = _CONNECT_MEMBERS * tables
    most = JsonCounts(_CONNECT_OBJECTS * tables, members, members, 2 * members, members)
    found = _counts(body, most)
    for what, count, bound in zip(JsonCounts._fields, found, most, strict=True):
        if count > bound:
            raise _too_many(what, count, bound, limits.tables_max)


def check_change(body: bytes) -> None:
    """InvalidArgument for a REST body with more values than any change of a table can have."""
    found = _counts(body, _CHANGE)
    for what, count, most in zip(JsonCounts._fields, found, _CHANGE, strict=True):
        if count > most:
            raise InvalidArgument(
                f"the request's JSON has {count} {what}; a change of a table has at most {most}"
            )


def _check_tables(found: JsonCounts, most: JsonCounts, tables: int) -> None:
    if found.objects > most.objects:
        raise _too_many("objects", found.objects, most.objects, tables)
    if found.members > most.members:
        raise _too_many("members", found.members, most.members, tables)


def _too_many(what: str, found: int, most: int, tables: int) -> LimitExceeded:
    return LimitExceeded(
        f"the request's JSON has {found} {what}; at most {most} are taken, "
        f"as a request about {tables} table{'s' if tables > 1 else ''} has no more",
        {"limit": "tables_max", "value": str(found), "max": str(most)},
    )


def _counts(body: bytes, most: JsonCounts) -> JsonCounts:
    """The counts of `body`: upper bounds if these are within `most`, else exact.

    MalformedRequest when a bound is over `most` and the body can't be JSON.
    """
    counts = JsonCounts(
        body.count(b"{"),
        body.count(b"["),
        body.count(b":"),
        (body.count(b'"') + 1) // 2,
        body.count(b","),
    )
    if all(found <= bound for found, bound in zip(counts, most, strict=True)):
        return counts
    # Pairs go first, from the left: a backslash left before a quote then escapes it.
    text = body.replace(rb"\\", b"").replace(rb"\"", b"")
    codes = np.frombuffer(text, np.uint8)
    quotes = codes == ord('"')
    outside = ~np.logical_xor.accumulate(quotes)

    def count(char: str) -> int:
        return int(np.count_nonzero((codes == ord(char)) & outside))

    for opening, closing in ("{}", "[]"):
        opened, closed = count(opening), count(closing)
        if opened != closed:
            raise MalformedRequest(
                f"the body isn't JSON: {opened} {opening} are opened, and {closed} {closing} close"
            )
    strings = (int(np.count_nonzero(quotes)) + 1) // 2
    return JsonCounts(count("{"), count("["), count(":"), strings, count(","))
