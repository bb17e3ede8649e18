"""Writes the access log's lines of gRPC calls; without the log no call comes here."""

from collections.abc import Callable
from typing import TypeAlias

import grpc

from gatherd.errors import GatherdError
from gatherd_proto.errors import CANCELED, code_name
from gatherd_server.access.admission import Admission
from gatherd_server.observe import trail
from gatherd_server.observe.access_log import GRPC, NOBODY, Noted, noting
from gatherd_server.rpc.access import caller_of

_Unary: TypeAlias = "Callable[[bytes, grpc.ServicerContext], bytes]"


def logged(path: str, answer: _Unary, admission: Admission) -> _Unary:
    """`answer`, with a line for each call of the procedure at `path`."""

    def call(body: bytes, context: grpc.ServicerContext) -> bytes:
        noted = Noted(GRPC, path, status=CANCELED, request_bytes=len(body))
        noted.caller = _name_of_caller(admission, context)
        with noting(noted):
            try:
                reply = answer(body, context)
            except Exception:
                status = context.code() or grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]  # the stubs lack it
                noted.status = code_name(status.name)
                raise
            finally:
                noted.follow(trail.current())
            noted.status, noted.reply_bytes = "ok", len(reply)
            return reply

    return call


def _name_of_caller(admission: Admission, context: grpc.ServicerContext) -> str:
    """The name of a call's token, or "-"."""
    try:
        grant = caller_of(admission, context).grant
    except GatherdError:
        return NOBODY
    return NOBODY if grant is None else grant.name
