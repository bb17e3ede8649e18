"""The details of errors, decoded with google.rpc's own messages, over gRPC and Connect."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from gatherd.errors import (
    GatherdError,
    IdOutOfRange,
    InternalError,
    NonfiniteValues,
    Overloaded,
    Unavailable,
)
from gatherd_server.engine.updates import check_push
from gatherd_server.http.errors import connect_error
from gatherd_server.rpc.errors import status_message
from gatherd_server.types import Push, TableUpdate, UpdateOp
from support.small_engine import LIMITS

# What grpc and others take of a call's trailers together.
TRAILERS_BYTES_MAX = 8192
# HTTP/2 counts so much for a trailer, beside its name and value.
TRAILER_BYTES = 32


def over_grpc(error: GatherdError, request_id: str = "") -> list[Message]:
    told = status_pb2.Status.FromString(status_message(error, request_id).SerializeToString())
    return [unpacked(detail) for detail in told.details]


def over_connect(error: GatherdError) -> list[Message]:
    told = json.loads(bytes(connect_error(error).body))
    found = []
    for detail in told["details"]:
        raw = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        url = "type.googleapis.com/" + detail["type"]
        message = unpacked(AnyMessage(type_url=url, value=raw))
        assert ParseDict(detail["debug"], type(message)()) == message
        found.append(message)
    return found


def unpacked(detail: AnyMessage) -> Message:
    package, _, name = detail.TypeName().rpartition(".")
    assert package == "google.rpc"
    message: Message = getattr(error_details_pb2, name)()
    assert detail.Unpack(message)
    return message


@pytest.fixture(params=[over_grpc, over_connect], ids=lambda wire: wire.__name__)
def details(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_error_info_has_reason_and_facts(details: Any) -> None:
    (info,) = details(InternalError("broken", {"a": "b"}))
    expected = error_details_pb2.ErrorInfo(reason="INTERNAL", domain="gatherd", metadata={"a": "b"})
    assert info == expected


def test_over_grpc_the_requests_id_is_last() -> None:
    _, request = over_grpc(InternalError("broken"), "of-this-request")
    assert request == error_details_pb2.RequestInfo(request_id="of-this-request")


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(Overloaded("full"), 1.0), (Unavailable("starts", None, 0.25), 0.25)],
)
def test_retry_info_says_when_to_try_again(
    details: Any, error: GatherdError, seconds: float
) -> None:
    _, retry = details(error)
    assert retry.retry_delay.ToTimedelta().total_seconds() == seconds


def test_bad_request_names_each_place(details: Any) -> None:
    places = {"ids[3]": "400021", "ids[1][20]": "-7"}
    error = IdOutOfRange("out of range", {"table": "words", "offenders": "2", **places})
    _, wrong = details(error)
    assert {one.field: one.description for one in wrong.field_violations} == {
        place: f"{value}: id out of range" for place, value in places.items()
    }
    assert {one.reason for one in wrong.field_violations} == {"ID_OUT_OF_RANGE"}


def test_a_single_id_is_a_place(details: Any) -> None:
    _, wrong = details(IdOutOfRange("out of range", {"rows": "3", "ids": "7"}))
    assert [one.field for one in wrong.field_violations] == ["ids"]


def test_an_error_about_no_place_has_no_bad_request(details: Any) -> None:
    told = details(InternalError("broken", {"rows": "3", "ids_max": "7", "limit": "ids[x]"}))
    assert [type(one).__name__ for one in told] == ["ErrorInfo"]


names = st.text(max_size=300) | st.from_regex(r"[a-z_]+(\[[0-9]+\])*", fullmatch=True)


@given(st.text(), st.integers(0, 20_000), st.dictionaries(names, st.text(max_size=3000)), st.text())
def test_an_error_fits_into_trailers(
    text: str, repeats: int, metadata: dict[str, str], more: str
) -> None:
    message = text * repeats + more
    status = status_message(Overloaded(message, metadata, 1 / 3), "i" * 128)
    raw = status.SerializeToString()
    trailers = {
        "grpc-status": 2,
        "grpc-message": 3 * len(status.message.encode()),
        "grpc-status-details-bin": -(-4 * len(raw) // 3),
        "retry-after": 10,
        "x-request-id": 128,
    }
    total = sum(TRAILER_BYTES + len(name) + size for name, size in trailers.items())
    assert total <= TRAILERS_BYTES_MAX


def test_the_places_of_a_large_error_are_cut() -> None:
    places = {f"keys[{index}]": "k" * 120 for index in range(5)}
    wrong: Any = over_grpc(IdOutOfRange("long", places))[1]
    assert 0 < len(wrong.field_violations) < len(places)
    assert wrong.ByteSize() <= 512


def test_values_that_are_not_finite_are_places(details: Any) -> None:
    values = np.zeros((2, 2, 3), np.float32)
    values[0, 1, 2], values[1, 0, 0], values[1, 0, 1] = np.nan, -np.inf, np.inf
    push = Push(UpdateOp.ASSIGN, (TableUpdate("items", np.arange(4).reshape(2, 2), values),))
    with pytest.raises(NonfiniteValues) as raised:
        check_push(push, LIMITS)
    _, wrong = details(raised.value)
    told = {one.field: one.description for one in wrong.field_violations}
    assert told == {
        "values[0][1][2]": "nan: nonfinite values",
        "values[1][0][0]": "-inf: nonfinite values",
    }
