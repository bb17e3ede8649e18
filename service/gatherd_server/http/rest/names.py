"""REST's changes of names: rename, aliases, and tables as copies of others."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import Engine
from gatherd_server.http.rest import openapi_names, update_bodies
from gatherd_server.http.rest.exchange import changed_reply, json_body_of, placed_router
from gatherd_server.http.rest.lookup_bodies import no_options
from gatherd_server.types import DeleteAlias, TableChange


def name_routes(engine: Engine, admission: Admission) -> APIRouter:
    """Renaming, aliases, clones and replacements of tables."""
    router = placed_router(admission.update, Need.ADMIN)

    async def changed(request: Request, change: TableChange) -> Response:
        return await changed_reply(engine, request, change)

    @router.post("/v1/tables/{table:table}:rename", **openapi_names.RENAME)
    async def rename_table(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        return await changed(request, update_bodies.rename_table(table, body, request.query_params))

    @router.post("/v1/tables/{table:table}:clone", **openapi_names.CLONE)
    async def clone_table(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        return await changed(request, update_bodies.clone_table(table, body, request.query_params))

    @router.post("/v1/tables/{table:table}:replace", **openapi_names.REPLACE)
    async def replace_table(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        return await changed(
            request, update_bodies.replace_table(table, body, request.query_params)
        )

    @router.put("/v1/aliases/{alias:table}", **openapi_names.SET_ALIAS)
    async def set_alias(alias: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        return await changed(request, update_bodies.set_alias(alias, body, request.query_params))

    @router.delete("/v1/aliases/{alias:table}", **openapi_names.DELETE_ALIAS)
    async def delete_alias(alias: str, request: Request) -> Response:
        no_options(request.query_params)
        return await changed(request, DeleteAlias(alias))

    return router
