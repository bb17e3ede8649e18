"""REST's uploads: begin, rows in chunks, status, commit, cancel."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gatherd_proto.headers import JSON
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Scope as Need
from gatherd_server.access.uploads import AnyUploads
from gatherd_server.data_dir.uploads.spec import Chunk, UploadStatus, check_upload_id
from gatherd_server.engine.engine import Engine
from gatherd_server.http.access import caller_of
from gatherd_server.http.body import outcome
from gatherd_server.http.media import OCTETS, best_answer, content_type
from gatherd_server.http.offload import Offload
from gatherd_server.http.rest import openapi_uploads, upload_bodies
from gatherd_server.http.rest.exchange import body_of, json_body_of, json_reply, placed_router
from gatherd_server.http.rest.lookup_bodies import no_options


def upload_routes(engine: Engine, admission: Admission, offload: Offload) -> APIRouter:
    """The uploads of the data dir."""
    router = placed_router(admission.update, Need.ADMIN)

    def desk_of(request: Request) -> AnyUploads:
        return caller_of(request.scope).guard(engine).uploads

    @router.post("/v1/uploads", **openapi_uploads.BEGIN)
    async def begin_upload(request: Request) -> Response:
        body = await json_body_of(request, admission)
        begun = upload_bodies.begun(body, request.query_params, admission.limits)
        return json_reply(_upload(await outcome(desk_of(request).begin(*begun))))

    @router.get("/v1/uploads", **openapi_uploads.LIST)
    async def list_uploads(request: Request) -> Response:
        no_options(request.query_params)
        statuses = await outcome(desk_of(request).statuses())
        return json_reply({"uploads": [_upload(one) for one in statuses]})

    @router.get("/v1/uploads/{upload:table}", **openapi_uploads.GET)
    async def get_upload(upload: str, request: Request) -> Response:
        no_options(request.query_params)
        status = await outcome(desk_of(request).status(check_upload_id(upload)))
        return json_reply(_upload(status))

    @router.put("/v1/uploads/{upload:table}/rows", **openapi_uploads.PUT_ROWS)
    async def put_rows(upload: str, request: Request) -> Response:
        media_type = content_type(dict(request.scope["headers"]), (JSON, OCTETS))
        best_answer(request.headers.getlist("accept"), (JSON,))
        body = await body_of(request, admission)
        desk, query = desk_of(request), request.query_params
        name = check_upload_id(upload)
        spec = await outcome(desk.spec(name))

        def read() -> Chunk:
            if media_type == OCTETS:
                return upload_bodies.chunk_from_octets(name, spec, body, query)
            return upload_bodies.chunk_from_json(name, spec, body, query, admission.limits)

        chunk = await offload.parse(read, body)
        return json_reply({"next_row": await outcome(desk.append(chunk))})

    @router.post("/v1/uploads/{upload:table}:commit", **openapi_uploads.COMMIT)
    async def commit_upload(upload: str, request: Request) -> Response:
        no_options(request.query_params)
        done = await outcome(desk_of(request).commit(check_upload_id(upload)))
        return json_reply(
            {
                "version": done.version,
                "lsn": done.lsn,
                "rows": done.row_count,
                "duplicates": done.duplicates,
            }
        )

    @router.delete("/v1/uploads/{upload:table}", **openapi_uploads.CANCEL)
    async def cancel_upload(upload: str, request: Request) -> Response:
        no_options(request.query_params)
        await outcome(desk_of(request).cancel(check_upload_id(upload)))
        return json_reply({})

    return router


def _upload(status: UploadStatus) -> dict[str, Any]:
    spec = status.spec
    return {
        "upload": status.upload,
        "name": spec.table,
        "dim": spec.dim,
        "dtype": spec.dtype.value,
        "key_kind": spec.key_kind.value if spec.key_kind else "",
        "rows": spec.row_count,
        "publish": spec.publishes,
        "next_row": status.next_row,
        "bytes": status.byte_count,
        "expires": datetime.fromtimestamp(status.expires_seconds, UTC).isoformat(),
        "committing": status.is_committing,
        "chunk_bytes_max": status.chunk_bytes_max,
    }
