"""REST's scans: a table's rows page by page, as JSON, octets or .npy files.

The arrays of the two binary forms follow one another in the order of the header Gatherd-Parts.
"""

import base64
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import orjson
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from gatherd.store.dtypes import DType
from gatherd.store.format import npy_header
from gatherd.store.keys import StringKeys
from gatherd.store.scans import ScanPage
from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.engine.engine import Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.body import PartsResponse
from gatherd_server.http.media import NPY, OCTETS, best_answer
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import arrays, lookup_bodies, openapi_scans
from gatherd_server.http.rest.exchange import placed_router
from gatherd_server.wire.lookups import Part


def scan_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """Pages of a table's rows."""
    router = placed_router(admission.request, Need.READ)

    @router.get("/v1/tables/{table:table}/rows", **openapi_scans.SCAN)
    async def scan(table: str, request: Request) -> Response:
        answer_type = best_answer(request.headers.getlist("accept"), (JSON, OCTETS, NPY))
        query = lookup_bodies.scan_query(request.scope["query_string"])
        page = caller_of(request.scope).guard(engine).prepare_scan(table, query)
        encode = _ENCODERS[answer_type]
        # JSON takes ten times as long as reading the rows.
        is_long = page.is_long or answer_type == JSON
        return await offload.run(lambda: encode(page.run()), is_long)

    return router


def _json(page: ScanPage) -> Response:
    parts: list[Part] = [
        b'{"vectors":',
        *arrays.json_array(arrays.as_float32(page.vectors, page.dtype)),
    ]
    for i, (name, values) in enumerate(page.slots.items()):
        parts += [b"," if i else b',"slots":{', orjson.dumps(name), b":"]
        parts += arrays.json_array(values)
    parts.append(b"}," if page.slots else b",")
    keys = {} if page.keys is None else arrays.json_keys(page.keys)
    described = {
        "dtype": page.dtype.value,
        "ids": page.ids,
        **keys,
        "version": page.version,
        "cursor": _text(page.cursor) or None,
    }
    parts.append(memoryview(arrays.json_bytes(described))[1:])
    return PartsResponse(parts, {"Content-Type": JSON})


def _octets(page: ScanPage) -> Response:
    parts = [arrays.raw(array) for _, array in _arrays(page)]
    return PartsResponse(parts, {"Content-Type": OCTETS, **_headers(page)})


def _npy(page: ScanPage) -> Response:
    parts: list[Part] = []
    for name, array in _arrays(page):
        # ml_dtypes saves bfloat16 as two void bytes.
        is_bfloat16 = name == "vectors" and page.dtype is DType.BFLOAT16
        parts += [
            npy_header("<V2" if is_bfloat16 else array.dtype.str, array.shape),
            arrays.raw(array),
        ]
    return PartsResponse(parts, {"Content-Type": NPY, **_headers(page)})


_ENCODERS: Final[dict[str, Callable[[ScanPage], Response]]] = {
    JSON: _json,
    OCTETS: _octets,
    NPY: _npy,
}


def _arrays(page: ScanPage) -> list[tuple[str, NDArray[Any]]]:
    """The page's arrays, little-endian, in the order in which they are sent, with their names."""
    found: list[tuple[str, NDArray[Any]]] = [("vectors", page.vectors), ("ids", page.ids)]
    if isinstance(page.keys, StringKeys):
        offsets = page.keys.offsets
        data = page.keys.data[int(offsets[0]) : int(offsets[-1])]
        found += [("key_lengths", np.diff(offsets).astype("<u4")), ("key_bytes", data)]
    elif page.keys is not None:
        found.append(("keys", page.keys))
    found += [(f"slot_{name}", values) for name, values in page.slots.items()]
    return [(name, np.ascontiguousarray(array)) for name, array in found]


def _headers(page: ScanPage) -> dict[str, str]:
    listed = "; ".join(
        f"{name} {_dtype(page, name, array)} {','.join(map(str, array.shape))}"
        for name, array in _arrays(page)
    )
    headers = arrays.array_headers(page.vectors.shape, page.dtype, page.version, 0)
    headers[arrays.PARTS_HEADER] = listed
    if page.cursor:
        headers[arrays.CURSOR_HEADER] = _text(page.cursor)
    return headers


def _dtype(page: ScanPage, name: str, array: NDArray[Any]) -> str:
    return page.dtype.value if name == "vectors" else array.dtype.name


def _text(cursor: bytes) -> str:
    return base64.urlsafe_b64encode(cursor).decode()
