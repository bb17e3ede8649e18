"""REST's updates of rows and changes of tables.

A snapshot copies the whole data dir, so it is made at /v1/snapshots and not by a table's verb.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from gatherd.errors import InvalidArgument
from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import AnyEngine
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import SHORT_BYTES, Engine
from gatherd_server.http.access import caller_of, held_of, placed
from gatherd_server.http.body import outcome, read_body
from gatherd_server.http.media import OCTETS, best_answer, content_type
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, openapi_updates, update_bodies
from gatherd_server.http.rest.lookup_bodies import no_options
from gatherd_server.http.rest.update_bodies import UpdateReader
from gatherd_server.types import DeleteTable, Push, RequestId, TableChange, UpdateOp
from gatherd_server.wire import checks

IDEMPOTENCY_KEY = "idempotency-key"
_VERBS = {
    "scatterAdd": UpdateOp.SCATTER_ADD,
    "applyGradients": UpdateOp.APPLY_GRADIENTS,
    "assign": UpdateOp.ASSIGN,
}


def update_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """Updates of one table and of many, each by the three operations."""
    router = _router(admission, Need.UPDATE)

    async def push(
        guarded: AnyEngine, read: Callable[[], Push], body: bytes, is_json: bool
    ) -> tuple[Push, int, tuple[int, ...]]:
        if is_json:
            asked = await offload.parse(read, body)
        else:
            asked = read()
        # Checking many values takes as long as gathering them would.
        future = await offload.run(lambda: guarded.push(asked), len(body) > SHORT_BYTES)
        result = await outcome(future)
        return asked, result.lsn, result.versions

    def add(verb: str, op: UpdateOp) -> None:
        def opened(request: Request) -> tuple[AnyEngine, UpdateReader]:
            guarded = caller_of(request.scope).guard(engine)
            return guarded, UpdateReader(
                op, admission.limits, lambda table: guarded.table(table).dim, guarded.key_kind
            )

        @router.post(f"/v1/tables/{{table:table}}:{verb}", **openapi_updates.one(verb, op))
        async def one(table: str, request: Request) -> Response:
            media_type = content_type(dict(request.scope["headers"]), (JSON, OCTETS))
            request_id = _request_id(request.headers)
            body = await _body(request, admission)
            guarded, reader = opened(request)
            _, lsn, (version,) = await push(
                guarded,
                lambda: reader.one(media_type, table, body, request.query_params, request_id),
                body,
                media_type == JSON,
            )
            return _json({"lsn": lsn, "version": version})

        @router.post(f"/v1/{verb}", **openapi_updates.many(verb, op))
        async def many(request: Request) -> Response:
            content_type(dict(request.scope["headers"]), (JSON,))
            request_id = _request_id(request.headers)
            body = await _body(request, admission)
            guarded, reader = opened(request)
            asked, lsn, versions = await push(
                guarded, lambda: reader.many(body, request.query_params, request_id), body, True
            )
            names = (update.table for update in asked.updates)
            return _json({"lsn": lsn, "versions": dict(zip(names, versions, strict=True))})

    for verb, op in _VERBS.items():
        add(verb, op)
    return router


def change_routes(engine: Engine, admission: Admission) -> APIRouter:
    """Creating, removing, publishing and rolling back tables; snapshots."""
    router = _router(admission, Need.ADMIN)

    async def changed(request: Request, change: TableChange) -> Response:
        result = await outcome(caller_of(request.scope).guard(engine).change(change))
        return _json({"version": result.version, "lsn": result.lsn})

    @router.post("/v1/tables", **openapi_updates.CREATE_TABLE)
    async def create_table(request: Request) -> Response:
        body = await _json_body(request, admission)
        return await changed(request, update_bodies.create_table(body, request.query_params))

    @router.delete("/v1/tables/{table:table}", **openapi_updates.DELETE_TABLE)
    async def delete_table(table: str, request: Request) -> Response:
        no_options(request.query_params)
        return await changed(request, DeleteTable(table))

    @router.post("/v1/tables/{table:table}:publish", **openapi_updates.PUBLISH)
    async def publish(table: str, request: Request) -> Response:
        body = await _json_body(request, admission, may_be_absent=True)
        return await changed(request, update_bodies.publish(table, body, request.query_params))

    @router.post("/v1/tables/{table:table}:rollback", **openapi_updates.ROLLBACK)
    async def rollback(table: str, request: Request) -> Response:
        body = await _json_body(request, admission, may_be_absent=True)
        return await changed(request, update_bodies.rollback(table, body, request.query_params))

    @router.post("/v1/tables/{table:table}:setOptimizer", **openapi_updates.SET_OPTIMIZER)
    async def set_optimizer(table: str, request: Request) -> Response:
        body = await _json_body(request, admission)
        return await changed(
            request, update_bodies.set_optimizer(table, body, request.query_params)
        )

    @router.post("/v1/snapshots", **openapi_updates.SNAPSHOT)
    async def snapshot(request: Request) -> Response:
        body = await _json_body(request, admission, may_be_absent=True)
        name = update_bodies.snapshot_name(body, request.query_params)
        result = await outcome(caller_of(request.scope).guard(engine).snapshot(name))
        return _json({"path": result.path, "lsn": result.lsn})

    return router


def _router(admission: Admission, needed: Need) -> APIRouter:
    async def place(request: Request) -> AsyncIterator[None]:
        # FastAPI ends this once the reply is sent, so the place is held until then.
        with placed(request.scope, admission.update, needed):
            yield

    return APIRouter(dependencies=[Depends(place)], default_response_class=Response)


def _request_id(headers: Headers) -> RequestId:
    given = headers.getlist(IDEMPOTENCY_KEY)
    if not given:
        return None
    if len(given) > 1:
        raise InvalidArgument("the Idempotency-Key header is given twice")
    return checks.idempotency_key(given[0])


async def _body(request: Request, admission: Admission) -> bytes:
    best_answer(request.headers.getlist("accept"), (JSON,))
    scope = request.scope
    return await read_body(dict(scope["headers"]), request.receive, admission, held_of(scope))


async def _json_body(
    request: Request, admission: Admission, *, may_be_absent: bool = False
) -> bytes:
    headers = request.headers
    is_absent = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if may_be_absent and is_absent and "content-type" not in headers:
        return b"{}"
    content_type(dict(request.scope["headers"]), (JSON,))
    return await _body(request, admission)


def _json(value: dict[str, Any]) -> Response:
    return Response(arrays.json_bytes(value), media_type=JSON)
