"""REST: the FastAPI application of the HTTP port, for people, scripts and small batches.

Handlers take the raw request, because bodies are bounded while they are read and because FastAPI's
own validation doesn't answer in the shape of RFC 9457; rest/openapi.py describes their inputs.
Left out on purpose: compressed replies (floats don't compress) and GET with ids in the query.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatherd.errors import GatherdError, InvalidArgument
from gatherd.store.table import Gathered
from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import KEYS_SHORT, Engine
from gatherd_server.http.access import Authenticate, caller_of, held_of, placed
from gatherd_server.http.body import PartsResponse, read_body
from gatherd_server.http.connect import connect_routes
from gatherd_server.http.errors import (
    CatchUnexpected,
    allow_header,
    http_problem,
    problem,
)
from gatherd_server.http.health import health_routes
from gatherd_server.http.media import NPY, OCTETS, best_answer, content_type
from gatherd_server.http.observed import Observed
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, lookup_bodies, openapi
from gatherd_server.http.rest.updates import change_routes, update_routes
from gatherd_server.types import Lookup, TableInfo


class _TableName(StringConvertor):
    """A path segment without the colon, which begins a verb."""

    regex = "[^/:]+"


register_url_convertor("table", _TableName())


def create_app(engine: Engine, admission: Admission, offload: Offload) -> FastAPI:
    """Everything that the HTTP port answers: REST, Connect, health and the API's description."""
    app = FastAPI(
        title="gatherd",
        summary="Embedding tables over the network as if they were local arrays.",
        description=openapi.DESCRIPTION,
        version=openapi.API_VERSION,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # A redirect would answer an unknown path with neither a table nor a problem body.
        redirect_slashes=False,
    )
    # First, because most requests to a busy server are for these.
    app.router.routes[:0] = connect_routes(engine, admission, offload)
    app.include_router(_lookup_routes(engine, admission, offload))
    app.include_router(update_routes(engine, admission, offload))
    app.include_router(_table_routes(engine, admission))
    app.include_router(change_routes(engine, admission))
    app.include_router(health_routes(engine, admission, offload))
    _handle_errors(app)
    app.add_middleware(AnswerHead)
    app.add_middleware(Authenticate, admission=admission)
    app.add_middleware(CatchUnexpected)
    app.add_middleware(Observed, telemetry=admission.telemetry)
    openapi.describe(app, has_tokens=admission.has_tokens)
    return app


def _lookup_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    limits = admission.limits

    async def place(request: Request) -> AsyncIterator[None]:
        # FastAPI ends this once the reply is sent, so the place is held until then.
        with placed(request.scope, admission.request, Need.READ):
            yield

    router = APIRouter(dependencies=[Depends(place)], default_response_class=Response)

    async def answer(
        request: Request,
        asked: Sequence[Lookup],
        encode: Callable[[list[Gathered]], Response],
    ) -> Response:
        guarded = caller_of(request.scope).guard(engine)
        typed = [lookup_bodies.typed(lookup, guarded.key_kind) for lookup in asked]
        prepared = guarded.prepare(typed)
        return await offload.run(lambda: encode(prepared.run()), prepared.is_long)

    @router.post("/v1/tables/{table:table}:lookup", **openapi.LOOKUP)
    async def lookup(table: str, request: Request) -> Response:
        headers = dict(request.scope["headers"])
        media_type = content_type(headers, (JSON, OCTETS, NPY))
        answer_type = best_answer(request.headers.getlist("accept"), (JSON, OCTETS, NPY))
        body = await _body(request, admission)
        lookup = await offload.parse(
            lambda: lookup_bodies.lookup_of(media_type, table, body, request.query_params, limits),
            body if media_type == JSON else b"",
        )
        return await answer(request, [lookup], lambda gathered: _ENCODERS[answer_type](gathered[0]))

    @router.post("/v1/lookup", **openapi.LOOKUP_MANY)
    async def lookup_many(request: Request) -> Response:
        body = await _json_request(request, admission)
        asked = await offload.parse(
            lambda: lookup_bodies.lookups_of(body, request.query_params, limits), body
        )
        return await answer(request, asked, _by_table(asked))

    @router.post("/v1/tables/{table:table}:lookupBags", **openapi.LOOKUP_BAGS)
    async def lookup_bags(table: str, request: Request) -> Response:
        headers = dict(request.scope["headers"])
        content_type(headers, (JSON,))
        answer_type = best_answer(request.headers.getlist("accept"), (JSON, OCTETS, NPY))
        body = await _body(request, admission)
        lookup = await offload.parse(
            lambda: lookup_bodies.bag_lookup_of(table, body, request.query_params, limits), body
        )
        return await answer(request, [lookup], lambda gathered: _ENCODERS[answer_type](gathered[0]))

    @router.post("/v1/lookupBags", **openapi.LOOKUP_BAGS_MANY)
    async def lookup_bags_many(request: Request) -> Response:
        body = await _json_request(request, admission)
        asked = await offload.parse(
            lambda: lookup_bodies.bag_lookups_of(body, request.query_params, limits), body
        )
        return await answer(request, asked, _by_table(asked))

    @router.post("/v1/tables/{table:table}:keysOf", **openapi.KEYS_OF)
    async def keys_of(table: str, request: Request) -> Response:
        body = await _json_request(request, admission)
        ids, version = await offload.parse(
            lambda: lookup_bodies.keys_of_request(body, request.query_params, limits), body
        )
        guarded = caller_of(request.scope).guard(engine)

        def found() -> Response:
            keys, answered = guarded.keys_of(table, ids, version)
            return _json({**arrays.json_keys(keys), "version": answered})

        return await offload.run(found, ids.size > KEYS_SHORT)

    return router


