"""Every route of every wire by everybody: no token, a wrong one, each scope, another table's."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import json_format

from gatherd_proto.v1 import embedding_pb2, table_pb2, upload_pb2
from security.conftest import Guarded
from support.small_engine import lookup_request

TABLE = "items-that-isnt"
"""No table, but the pattern items* has it: whoever may ask is told that it isn't there."""

READ, UPDATE, ADMIN = {"reader", "all"}, {"updater", "all"}, {"admin", "all"}
OF_A_TABLE = {"reader", "updater", "admin", "all"}
LISTING = OF_A_TABLE | {"other"}
EVERY_TABLE = {"all"}
# Of an upload that isn't there nobody knows the table: whoever may change one is told that.
UPLOADING = ADMIN | {"other"}
UPLOAD = "0" * 32
ANY_TOKEN = LISTING | {"metrics"}
CALLERS = ("none", "wrong", "reader", "updater", "admin", "other", "metrics", "all")

_LOOKUP = lookup_request(TABLE, [1])
_UPDATE = embedding_pb2.UpdateRequest(
    updates=[
        embedding_pb2.TableUpdate(
            table=TABLE, ids=_LOOKUP.ids,
            values={"dtype": "DTYPE_FLOAT32", "shape": [1, 4], "data": bytes(16)},
        )
    ]
)  # fmt: skip

E = embedding_pb2
T = table_pb2
U = upload_pb2
PROCEDURES: dict[str, tuple[Any, set[str]]] = {
    "Lookup": (_LOOKUP, READ),
    "LookupMany": (E.LookupManyRequest(lookups=[_LOOKUP]), READ),
    "LookupBags": (E.LookupBagsRequest(lookup=_LOOKUP, offsets=lookup_request("", [0]).ids), READ),
    "LookupBagsMany": (
        E.LookupBagsManyRequest(
            bags=[E.LookupBagsRequest(lookup=_LOOKUP, offsets=lookup_request("", [0]).ids)]
        ),
        READ,
    ),
    "KeysOf": (E.KeysOfRequest(table=TABLE, ids=_LOOKUP.ids), READ),
    "Neighbors": (E.NeighborsRequest(table=TABLE, ids=_LOOKUP.ids), READ),
    "IdsOf": (E.IdsOfRequest(table=TABLE, keys={"integers": _LOOKUP.ids}), READ),
    "ListKeys": (E.ListKeysRequest(table=TABLE), READ),
    "Scan": (E.ScanRequest(table=TABLE), READ),
    "ScatterAdd": (_UPDATE, UPDATE),
    "ApplyGradients": (_UPDATE, UPDATE),
    "Assign": (_UPDATE, UPDATE),
    "DeleteRows": (
        E.UpdateRequest(updates=[E.TableUpdate(table=TABLE, keys={"integers": _LOOKUP.ids})]),
        UPDATE,
    ),
    "ListTables": (T.ListTablesRequest(), LISTING),
    "GetTable": (T.GetTableRequest(table=TABLE), OF_A_TABLE),
    "CreateTable": (T.CreateTableRequest(table=TABLE, staged="0" * 32), ADMIN),
    "DeleteTable": (T.DeleteTableRequest(table=TABLE), ADMIN),
    "Publish": (T.PublishRequest(table=TABLE), ADMIN),
    "Rollback": (T.RollbackRequest(table=TABLE), ADMIN),
    "SetOptimizer": (T.SetOptimizerRequest(table=TABLE, optimizer={"name": "sgd"}), ADMIN),
    "DeleteVersion": (T.DeleteVersionRequest(table=TABLE, version=1), ADMIN),
    "RenameTable": (T.RenameTableRequest(table=TABLE, to=TABLE), ADMIN),
    "SetAlias": (T.SetAliasRequest(alias=TABLE, table=TABLE), ADMIN),
    "DeleteAlias": (T.DeleteAliasRequest(alias=TABLE), ADMIN),
    "CloneTable": (T.CloneTableRequest(table=TABLE, source=TABLE), ADMIN),
    "ReplaceTable": (T.ReplaceTableRequest(table=TABLE, source=TABLE), ADMIN),
    "Snapshot": (T.SnapshotRequest(), EVERY_TABLE),
    "GetServer": (T.GetServerRequest(), ANY_TOKEN),
    "ListSnapshots": (T.ListSnapshotsRequest(), EVERY_TABLE),
    "DeleteSnapshot": (T.DeleteSnapshotRequest(name="none"), EVERY_TABLE),
    "BeginUpload": (U.BeginUploadRequest(table=TABLE, dim=0), ADMIN),
    "PutChunk": (
        U.PutChunkRequest(upload=UPLOAD, rows={"dtype": "DTYPE_FLOAT32", "shape": [0, 4]}),
        UPLOADING,
    ),
    "GetUpload": (U.GetUploadRequest(upload=UPLOAD), UPLOADING),
    "ListUploads": (U.ListUploadsRequest(), UPLOADING),
    "CommitUpload": (U.CommitUploadRequest(upload=UPLOAD), UPLOADING),
    "CancelUpload": (U.CancelUploadRequest(upload=UPLOAD), UPLOADING),
}

