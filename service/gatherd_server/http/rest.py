"""REST: the FastAPI application of the HTTP port, for people, scripts and small batches.

Handlers take the raw request, because bodies are bounded while they are read and because FastAPI's
own validation answers in another shape than RFC 9457; openapi.py describes what they take. Left out
on purpose: compressed replies (floats don't compress) and GET with ids in the query.
"""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatherd.errors import GatherdError, InvalidArgument, Unavailable
from gatherd.store.dtypes import parse_reply_dtype
from gatherd.store.table import Gathered, parse_missing
from gatherd_server.admission import Admission
from gatherd_server.engine.engine import Engine
from gatherd_server.http import arrays, openapi
from gatherd_server.http.body import PartsResponse, Workers, read_body
from gatherd_server.http.connect import connect_routes
from gatherd_server.http.errors import (
    CatchUnexpected,
    allow_header,
    http_problem,
    in_table,
    problem,
)
from gatherd_server.http.media import JSON, NPY, OCTETS, best_answer, content_type
from gatherd_server.http.schemas import VERSION_MAX, LookupBody, lookup_body, lookup_many_body
from gatherd_server.proto_codec import Part
from gatherd_server.types import LookupPlan, TableInfo

_OPTIONS: Final = ("dtype", "missing", "version")
_RAW_OPTIONS: Final = ("ids_dtype", "shape", *_OPTIONS)
# A body's commas bound its values. This many belong to the members of one lookup, not to its ids.
_MEMBERS_MAX: Final = 8


class _TableName(StringConvertor):
    """A path segment without the colon, which begins a verb."""

    regex = "[^/:]+"


register_url_convertor("table", _TableName())


def create_app(engine: Engine, admission: Admission) -> FastAPI:
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
    # First, because they are what a busy server is asked for.
    app.router.routes[:0] = connect_routes(engine, admission)
    app.include_router(_lookup_routes(engine, admission))
    app.include_router(_table_routes(engine, admission))
    app.include_router(_health_routes(engine, admission))
    _handle_errors(app)
    app.add_middleware(AnswerHead)
    app.add_middleware(CatchUnexpected)
    openapi.describe(app)
    return app


def _lookup_routes(engine: Engine, admission: Admission) -> APIRouter:
    workers = Workers()

    async def place() -> AsyncIterator[None]:
        # FastAPI ends this once the reply is sent, so the place is held until then.
        with admission.request():
            yield

    router = APIRouter(dependencies=[Depends(place)], default_response_class=Response)

    async def answer(
        plans: Sequence[LookupPlan], encode: Callable[[list[Gathered]], Response]
    ) -> Response:
        prepared = engine.prepare(plans)
        return await workers.run(lambda: encode(prepared.run()), prepared.is_long)

    @router.post("/v1/tables/{table:table}:lookup", **openapi.LOOKUP)
    async def lookup(table: str, request: Request) -> Response:
        headers = dict(request.scope["headers"])
        media_type = content_type(headers, (JSON, OCTETS, NPY))
        answer_type = best_answer(request.headers.getlist("accept"), (JSON, OCTETS, NPY))
        body = await read_body(headers, request.receive, admission)
        plan = _PLANS[media_type](table, body, request.query_params, admission)
        return await answer([plan], lambda gathered: _ENCODERS[answer_type](gathered[0]))

    @router.post("/v1/lookup", **openapi.LOOKUP_MANY)
    async def lookup_many(request: Request) -> Response:
        headers = dict(request.scope["headers"])
        content_type(headers, (JSON,))
        best_answer(request.headers.getlist("accept"), (JSON,))
        _options(request.query_params, (), "the options stand in the body")
        body = await read_body(headers, request.receive, admission)
        plans = _json_plans(body, admission)

        def encode(gathered: list[Gathered]) -> Response:
            answers = zip(plans, gathered, strict=True)
            return _json({"tables": {plan.table: arrays.json_lookup(g) for plan, g in answers}})

        return await answer(plans, encode)

    return router


def _json_plan(table: str, body: bytes, query: QueryParams, admission: Admission) -> LookupPlan:
    _options(query, (), "with a JSON body the options stand in the body")
    _check_value_count(body, 1, admission)
    asked = lookup_body(arrays.parse_json(body))
    ids = arrays.ids_from_json(asked.ids, lambda value: value["ids"], body)
    return _plan(table, ids, asked)


def _json_plans(body: bytes, admission: Admission) -> list[LookupPlan]:
    _check_value_count(body, admission.limits.tables_max, admission)
    asked = lookup_many_body(arrays.parse_json(body)).tables
    admission.limits.check("tables_max", "the request asks for", len(asked))
    return [_json_part(table, part, body) for table, part in asked.items()]


