"""REST: the FastAPI application of the HTTP port, for people, scripts and small batches.

Handlers take the raw request, because bodies are bounded while they are read and because FastAPI's
own validation doesn't answer in the shape of RFC 9457; rest/openapi.py describes their inputs.
Left out on purpose: compressed replies (floats don't compress) and GET with ids in the query.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatherd.errors import GatherdError, InvalidArgument
from gatherd_server.access.admission import Admission
from gatherd_server.access.web import Web
from gatherd_server.engine.engine import Engine
from gatherd_server.http import cross_origin
from gatherd_server.http.access import Authenticate
from gatherd_server.http.access_log import AccessLog
from gatherd_server.http.connect import connect_routes
from gatherd_server.http.errors import CatchUnexpected, allow_header, http_problem, problem
from gatherd_server.http.health import health_routes
from gatherd_server.http.observed import Observed
from gatherd_server.http.offload import Offload
from gatherd_server.http.pages import page_routes
from gatherd_server.http.prefix import StripPrefix
from gatherd_server.http.rest import openapi
from gatherd_server.http.rest.keys import key_routes
from gatherd_server.http.rest.lookups import lookup_routes
from gatherd_server.http.rest.neighbors import neighbors_routes
from gatherd_server.http.rest.scans import scan_routes
from gatherd_server.http.rest.tables import change_routes, table_routes
from gatherd_server.http.rest.updates import update_routes
from gatherd_server.http.rest.uploads import upload_routes


class _TableName(StringConvertor):
    """A path segment without the colon, which begins a verb."""

    regex = "[^/:]+"


register_url_convertor("table", _TableName())


def create_app(
    engine: Engine, admission: Admission, offload: Offload, web: Web | None = None
) -> FastAPI:
    """Everything that the HTTP port answers: REST, Connect, health, and pages that describe it."""
    web = web or Web()
    app = FastAPI(
        title="gatherd",
        summary="Embedding tables over the network as if they were local arrays.",
        description=openapi.DESCRIPTION,
        version=openapi.API_VERSION,
        # pages.py has them: of this server alone, and made for each caller.
        openapi_url=None,
        # A redirect would answer an unknown path with neither a table nor a problem body.
        redirect_slashes=False,
    )
    # First, because most requests to a busy server are for these.
    app.router.routes[:0] = connect_routes(engine, admission, offload)
    app.include_router(lookup_routes(engine, admission, offload))
    app.include_router(key_routes(engine, admission, offload))
    app.include_router(scan_routes(engine, admission, offload))
    app.include_router(neighbors_routes(engine, admission, offload))
    app.include_router(update_routes(engine, admission, offload))
    app.include_router(table_routes(engine, admission, offload))
    app.include_router(change_routes(engine, admission))
    app.include_router(upload_routes(engine, admission, offload))
    app.include_router(health_routes(engine, admission, offload))
    app.include_router(page_routes(app, engine, offload, web))
    _handle_errors(app)
    app.add_middleware(AnswerHead)
    app.add_middleware(Authenticate, admission=admission, web=web)
    app.add_middleware(CatchUnexpected)
    if web.cors_origins:
        app.add_middleware(CORSMiddleware, **cross_origin.options(web.cors_origins))
    if admission.telemetry.is_access_logged:
        app.add_middleware(AccessLog)
    app.add_middleware(Observed, telemetry=admission.telemetry)
    if web.root_path:
        app.add_middleware(StripPrefix, prefix=web.root_path)
    openapi.describe(app, has_tokens=admission.has_tokens, root_path=web.root_path)
    return app


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