_IDS = {"ids": [1]}
_ROWS = {"ids": [1], "values": [[0, 0, 0, 0]]}
_KEYS = {"keys": [1]}
REST: dict[tuple[str, str], tuple[Any, set[str]]] = {
    ("post", "/v1/tables/{table}:lookup"): (_IDS, READ),
    ("post", "/v1/lookup"): ({"tables": {TABLE: _IDS}}, READ),
    ("post", "/v1/tables/{table}:lookupBags"): ({"ids": [[1]]}, READ),
    ("post", "/v1/lookupBags"): ({"tables": {TABLE: {"ids": [[1]]}}}, READ),
    ("post", "/v1/tables/{table}:keysOf"): (_IDS, READ),
    ("post", "/v1/tables/{table}:neighbors"): (_IDS, READ),
    ("post", "/v1/tables/{table}:idsOf"): ({"keys": ["a"]}, READ),
    ("get", "/v1/tables/{table}/keys"): (None, READ),
    ("get", "/v1/tables/{table}/rows"): (None, READ),
    ("get", "/v1/tables"): (None, LISTING),
    ("get", "/v1/tables/{table}"): (None, OF_A_TABLE),
    ("get", "/v1/tables/{table}/versions"): (None, OF_A_TABLE),
    ("post", "/v1/tables"): ({"name": TABLE, "staged": "0" * 32}, ADMIN),
    ("delete", "/v1/tables/{table}"): (None, ADMIN),
    ("post", "/v1/tables/{table}:publish"): (None, ADMIN),
    ("post", "/v1/tables/{table}:rollback"): (None, ADMIN),
    ("post", "/v1/tables/{table}:setOptimizer"): ({"optimizer": {"name": "sgd"}}, ADMIN),
    ("delete", "/v1/tables/{table}/versions/{version}"): (None, ADMIN),
    ("post", "/v1/tables/{table}:rename"): ({"to": TABLE}, ADMIN),
    ("post", "/v1/tables/{table}:clone"): ({"to": TABLE}, ADMIN),
    ("post", "/v1/tables/{table}:replace"): ({"source": TABLE}, ADMIN),
    ("put", "/v1/aliases/{alias}"): ({"table": TABLE}, ADMIN),
    ("delete", "/v1/aliases/{alias}"): (None, ADMIN),
    ("post", "/v1/snapshots"): (None, EVERY_TABLE),
    ("get", "/v1/server"): (None, ANY_TOKEN),
    ("get", "/v1/snapshots"): (None, EVERY_TABLE),
    ("delete", "/v1/snapshots/{name}"): (None, EVERY_TABLE),
    ("post", "/v1/uploads"): ({"name": TABLE, "dim": 1, "default_vector": [1, 2]}, ADMIN),
    ("get", "/v1/uploads"): (None, UPLOADING),
    ("get", "/v1/uploads/{upload}"): (None, UPLOADING),
    ("put", "/v1/uploads/{upload}/rows"): ({"offset": 0, "rows": []}, UPLOADING),
    ("post", "/v1/uploads/{upload}:commit"): (None, UPLOADING),
    ("delete", "/v1/uploads/{upload}"): (None, UPLOADING),
    **{
        ("post", f"/v1/{where}{verb}"): (asked, UPDATE)
        for verb, body in (
            ("scatterAdd", _ROWS),
            ("applyGradients", _ROWS),
            ("assign", _ROWS),
            ("deleteRows", _KEYS),
        )
        for where, asked in (("tables/{table}:", body), ("", {"tables": {TABLE: body}}))
    },
}
OPEN = ("/healthz", "/readyz")
PAGES = ("/", "/docs", "/docs/docs.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")
# What is no part of gatherd.v1, and what isn't there.
OTHER_PATHS = {
    "/docs/nothing": ANY_TOKEN,
    "/openapi.json": ANY_TOKEN,
    "/metrics": {"metrics"},
    "/nothing/here": ANY_TOKEN,
}


