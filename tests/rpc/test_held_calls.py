"""Calls that are begun and not gone on with: they keep nobody else from being answered."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from gatherd_proto.v1 import embedding_pb2
from gatherd_server.rpc.server import ConnectionBounds, RpcServer
from support.server import wait_until
from support.small_engine import SmallEngine, lookup_request, small_engine

METHOD = "/gatherd.v1.EmbeddingService/Lookup"
STREAM = "/gatherd.v1.EmbeddingService/LookupStream"
HEALTH = "/grpc.health.v1.Health/Check"
# The stubs know less of channels than there is.
Connect = Callable[[], Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    folder: Path = tmp_path_factory.mktemp("held")
    return small_engine(folder, requests_in_flight_max=256)


@pytest.fixture
def serve(small: SmallEngine) -> Iterator[Callable[[ConnectionBounds], Connect]]:
    """Starts a server of few threads; gives what makes connections to it, each a new one."""
    with ExitStack() as stack:

        def start(bounds: ConnectionBounds) -> Connect:
            server = RpcServer(
                small.engine,
                small.admission,
                address="127.0.0.1:0",
                threads=4,
                streams_max=32,
                bounds=bounds,
                reflection=False,
            )
            port = server.start()
            server.set_serving(True)
            stack.callback(server.stop, 0)

            def connect() -> Any:
                options = [("grpc.use_local_subchannel_pool", 1)]
                return stack.enter_context(
                    grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
                )

            return connect

        yield start


class Held:
    """Calls whose headers are sent and nothing after them."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self.calls: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self.calls:
            call.cancel()
        self._end.set()

    def _only(self, *bodies: bytes) -> Iterator[bytes]:
        yield from bodies
        self._end.wait()

    def call(self, channel: Any, method: str) -> None:
        self.calls.append(channel.stream_unary(method).future(self._only()))

    def stream(self, channel: Any, body: bytes) -> None:
        self.calls.append(channel.stream_stream(STREAM)(self._only(body)))


def is_answered(channel: Any) -> bool:
    body = lookup_request("words", np.array([3])).SerializeToString()
    reply = channel.unary_unary(METHOD)(body, timeout=10)
    status = (
        health_pb2_grpc.HealthStub(channel)
        .Check(health_pb2.HealthCheckRequest(), timeout=10)
        .status
    )
    return bool(embedding_pb2.LookupResponse.FromString(reply).vectors.data) and (
        status == health_pb2.HealthCheckResponse.SERVING
    )


@pytest.mark.parametrize("method", [METHOD, HEALTH, "/gatherd.v1.TableService/ListTables"])
def test_calls_without_their_message_keep_nobody_waiting(
    method: str, serve: Callable[[ConnectionBounds], Connect]
) -> None:
    connect = serve(ConnectionBounds())
    with Held() as held:
        for _ in range(2):
            channel = connect()
            for _ in range(120):
                held.call(channel, method)
        other = connect()
        for _ in range(20):
            assert is_answered(other)


def test_a_message_that_doesnt_come_is_waited_for_so_long(
    serve: Callable[[ConnectionBounds], Connect],
) -> None:
    connect = serve(ConnectionBounds(message_seconds=1))
    with Held() as held:
        channel = connect()
        for method in (METHOD, HEALTH):
            held.call(channel, method)
        wait_until(lambda: all(call.done() for call in held.calls), "they are ended", 10)
        assert {call.code() for call in held.calls} == {grpc.StatusCode.CANCELLED}
        assert is_answered(channel)


def test_a_call_that_ends_without_a_message_is_told(
    serve: Callable[[ConnectionBounds], Connect],
) -> None:
    channel = serve(ConnectionBounds())()
    with pytest.raises(grpc.RpcError) as failed:
        channel.stream_unary(METHOD)(iter(()), timeout=10)
    error: Any = failed.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "exactly one request message" in error.details()


def test_streams_of_one_connection_leave_room_for_others(
    serve: Callable[[ConnectionBounds], Connect],
) -> None:
    connect = serve(ConnectionBounds(streams_max=3))
    request = embedding_pb2.LookupStreamRequest(id=1, lookup=lookup_request("words", np.array([3])))
    with Held() as held:
        channel = connect()
        for _ in range(3):
            held.stream(channel, request.SerializeToString())
            next(held.calls[-1])
        with pytest.raises(grpc.RpcError) as failed:
            next(channel.stream_stream(STREAM)(iter(()), timeout=10))
        error: Any = failed.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the connection has 3 streams open" in error.details()
        replies = connect().stream_stream(STREAM)(iter([request.SerializeToString()]), timeout=10)
        assert embedding_pb2.LookupStreamResponse.FromString(next(replies)).id == 1