async def _json_request(request: Request, admission: Admission) -> bytes:
    """The body of a request that is JSON and is answered with JSON."""
    headers = dict(request.scope["headers"])
    content_type(headers, (JSON,))
    best_answer(request.headers.getlist("accept"), (JSON,))
    return await _body(request, admission)


async def _body(request: Request, admission: Admission) -> bytes:
    scope = request.scope
    return await read_body(dict(scope["headers"]), request.receive, admission, held_of(scope))


def _by_table(asked: Sequence[Lookup]) -> Callable[[list[Gathered]], Response]:
    def encode(gathered: list[Gathered]) -> Response:
        names = [lookup.table for lookup in asked]
        return PartsResponse(arrays.json_lookups_parts(names, gathered), _JSON_HEADERS)

    return encode


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(arrays.json_bytes(value), status, media_type=JSON)


_JSON_HEADERS: Final = {"Content-Type": JSON}
_ENCODERS: Final[dict[str, Callable[[Gathered], Response]]] = {
    JSON: lambda gathered: PartsResponse(arrays.json_lookup_parts(gathered), _JSON_HEADERS),
    OCTETS: lambda gathered: arrays.array_response(OCTETS, arrays.octet_parts(gathered), gathered),
    NPY: lambda gathered: arrays.array_response(NPY, arrays.npy_parts(gathered), gathered),
}


def _table_routes(engine: Engine, admission: Admission) -> APIRouter:
    router = APIRouter(default_response_class=Response)

    @router.get("/v1/tables", **openapi.LIST_TABLES)
    async def list_tables(request: Request) -> Response:
        infos = caller_of(request.scope).guard(engine).tables()
        limits = admission.limits
        return _json(
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
        return _json(_table(caller_of(request.scope).guard(engine).table(table)))

    @router.get("/v1/tables/{table:table}/versions", **openapi.GET_VERSIONS)
    async def get_versions(table: str, request: Request) -> Response:
        info = caller_of(request.scope).guard(engine).table(table)
        return _json({"name": table, "version": info.version, "versions": info.versions})

    return router


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
    }


class AnswerHead:
    """ASGI middleware: HEAD is answered as GET is, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app with GET in place of HEAD."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(GatherdError)
    async def gatherd_error(_request: Request, error: GatherdError) -> Response:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_request: Request, error: RequestValidationError) -> Response:
        return problem(InvalidArgument(str(error)))

    @app.exception_handler(ClientDisconnect)
    async def client_left(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 404:
            return http_problem(404, f"there is nothing at {path}; GET /docs lists what there is")
        if error.status_code == 405:
            allowed = _methods_at(app, request)
            allowed += ["HEAD"] if "GET" in allowed else []
            detail = f"{request.method} isn't answered at {path}; {', '.join(allowed)} is"
            return http_problem(405, detail, allow_header(allowed))
        return http_problem(error.status_code, error.detail, error.headers)


def _methods_at(app: FastAPI, request: Request) -> list[str]:
    return [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in app.router.routes
        )
    ]
