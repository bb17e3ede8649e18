"""Traces of a client's calls by OpenTelemetry: a span each, whose `traceparent` the server gets.

    from gatherd.otel import Tracing

    client = Client(url, hooks=[Tracing()])

It takes `pip install 'gatherd[otel]'`, or any opentelemetry-api. A server with `--traces otlp` adds
its own spans below the client's.
"""

from typing import Any

from gatherd.hooks import Call, Hook

try:
    from opentelemetry import propagate, trace
except ImportError as error:
    raise ImportError("gatherd.otel takes OpenTelemetry: pip install 'gatherd[otel]'") from error


class Tracing(Hook):
    """A CLIENT span for every call, `gatherd.lookup` and the like.

    The global propagator says which headers carry it; by default that is `traceparent`.
    """

    def __init__(self, tracer_provider: Any = None) -> None:
        """tracer_provider: None for the global one."""
        self._tracer = trace.get_tracer("gatherd", tracer_provider=tracer_provider)

    def started(self, call: Call) -> None:
        """See Hook."""
        span = self._tracer.start_span(f"gatherd.{call.method}", kind=trace.SpanKind.CLIENT)
        if span.is_recording():
            span.set_attribute("gatherd.tables", call.tables)
        propagate.inject(call.headers, context=trace.set_span_in_context(span))
        call.notes[self] = span

    def ended(self, call: Call) -> None:
        """See Hook."""
        span = call.notes.pop(self)
        if span.is_recording():
            span.set_attributes(
                {
                    "gatherd.status": call.status,
                    "gatherd.requests": call.requests,
                    "gatherd.retries": call.retries,
                    "gatherd.bytes_sent": call.bytes_sent,
                    "gatherd.bytes_received": call.bytes_received,
                }
            )
            if call.error is not None:
                span.set_attribute("error.type", call.status)
                span.set_status(trace.Status(trace.StatusCode.ERROR, str(call.error)))
        span.end()
