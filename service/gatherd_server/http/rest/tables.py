"""REST's description of tables, and the changes of them.

A snapshot copies the whole data dir, so it is made at /v1/snapshots and not by a table's verb.
"""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.body import outcome
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import openapi, openapi_updates, update_bodies
from gatherd_server.http.rest.exchange import json_body_of, json_reply, placed_router
from gatherd_server.http.rest.lookup_bodies import no_options
from gatherd_server.snapshots.naming import check_name
from gatherd_server.types import DeleteTable, SnapshotInfo, TableChange, TableInfo


def table_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """Which tables and versions there are, and what serves them.

    These hold no place among the requests in flight.
    """
    router = APIRouter(default_response_class=Response)

    @router.get("/v1/tables", **openapi.LIST_TABLES)
    async def list_tables(request: Request) -> Response:
        infos = caller_of(request.scope).guard(engine).tables()
        limits = admission.limits
        return json_reply(
            {
                "tables": [_table(info) for info in infos],
                "limits": {
                    "request_bytes_max": limits.request_bytes_max,
                    "reply_bytes_max": limits.reply_bytes_max,
                    "ids_max": limits.ids_max,
                    "tables_max": limits.tables_max,
                },
            }
        )

    @router.get("/v1/tables/{table:table}", **openapi.GET_TABLE)
    async def get_table(table: str, request: Request) -> Response:
        return json_reply(_table(caller_of(request.scope).guard(engine).table(table)))

    @router.get("/v1/tables/{table:table}/versions", **openapi.GET_VERSIONS)
    async def get_versions(table: str, request: Request) -> Response:
        info = caller_of(request.scope).guard(engine).table(table)
        return json_reply({"name": table, "version": info.version, "versions": info.versions})

    @router.get("/v1/server", **openapi.GET_SERVER)
    async def get_server(request: Request) -> Response:
        info = await offload.run(caller_of(request.scope).guard(engine).server, is_long=True)
        return json_reply(
            {
                "version": info.version,
                "commit": info.commit,
                "ready": info.is_ready,
                "updates": info.updates.value,
            }
        )

    return router


def change_routes(engine: Engine, admission: Admission) -> APIRouter:
    """Creating, removing, publishing and rolling back tables; versions; snapshots."""
    router = placed_router(admission.update, Need.ADMIN)

    async def changed(request: Request, change: TableChange) -> Response:
        result = await outcome(caller_of(request.scope).guard(engine).change(change))
        return json_reply({"version": result.version, "lsn": result.lsn})

    @router.post("/v1/tables", **openapi_updates.CREATE_TABLE)
    async def create_table(request: Request) -> Response:
        body = await json_body_of(request, admission)
        return await changed(request, update_bodies.create_table(body, request.query_params))

    @router.delete("/v1/tables/{table:table}", **openapi_updates.DELETE_TABLE)
    async def delete_table(table: str, request: Request) -> Response:
        no_options(request.query_params)
        return await changed(request, DeleteTable(table))

    @router.post("/v1/tables/{table:table}:publish", **openapi_updates.PUBLISH)
    async def publish(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission, may_be_absent=True)
        return await changed(request, update_bodies.publish(table, body, request.query_params))

    @router.post("/v1/tables/{table:table}:rollback", **openapi_updates.ROLLBACK)
    async def rollback(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission, may_be_absent=True)
        return await changed(request, update_bodies.rollback(table, body, request.query_params))

    @router.post("/v1/tables/{table:table}:setOptimizer", **openapi_updates.SET_OPTIMIZER)
    async def set_optimizer(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        return await changed(
            request, update_bodies.set_optimizer(table, body, request.query_params)
        )

    @router.post("/v1/snapshots", **openapi_updates.SNAPSHOT)
    async def snapshot(request: Request) -> Response:
        body = await json_body_of(request, admission, may_be_absent=True)
        name = update_bodies.snapshot_name(body, request.query_params)
        result = await outcome(caller_of(request.scope).guard(engine).snapshot(name))
        return json_reply({"path": result.path, "lsn": result.lsn})

    @router.get("/v1/snapshots", **openapi_updates.LIST_SNAPSHOTS)
    async def list_snapshots(request: Request) -> Response:
        no_options(request.query_params)
        listed = await outcome(caller_of(request.scope).guard(engine).snapshots())
        return json_reply({"snapshots": [_snapshot(one) for one in listed.snapshots]})

    @router.delete("/v1/snapshots/{name}", **openapi_updates.DELETE_SNAPSHOT)
    async def delete_snapshot(name: str, request: Request) -> Response:
        no_options(request.query_params)
        await outcome(caller_of(request.scope).guard(engine).delete_snapshot(check_name(name)))
        return json_reply({})

    @router.delete("/v1/tables/{table:table}/versions/{version}", **openapi_updates.DELETE_VERSION)
    async def delete_version(table: str, version: str, request: Request) -> Response:
        no_options(request.query_params)
        return await changed(request, update_bodies.delete_version(table, version))

    return router


def _snapshot(info: SnapshotInfo) -> dict[str, Any]:
    created = datetime.fromtimestamp(info.created_seconds, UTC).isoformat()
    return {
        "name": info.name,
        "path": info.path,
        "lsn": info.lsn,
        "created": None if info.damaged else created,
        "bytes": info.byte_count,
        "damaged": info.damaged,
    }


def _table(info: TableInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "rows": info.row_count,
        "dim": info.dim,
        "dtype": info.dtype and info.dtype.value,
        "version": info.version,
        "trainable": info.trainable,
        "refused": info.refused,
        "key_kind": info.key_kind,
        "rows_bytes": info.rows_bytes,
        "keys_bytes": info.keys_bytes,
        "resident_bytes": info.resident_bytes,
        "versions": info.versions,
        "optimizer": info.optimizer,
        "lsn": info.lsn,
        "open": None if info.open is None else info.open.described(),
    }
