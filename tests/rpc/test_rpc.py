import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RequestInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from gatherd.errors import MalformedRequest
from gatherd_proto.v1 import (
    embedding_pb2,
    embedding_pb2_grpc,
    status_pb2,
    table_pb2,
    table_pb2_grpc,
    tensor_pb2,
)
from gatherd_server.engine.engine import Engine, PreparedLookup
from gatherd_server.errors import AddressInUse, StartError
from gatherd_server.rpc.errors import status_code
from gatherd_server.rpc.server import RpcServer
from gatherd_server.wire.compiled.serving import CompiledAnswers
from support.small_engine import (
    LIMITS,
    REFUSED,
    SmallEngine,
    lookup_request,
    small_engine,
    vectors_of,
)

Code = grpc.StatusCode
LOOKUP = "/gatherd.v1.EmbeddingService/Lookup"
INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return small_engine(tmp_path_factory.mktemp("tables"))


Serve = Callable[..., tuple[RpcServer, grpc.Channel]]


@pytest.fixture
def serve(small: SmallEngine) -> Iterator[Serve]:
    """Starts servers; each with a channel to it."""
    with_stop: list[tuple[RpcServer, grpc.Channel]] = []

    def start(
        served: SmallEngine = small, *, streams_max: int = 2
    ) -> tuple[RpcServer, grpc.Channel]:
        server = RpcServer(
            served.engine,
            served.admission,
            address="127.0.0.1:0",
            threads=4,
            streams_max=streams_max,
            reflection=False,
        )
        port = server.start()
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        with_stop.append((server, channel))
        return with_stop[-1]

    yield start
    for server, channel in with_stop:
        channel.close()
        server.stop(0)


@pytest.fixture(scope="session", params=["compiled", "general"])
def channel(request: pytest.FixtureRequest, small: SmallEngine) -> Iterator[grpc.Channel]:
    """A channel to a server with the compiled answer, and to one without."""
    server = RpcServer(
        small.engine,
        small.admission,
        address="127.0.0.1:0",
        threads=4,
        streams_max=2,
        answers=CompiledAnswers(small.engine) if request.param == "compiled" else None,
        reflection=False,
    )
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.start()}", options=options) as channel:
        yield channel
    server.stop(0)


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> Any:
    return embedding(channel)


