"""REST's lookups."""

from collections.abc import Callable, Sequence
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from gatherd.store.query import ByKey, FoundKeys
from gatherd.store.table import Gathered
from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import KEYS_SHORT, Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.media import NPY, OCTETS, best_answer, content_type
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, lookup_bodies, openapi
from gatherd_server.http.rest.exchange import body_of, json_body_of, json_reply, placed_router
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
    """Lookups of one table and of many, by id and by key, row by row and in bags; and keys."""
    limits = admission.limits

    router = placed_router(admission.request, Need.READ)

    async def answer(request: Request, asked: Sequence[Lookup], encode: Encode) -> Response:
        run, is_long = prepared(caller_of(request.scope).guard(engine), asked, encode)
        return await offload.run(run, is_long)

    async def answer_many(request: Request, way: JsonLookups) -> Response:
        body = await json_body_of(request, admission)
        asked = await offload.parse(lambda: way.read("", body, request.query_params, limits), body)
        return await answer(request, asked, way.encode)

    @router.post("/v1/tables/{table:table}:lookup", **openapi.LOOKUP)
    async def lookup(table: str, request: Request) -> Response:
        headers = dict(request.scope["headers"])
        media_type = content_type(headers, (JSON, OCTETS, NPY))
        answer_type = best_answer(request.headers.getlist("accept"), (JSON, OCTETS, NPY))
        body = await body_of(request, admission)
        lookup = await offload.parse(
            lambda: lookup_bodies.lookup_of(media_type, table, body, request.query_params, limits),
            body if media_type == JSON else b"",
        )
        return await answer(request, [lookup], _ENCODERS[answer_type])

    @router.post("/v1/lookup", **openapi.LOOKUP_MANY)
    async def lookup_many(request: Request) -> Response:
        return await answer_many(request, JSON_LOOKUPS_OF_MANY["lookup"])

    @router.post("/v1/tables/{table:table}:lookupBags", **openapi.LOOKUP_BAGS)
    async def lookup_bags(table: str, request: Request) -> Response:
        headers = dict(request.scope["headers"])
        content_type(headers, (JSON,))
        answer_type = best_answer(request.headers.getlist("accept"), (JSON, OCTETS, NPY))
        body = await body_of(request, admission)
        lookup = await offload.parse(
            lambda: lookup_bodies.bag_lookup_of(table, body, request.query_params, limits), body
        )
        return await answer(request, [lookup], _ENCODERS[answer_type])

    @router.post("/v1/lookupBags", **openapi.LOOKUP_BAGS_MANY)
    async def lookup_bags_many(request: Request) -> Response:
        return await answer_many(request, JSON_LOOKUPS_OF_MANY["lookupBags"])

    @router.post("/v1/tables/{table:table}:keysOf", **openapi.KEYS_OF)
    async def keys_of(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        ids, version = await offload.parse(
            lambda: lookup_bodies.keys_of_request(body, request.query_params, limits), body
        )
        guarded = caller_of(request.scope).guard(engine)

        def found() -> Response:
            keys, answered = guarded.keys_of(table, ids, version)
            return json_reply({**arrays.json_keys(keys), "version": answered})

        return await offload.run(found, ids.size > KEYS_SHORT)

    @router.post("/v1/tables/{table:table}:idsOf", **openapi.IDS_OF)
    async def ids_of(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        asked, rows = await offload.parse(
            lambda: lookup_bodies.ids_of_request(body, request.query_params, limits), body
        )
        guarded = caller_of(request.scope).guard(engine)
        keys = arrays.typed_keys(rows, lambda: guarded.key_kind(table))
        assert isinstance(keys, ByKey)

        def found() -> Response:
            ids, answered = guarded.ids_of(
                table, keys.keys, asked.version, allow_missing=asked.allow_missing
            )
            return json_reply({"ids": ids.tolist(), "version": answered})

        return await offload.run(found, keys.size > KEYS_SHORT)

    @router.get("/v1/tables/{table:table}/keys", **openapi.LIST_KEYS)
    async def list_keys(table: str, request: Request) -> Response:
        query, version = lookup_bodies.list_keys_request(request.scope["query_string"])
        page = caller_of(request.scope).guard(engine).prepare_keys(table, query, version)
        return await offload.run(lambda: _key_page(page.run()), page.is_long)

    return router


def _key_page(found: FoundKeys) -> Response:
    keys = arrays.json_keys(found.keys)
    ids = found.ids.tolist()
    return json_reply({**keys, "ids": ids, "next": found.next, "version": found.version})


def _array_reply(media_type: str, parts_of: Callable[[Gathered], list[Part]]) -> Encode:
    return lambda _, gathered: arrays.array_response(media_type, parts_of(gathered[0]), gathered[0])


_ENCODERS: Final[dict[str, Encode]] = {
    JSON: json_reply_of_one,
    OCTETS: _array_reply(OCTETS, arrays.octet_parts),
    NPY: _array_reply(NPY, arrays.npy_parts),
}