@pytest.fixture(scope="module")
def http(guarded: Guarded) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.server.http) as client:
        yield client


@pytest.fixture(scope="module")
def channel(guarded: Guarded) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(guarded.server.grpc.removeprefix("grpc://")) as channel:
        yield channel


def header(guarded: Guarded, caller: str) -> dict[str, str]:
    if caller == "none":
        return {}
    token = "gatherd_" + "x" * 43 if caller == "wrong" else guarded.tokens[caller]
    return {"Authorization": f"Bearer {token}"}


def check(response: httpx.Response, caller: str, allowed: set[str]) -> None:
    if caller in ("none", "wrong"):
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith('Bearer realm="gatherd"')
    elif caller in allowed:
        assert response.status_code not in (401, 403)
        assert response.status_code < 500
    else:
        assert response.status_code == 403
        assert 'error="insufficient_scope"' in response.headers["www-authenticate"]


@pytest.mark.parametrize("caller", CALLERS)
def test_rest_by(caller: str, guarded: Guarded, http: httpx.Client) -> None:
    for (method, path), (body, allowed) in REST.items():
        response = http.request(
            method,
            path.format(table=TABLE, alias=TABLE, version=1, name="none", upload=UPLOAD),
            json=body,
            headers=header(guarded, caller),
        )
        check(response, caller, allowed)


def test_no_rest_route_is_left_out(guarded: Guarded, http: httpx.Client) -> None:
    document = http.get("/openapi.json", headers=header(guarded, "reader")).json()
    served = {(method, path) for path, entry in document["paths"].items() for method in entry}
    assert served == {*REST, ("get", "/metrics"), *(("get", path) for path in OPEN)}
    assert document["security"] == [{"token": []}]
    for method, path in (*REST, ("get", "/metrics")):
        assert {"401", "403"} <= document["paths"][path][method]["responses"].keys()


@pytest.mark.parametrize("caller", CALLERS)
def test_other_paths_by(caller: str, guarded: Guarded, http: httpx.Client) -> None:
    for path, allowed in OTHER_PATHS.items():
        check(http.get(path, headers=header(guarded, caller)), caller, allowed)
        check(http.head(path, headers=header(guarded, caller)), caller, allowed)


@pytest.mark.parametrize("caller", CALLERS)
def test_probes_are_answered_to_everybody(
    caller: str, guarded: Guarded, http: httpx.Client
) -> None:
    for path in OPEN:
        assert http.get(path, headers=header(guarded, caller)).status_code == 200


def test_pages_are_the_same_for_everybody_with_or_without_a_token(
    guarded: Guarded, http: httpx.Client
) -> None:
    html = {"Accept": "text/html"}
    for path in PAGES:
        replies = [
            http.get(path, headers={**html, **header(guarded, caller)}) for caller in CALLERS
        ]
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.content for reply in replies}) == 1
    assert "version" not in http.get("/").json()
    assert "version" in http.get("/", headers=header(guarded, "reader")).json()


