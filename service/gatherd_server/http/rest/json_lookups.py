"""REST's lookups in JSON: how each is read, prepared and written, by ASGI and on the fast path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import QueryParams
from starlette.responses import Response

from gatherd.store.table import Gathered
from gatherd_proto import procedures as proto
from gatherd_proto.headers import JSON
from gatherd_proto.procedures import Procedure
from gatherd_server.access.callers import AnyEngine
from gatherd_server.http.body import PartsResponse
from gatherd_server.http.rest import arrays, lookup_bodies
from gatherd_server.types import Limits, Lookup

_HEADERS: Final = {"Content-Type": JSON}
Encode = Callable[[Sequence[Lookup], list[Gathered]], Response]


@dataclass(frozen=True, slots=True)
class JsonLookups:
    """Reads a JSON body as lookups, and writes their gathered rows in JSON."""

    procedure: Procedure
    read: Callable[[str, bytes, QueryParams, Limits], list[Lookup]]
    """Takes the table that the path names, "" for many; InvalidArgument for a wrong body."""
    encode: Encode


def json_reply_of_one(_asked: Sequence[Lookup], gathered: list[Gathered]) -> Response:
    """One table's vectors in JSON."""
    return PartsResponse(arrays.json_lookup_parts(gathered[0]), _HEADERS)


def _reply_of_many(asked: Sequence[Lookup], gathered: list[Gathered]) -> Response:
    names = [lookup.table for lookup in asked]
    return PartsResponse(arrays.json_lookups_parts(names, gathered), _HEADERS)


JSON_LOOKUPS: Final[Mapping[str, JsonLookups]] = {
    "lookup": JsonLookups(
        proto.LOOKUP,
        lambda table, body, query, limits: [
            lookup_bodies.lookup_of(JSON, table, body, query, limits)
        ],
        json_reply_of_one,
    ),
    "lookupBags": JsonLookups(
        proto.LOOKUP_BAGS,
        lambda table, body, query, limits: [
            lookup_bodies.bag_lookup_of(table, body, query, limits)
        ],
        json_reply_of_one,
    ),
}
"""By the verb behind a table's path."""

JSON_LOOKUPS_OF_MANY: Final[Mapping[str, JsonLookups]] = {
    "lookup": JsonLookups(
        proto.LOOKUP_MANY,
        lambda _, body, query, limits: lookup_bodies.lookups_of(body, query, limits),
        _reply_of_many,
    ),
    "lookupBags": JsonLookups(
        proto.LOOKUP_BAGS_MANY,
        lambda _, body, query, limits: lookup_bodies.bag_lookups_of(body, query, limits),
        _reply_of_many,
    ),
}
"""By the verb behind /v1/."""


def prepared(
    engine: AnyEngine, asked: Sequence[Lookup], encode: Encode
) -> tuple[Callable[[], Response], bool]:
    """What answers `asked`, and whether it is long. GatherdError when it can't be answered."""
    typed = [lookup_bodies.typed(lookup, engine.key_kind) for lookup in asked]
    found = engine.prepare(typed)
    return lambda: encode(asked, found.run()), found.is_long
