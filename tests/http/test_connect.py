import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from connectrpc.client import ConnectClientSync
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from hypothesis import given
from hypothesis import strategies as st

from gatherd_proto.v1 import embedding_pb2, status_pb2, table_pb2, tensor_pb2
from support.small_engine import REFUSED, SmallEngine, lookup_request, vectors_of

PROTO = "application/proto"
JSON = "application/json"
LOOKUP = "/gatherd.v1.EmbeddingService/Lookup"


def call(ask: Any, message: Any, path: str = LOOKUP, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(
        "POST",
        path,
        content=message if isinstance(message, bytes) else message.SerializeToString(),
        headers={"Content-Type": PROTO, **named},
    )


def error(response: Any, status: int, code: str, reason: str) -> str:
    """The message of Connect's error JSON, once it is known to be whole."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == JSON
    body = response.json()
    assert body["code"] == code
    detail = body["details"][0]
    assert detail["type"] == "google.rpc.ErrorInfo"
    assert "=" not in detail["value"]
    raw = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
    info = status_pb2.ErrorInfo.FromString(raw)
    assert info.reason == reason
    assert info.domain == "gatherd"
    assert detail["debug"] == {
        "reason": reason, "domain": "gatherd", "metadata": dict(info.metadata),
    }  # fmt: skip
    message: str = body["message"]
    return message


# A real Connect client


@pytest.fixture(params=["proto", "json"])
def peer(request: pytest.FixtureRequest, url: str) -> Any:
    codec = {"proto": google_protobuf_binary_codec, "json": google_protobuf_json_codec}
    return ConnectClientSync(url, codec=codec[request.param](), send_compression=None)


def invoke(peer: Any, name: str, request: Any, reply: Any, **options: Any) -> Any:
    service = "TableService" if "Table" in name else "EmbeddingService"
    method = MethodInfo(
        name=name,
        service_name=f"gatherd.v1.{service}",
        input=type(request),
        output=reply,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.UNARY,
    )
    return peer.execute_unary(request=request, method=method, **options)


@pytest.mark.parametrize("ids", [7, [], [[4], [20]], list(range(2000))])
def test_a_connect_client_looks_up(peer: Any, small: SmallEngine, ids: Any) -> None:
    request = lookup_request("words", np.asarray(ids, np.int32))
    reply = invoke(peer, "Lookup", request, embedding_pb2.LookupResponse, timeout_ms=60_000)
    assert reply.version == 1
    assert reply.status == b""
    np.testing.assert_array_equal(vectors_of(reply), small.rows["words"][np.asarray(ids, np.int32)])


def test_a_connect_client_looks_many_tables_up(peer: Any, small: SmallEngine) -> None:
    request = embedding_pb2.LookupManyRequest(
        lookups=[
            lookup_request("words", [[1, 2]]),
            lookup_request("half", [3, -1], missing=embedding_pb2.MISSING_ZERO),
        ]
    )
    reply = invoke(peer, "LookupMany", request, embedding_pb2.LookupManyResponse)
    np.testing.assert_array_equal(vectors_of(reply.lookups[0]), small.rows["words"][[[1, 2]]])
    assert reply.lookups[1].status == b"\0\1"
    np.testing.assert_array_equal(
        vectors_of(reply.lookups[1]), [small.rows["half"][3], np.zeros(5)]
    )


def test_a_connect_client_reads_about_tables(peer: Any) -> None:
    listed = invoke(peer, "ListTables", table_pb2.ListTablesRequest(), table_pb2.ListTablesResponse)
    assert {table.name: table.rows for table in listed.tables}["words"] == 5000
    assert listed.limits.ids_max == 100_000
    one = invoke(
        peer, "GetTable", table_pb2.GetTableRequest(table="half"), table_pb2.GetTableResponse
    )
    assert one.table.dtype == tensor_pb2.DTYPE_FLOAT16
    assert one.limits == listed.limits


def test_a_connect_client_reads_errors(peer: Any) -> None:
    request = lookup_request("words", [5, 5000])
    with pytest.raises(ConnectError) as raised:
        invoke(peer, "Lookup", request, embedding_pb2.LookupResponse)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert "ids[1]=5000" in raised.value.message
    info, wrong = [
        kind.FromString(detail.message_bytes)
        for kind, detail in zip((ErrorInfo, BadRequest), raised.value.details, strict=True)
    ]
    assert info.reason == "ID_OUT_OF_RANGE"
    assert info.metadata["table"] == "words"
    assert [violation.field for violation in wrong.field_violations] == ["ids[1]"]


def test_an_unknown_procedure_is_unimplemented_to_a_client(peer: Any) -> None:
    with pytest.raises(ConnectError) as raised:
        invoke(peer, "Nope", lookup_request("words", [1]), embedding_pb2.LookupResponse)
    assert raised.value.code is Code.UNIMPLEMENTED


# The protocol, message by message


@given(
    st.sampled_from([(), (0,), (1,), (3,), (2, 0), (2, 1), (2, 3, 2), (300, 9)]),
    st.sampled_from(["words", "half", "odd"]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 2, 3]),
)
def test_frames_are_what_protobuf_itself_writes(
    ask: Any, shape: tuple[int, ...], table: str, dtype: int, missing: int
) -> None:
    ids = np.zeros(shape, np.int64)
    response = call(ask, lookup_request(table, ids, dtype=dtype, missing=missing))
    reply = embedding_pb2.LookupResponse.FromString(response.content)
    assert tuple(reply.vectors.shape[:-1]) == shape
    assert len(reply.status) == (ids.size if missing > 1 else 0)
    # Written by protobuf again no byte differs: nothing unknown, nothing out of order.
    reply.DiscardUnknownFields()
    assert reply.SerializeToString(deterministic=True) == response.content


@pytest.mark.parametrize(
    ("message", "reason", "says"),
    [
        (b"\xff\xff\xff", "MALFORMED_REQUEST", "gatherd.v1.LookupRequest in protobuf"),
        (b"\x0a\x02\xff\xfe", "MALFORMED_REQUEST", "protobuf"),
        (lookup_request("words", [1]).SerializeToString()[:-1], "MALFORMED_REQUEST", "protobuf"),
        (lookup_request("words", [-1]), "ID_OUT_OF_RANGE", "ids[0]=-1"),
        (lookup_request("words", np.array([2**63], np.uint64)), "ID_OUT_OF_RANGE", "ids[0]="),
        (lookup_request("words", np.array([1.0], np.float32)), "INVALID_ARGUMENT", "DTYPE_FLOAT32"),
        (lookup_request("words", [1], dtype=4), "INVALID_ARGUMENT", "DTYPE_FLOAT64"),
        (lookup_request("words", [1], dtype=99), "INVALID_ARGUMENT", "99"),
        (lookup_request("words", [1], missing=9), "INVALID_ARGUMENT", "missing policy 9"),
    ],
)
def test_wrong_messages_are_named(ask: Any, message: Any, reason: str, says: str) -> None:
    assert says in error(call(ask, message), 400, "invalid_argument", reason)


@pytest.mark.parametrize("shape", [[2], [-1], [2**62, 4], [1] * 33])
def test_a_shape_that_is_not_the_bytes_is_named(ask: Any, shape: list[int]) -> None:
    request = lookup_request("words", [1])
    del request.ids.shape[:]
    request.ids.shape.extend(shape)
    error(call(ask, request), 400, "invalid_argument", "INVALID_ARGUMENT")


def test_not_found_and_refused(ask: Any) -> None:
    error(call(ask, lookup_request("nope", [1])), 404, "not_found", "TABLE_NOT_FOUND")
    error(call(ask, lookup_request("words", [1], version=9)), 404, "not_found", "VERSION_NOT_FOUND")
    refused = call(ask, lookup_request(REFUSED, [1]))
    error(refused, 400, "failed_precondition", "TABLE_REFUSED")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"[[]]",
        b'"x"',
        b"null",
        b"\xff",
        b'{"table": 1}',
        b'{"tabel": "words"}',
        b'{"table": "words", "table": "words"}',
        b'{"ids": {"data": 7}}',
        b'{"ids": {"shape": ["x"]}}',
        b'{"ids": {"shape": 1}}',
        b'{"ids": {"dtype": "DTYPE_NONE"}}',
        b'{"version": -1}',
        b'{"version": 1.5}',
        b"[" * 100_000,
        b'{"ids": ' * 50_000,
        b'{"version": ' + b"9" * 5000 + b"}",
        b'{"table": "\\ud800"}',
    ],
)
def test_wrong_json_is_malformed(ask: Any, body: bytes) -> None:
    response = ask("POST", LOOKUP, content=body, headers={"Content-Type": JSON})
    error(response, 400, "invalid_argument", "MALFORMED_REQUEST")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["table", "ids", "dtype", "shape", "data", "version", "missing"]),
                inner,
            )
        ),
    )
)
def test_no_json_makes_the_server_stumble(ask: Any, body: Any) -> None:
    response = ask("POST", LOOKUP, content=json.dumps(body), headers={"Content-Type": JSON})
    assert response.status_code in (200, 400, 404)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_server_stumble(ask: Any, body: bytes) -> None:
    assert call(ask, body).status_code in (200, 400, 404)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/grpc",
        "application/connect+proto",
        "application/json; charset=latin-1",
    ],
)
def test_other_media_types_are_415_with_accept_post(ask: Any, content_type: str) -> None:
    response = call(ask, lookup_request("words", [1]), Content_Type=content_type)
    error(response, 415, "invalid_argument", "MALFORMED_REQUEST")
    assert response.headers["accept-post"] == f"{PROTO}, {JSON}"


@pytest.mark.parametrize("content_type", [PROTO, "Application/Proto", f"{PROTO}; charset=utf-8"])
def test_media_types_are_read_as_http_has_them(ask: Any, content_type: str) -> None:
    response = call(ask, lookup_request("words", [1]), Content_Type=content_type)
    assert response.status_code == 200
    assert response.headers["content-type"] == PROTO


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_methods_are_405_with_allow(ask: Any, method: str) -> None:
    response = ask(method, LOOKUP)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


def test_what_is_not_unary_here_is_unimplemented(ask: Any) -> None:
    for path in ("/gatherd.v1.EmbeddingService/LookupStream", "/gatherd.v1.TableService/Nope"):
        error(call(ask, b"", path), 404, "unimplemented", "UNIMPLEMENTED")


def test_compression_is_unimplemented_and_says_what_is_taken(ask: Any) -> None:
    response = call(ask, b"", Content_Encoding="br")
    assert "identity, gzip" in error(response, 501, "unimplemented", "UNIMPLEMENTED")
    assert response.headers["accept-encoding"] == "identity, gzip"
    assert call(ask, lookup_request("words", [1]), Content_Encoding="identity").status_code == 200


def test_a_gzipped_request_is_read_and_bounded(ask: Any) -> None:
    body = lookup_request("words", [1]).SerializeToString()
    plain = call(ask, body)
    assert call(ask, gzip.compress(body), Content_Encoding="gzip").content == plain.content
    for damaged in (body, gzip.compress(body)[:-3], gzip.compress(body) + b"x"):
        response = call(ask, damaged, Content_Encoding="gzip")
        error(response, 400, "invalid_argument", "MALFORMED_REQUEST")
    bomb = gzip.compress(bytes(64 << 20))
    response = call(ask, bomb, Content_Encoding="gzip")
    error(response, 429, "resource_exhausted", "LIMIT_EXCEEDED")


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "", "12345678901", "1_0"])
def test_timeouts_that_are_none_are_refused(ask: Any, value: str) -> None:
    response = call(ask, lookup_request("words", [1]), Connect_Timeout_Ms=value)
    error(response, 400, "invalid_argument", "INVALID_ARGUMENT")


def test_a_deadline_that_has_passed(ask: Any) -> None:
    response = call(ask, lookup_request("words", [1]), Connect_Timeout_Ms="0")
    error(response, 504, "deadline_exceeded", "DEADLINE_EXCEEDED")


def test_a_deadline_that_passes_while_the_body_is_awaited(ask: Any, small: SmallEngine) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.Event().wait()

    response = ask(
        "POST", LOOKUP, content=never(), headers={"Content-Type": PROTO, "Connect-Timeout-Ms": "5"}
    )
    error(response, 504, "deadline_exceeded", "DEADLINE_EXCEEDED")
    assert small.admission.in_flight == 0


def test_a_timeout_that_is_long_enough_changes_nothing(ask: Any) -> None:
    ids = np.zeros(3000, np.int64)  # long enough for a thread of its own
    response = call(ask, lookup_request("words", ids), Connect_Timeout_Ms="9999999999")
    assert response.status_code == 200


def test_the_protocol_version_is_1(ask: Any) -> None:
    request = lookup_request("words", [1])
    assert call(ask, request, Connect_Protocol_Version="1").status_code == 200
    response = call(ask, request, Connect_Protocol_Version="2")
    error(response, 400, "invalid_argument", "INVALID_ARGUMENT")
