"""What a browser is shown: `/`, the API's description, and the page at /docs that reads it.

Everything that the page loads is this server's: Swagger UI's files are those of the package
fastapi-offline, whose own code isn't used. The Content-Security-Policy lets a browser load and ask
nothing else, and run no script that stands in a page.
"""

import json
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import RedirectResponse, Response

from gatherd.errors import InternalError
from gatherd_proto.headers import JSON
from gatherd_server.access.callers import NOBODY
from gatherd_server.access.web import Web
from gatherd_server.engine.engine import Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.errors import http_problem
from gatherd_server.http.media import best_answer
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import examples
from gatherd_server.http.rest.exchange import json_reply

HTML: Final = "text/html"
_ASSETS: Final = Path(__file__).with_name("assets")
_SWAGGER_UI: Final = "fastapi_offline"
_JAVASCRIPT, _CSS = "text/javascript", "text/css"
_MEDIA_TYPES: Final = {
    "swagger-ui-bundle.js": _JAVASCRIPT,
    "swagger-ui.css": _CSS,
    "docs.js": _JAVASCRIPT,
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GUARDS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Other files come with another release only.
_KEPT: Final = {**_GUARDS, "Cache-Control": "max-age=3600"}
_SAID: Final = "Looks rows up in embedding tables, over REST, Connect and gRPC."


def page_routes(app: FastAPI, engine: Engine, offload: Offload, web: Web) -> APIRouter:
    """The pages; none of them is an operation of the API."""
    router = APIRouter(default_response_class=Response, include_in_schema=False)
    below = f"{web.root_path}/" if web.root_path else ""

    @router.get("/")
    async def index(request: Request) -> Response:
        if best_answer(request.headers.getlist("accept"), (JSON, HTML)) == HTML:
            text = _own("index.html").decode().replace("{root}", below)
            return Response(text, media_type=HTML, headers=_GUARDS)
        paths = {"docs": "docs", "openapi": "openapi.json", "tables": "v1/tables"}
        told = {"name": "gatherd", "description": _SAID}
        if caller_of(request.scope) is not NOBODY:
            told["version"] = version("gatherd")
        links = {name: f"{web.root_path}/{path}" for name, path in paths.items()}
        return json_reply({**told, "links": links})

    @router.get("/docs")
    async def docs() -> Response:
        return Response(_own("docs.html"), media_type=HTML, headers=_GUARDS)

    @router.get("/docs/{name}")
    async def asset(name: str) -> Response:
        media_type = _MEDIA_TYPES.get(name)
        if media_type is None:
            return http_problem(404, f"/docs has no file {name[:128]!r}")
        if name == "docs.js":
            return Response(_own(name), media_type=media_type, headers=_GUARDS)
        return Response(_of_swagger_ui(name), media_type=media_type, headers=_KEPT)

    @router.get("/redoc")
    async def redoc() -> Response:
        return RedirectResponse(f"{web.root_path}/docs" if web.root_path else "docs", 308)

    @router.get("/openapi.json")
    async def openapi(request: Request) -> Response:
        caller = caller_of(request.scope)
        guarded = caller.guard(engine)
        document = app.openapi()
        # orjson writes no integer as large as the limits that schemas name.
        text = await offload.run(
            lambda: json.dumps(examples.filled(document, guarded, caller)), is_long=True
        )
        return Response(text, media_type=JSON, headers={"Cache-Control": "no-store"})

    return router


@lru_cache
def _own(name: str) -> bytes:
    return (_ASSETS / name).read_bytes()


@lru_cache
def _of_swagger_ui(name: str) -> bytes:
    # Its folder is found without an import: the package's code isn't needed.
    found = find_spec(_SWAGGER_UI)
    if found is None or not found.submodule_search_locations:
        raise InternalError(f"the package {_SWAGGER_UI}, which has Swagger UI, isn't installed")
    return (Path(found.submodule_search_locations[0]) / "static" / name).read_bytes()
