"""Finds the caller of each gRPC call.

Without a valid token every method is refused before its message is read: health, reflection and
unknown methods included.
"""

from collections.abc import Callable
from typing import Any, Final

import grpc

from gatherd.errors import GatherdError
from gatherd_proto.headers import AUTHORIZATION
from gatherd_proto.procedures import PATH_PREFIX, PROCEDURES
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Caller
from gatherd_server.observe.access_log import log_refusal
from gatherd_server.observe.metrics.telemetry import now_ns
from gatherd_server.observe.trail import following
from gatherd_server.rpc.errors import abort
from gatherd_server.rpc.observed import note, trail_of
from gatherd_server.wire.codes import code_of

# The procedures that refusals are counted under.
_PROCEDURES: Final = frozenset(procedure.name for procedure in PROCEDURES)


def caller_of(admission: Admission, context: grpc.ServicerContext) -> Caller:
    """The caller of a call. Unauthenticated when its metadata has no valid token."""
    if not admission.has_tokens:
        return admission.caller(())
    return admission.caller(_given(context.invocation_metadata()))


def check_table(admission: Admission, context: grpc.ServicerContext, table: str) -> None:
    """End the call if its caller may not know of `table`."""
    try:
        caller_of(admission, context).check_table(table)
    except GatherdError as error:
        abort(context, error)


class Authenticator(grpc.ServerInterceptor):
    """Refuses calls without a valid token."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Called by grpc."""
        try:
            self._admission.caller(_given(handler_call_details.invocation_metadata))
        except GatherdError as error:
            return self._refusal(handler_call_details.method, error)
        return continuation(handler_call_details)

    def _refusal(self, method: str, error: GatherdError) -> Any:
        name = method.rpartition("/")[2] if method.startswith(PATH_PREFIX) else ""
        telemetry = self._admission.telemetry

        def refuse(_bodies: Any, context: grpc.ServicerContext) -> Any:
            begun_ns, trail = now_ns(), trail_of(context)
            code = code_of(error)
            trail.error = error
            note(telemetry, name if name in _PROCEDURES else "unknown", code, begun_ns, trail)
            if telemetry.is_access_logged:
                log_refusal(method, code, trail)
            with following(trail):
                abort(context, error)

        # A stream's handler, because grpc calls it before a message arrives.
        return grpc.stream_stream_rpc_method_handler(refuse)


def _given(metadata: Any) -> list[bytes]:
    found = [value for name, value in metadata or () if name == AUTHORIZATION]
    return [value.encode("latin-1") if isinstance(value, str) else value for value in found]