def test_the_documents_examples_are_of_the_callers_tables_alone(
    guarded: Guarded, http: httpx.Client
) -> None:
    for caller in ("reader", "updater", "admin", "other", "metrics", "all"):
        given = header(guarded, caller)
        own = {
            table["name"]
            for table in http.get("/v1/tables", headers=given).json().get("tables", ())
        }
        document = http.get("/openapi.json", headers=given).json()
        named = {
            parameter["example"]
            for methods in document["paths"].values()
            for operation in methods.values()
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "path" and "example" in parameter
        }
        every = {
            table["name"]
            for table in http.get("/v1/tables", headers=header(guarded, "all")).json()["tables"]
        }
        assert not named & (every - own), caller
        changed = document["paths"]["/v1/tables/{table}"]["delete"]["parameters"]
        sandbox = "docs-example" if caller in ("all", "other", "metrics") else "itemsdocs-example"
        examples = [one["example"] for one in changed if one["in"] == "path"]
        assert examples == [sandbox], "no form deletes a user's table"


def paths() -> dict[str, tuple[Any, set[str]]]:
    services = (embedding_pb2.DESCRIPTOR, table_pb2.DESCRIPTOR, upload_pb2.DESCRIPTOR)
    found = {
        method.name: f"/{service.full_name}/{method.name}"
        for file in services
        for service in file.services_by_name.values()
        for method in service.methods
        if not method.client_streaming
    }
    assert found.keys() == PROCEDURES.keys()
    return {path: PROCEDURES[name] for name, path in found.items()}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("encoding", ["proto", "json"])
def test_connect_by(caller: str, encoding: str, guarded: Guarded, http: httpx.Client) -> None:
    """In protobuf the lookups are the fast path's."""
    headers = {**header(guarded, caller), "Content-Type": f"application/{encoding}"}
    for path, (message, allowed) in paths().items():
        body = message.SerializeToString()
        if encoding == "json":
            body = json_format.MessageToJson(message).encode()
        # The second is the same, byte for byte, on the same connection: it is recognised.
        for _ in range(2):
            check(http.post(path, content=body, headers=headers), caller, allowed)


@pytest.mark.parametrize("caller", CALLERS)
def test_octets_by(caller: str, guarded: Guarded, http: httpx.Client) -> None:
    octets = "application/octet-stream"
    headers = {**header(guarded, caller), "Content-Type": octets, "Accept": octets}
    body = np.array([1]).tobytes()
    for _ in range(2):
        path = f"/v1/tables/{TABLE}:lookup"
        check(http.post(path, content=body, headers=headers), caller, READ)


def failure(call: Any) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def check_code(code: grpc.StatusCode, caller: str, allowed: set[str]) -> None:
    if caller in ("none", "wrong"):
        assert code is grpc.StatusCode.UNAUTHENTICATED
    elif caller in allowed:
        assert code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        assert code is not grpc.StatusCode.INTERNAL
    else:
        assert code is grpc.StatusCode.PERMISSION_DENIED


def metadata(guarded: Guarded, caller: str) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in header(guarded, caller).items())


@pytest.mark.parametrize("caller", CALLERS)
def test_grpc_by(caller: str, guarded: Guarded, channel: grpc.Channel) -> None:
    given = metadata(guarded, caller)
    for path, (message, allowed) in paths().items():
        method: Any = channel.unary_unary(path)
        body = message.SerializeToString()
        check_code(failure(lambda m=method, b=body: m(b, metadata=given)), caller, allowed)


