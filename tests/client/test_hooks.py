"""Hooks are told of every call, on every wire, and can add headers to it."""

import asyncio
import logging
import pickle
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import gatherd
from client.clients import ITEMS, WORDS
from client.fake_updates import UpdatedService
from client.fakes import FakeService, connect_server
from gatherd import AsyncClient, Batching, Call, Client, Hook
from gatherd.errors import IdOutOfRange, InvalidArgument, Unavailable
from gatherd.otel import Tracing


class Recording(Hook):
    def __init__(self, **headers: str) -> None:
        self.headers = headers
        self.begun: list[str] = []
        self.calls: list[Call] = []

    def started(self, call: Call) -> None:
        self.begun.append(call.method)
        call.headers.update(self.headers)

    def ended(self, call: Call) -> None:
        self.calls.append(call)


def test_a_hook_is_told_of_every_call(make: Any, server: str, service: FakeService) -> None:
    hook = Recording()
    ids = np.array([1, 2])
    with make(server, hooks=[hook]) as client:
        for _ in range(3):  # the third one is foreseen
            np.testing.assert_array_equal(client.lookup("words", ids), WORDS[ids])
        client.lookup(table="words", keys=["word3"])
        client.lookup_many({"words": [1], "items": [2]})
        client.lookup_bags_many(keys={"words": [["word1"]]})
        client.table("items")
        client.tables()
        with pytest.raises(IdOutOfRange):
            client.lookup("words", [9999])
        with pytest.raises(InvalidArgument):
            client.lookup("words", [1.5])
    seen = [(call.method, call.tables, call.status, call.requests) for call in hook.calls]
    assert seen == [
        ("lookup", ("words",), "OK", 1),
        ("lookup", ("words",), "OK", 1),
        ("lookup", ("words",), "OK", 1),
        ("lookup", ("words",), "OK", 1),
        ("lookup_many", ("words", "items"), "OK", 1),
        ("lookup_bags_many", ("words",), "OK", 1),
        ("table", ("items",), "OK", 1),
        ("tables", (), "OK", 1),
        ("lookup", ("words",), "ID_OUT_OF_RANGE", 1),
        ("lookup", ("words",), "INVALID_ARGUMENT", 0),
    ]
    assert hook.begun == [call.method for call in hook.calls]
    for call in hook.calls[:3]:
        # All bytes of the bodies: the ids and the vectors, and a frame around each.
        assert ids.nbytes < call.bytes_sent < ids.nbytes + 64
        assert 2 * 8 * 4 < call.bytes_received < 2 * 8 * 4 + 64
        assert 0 < call.seconds < 60
    assert len(service.calls) == sum(call.requests for call in hook.calls)


def test_retries_are_counted(make: Any, server: str, service: FakeService) -> None:
    hook = Recording()
    with make(server, hooks=[hook]) as client:
        service.failures = [Unavailable("not now"), Unavailable("not yet")]
        client.lookup("words", [1])
    (call,) = hook.calls
    assert (call.status, call.requests, call.retries) == ("OK", 3, 2)


def test_a_hooks_headers_go_out_with_its_call_alone(
    make: Any, server: str, service: FakeService
) -> None:
    ids = np.array([1, 2])
    with make(server, hooks=[Recording(traceparent="00-1")]) as client:
        with gatherd.request_headers({"x-request-id": "mine"}):
            client.lookup("words", ids)
        client.lookup("words", ids)
    with make(server) as client:
        client.lookup("words", ids)
    sent = [(one.get("traceparent"), one.get("x-request-id")) for one in service.headers]
    assert sent == [("00-1", "mine"), ("00-1", None), (None, None)]


