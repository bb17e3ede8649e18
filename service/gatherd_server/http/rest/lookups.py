"""REST's lookups."""

from collections.abc import Callable, Sequence
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from gatherd.store.table import Gathered
from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.media import NPY, OCTETS, best_answer, content_type
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, lookup_bodies, openapi
from gatherd_server.http.rest.exchange import body_of, json_body_of, placed_router
from gatherd_server.http.rest.json_lookups import (
    JSON_LOOKUPS_OF_MANY,
    Encode,
    JsonLookups,
    json_reply_of_one,
    prepared,
)
from gatherd_server.types import Lookup
from gatherd_server.wire.lookups import Part


def lookup_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """Lookups of one table and of many, by id and by key, row by row and in bags."""
    limits = admission.limits

    router = placed_router(admission.request, Need.READ)

    async def answer(request: Request, asked: Sequence[Lookup], encode: Encode) -> Response:
        run, is_long = prepared(caller_of(request.scope).guard(engine), asked, encode)
        return await offload.run(run, is_long)

    async def answer_many(request: Request, way: JsonLookups) -> Response:
        body = await json_body_of(request, admission)
        asked = await offload.parse(lambda: way.read("", body, request.query_params, limits), body)
        return await answer(request, asked, way.encode)

    async def answer_one(
        request: Request, media_types: Sequence[str], read: Callable[[str, bytes], Lookup]
    ) -> Response:
        headers = dict(request.scope["headers"])
        media_type = content_type(headers, media_types)
        answer_type = best_answer(request.headers.getlist("accept"), (JSON, OCTETS, NPY))
        body = await body_of(request, admission)
        lookup = await offload.parse(
            lambda: read(media_type, body), body if media_type == JSON else b""
        )
        return await answer(request, [lookup], _ENCODERS[answer_type])

    @router.post("/v1/tables/{table:table}:lookup", **openapi.LOOKUP)
    async def lookup(table: str, request: Request) -> Response:
        return await answer_one(
            request,
            (JSON, OCTETS, NPY),
            lambda media_type, body: lookup_bodies.lookup_of(
                media_type, table, body, request.query_params, limits
            ),
        )

    @router.post("/v1/lookup", **openapi.LOOKUP_MANY)
    async def lookup_many(request: Request) -> Response:
        return await answer_many(request, JSON_LOOKUPS_OF_MANY["lookup"])

    @router.post("/v1/tables/{table:table}:lookupBags", **openapi.LOOKUP_BAGS)
    async def lookup_bags(table: str, request: Request) -> Response:
        return await answer_one(
            request,
            (JSON,),
            lambda _, body: lookup_bodies.bag_lookup_of(table, body, request.query_params, limits),
        )

    @router.post("/v1/lookupBags", **openapi.LOOKUP_BAGS_MANY)
    async def lookup_bags_many(request: Request) -> Response:
        return await answer_many(request, JSON_LOOKUPS_OF_MANY["lookupBags"])

    return router


def _array_reply(media_type: str, parts_of: Callable[[Gathered], list[Part]]) -> Encode:
    return lambda _, gathered: arrays.array_response(media_type, parts_of(gathered[0]), gathered[0])


_ENCODERS: Final[dict[str, Encode]] = {
    JSON: json_reply_of_one,
    OCTETS: _array_reply(OCTETS, arrays.octet_parts),
    NPY: _array_reply(NPY, arrays.npy_parts),
}