def failure(call: Callable[[], Any], code: grpc.StatusCode, reason: str) -> Any:
    """The call's error, once its details are known to be whole."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    assert error.code() is code, error.details()
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == code.value[0]
    assert status.message == error.details()
    detail = status.details[0]
    assert detail.type_url == INFO_URL
    info = status_pb2.ErrorInfo.FromString(detail.value)
    assert info.reason == reason
    assert info.domain == "gatherd"
    if "x-request-id" in trailers:  # a stream's requests have no headers, so no ids
        request = RequestInfo()
        assert status.details[-1].Unpack(request)
        assert request.request_id == trailers["x-request-id"]
    return error


def embedding(channel: grpc.Channel) -> Any:
    return embedding_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]


def tables_of(channel: grpc.Channel) -> Any:
    return table_pb2_grpc.TableServiceStub(channel)  # type: ignore[no-untyped-call]


# Lookups


@pytest.mark.parametrize("ids", [7, [], [[4], [20]], list(range(20_000))])
def test_a_lookup_of_any_shape(stub: Any, small: SmallEngine, ids: Any) -> None:
    array = np.asarray(ids, np.int32) % 5000
    reply = stub.Lookup(lookup_request("words", array))
    assert reply.version == 1
    np.testing.assert_array_equal(vectors_of(reply), small.rows["words"][array])


@given(
    st.lists(st.tuples(st.sampled_from(["words", "half"]), st.integers(1, 3), st.integers(0, 320)))
)
def test_lookups_like_the_one_before_get_their_own_answer(
    stub: Any, small: SmallEngine, asked: list[tuple[str, int, int]]
) -> None:
    for table, size, first in asked:
        rows = small.rows[table]
        ids = np.arange(first, first + size)
        request = lookup_request(table, ids)
        for _ in range(2):
            if first + size > len(rows):
                failure(partial(stub.Lookup, request), Code.INVALID_ARGUMENT, "ID_OUT_OF_RANGE")
            else:
                np.testing.assert_array_equal(vectors_of(stub.Lookup(request)), rows[ids])


def test_calls_at_a_time_get_their_own_answers(stub: Any, small: SmallEngine) -> None:
    """Of lookups of one table and of several, short and long, with and without an error."""

    def ask(turn: int) -> None:
        size = 7000 if turn % 5 == 0 else 1 + turn % 3
        ids = np.arange(turn, turn + size) % 5000
        if turn % 2:
            vectors = vectors_of(stub.Lookup(lookup_request("words", ids)))
        else:
            other = lookup_request("half", [turn])
            lookups = [other, lookup_request("words", ids)]
            reply = stub.LookupMany(embedding_pb2.LookupManyRequest(lookups=lookups))
            np.testing.assert_array_equal(vectors_of(reply.lookups[0])[0], small.rows["half"][turn])
            vectors = vectors_of(reply.lookups[1])
        np.testing.assert_array_equal(vectors, small.rows["words"][ids])
        if turn % 7 == 0:
            with pytest.raises(grpc.RpcError):
                stub.Lookup(lookup_request("words", [5000 + turn]))

    with futures.ThreadPoolExecutor(8) as threads:
        for _ in threads.map(ask, range(120)):
            pass


def test_many_tables_with_a_status(stub: Any, small: SmallEngine) -> None:
    reply = stub.LookupMany(
        embedding_pb2.LookupManyRequest(
            lookups=[
                lookup_request("half", [[1], [300]], missing=embedding_pb2.MISSING_ZERO),
                lookup_request("words", np.uint8(200)),
            ]
        )
    )
    first, second = reply.lookups
    assert first.status == b"\0\1"
    np.testing.assert_array_equal(vectors_of(first)[0, 0], small.rows["half"][1])
    assert not vectors_of(first)[1].any()
    np.testing.assert_array_equal(vectors_of(second), small.rows["words"][200])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["words", "half"]),
            st.sampled_from([(), (0,), (1,), (2, 0), (2, 3), (40, 7)]),
            st.sampled_from([0, 1, 2, 3]),
            st.sampled_from([0, 1, 2, 3]),
        ),
        max_size=3,
    )
)
def test_frames_are_what_protobuf_itself_writes(
    channel: grpc.Channel, lookups: list[tuple[str, tuple[int, ...], int, int]]
) -> None:
    requests = [
        lookup_request(table, np.ones(shape, np.int64), dtype=dtype, missing=missing)
        for table, shape, dtype, missing in lookups
    ]
    lookup_many: Any = channel.unary_unary("/gatherd.v1.EmbeddingService/LookupMany")
    many = lookup_many(embedding_pb2.LookupManyRequest(lookups=requests).SerializeToString())
    read = embedding_pb2.LookupManyResponse.FromString(many)
    assert [tuple(reply.vectors.shape[:-1]) for reply in read.lookups] == [
        shape for _, shape, _, _ in lookups
    ]
    assert _rewritten(read) == many


def _rewritten(message: Any) -> bytes:
    # A copy has no unknown fields, so bytes that protobuf didn't know would be missing from it.
    fresh = type(message)()
    fresh.CopyFrom(message)
    fresh.DiscardUnknownFields()
    return bytes(fresh.SerializeToString(deterministic=True))


def test_tables_tell_what_they_are(channel: grpc.Channel) -> None:
    tables = tables_of(channel)
    listed = tables.ListTables(table_pb2.ListTablesRequest())
    assert [table.name for table in listed.tables] == ["empty", "half", "odd", REFUSED, "words"]
    assert listed.limits.ids_max == 100_000
    one = tables.GetTable(table_pb2.GetTableRequest(table="half"))
    assert (one.table.rows, one.table.dim) == (300, 5)
    assert one.table.dtype == tensor_pb2.DTYPE_FLOAT16
    assert one.limits == listed.limits
    failure(
        lambda: tables.GetTable(table_pb2.GetTableRequest(table="x")),
        Code.NOT_FOUND,
        "TABLE_NOT_FOUND",
    )


# Errors


def test_a_new_leaf_takes_the_code_of_its_parent() -> None:
    class Leaf(MalformedRequest):
        pass

    assert status_code(Leaf("x")) is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (lookup_request("words", [-1]), Code.INVALID_ARGUMENT, "ID_OUT_OF_RANGE"),
        (lookup_request("words", [5000]), Code.INVALID_ARGUMENT, "ID_OUT_OF_RANGE"),
        (
            lookup_request("words", np.array([2**63], np.uint64)),
            Code.INVALID_ARGUMENT,
            "ID_OUT_OF_RANGE",
        ),
        (
            lookup_request("words", np.array([1], np.float32)),
            Code.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
        ),
        (lookup_request("words", [1], dtype=4), Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        (lookup_request("words", [1], missing=7), Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        (lookup_request("words", [1], version=2), Code.NOT_FOUND, "VERSION_NOT_FOUND"),
        (lookup_request("nope", [1]), Code.NOT_FOUND, "TABLE_NOT_FOUND"),
        (lookup_request("ü" * 5000, [1]), Code.NOT_FOUND, "TABLE_NOT_FOUND"),
        (lookup_request(REFUSED, [1]), Code.FAILED_PRECONDITION, "TABLE_REFUSED"),
        (
            lookup_request("words", np.zeros(100_001, np.int8)),
            Code.RESOURCE_EXHAUSTED,
            "LIMIT_EXCEEDED",
        ),
    ],
)
def test_wrong_requests_are_named(
    stub: Any, request_: Any, code: grpc.StatusCode, reason: str
) -> None:
    error = failure(lambda: stub.Lookup(request_), code, reason)
    assert "retry-after" not in dict(error.trailing_metadata())


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x05abc"])
@pytest.mark.parametrize("method", ["Lookup", "LookupMany"])
def test_bytes_that_are_not_protobuf_are_malformed(
    channel: grpc.Channel, method: str, body: bytes
) -> None:
    call: Any = channel.unary_unary(f"/gatherd.v1.EmbeddingService/{method}")
    failure(lambda: call(body), Code.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_a_message_over_the_limit_is_refused_by_grpc(stub: Any) -> None:
    request = lookup_request("words", np.zeros(1 << 18, np.int64))
    with pytest.raises(grpc.RpcError) as raised:
        stub.Lookup(request)
    assert raised.value.code() is Code.RESOURCE_EXHAUSTED


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/gatherd.v1.EmbeddingService/Nope")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"")
    assert raised.value.code() is Code.UNIMPLEMENTED


def test_a_full_server_says_when_to_come_back(serve: Serve, tmp_path: Path) -> None:
    small = small_engine(tmp_path, requests_in_flight_max=1)
    _, channel = serve(small)
    stub = embedding(channel)
    with small.admission.request():
        error = failure(
            lambda: stub.Lookup(lookup_request("words", [1])),
            Code.RESOURCE_EXHAUSTED,
            "OVERLOADED",
        )
        assert dict(error.trailing_metadata())["retry-after"] == "1"
        (answer,) = stub.LookupStream(iter([stream_request(1, "words", [1])]))
        assert answer.error.code == Code.RESOURCE_EXHAUSTED.value[0]
    assert stub.Lookup(lookup_request("words", [1])).version == 1
    assert small.admission.in_flight == 0


class BlockingEngine(Engine):
    """Holds every lookup until it is let go; then it fails in a way nobody foresaw."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.limits = LIMITS

    def prepare(self, lookups: Any) -> PreparedLookup:
        self.entered.release()
        self.let_go.wait()
        raise ZeroDivisionError("a secret")

    def table_states(self) -> dict[str, str]:
        return {}


