"""The pure parts: packing lookups into requests, retrying calls, and classing errors."""

import base64
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatherd import (
    GatherdError,
    IdOutOfRange,
    InternalError,
    InvalidArgument,
    LimitExceeded,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from gatherd._plans.chunks import Cost, plan_requests
from gatherd._plans.retry import (
    LAST_TRY_SECONDS,
    PAUSE_SECONDS_FIRST,
    PAUSE_SECONDS_MAX,
    parse_retry_after,
    pause_seconds,
)
from gatherd._requests.lookups import Limits
from gatherd._wire.errors import CLASS_BY_CODE, from_grpc, from_http
from gatherd.errors import RetryableError
from gatherd_proto.v1 import status_pb2
from support.error_classes import CLIENT_CLASSES


def _cost(lengths: list[int] | int, **each: int) -> Cost:
    if isinstance(lengths, int):
        return Cost(lengths, starts=None, **each)
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    return Cost(len(lengths), starts=starts, **each)


COSTS = st.builds(
    _cost,
    st.integers(0, 300) | st.lists(st.integers(0, 12), max_size=80),
    request_bytes=st.integers(1, 80),
    request_bytes_per_vector=st.sampled_from([0, 8]),
    request_bytes_per_id=st.sampled_from([1, 2, 4, 8]),
    reply_bytes=st.integers(1, 80),
    reply_bytes_per_vector=st.integers(0, 50),
    reply_bytes_per_id=st.integers(0, 1),
)
LIMITS = st.builds(
    Limits,
    request_bytes_max=st.sampled_from([0, 100, 500, 5000]),
    reply_bytes_max=st.sampled_from([0, 130, 500, 5000]),
    ids_max=st.sampled_from([0, 1, 7, 100]),
    tables_max=st.sampled_from([0, 1, 2, 5]),
)


@given(st.lists(COSTS, min_size=1, max_size=6), LIMITS)
def test_requests_cover_every_vector_once_in_order_and_within_the_limits(
    costs: list[Cost], limits: Limits
) -> None:
    requests = plan_requests(costs, limits)
    pieces = [piece for request in requests for piece in request]
    for index, cost in enumerate(costs):
        runs = [(piece.start, piece.stop) for piece in pieces if piece.lookup == index]
        assert runs[0][0] == 0
        assert runs[-1][1] == cost.vectors
        assert all(before[1] == after[0] for before, after in pairwise(runs))
        assert all(start < stop for start, stop in runs) or cost.vectors == 0
    assert [piece.lookup for piece in pieces] == sorted(piece.lookup for piece in pieces)
    for request in requests:
        assert len({piece.lookup for piece in request}) == len(request)
        counts = [
            (cost, piece.stop - piece.start, cost.ids(piece.start, piece.stop))
            for piece in request
            for cost in (costs[piece.lookup],)
        ]
        sent = sum(
            cost.request_bytes + n * cost.request_bytes_per_vector + ids * cost.request_bytes_per_id
            for cost, n, ids in counts
        )
        answered = sum(
            cost.reply_bytes + n * cost.reply_bytes_per_vector + ids * cost.reply_bytes_per_id
            for cost, n, ids in counts
        )
        within = (
            sent <= (limits.request_bytes_max or sent)
            and answered <= (limits.reply_bytes_max or answered)
            and sum(max(n, ids) for _, n, ids in counts) <= (limits.ids_max or 10**6)
            and len(request) <= (limits.tables_max or 10**6)
        )
        # One id or bag (or none) that is too large alone is sent for the server to refuse.
        assert within or (len(request) == 1 and counts[0][1] <= 1)


def test_whole_lookups_share_a_request_while_they_fit() -> None:
    costs = [Cost(10, 20, 0, 8, 20, 4, 0)] * 5
    limits = Limits(request_bytes_max=250, reply_bytes_max=0, ids_max=0, tables_max=0)
    assert [len(request) for request in plan_requests(costs, limits)] == [2, 2, 1]
    assert len(plan_requests(costs, Limits(0, 0, 0, 0))) == 1


def test_bags_are_split_between_bags() -> None:
    cost = _cost(
        [3, 0, 2, 9, 1, 1, 0],
        request_bytes=0, request_bytes_per_vector=0, request_bytes_per_id=0,
        reply_bytes=0, reply_bytes_per_vector=0, reply_bytes_per_id=0,
    )  # fmt: skip
    requests = plan_requests([cost], Limits(0, 0, ids_max=5, tables_max=0))
    assert [(piece.start, piece.stop) for (piece,) in requests] == [(0, 3), (3, 4), (4, 7)]


@given(st.integers(0, 5000), st.floats(0, 1, exclude_max=True))
def test_pauses_are_drawn_between_nothing_and_what_grows_to_a_maximum(n: int, drawn: float) -> None:
    full = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_FIRST * 2 ** min(n, 30))
    assert pause_seconds(n, Unavailable("x"), 1e9, lambda: drawn) == pytest.approx(drawn * full)


@given(st.integers(0, 50), st.floats(0, 1, exclude_max=True), st.floats(0.001, 100))
def test_a_hint_is_a_lower_bound_and_the_deadline_an_upper_one(
    n: int, drawn: float, left: float
) -> None:
    hinted = Overloaded("x", retry_after_seconds=3.0)
    pause = pause_seconds(n, hinted, left, lambda: drawn)
    if left <= 3:
        assert pause is None
    else:
        assert pause is not None
        assert 3 <= pause < left
    unhinted = pause_seconds(n, Unavailable("x"), left, lambda: drawn)
    if left <= LAST_TRY_SECONDS:
        assert unhinted is None
    else:
        assert unhinted is not None
        assert unhinted < left
    assert pause_seconds(n, Unavailable("x"), -left, lambda: drawn) is None