def _json_part(table: str, asked: LookupBody, body: bytes) -> LookupPlan:
    try:
        ids = arrays.ids_from_json(asked.ids, lambda value: value["tables"][table]["ids"], body)
    except InvalidArgument as error:
        raise in_table(error, table) from None
    return _plan(table, ids, asked)


def _plan(table: str, ids: arrays.Ids, asked: LookupBody) -> LookupPlan:
    dtype, missing = parse_reply_dtype(asked.dtype), parse_missing(asked.missing)
    return LookupPlan(table, ids, dtype, missing, asked.version)


def _check_value_count(body: bytes, lookup_count: int, admission: Admission) -> None:
    # Parsed JSON takes many times the memory of its text, so too many ids end here.
    admission.limits.check(
        "ids_max", "the request has at least", body.count(b",") + 1 - lookup_count * _MEMBERS_MAX
    )


def _octets_plan(table: str, body: bytes, query: QueryParams, _admission: Admission) -> LookupPlan:
    options = _options(query, _RAW_OPTIONS, "raw ids have these: " + ", ".join(_RAW_OPTIONS))
    ids = arrays.ids_from_octets(body, options.get("ids_dtype", "int64"), options.get("shape"))
    return _query_plan(table, ids, options)


def _npy_plan(table: str, body: bytes, query: QueryParams, _admission: Admission) -> LookupPlan:
    options = _options(query, _OPTIONS, "a .npy has these: " + ", ".join(_OPTIONS))
    return _query_plan(table, arrays.ids_from_npy(body), options)


def _query_plan(table: str, ids: arrays.Ids, options: dict[str, str]) -> LookupPlan:
    version = options.get("version", "0")
    if not re.fullmatch("[0-9]{1,20}", version) or int(version) > VERSION_MAX:
        raise InvalidArgument(f"version is {version!r}; it must be a number, 0 for the live one")
    return LookupPlan(
        table,
        ids,
        parse_reply_dtype(options.get("dtype", "float32")),
        parse_missing(options.get("missing", "error")),
        int(version),
    )


def _options(query: QueryParams, known: Sequence[str], hint: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in known:
            raise InvalidArgument(f"unknown query parameter {name!r}; {hint}")
        if name in options:
            raise InvalidArgument(f"the query parameter {name!r} is given twice")
        options[name] = value
    return options


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(arrays.json_bytes(value), status, media_type=JSON)


def _arrays(media_type: str, parts: list[Part], gathered: Gathered) -> Response:
    return PartsResponse(parts, {"Content-Type": media_type, **arrays.array_headers(gathered)})


_PLANS: Final = {JSON: _json_plan, OCTETS: _octets_plan, NPY: _npy_plan}
_ENCODERS: Final[dict[str, Callable[[Gathered], Response]]] = {
    JSON: lambda gathered: _json(arrays.json_lookup(gathered)),
    OCTETS: lambda gathered: _arrays(OCTETS, arrays.octet_parts(gathered), gathered),
    NPY: lambda gathered: _arrays(NPY, arrays.npy_parts(gathered), gathered),
}


def _table_routes(engine: Engine, admission: Admission) -> APIRouter:
    router = APIRouter(default_response_class=Response)

    @router.get("/v1/tables", **openapi.LIST_TABLES)
    async def list_tables() -> Response:
        limits = admission.limits
        return _json(
            {
                "tables": [_table(info) for info in engine.tables()],
                "limits": {
                    "request_bytes_max": limits.request_bytes_max,
                    "reply_bytes_max": limits.reply_bytes_max,
                    "ids_max": limits.ids_max,
                    "tables_max": limits.tables_max,
                },
            }
        )

    @router.get("/v1/tables/{table:table}", **openapi.GET_TABLE)
    async def get_table(table: str) -> Response:
        return _json(_table(engine.table(table)))

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
    }


def _health_routes(engine: Engine, admission: Admission) -> APIRouter:
    router = APIRouter(default_response_class=Response)

    @router.get("/healthz", **openapi.HEALTHZ)
    async def healthz() -> Response:
        return _json({"status": "alive"})

    @router.get("/readyz", **openapi.READYZ)
    async def readyz() -> Response:
        infos = engine.tables()
        refused = [info.name for info in infos if info.refused]
        tables = {"tables": len(infos) - len(refused), "refused": refused}
        if admission.is_ready:
            return _json({"status": "ready", **tables})
        return problem(Unavailable("the server is starting or stopping"), tables)

    return router


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
