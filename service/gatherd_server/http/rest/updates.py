"""REST's updates of rows."""

from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from gatherd.errors import InvalidArgument
from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import AnyEngine
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import SHORT_BYTES, Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.body import outcome
from gatherd_server.http.media import OCTETS, best_answer, content_type
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import openapi_updates
from gatherd_server.http.rest.exchange import body_of, json_reply, placed_router
from gatherd_server.http.rest.update_bodies import UpdateReader
from gatherd_server.types import VALUE_OPS, Push, PushResult, RequestId, UpdateOp
from gatherd_server.wire import checks

IDEMPOTENCY_KEY = "idempotency-key"
_VERBS = {
    "scatterAdd": UpdateOp.SCATTER_ADD,
    "applyGradients": UpdateOp.APPLY_GRADIENTS,
    "assign": UpdateOp.ASSIGN,
    "deleteRows": UpdateOp.DELETE_ROWS,
}


def update_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """Updates of one table and of many, each by the three operations."""
    router = placed_router(admission.update, Need.UPDATE)

    async def push(
        guarded: AnyEngine, read: Callable[[], Push], body: bytes, is_json: bool
    ) -> tuple[Push, PushResult]:
        if is_json:
            asked = await offload.parse(read, body)
        else:
            asked = read()
        # Checking many values takes as long as gathering them would.
        future = await offload.run(lambda: guarded.push(asked), len(body) > SHORT_BYTES)
        return asked, await outcome(future)

    def add(verb: str, op: UpdateOp) -> None:
        def opened(request: Request) -> tuple[AnyEngine, UpdateReader]:
            guarded = caller_of(request.scope).guard(engine)
            return guarded, UpdateReader(
                op, admission.limits, lambda table: guarded.table(table).dim, guarded.key_kind
            )

        @router.post(f"/v1/tables/{{table:table}}:{verb}", **openapi_updates.one(verb, op))
        async def one(table: str, request: Request) -> Response:
            taken = (JSON, OCTETS) if op in VALUE_OPS else (JSON,)
            media_type = content_type(dict(request.scope["headers"]), taken)
            request_id = _request_id(request.headers)
            best_answer(request.headers.getlist("accept"), (JSON,))
            body = await body_of(request, admission)
            guarded, reader = opened(request)
            _, result = await push(
                guarded,
                lambda: reader.one(media_type, table, body, request.query_params, request_id),
                body,
                media_type == JSON,
            )
            (version,) = result.versions
            counts = {name: n for name, (n,) in _counts(result).items()}
            return json_reply({"lsn": result.lsn, "version": version, **counts})

        @router.post(f"/v1/{verb}", **openapi_updates.many(verb, op))
        async def many(request: Request) -> Response:
            content_type(dict(request.scope["headers"]), (JSON,))
            request_id = _request_id(request.headers)
            best_answer(request.headers.getlist("accept"), (JSON,))
            body = await body_of(request, admission)
            guarded, reader = opened(request)
            asked, result = await push(
                guarded, lambda: reader.many(body, request.query_params, request_id), body, True
            )
            names = [update.table for update in asked.updates]
            versions = dict(zip(names, result.versions, strict=True))
            counts = {
                name: {table: n for table, n in zip(names, listed, strict=True) if n}
                for name, listed in _counts(result).items()
            }
            return json_reply({"lsn": result.lsn, "versions": versions, **counts})

    for verb, op in _VERBS.items():
        add(verb, op)
    return router


def _counts(result: PushResult) -> dict[str, tuple[int, ...]]:
    """Rows created and removed, and keys not admitted, of each table; those that aren't all 0."""
    named = {
        "created": result.created,
        "removed": result.removed,
        "not_admitted": result.not_admitted,
    }
    return {name: listed for name, listed in named.items() if listed}


def _request_id(headers: Headers) -> RequestId:
    given = headers.getlist(IDEMPOTENCY_KEY)
    if not given:
        return None
    if len(given) > 1:
        raise InvalidArgument("the Idempotency-Key header is given twice")
    return checks.idempotency_key(given[0])
