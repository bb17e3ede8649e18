"""OpenTelemetry spans, by the extra `gatherd[otel]`; nothing of it is imported while they are off.

A span is made when its work has ended. So a lookup that isn't sampled costs one call, and no
context has to be carried through the server. A commit's span links to the traces of its requests.
OpenTelemetry's own configuration decides where spans go (OTEL_EXPORTER_OTLP_…, OTEL_TRACES_SAMPLER,
OTEL_RESOURCE_ATTRIBUTES). Left out on purpose: spans inside a lookup, which is one gather; and
OpenTelemetry's metrics, because Prometheus has them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from gatherd_server.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Link

# Traces that a commit's span links to at most; a batch can have a thousand pushes.
LINKS_MAX: Final = 32


class TraceExport(Enum):
    """Where spans go."""

    OFF = "off"
    OTLP = "otlp"
    CONSOLE = "console"


class Spans:
    """Makes spans. Safe to use from many threads."""

    def __init__(self, processor: SpanProcessor, process: str) -> None:
        """The spans of `process` go to `processor`."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        own = Resource({"service.name": "gatherd", "gatherd.process": process})
        provider = TracerProvider(resource=own.merge(Resource.create()), shutdown_on_exit=False)
        provider.add_span_processor(processor)
        self._provider = provider
        self._tracer = provider.get_tracer("gatherd")
        self._propagator = TraceContextTextMapPropagator()

    def request(
        self, wire: str, procedure: str, code: str, elapsed_ns: int, traceparent: str | None
    ) -> None:
        """Record a request that is answered now, after `elapsed_ns`, in its client's trace."""
        from opentelemetry.trace import SpanKind

        self._span(
            procedure,
            SpanKind.SERVER,
            elapsed_ns,
            {"gatherd.wire": wire, "rpc.method": procedure, "gatherd.code": code},
            context=self._context(traceparent),
            failure="" if code == "ok" else code,
        )

    def work(
        self,
        name: str,
        elapsed_ns: int,
        attributes: Mapping[str, int],
        traceparents: Sequence[str] = (),
    ) -> None:
        """Record work of the server itself that ends now, for the requests of those traces."""
        from opentelemetry.trace import Link, SpanKind, get_current_span

        links = [
            Link(get_current_span(self._context(one)).get_span_context())
            for one in dict.fromkeys(traceparents[:LINKS_MAX])
        ]
        self._span(name, SpanKind.INTERNAL, elapsed_ns, dict(attributes), links=links)

    def close(self) -> None:
        """Send the spans that wait."""
        self._provider.shutdown()

    def _context(self, traceparent: str | None) -> Context:
        from opentelemetry.context import Context

        # An empty context starts a new trace, whatever context the thread has.
        if traceparent is None:
            return Context()
        return self._propagator.extract({"traceparent": traceparent}, Context())

    def _span(
        self,
        name: str,
        kind: Any,
        elapsed_ns: int,
        attributes: dict[str, Any],
        *,
        context: Context | None = None,
        links: Sequence[Link] = (),
        failure: str = "",
    ) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import Status, StatusCode

        end_ns = time.time_ns()
        span = self._tracer.start_span(
            name,
            context=Context() if context is None else context,
            kind=kind,
            attributes=attributes,
            links=links,
            start_time=end_ns - elapsed_ns,
        )
        if failure:
            span.set_status(Status(StatusCode.ERROR, failure))
        span.end(end_ns)


def open_spans(export: TraceExport, process: str) -> Spans | None:
    """The maker of `process`'s spans, or None when they are off.

    ConfigError when OpenTelemetry's packages aren't installed.
    """
    if export is TraceExport.OFF:
        return None
    try:
        return Spans(_processor(export), process)
    except ImportError as error:
        raise ConfigError(
            f"traces need OpenTelemetry's packages ({error}): pip install 'gatherd[otel]'"
        ) from None


def _processor(export: TraceExport) -> SpanProcessor:
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SimpleSpanProcessor,
    )

    if export is TraceExport.CONSOLE:
        return SimpleSpanProcessor(
            ConsoleSpanExporter(
                out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n"
            )
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return BatchSpanProcessor(OTLPSpanExporter())