def test_the_unexpected_is_logged_once_and_answered_with_a_fixed_text(
    serve: Serve, small: SmallEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = BlockingEngine()
    engine.let_go.set()
    _, channel = serve(replace(small, engine=engine))
    stub = embedding(channel)
    error = failure(lambda: stub.Lookup(lookup_request("words", [1])), Code.INTERNAL, "INTERNAL")
    assert "secret" not in error.details()
    assert len(caplog.records) == 1
    (answer,) = stub.LookupStream(iter([stream_request(1, "words", [1])]))
    assert "secret" not in answer.error.message
    assert answer.error.code == Code.INTERNAL.value[0]
    assert len(caplog.records) == 2


# Streams


def stream_request(number: int, table: str, ids: Any) -> embedding_pb2.LookupStreamRequest:
    return embedding_pb2.LookupStreamRequest(id=number, lookup=lookup_request(table, ids))


class Requests:
    """A stream's requests, sent one by one; iteration ends at `end`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, request: Any) -> None:
        self._queue.put(request)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)


def test_a_stream_is_answered_in_order(stub: Any, small: SmallEngine) -> None:
    sent = [stream_request(1000 + n, "words", [n, n + 1]) for n in range(200)]
    answers = list(stub.LookupStream(iter(sent)))
    assert [answer.id for answer in answers] == [request.id for request in sent]
    for n, answer in enumerate(answers):
        np.testing.assert_array_equal(vectors_of(answer.lookup), small.rows["words"][[n, n + 1]])


def test_an_answer_comes_while_the_stream_is_open(stub: Any) -> None:
    requests = Requests()
    answers = stub.LookupStream(iter(requests))
    for number in range(5):
        requests.send(stream_request(number, "words", [number]))
        assert next(answers).id == number
    requests.end()
    assert list(answers) == []
    assert answers.code() is Code.OK


def test_an_error_in_the_middle_leaves_the_stream_going(stub: Any) -> None:
    sent = [
        stream_request(1, "words", [1]),
        stream_request(2, "words", [-5]),
        stream_request(3, "nope", [1]),
        stream_request(4, "words", [4]),
    ]
    answers = list(stub.LookupStream(iter(sent)))
    assert [answer.id for answer in answers] == [1, 2, 3, 4]
    assert [answer.WhichOneof("result") for answer in answers] == [
        "lookup", "error", "error", "lookup",
    ]  # fmt: skip
    wrong = answers[1].error
    assert wrong.code == Code.INVALID_ARGUMENT.value[0]
    assert "ids[0]=-5" in wrong.message
    assert wrong.details[0].type_url == INFO_URL
    info = status_pb2.ErrorInfo.FromString(wrong.details[0].value)
    assert info.reason == "ID_OUT_OF_RANGE"


def test_bytes_that_are_no_message_are_answered_in_the_stream(channel: grpc.Channel) -> None:
    call: Any = channel.stream_stream("/gatherd.v1.EmbeddingService/LookupStream")
    good = stream_request(2, "words", [1]).SerializeToString()
    answers = [
        embedding_pb2.LookupStreamResponse.FromString(answer)
        for answer in call(iter([b"\xff\xff", good]))
    ]
    assert answers[0].error.code == Code.INVALID_ARGUMENT.value[0]
    assert answers[1].id == 2


def test_streams_are_bounded_and_leave_their_places(serve: Serve) -> None:
    _, channel = serve(streams_max=1)
    stub = embedding(channel)
    requests = Requests()
    first = stub.LookupStream(iter(requests))
    requests.send(stream_request(1, "words", [1]))
    next(first)
    error = failure(
        lambda: list(stub.LookupStream(iter([stream_request(1, "words", [1])]))),
        Code.RESOURCE_EXHAUSTED,
        "OVERLOADED",
    )
    assert dict(error.trailing_metadata())["retry-after"] == "1"
    assert stub.Lookup(lookup_request("words", [1])).version == 1
    requests.end()
    assert list(first) == []
    # The client may know of the first one's end a moment before its place is free.
    assert any(opens(stub) for _ in range(1000))


def opens(stub: Any) -> bool:
    try:
        return len(list(stub.LookupStream(iter([stream_request(1, "words", [1])])))) == 1
    except grpc.RpcError:
        return False


def test_a_stream_that_its_client_cancels_leaves_its_place(serve: Serve) -> None:
    server, channel = serve(streams_max=1)
    stub = embedding(channel)
    answers = stub.LookupStream(iter(Requests()))
    answers.cancel()
    server.stop(30)  # would wait for it


# Start and stop


def test_a_silent_stream_ends_when_the_server_drains(serve: Serve) -> None:
    server, channel = serve()
    requests = Requests()
    answers = embedding(channel).LookupStream(iter(requests))
    requests.send(stream_request(1, "words", [1]))
    assert next(answers).id == 1
    server.stop(60)
    failure(lambda: next(answers), Code.UNAVAILABLE, "UNAVAILABLE")


def test_a_draining_stream_answers_what_it_received(serve: Serve, small: SmallEngine) -> None:
    server, channel = serve()
    count = 500
    requests = Requests()
    for number in range(count):
        requests.send(stream_request(number, "words", np.zeros(500, np.int64)))
    requests.end()
    answers = embedding(channel).LookupStream(iter(requests))
    assert next(answers).id == 0
    with futures.ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop, 60)
        assert [answer.id for answer in answers] == list(range(1, count))
        stopping.result()
    assert answers.code() is Code.OK


def test_a_stream_that_never_pauses_ends_within_the_grace(serve: Serve) -> None:
    server, channel = serve()
    stopped = threading.Event()

    def endless() -> Iterator[Any]:
        while not stopped.is_set():
            yield stream_request(1, "words", [1])

    answers = embedding(channel).LookupStream(endless())
    next(answers)
    with futures.ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop, 4)
        failure(lambda: list(answers), Code.UNAVAILABLE, "UNAVAILABLE")
        stopped.set()
        stopping.result()


def call_until_refused(health: Any) -> None:
    while True:
        health.Check(health_pb2.HealthCheckRequest())


def test_calls_under_way_are_answered_at_stop_and_new_ones_are_not(
    serve: Serve, small: SmallEngine
) -> None:
    engine = BlockingEngine()
    server, channel = serve(replace(small, engine=engine))
    stub = embedding(channel)
    under_way = stub.Lookup.future(lookup_request("words", [1]))
    engine.entered.acquire()
    with futures.ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop, 60)
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            call_until_refused(health)
        was_stopping = not stopping.done()
        engine.let_go.set()
        stopping.result()
    assert was_stopping
    # Cancelled by grpc's core when it came in the moment of the stop: see RpcServer.stop.
    assert raised.value.code() in (Code.UNAVAILABLE, Code.CANCELLED)
    assert under_way.exception().code() is Code.INTERNAL  # the engine's answer


def test_a_call_whose_deadline_passed_while_it_waited_is_not_begun(
    serve: Serve, small: SmallEngine
) -> None:
    engine = BlockingEngine()
    # No threads but those of lookups.
    small.admission.limits = replace(small.admission.limits, updates_in_flight_max=0)
    server, channel = serve(replace(small, engine=engine), streams_max=0)
    stub = embedding(channel)
    holding = [stub.Lookup.future(lookup_request("words", [1])) for _ in range(4)]
    for _ in holding:
        engine.entered.acquire()
    with pytest.raises(grpc.RpcError) as raised:
        stub.Lookup(lookup_request("words", [1]), timeout=0.05)
    assert raised.value.code() is Code.DEADLINE_EXCEEDED
    engine.let_go.set()
    for call in holding:
        call.exception()
    server.stop(60)
    assert not engine.entered.acquire(blocking=False)


def test_health_tells_of_the_server_its_services_and_its_tables(serve: Serve) -> None:
    server, channel = serve()
    health = health_pb2_grpc.HealthStub(channel)

    def check(service: str) -> str:
        status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
        name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        return name

    names = ["", "gatherd.v1.EmbeddingService", "gatherd.v1.TableService", "tables/words"]
    assert [check(name) for name in names] == ["NOT_SERVING"] * 4
    server.set_serving(True)
    assert [check(name) for name in names] == ["SERVING"] * 4
    assert check(f"tables/{REFUSED}") == "NOT_SERVING"
    server.set_serving(False)
    assert [check(name) for name in names] == ["NOT_SERVING"] * 4
    with pytest.raises(grpc.RpcError) as raised:
        check("tables/nope")
    assert raised.value.code() is Code.NOT_FOUND


def make(small: SmallEngine, address: str) -> RpcServer:
    return RpcServer(
        small.engine, small.admission, address=address, threads=1, streams_max=0, reflection=False
    )


def test_a_taken_port_is_named(small: SmallEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{port}"):
            make(small, f"127.0.0.1:{port}").start()


@pytest.mark.parametrize("address", ["nope", "256.0.0.1:0", "192.0.2.1:0"])
def test_an_address_that_cannot_be_bound_is_named(small: SmallEngine, address: str) -> None:
    with pytest.raises(StartError) as raised:
        make(small, address).start()
    assert address in raised.value.message
    assert not isinstance(raised.value, AddressInUse)


def test_two_servers_share_a_port_and_stop_is_harmless_before_start(small: SmallEngine) -> None:
    first = make(small, "127.0.0.1:0")
    first.stop(0)
    port = first.start()
    second = make(small, f"127.0.0.1:{port}")
    assert second.start() == port
    second.stop(0)
    first.stop(0)