@pytest.mark.parametrize("caller", CALLERS)
def test_streams_by(caller: str, guarded: Guarded, channel: grpc.Channel) -> None:
    method: Any = channel.stream_stream("/gatherd.v1.EmbeddingService/LookupStream")
    request = embedding_pb2.LookupStreamRequest(id=7, lookup=_LOOKUP).SerializeToString()
    answers: list[bytes] = []
    code = failure(
        lambda: answers.extend(method(iter([request]), metadata=metadata(guarded, caller)))
    )
    if caller in ("none", "wrong"):
        assert code is grpc.StatusCode.UNAUTHENTICATED
        return
    (answer,) = answers
    told = embedding_pb2.LookupStreamResponse.FromString(answer).error.code
    is_denied = told == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert is_denied is (caller not in READ)


@pytest.mark.parametrize("caller", CALLERS)
def test_health_and_reflection_by(caller: str, guarded: Guarded, channel: grpc.Channel) -> None:
    from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
    from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

    given = metadata(guarded, caller)
    check_health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
    watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
    method = "ServerReflection/ServerReflectionInfo"
    reflect: Any = channel.stream_stream(f"/grpc.reflection.v1.{method}")
    reflect_alpha: Any = channel.stream_stream(f"/grpc.reflection.v1alpha.{method}")
    unknown: Any = channel.unary_unary("/gatherd.v1.TableService/Nothing")
    whole = health_pb2.HealthCheckRequest().SerializeToString()
    one = health_pb2.HealthCheckRequest(service="tables/items").SerializeToString()
    listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    for call, allowed in (
        (lambda: check_health(whole, metadata=given), ANY_TOKEN),
        (lambda: check_health(one, metadata=given), OF_A_TABLE),
        (lambda: next(watch(whole, metadata=given)), ANY_TOKEN),
        (lambda: next(watch(one, metadata=given)), OF_A_TABLE),
        (lambda: list(reflect(iter([listing]), metadata=given)), ANY_TOKEN),
        (lambda: list(reflect_alpha(iter([listing]), metadata=given)), ANY_TOKEN),
        (lambda: unknown(b"", metadata=given), ANY_TOKEN),
    ):
        check_code(failure(call), caller, allowed)


def test_who_maynt_know_a_table_learns_no_name(guarded: Guarded, http: httpx.Client) -> None:
    reader = header(guarded, "reader")
    listed = http.get("/v1/tables", headers=reader).json()["tables"]
    assert [table["name"] for table in listed] == ["items"]
    for method, path, body in (
        ("get", f"/v1/tables/{TABLE}", None),
        ("post", f"/v1/tables/{TABLE}:lookup", _IDS),
        ("post", f"/v1/tables/{TABLE}:lookupBags", {"ids": [[1]]}),
    ):
        text = http.request(method, path, json=body, headers=reader).text
        assert "TABLE_NOT_FOUND" in text
        assert "users" not in text
    text = http.post(
        f"/v1/tables/{TABLE}:scatterAdd", json=_ROWS, headers=header(guarded, "updater")
    ).text
    assert "TABLE_NOT_FOUND" in text
    assert "users" not in text
    ready = http.get("/readyz").json()
    assert (ready["tables"], ready["refused"]) == (0, [])


@pytest.mark.parametrize(
    "value", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer,", "x", "Bearer " + "y" * 600]
)
def test_what_isnt_a_bearer_token_is_refused(value: str, http: httpx.Client) -> None:
    response = http.get("/v1/tables", headers={"Authorization": value})
    assert response.status_code == 401
    assert response.json()["reason"] == "UNAUTHENTICATED"


def test_two_headers_are_refused(guarded: Guarded, http: httpx.Client) -> None:
    both = [("Authorization", f"Bearer {guarded.tokens[one]}") for one in ("reader", "admin")]
    assert http.get("/v1/tables", headers=both).status_code == 401


def test_bearer_is_written_in_any_case(guarded: Guarded, http: httpx.Client) -> None:
    token = guarded.tokens["reader"]
    for scheme in ("bearer", "BEARER"):
        given = {"Authorization": f"{scheme} {token}"}
        assert http.get("/v1/tables", headers=given).status_code == 200
