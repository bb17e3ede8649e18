"""Observes every gRPC call: its count, its time, its id."""

import logging
from collections.abc import Callable
from typing import Final, TypeAlias

import grpc

from gatherd_proto.errors import CANCELED, code_name
from gatherd_server.observe.metrics.names import REQUEST_DURATION, REQUESTS
from gatherd_server.observe.metrics.telemetry import Telemetry, now_ns
from gatherd_server.observe.trail import Trail, following

WIRE: Final = "grpc"
logger = logging.getLogger("gatherd.requests")

_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
_Unary: TypeAlias = "Callable[[bytes, grpc.ServicerContext], bytes]"


def observed(name: str, answer: _Unary, telemetry: Telemetry) -> _Handler:
    """The handler of the unary procedure `name`, with counting; a stream counts by itself."""

    def call(body: bytes, context: grpc.ServicerContext) -> bytes:
        begun_ns = now_ns()
        trail = trail_of(context)
        code = CANCELED
        try:
            with following(trail):
                reply = answer(body, context)
            code = "ok"
            return reply
        except Exception:
            # From grpc's abort, which sets a code; to the client any other exception is UNKNOWN.
            status = context.code() or grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]  # the stubs lack it
            code = code_name(status.name)
            raise
        finally:
            note(telemetry, name, code, begun_ns, trail)

    return grpc.unary_unary_rpc_method_handler(call)


def trail_of(context: grpc.ServicerContext) -> Trail:
    """The trail of a call."""
    return Trail(lambda name: _metadata(context, name))


def note(telemetry: Telemetry, procedure: str, code: str, begun_ns: int, trail: Trail) -> None:
    """Count and trace a call that was begun at `begun_ns`; log it at debug level if it failed.

    A cancelled call counts as cancelled, and isn't logged.
    """
    count(telemetry, procedure, code, begun_ns)
    if trail.error is not None:
        telemetry.failures.note(trail.error, trail.request_id)
    if telemetry.spans is not None:
        elapsed_ns = now_ns() - begun_ns
        telemetry.spans.request(WIRE, procedure, code, elapsed_ns, trail.traceparent)
    if code not in ("ok", CANCELED) and logger.isEnabledFor(logging.DEBUG):
        fields = {"wire": WIRE, "procedure": procedure, "code": code}
        extra = {"request_id": trail.request_id, "fields": fields}
        logger.debug("%s over %s failed, %s", procedure, WIRE, code, extra=extra)


def count(telemetry: Telemetry, procedure: str, code: str, begun_ns: int) -> None:
    """Count a call that was begun at `begun_ns` of the metrics' clock."""
    elapsed_ns = now_ns() - begun_ns
    telemetry.threads.add(REQUESTS, WIRE, procedure, code)
    telemetry.threads.observe(REQUEST_DURATION, WIRE, procedure, value=elapsed_ns)


def _metadata(context: grpc.ServicerContext, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return None
