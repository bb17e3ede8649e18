"""Headers that callers add go out with every request, on every wire."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gatherd
from client.clients import WORDS
from client.fakes import FakeService
from gatherd import Batching, Client
from gatherd.errors import InvalidArgument, Unavailable

ASK: tuple[Callable[[Any], Any], ...] = (
    lambda client: client.lookup("words", [1, 2]),
    lambda client: client.lookup("words", [1, 2], missing="zero"),
    lambda client: client.lookup_many({"words": [1], "items": [2]}),
    lambda client: client.tables(),
)


def test_a_clients_headers_are_on_every_request(
    make: Any, server: str, service: FakeService
) -> None:
    with make(server, headers={"X-Tenant": "blue", "traceparent": "00-1"}, token="t0k") as client:
        for _ in range(3):
            for ask in ASK:
                ask(client)
    assert len(service.headers) >= 3 * len(ASK)
    for headers in service.headers:
        assert headers["x-tenant"] == "blue"
        assert headers["traceparent"] == "00-1"
        assert headers["authorization"] == "Bearer t0k"


def test_every_request_says_what_sent_it(make: Any, server: str, service: FakeService) -> None:
    with make(server) as client:
        for ask in ASK:
            ask(client)
    for headers in service.headers:
        assert headers["user-agent"].startswith(f"gatherd/{gatherd.__version__} python/3.")


def test_a_blocks_headers_are_on_its_requests_alone(
    make: Any, server: str, service: FakeService
) -> None:
    ids = np.array([3, 4])
    with make(server, headers={"x-tenant": "blue", "x-kept": "1"}) as client:
        for _ in range(3):  # the third time nothing is new to the client
            client.lookup("words", ids)
        with gatherd.request_headers({"X-Request-Id": "outer", "X-Tenant": "red"}):
            client.lookup("words", ids)
            with gatherd.request_headers({"x-request-id": "inner"}):
                client.lookup_many({"words": ids})
            client.lookup("words", ids)
        rows = client.lookup("words", ids)
    np.testing.assert_array_equal(rows, WORDS[ids])
    sent = [(one.get("x-request-id"), one["x-tenant"]) for one in service.headers]
    assert sent[-5:] == [
        (None, "blue"), ("outer", "red"), ("inner", "red"), ("outer", "red"), (None, "blue"),
    ]  # fmt: skip
    assert {one["x-kept"] for one in service.headers} == {"1"}


def test_retries_keep_their_request_id(make: Any, server: str, service: FakeService) -> None:
    with make(server) as client, gatherd.request_headers({"x-request-id": "again"}):
        client.lookup("words", [1])
        service.headers.clear()
        service.failures = [Unavailable("not now")]
        client.lookup("words", [1])
    assert [one["x-request-id"] for one in service.headers] == ["again", "again"]


def test_a_lookup_in_a_block_is_not_merged_with_others(
    make: Any, server: str, service: FakeService
) -> None:
    with make(server, batching=Batching()) as client:
        with gatherd.request_headers({"x-request-id": "mine"}):
            client.lookup("words", [1])
        assert service.headers[-1]["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Authorization": "Bearer x"}, "'authorization' is the client's own to set"),
        ({"Content-Length": "1"}, "the client's own"),
        ({"Transfer-Encoding": "chunked"}, "the client's own"),
        ({"grpc-timeout": "1"}, "the client's own"),
        ({"Connect-Timeout-Ms": "1"}, "the client's own"),
        ({"x y": "1"}, "can't be a header's name"),
        ({"x:": "1"}, "can't be a header's name"),
        ({"x-bin": "1"}, "can't be a header's name"),
        ({"": "1"}, "can't be a header's name"),
        ({"x": "a\r\nHost: b"}, "isn't visible ASCII"),
        ({"x": "a\n"}, "isn't visible ASCII"),
        ({"x": "ü"}, "isn't visible ASCII"),
        ({"x": ""}, "isn't visible ASCII"),
        ({"x": 1}, "are str"),
        ([("x", "1")], "a mapping"),
        ({f"x{number}": "1" for number in range(33)}, "33 headers"),
        ({"x": "1" * 9000}, "9001 bytes"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(headers: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Client("http://127.0.0.1:1", headers=headers)
    with pytest.raises(InvalidArgument, match=says), gatherd.request_headers(headers):
        pass
