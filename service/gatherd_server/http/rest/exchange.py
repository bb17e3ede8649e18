"""What the handlers of REST share: a place for each request, its body, and the answer in JSON."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission, Place
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import Engine
from gatherd_server.http.access import caller_of, held_of, placed
from gatherd_server.http.body import outcome, read_body
from gatherd_server.http.media import best_answer, content_type
from gatherd_server.http.rest import arrays
from gatherd_server.types import TableChange


def placed_router(place: Place, needed: Need) -> APIRouter:
    """A router whose requests each hold a place of `place`, and whose callers need `needed`."""

    async def held(request: Request) -> AsyncIterator[None]:
        # FastAPI ends this once the reply is sent, so the place is held until then.
        with placed(request.scope, place, needed):
            yield

    return APIRouter(dependencies=[Depends(held)], default_response_class=Response)


async def body_of(request: Request, admission: Admission) -> bytes:
    """The request's body, bounded while it is read."""
    scope = request.scope
    return await read_body(dict(scope["headers"]), request.receive, admission, held_of(scope))


async def json_body_of(
    request: Request, admission: Admission, *, may_be_absent: bool = False
) -> bytes:
    """The body of a request that is JSON and is answered with JSON; an absent one is `{}`."""
    headers = request.headers
    is_absent = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if may_be_absent and is_absent and "content-type" not in headers:
        return b"{}"
    content_type(dict(request.scope["headers"]), (JSON,))
    best_answer(headers.getlist("accept"), (JSON,))
    return await body_of(request, admission)


async def changed_reply(engine: Engine, request: Request, change: TableChange) -> Response:
    """The answer to a change, once it is made."""
    result = await outcome(caller_of(request.scope).guard(engine).change(change))
    state = {"state": result.state.value} if result.state.value else {}
    return json_reply({"version": result.version, "lsn": result.lsn, **state})


def json_reply(value: dict[str, Any]) -> Response:
    """`value` as the answer."""
    return Response(arrays.json_bytes(value), media_type=JSON)