@pytest.mark.parametrize("timeout", [0.2, 1, 10, 60])
@pytest.mark.parametrize("seed", range(20))
def test_tries_fill_the_timeout_and_no_more(timeout: float, seed: int) -> None:
    now, tries, uniform = 0.0, 1, Random(seed).random
    while True:
        pause = pause_seconds(tries - 1, Unavailable("x"), timeout - now, uniform)
        if pause is None:
            break
        now += pause
        tries += 1
    assert timeout - LAST_TRY_SECONDS <= now < timeout
    # The doubling pauses, then one a second on average (by chance a few more), then the halvings.
    assert tries <= 6 + 3 * timeout + 12


def test_retry_after() -> None:
    assert parse_retry_after("1.5") == 1.5
    assert parse_retry_after("0") == 0
    for text in (None, "", "-1", "nan", "inf", "soon", "Wed, 99 Oct 2026 07:28:00 GMT"):
        assert parse_retry_after(text) is None
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert parse_retry_after(soon) == pytest.approx(100, abs=5)


def info_value(reason: str, domain: str = "gatherd") -> str:
    info = status_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"k": "v"})
    return base64.b64encode(info.SerializeToString()).decode()


def connect_error(code: str, *details: object, status: int = 400) -> GatherdError:
    body = json.dumps({"code": code, "message": "said", "details": details}).encode()
    return from_http("http://h", status, "application/json", body, 2.5)


@pytest.mark.parametrize("cls", CLIENT_CLASSES)
def test_every_class_comes_back_from_its_reason(cls: type[GatherdError]) -> None:
    for value in (info_value(cls.reason), info_value(cls.reason).rstrip("=")):
        error = connect_error("internal", {"type": "google.rpc.ErrorInfo", "value": value})
        assert type(error) is cls
        assert (error.message, error.metadata) == ("said", {"k": "v"})
        if isinstance(error, RetryableError):
            assert error.retry_after_seconds == 2.5
    status = status_pb2.Status(message="said")
    detail = status.details.add()
    detail.type_url = "type.googleapis.com/google.rpc.ErrorInfo"
    detail.value = base64.b64decode(info_value(cls.reason))
    error = from_grpc("grpc://h", "unknown", "said", status.SerializeToString(), None)
    assert type(error) is cls
    assert error.message == "said"


def test_without_a_known_reason_the_code_decides() -> None:
    for code, cls in CLASS_BY_CODE.items():
        for details in (
            [],
            [{"type": "google.rpc.ErrorInfo", "value": info_value("OF_THE_FUTURE")}],
            [{"type": "google.rpc.ErrorInfo", "value": info_value("INTERNAL", "other.org")}],
            [{"type": "google.rpc.ErrorInfo", "value": "&&&"}, 7, None, {"type": 1}],
        ):
            assert type(connect_error(code, *details)) is cls
        assert type(from_grpc("grpc://h", code, "m", b"\xff\xff", None)) is cls


def test_without_a_code_the_http_status_decides() -> None:
    """If a proxy says that it lost the server, or gave up, the outcome is unknown."""
    lost = (400, 408, 425, 429, 499, 500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 530, 599)
    expected = {
        401: Unauthenticated, 403: PermissionDenied, 404: Unimplemented, 413: LimitExceeded,
        302: InternalError, 418: InternalError, 501: InternalError, 505: InternalError,
        **dict.fromkeys(lost, Unavailable),
    }  # fmt: skip
    for status, cls in expected.items():
        for content_type, body in (
            ("text/html", b"<h1>no</h1>"),
            ("application/json", b"{"),
            ("application/json", b"[]"),
            ("application/json", b'{"code": 7}'),
            ("", b"\xff"),
        ):
            error = from_http("http://h", status, content_type, body, None)
            assert type(error) is cls
            assert str(status) in error.message
            assert (error.metadata.get("outcome") == "unknown") == (
                cls in (Unavailable, InternalError)
            )
        # As grpc describes the answer of a proxy in front of a gRPC server; grpc's own code doesn't
        # matter.
        for code in ("unknown", "internal", "unavailable", "unauthenticated", "unimplemented"):
            told = f"Received http2 header with status: {status}"
            error = from_grpc("grpc://h", code, told, None, 4.0)
            assert type(error) is cls
            assert str(status) in error.message
            if isinstance(error, RetryableError):
                assert error.retry_after_seconds == 4.0


def test_a_problem_body_of_ours_is_no_proxys() -> None:
    """The HTTP port's answer before it knows that Connect is spoken."""
    for cls in CLIENT_CLASSES:
        body = json.dumps({"status": 400, "detail": "said", "reason": cls.reason}).encode()
        error = from_http("http://h", 400, "application/problem+json", body, None)
        assert type(error) is cls
        assert error.message == "said"
    foreign = from_http("http://h", 400, "application/problem+json", b'{"detail": "no"}', None)
    assert type(foreign) is Unavailable


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("internal", "Received RST_STREAM with error code 2"),
        ("unknown", "Stream removed"),
        ("unavailable", "Socket closed"),
        ("canceled", "Received RST_STREAM with error code 8"),
    ],
)
def test_a_stream_that_was_lost_is_unavailable(code: str, told: str) -> None:
    error = from_grpc("grpc://h", code, told, None, None)
    assert type(error) is Unavailable
    assert error.metadata == {"outcome": "unknown"}


def test_a_message_over_grpcs_own_limit_is_no_overload() -> None:
    text = "SERVER: Received message larger than max (9 vs. 4)"
    assert type(from_grpc("grpc://h", "resource_exhausted", text, None, None)) is LimitExceeded


def test_errors_are_what_python_callers_catch() -> None:
    assert issubclass(IdOutOfRange, IndexError)
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(Unavailable, ConnectionError)
