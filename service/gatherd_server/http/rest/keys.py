"""REST's keys: of ids, the ids of keys, and page by page."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gatherd.store.query import ByKey, FoundKeys
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import KEYS_SHORT, Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, lookup_bodies, openapi
from gatherd_server.http.rest.exchange import json_body_of, json_reply, placed_router


def key_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """The keys of ids, the ids of keys, and pages of a table's keys."""
    limits = admission.limits

    router = placed_router(admission.request, Need.READ)

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
