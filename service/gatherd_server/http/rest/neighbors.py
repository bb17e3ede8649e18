"""REST's search for neighbors."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.datastructures import QueryParams
from starlette.responses import Response

from gatherd.errors import InvalidArgument
from gatherd.store.given import as_given_array
from gatherd.store.ids import as_id_array
from gatherd.store.query import Asked, ByKey, NeighborsQuery, parse_metric
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import AnyEngine
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.searching import Found
from gatherd_server.http.access import caller_of
from gatherd_server.http.json_bounds import check_rest
from gatherd_server.http.leaving import until_gone
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, openapi_neighbors
from gatherd_server.http.rest.exchange import json_body_of, json_reply, placed_router
from gatherd_server.http.rest.lookup_bodies import no_options
from gatherd_server.http.rest.schemas import NeighborsBody, parse
from gatherd_server.types import Limits

# An element of a vector, as the wires that carry bytes send it.
_ELEMENT_BYTES = 4


def neighbors_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """The search of one table."""
    router = placed_router(admission.request, Need.READ)

    @router.post("/v1/tables/{table:table}:neighbors", **openapi_neighbors.NEIGHBORS)
    async def neighbors(table: str, request: Request) -> Response:
        body = await json_body_of(request, admission)
        asked = await offload.parse(
            lambda: _parsed(body, request.query_params, admission.limits), body
        )
        guarded = caller_of(request.scope).guard(engine)
        query = _query(table, asked, body, guarded)
        prepared = guarded.prepare_neighbors(table, query, asked.version)

        def found() -> Response:
            return json_reply(_reply(prepared.run(), asked.metric))

        return await until_gone(offload, found, prepared.stopping, request.receive)

    return router


def _parsed(body: bytes, query: QueryParams, limits: Limits) -> NeighborsBody:
    no_options(query)
    check_rest(body, limits, 1, value_bytes=_ELEMENT_BYTES)
    return parse(NeighborsBody, arrays.parse_json(body))


def _query(table: str, asked: NeighborsBody, body: bytes, engine: AnyEngine) -> NeighborsQuery:
    if [asked.ids, asked.keys, asked.vectors].count(None) != 2:
        raise InvalidArgument("a search has either ids, keys or vectors")
    rows: Asked | None = None
    vectors: NDArray[np.float32] | None = None
    if asked.vectors is not None:
        vectors = _vectors(asked.vectors)
    elif asked.keys is None:
        rows = arrays.from_json(as_id_array, asked.ids, lambda value: value["ids"], body)
    else:
        keys = arrays.from_json(
            lambda keys: arrays.keys_from_json(keys, asked.encoding),
            asked.keys,
            lambda value: value["keys"],
            body,
        )
        rows = arrays.typed_keys(ByKey(keys), lambda: engine.key_kind(table))
    metric = parse_metric(asked.metric)
    return NeighborsQuery(rows, vectors, asked.k, metric, asked.include_self)


def _vectors(given: object) -> NDArray[np.float32]:
    array = as_given_array(given, "vectors")
    if array.dtype.kind not in "iuf":
        raise InvalidArgument("vectors are lists of numbers")
    with np.errstate(over="ignore"):  # too large ones become infinity, and are refused
        return np.ascontiguousarray(array, np.float32)


def _reply(found: Found, metric: str) -> dict[str, Any]:
    nearest = found.nearest
    keys = {} if found.keys is None else arrays.json_keys(found.keys)
    described = {"metric": metric, "version": found.version}
    return {"ids": nearest.ids, "scores": nearest.scores, **keys, **described}
