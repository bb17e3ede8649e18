"""Whether the server is alive, ready and taking updates; its metrics."""

import platform
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gatherd.errors import Unavailable
from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.build import this_build
from gatherd_server.engine.engine import Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.errors import problem
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, openapi
from gatherd_server.observe.metrics import names
from gatherd_server.observe.metrics.exposition import CONTENT_TYPE, Sample
from gatherd_server.types import TableInfo, UpdatesState


def health_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """The routes for operators' tools; /metrics is one unless it is switched off."""
    router = APIRouter(default_response_class=Response)

    @router.get("/healthz", **openapi.HEALTHZ)
    async def healthz() -> Response:
        return _json({"status": "alive"})

    @router.get("/readyz", **openapi.READYZ)
    async def readyz(request: Request) -> Response:
        # A caller without a token learns no table's name.
        guarded = caller_of(request.scope).guard(engine)
        states = guarded.table_states()
        refused = [name for name, reason in states.items() if reason]
        told = {
            "updates": guarded.updates_state().value,
            "tables": len(states) - len(refused),
            "refused": refused,
        }
        if admission.is_ready:
            return _json({"status": "ready", **told})
        return problem(Unavailable("the server is starting or stopping"), told)

    if not admission.telemetry.is_told:
        return router

    @router.get("/metrics", **openapi.METRICS)
    async def metrics() -> Response:
        # The kernel takes some milliseconds to find how much of a large table is in memory.
        telemetry = admission.telemetry
        samples = _samples(engine, is_per_table=telemetry.is_per_table)
        text = await offload.run(lambda: telemetry.document(samples), is_long=True)
        return Response(text, media_type=CONTENT_TYPE)

    return router


def _json(value: dict[str, Any]) -> Response:
    return Response(arrays.json_bytes(value), media_type=JSON)


def _samples(engine: Engine, *, is_per_table: bool) -> Iterator[Sample]:
    """The samples made at a scrape: tables, which all processes share, and the writer."""
    build = this_build()
    yield Sample(names.BUILD, (build.version, build.commit, platform.python_version()), 1)
    state = engine.updates_state()
    if state is not UpdatesState.NONE:
        yield Sample(names.UPDATES_UP, (), int(state is UpdatesState.RUNNING))
        yield Sample(names.WRITER_HUNG, (), int(state is UpdatesState.HUNG))
    infos = engine.tables()
    yield Sample(names.TABLES, (), len(infos))
    for info in infos:
        yield from _table_samples(info, is_per_table=is_per_table)


def _table_samples(info: TableInfo, *, is_per_table: bool) -> Iterator[Sample]:
    """The samples of a table; samples of the same labels are added up."""
    table = (info.name if is_per_table else "",)
    yield Sample(names.TABLE_REFUSED, table, int(bool(info.refused)))
    if is_per_table:
        yield Sample(names.TABLE_VERSION, table, info.version)
    if not info.refused:
        yield Sample(names.TABLE_ROWS, table, info.row_count)
        yield Sample(names.TABLE_BYTES, table, info.rows_bytes + info.keys_bytes)
        yield Sample(names.TABLE_RESIDENT_BYTES, table, info.resident_bytes)
