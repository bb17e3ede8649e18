"""Spans as OpenTelemetry's exporters are given them."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gatherd import Client
from gatherd_server.access.admission import Admission
from gatherd_server.observe.metrics.telemetry import Telemetry
from gatherd_server.observe.tracing import Spans
from gatherd_server.processes.writer import open_writer
from gatherd_server.types import Push, TableUpdate, UpdateOp, WriterLimits
from support.server import RunningServer, wait_until
from support.small_engine import lookup_request, small_engine
from support.tables import drawn_table, make_data_dir
from support.web_server import web_server

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
CONNECT = "/gatherd.v1.EmbeddingService"
PROTO = {"Content-Type": "application/proto"}


@dataclass(frozen=True)
class Traced:
    spans: Spans
    exporter: InMemorySpanExporter

    def taken(self, count: int) -> tuple[ReadableSpan, ...]:
        """The spans since the last time, when there are `count`: one ends behind its answer."""
        wait_until(lambda: len(self.exporter.get_finished_spans()) >= count, f"{count} spans")
        spans = self.exporter.get_finished_spans()
        self.exporter.clear()
        assert len(spans) == count
        return spans


@pytest.fixture
def traced() -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    spans = Spans(SimpleSpanProcessor(exporter), "worker-0")
    yield Traced(spans, exporter)
    spans.close()


@pytest.fixture
def url(traced: Traced, tmp_path: Path) -> Iterator[str]:
    small = small_engine(tmp_path)
    admission = Admission(small.engine.limits, telemetry=Telemetry(spans=traced.spans))
    with web_server(replace(small, admission=admission)) as url:
        yield url


@pytest.mark.parametrize("path", ["Lookup", "LookupBags"])
def test_a_request_is_a_span_of_its_clients_trace(path: str, url: str, traced: Traced) -> None:
    body = lookup_request("words", [1, 2]).SerializeToString() if path == "Lookup" else b"\xff"
    for given, media_type in (
        (body, "application/proto"),  # the fast path
        (b"{", "application/json"),  # past it
    ):
        headers = {"Content-Type": media_type, "traceparent": TRACEPARENT}
        status = httpx.post(f"{url}{CONNECT}/{path}", content=given, headers=headers).status_code
        (span,) = traced.taken(1)
        assert span.name == path
        assert span.kind is SpanKind.SERVER
        assert span.parent is not None
        assert span.parent.is_remote
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == PARENT
        code = "ok" if status == 200 else "invalid_argument"
        assert span.attributes == {
            "gatherd.wire": "connect",
            "rpc.method": path,
            "gatherd.code": code,
        }
        failed = StatusCode.UNSET if code == "ok" else StatusCode.ERROR
        assert span.status.status_code is failed
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 < span.end_time - span.start_time < 60e9


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + f"-{PARENT}-01"])
def test_without_a_context_a_trace_begins(traceparent: str, url: str, traced: Traced) -> None:
    headers = {**PROTO, **({"traceparent": traceparent} if traceparent else {})}
    body = lookup_request("words", [1]).SerializeToString()
    for _ in range(2):
        httpx.post(f"{url}{CONNECT}/Lookup", content=body, headers=headers)
    first, second = traced.taken(2)
    assert first.parent is second.parent is None
    assert first.context.trace_id != second.context.trace_id


def test_a_client_that_doesnt_sample_isnt_sampled(url: str, traced: Traced) -> None:
    body = lookup_request("words", [1]).SerializeToString()
    unsampled = {**PROTO, "traceparent": TRACEPARENT[:-1] + "0"}
    httpx.post(f"{url}{CONNECT}/Lookup", content=body, headers=unsampled)
    httpx.post(f"{url}{CONNECT}/Lookup", content=body, headers=PROTO)
    (span,) = traced.taken(1)
    assert span.parent is None


def test_probes_are_no_spans(url: str, traced: Traced) -> None:
    httpx.get(f"{url}/healthz")
    httpx.get(f"{url}/v1/tables")
    assert [span.name for span in traced.taken(1)] == ["ListTables"]


def test_commits_link_to_their_requests_and_checkpoints_are_spans(
    traced: Traced, tmp_path: Path
) -> None:
    make_data_dir(tmp_path / "data", drawn_table("items", 10, 2))
    telemetry = Telemetry(spans=traced.spans)
    writer, changes = open_writer(
        tmp_path / "data", WriterLimits(checkpoint_seconds=3600.0), telemetry, is_restart=False
    )
    try:
        update = TableUpdate("items", np.array([1]), np.ones((1, 2), np.float32))
        push = Push(UpdateOp.SCATTER_ADD, (update,), None, TRACEPARENT)
        lsn = writer.submit(push, b"digest").result(60).lsn
        (commit,) = traced.taken(1)
        assert commit.name == "commit"
        assert commit.parent is None
        assert [f"{link.context.trace_id:032x}" for link in commit.links] == [TRACE]
        assert commit.attributes == {"gatherd.pushes": 1, "gatherd.lsn": lsn}
        writer.checkpoint()
        (checkpoint,) = traced.taken(1)
        assert checkpoint.name == "checkpoint"
        assert checkpoint.attributes == {"gatherd.lsn": lsn}
    finally:
        changes.close()
        writer.close()


class _Collector(HTTPServer):
    """Takes what OTLP over HTTP sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[ExportTraceServiceRequest] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base class's name
        pass


def test_otlp_takes_spans_to_a_collector_before_the_server_ends(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    environment = {"OTEL_SERVICE_NAME": "ranking-tables"}
    with _Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.server_port}"
        try:
            with RunningServer(
                f"words={tmp_path}/a.npy", "--traces", "otlp", environment=environment
            ) as server:
                for url in (server.http, server.grpc):
                    with Client(url) as client:
                        client.lookup("words", [1])
                assert server.stop() == 0
        finally:
            collector.shutdown()
            thread.join()
    told = [
        (
            {one.key: one.value.string_value for one in spans.resource.attributes}["service.name"],
            span.name,
            {one.key: one.value.string_value for one in span.attributes}["gatherd.wire"],
        )
        for request in collector.received
        for spans in request.resource_spans
        for scope in spans.scope_spans
        for span in scope.spans
    ]
    # A client over HTTP asks for the limits first.
    assert set(told) >= {("ranking-tables", "Lookup", wire) for wire in ("connect", "grpc")}