def test_a_hook_that_fails_is_logged_and_the_call_goes_on(
    make: Any, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Hook):
        def started(self, call: Call) -> None:
            call.headers["authorization"] = "mine"  # the client's own to set
            raise RuntimeError("at the start")

        def ended(self, call: Call) -> None:
            raise RuntimeError("at the end")

    last = Recording()
    with caplog.at_level(logging.ERROR), make(server, hooks=[Failing(), last]) as client:
        np.testing.assert_array_equal(client.lookup("words", [1]), WORDS[[1]])
    assert [record.name for record in caplog.records] == ["gatherd.hooks"] * 3
    assert [call.status for call in last.calls] == ["OK"]


def test_a_call_that_is_cancelled_ends(service: FakeService) -> None:
    hook = Recording()

    async def ask(url: str) -> None:
        async with AsyncClient(url, hooks=[hook]) as client:
            task = asyncio.create_task(client.lookup("words", [1]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.gather(*(client.lookup("words", [n]) for n in range(5)))

    with connect_server(service) as url:
        asyncio.run(ask(url))
    assert [call.status for call in hook.calls] == ["CancelledError", *["OK"] * 5]
    assert [call.requests for call in hook.calls[1:]] == [1] * 5


def test_merged_lookups_are_each_told_of(make: Any, server: str) -> None:
    hook = Recording()
    with make(server, hooks=[hook], batching=Batching()) as client:
        client.lookup("words", [1])
    assert [call.status for call in hook.calls] == ["OK"]


def test_handles_and_updates_are_told_of_once() -> None:
    service = UpdatedService({"items": ITEMS.copy()}, {"items": [b"a", b"b"]})
    hook = Recording()
    with connect_server(service) as url, Client(url, hooks=[hook]) as client:
        items = client["items"]
        items.apply_gradients([1], [[1.0, 2.0, 3.0]])
        assert "a" in items
    assert [(call.method, call.tables) for call in hook.calls] == [
        ("apply_gradients", ("items",)),
        ("lookup", ("items",)),
    ]
    assert hook.calls[0].bytes_sent > 12


class Module(Hook):
    """At the top of a module, so it can be pickled."""


def test_a_client_with_hooks_is_a_client() -> None:
    for cls in (Client, AsyncClient):
        client = cls("http://127.0.0.1:9", hooks=[Module()])
        assert isinstance(client, cls)
        assert repr(client) == f"{cls.__name__}('http://127.0.0.1:9')"
        again = pickle.loads(pickle.dumps(client))
        assert isinstance(again, cls)
        assert type(again) is type(client)
    with pytest.raises(InvalidArgument, match=r"instances of gatherd\.Hook"):
        Client("http://127.0.0.1:9", hooks=[print])  # type: ignore[list-item]


def test_a_client_without_hooks_runs_none_of_their_code() -> None:
    client = Client("http://127.0.0.1:9")
    assert type(client) is Client
    assert type(client).lookup is Client.lookup
    code = Client.lookup.__code__
    assert isinstance(code, types.CodeType)
    assert not {"hooks", "_hooks", "current"} & {*code.co_names, *code.co_freevars}
    client.close()


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


def test_opentelemetry_has_a_span_for_each_call(
    make: Any, server: str, service: FakeService, spans: InMemorySpanExporter
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("caller")
    with make(server, hooks=[Tracing(provider)]) as client:
        with tracer.start_as_current_span("request") as parent:
            client.lookup("words", [1])
        with pytest.raises(IdOutOfRange):
            client.lookup("words", [9999])
    lookup, _, failed = spans.get_finished_spans()
    assert (lookup.name, lookup.kind) == ("gatherd.lookup", trace.SpanKind.CLIENT)
    assert lookup.attributes is not None
    assert lookup.attributes["gatherd.tables"] == ("words",)
    assert lookup.attributes["gatherd.status"] == "OK"
    assert lookup.parent is not None
    assert lookup.parent.span_id == parent.get_span_context().span_id
    # The server is told of that very span.
    told = trace.get_current_span(propagate.extract(service.headers[0])).get_span_context()
    assert told.span_id == lookup.context.span_id
    assert told.trace_id == lookup.context.trace_id
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "ID_OUT_OF_RANGE"
