"""The gRPC services, as handlers from bytes to bytes.

wire/ parses requests and frames replies, so grpc's serializers are left out. The compiled answer is
asked first for each lookup; the general way, in Python, has what it leaves. A handler must return
real bytes (with a memoryview the call never ends), so the general way's reply costs one copy more
here than over HTTP: the join of its parts.

An update holds its thread until the writer has answered, because grpc's sync server has no other
way to wait. So updates have threads of their own, as many as `updates_in_flight_max`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

import grpc

from gatherd.errors import DeadlineExceeded, GatherdError, Overloaded, Unavailable
from gatherd_proto.procedures import LOOKUP_STREAM, SERVICES, Procedure
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.access.admission import RETRY_AFTER_SECONDS, Admission
from gatherd_server.access.callers import ANYBODY, AnyEngine, Caller
from gatherd_server.engine.engine import Engine
from gatherd_server.errors import unexpected
from gatherd_server.observe.access_log import GRPC, NOBODY, Noted, noting
from gatherd_server.observe.metrics.names import SHED_REQUESTS
from gatherd_server.observe.metrics.telemetry import now_ns
from gatherd_server.rpc.access import caller_of
from gatherd_server.rpc.access_log import logged
from gatherd_server.rpc.answers import CallAnswers
from gatherd_server.rpc.errors import abort, status_message
from gatherd_server.rpc.message_waits import MessageWaits
from gatherd_server.rpc.observed import count, observed
from gatherd_server.rpc.streams import RequestReader
from gatherd_server.wire import lookups
from gatherd_server.wire.codes import code_of
from gatherd_server.wire.compiled.serving import CompiledAnswers
from gatherd_server.wire.procedures import ANSWERED, COMPILED, ReadProcedure, UpdateProcedure

T = TypeVar("T")

# A string, because only the stubs know the class as generic.
_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
_Unary: TypeAlias = Callable[[bytes, grpc.ServicerContext], bytes]
_Answer: TypeAlias = Callable[[Caller, bytes, grpc.ServicerContext], bytes]
_General: TypeAlias = Callable[[AnyEngine, bytes, grpc.ServicerContext], bytes]


class Servicer:
    """Answers the calls of both services. Safe to use from many threads."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        answers: CompiledAnswers | None,
        streams_max: int,
        connection_streams_max: int,
    ) -> None:
        self._engine = engine
        self._answers = None if answers is None else CallAnswers(answers)
        self._admission = admission
        self._streams_max = streams_max
        self._connection_streams_max = connection_streams_max
        self._streams: dict[RequestReader, str] = {}
        self._drain_deadline: float | None = None
        self._lock = threading.Lock()

    def drain(self, seconds: float) -> None:
        """Let each stream end once its received requests are answered, within `seconds`."""
        with self._lock:
            self._drain_deadline = time.monotonic() + seconds
            for reader in self._streams:
                reader.drain(self._drain_deadline)

    def handlers(self, waits: MessageWaits) -> list[grpc.GenericRpcHandler]:
        """The handlers to register with a grpc server."""
        handlers: dict[Procedure, _Handler] = {
            answered.procedure: waits.bounded(
                self._counted(answered), takes_place=isinstance(answered, ReadProcedure)
            )
            for answered in ANSWERED
        }
        handlers[LOOKUP_STREAM] = grpc.stream_stream_rpc_method_handler(self._lookup_stream)
        return [
            grpc.method_handlers_generic_handler(
                service,
                {
                    procedure.name: handler
                    for procedure, handler in handlers.items()
                    if procedure.service == service
                },
            )
            for service in SERVICES
        ]

    def _counted(self, answered: ReadProcedure | UpdateProcedure) -> _Handler:
        handle = self._unary(answered)
        message = COMPILED.get(answered.procedure)
        if self._answers is not None and message is not None:
            handle = self._at_once(message, self._answers, handle)
        if self._admission.telemetry.is_access_logged:
            handle = logged(answered.procedure.path, handle, self._admission)
        return observed(answered.procedure.name, handle, self._admission.telemetry)

    def _at_once(self, message: int, answers: CallAnswers, whole: _Unary) -> _Unary:
        """`whole`, with a shortcut for short lookups, done before they could count as under way.

        `whole` answers all others, and refuses a caller without a token or a place.
        """
        admission = self._admission

        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            if not admission.is_full:
                caller = self._unlimited(context)
                if caller is not None:
                    reply = answers.short(message, body, caller)
                    if reply is not None:
                        return reply
            return whole(body, context)

        return handle

    def _unlimited(self, context: grpc.ServicerContext) -> Caller | None:
        """A call's caller; None for one without a token, or whose requests are counted."""
        if not self._admission.has_tokens:
            return ANYBODY
        try:
            caller = caller_of(self._admission, context)
        except GatherdError:
            return None
        return caller if caller.limiter is None else None

    def _unary(self, answered: ReadProcedure | UpdateProcedure) -> _Unary:
        """A handler that answers permitted callers, each from the engine guarded for it."""
        scope, hold = answered.scope, answered.place(self._admission)
        answer = self._answer_of(answered)

        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            def work() -> bytes:
                caller = caller_of(self._admission, context)
                self._admission.count(caller)
                if scope is not None:
                    caller.check(scope)
                with hold(caller) as held:
                    held.grow(len(body))
                    return answer(caller, body, context)

            return _answer(context, work)

        return handle

    def _answer_of(self, answered: ReadProcedure | UpdateProcedure) -> _Answer:
        general = _updated(answered) if isinstance(answered, UpdateProcedure) else _read(answered)
        message, answers = COMPILED.get(answered.procedure), self._answers

        def answer(caller: Caller, body: bytes, context: grpc.ServicerContext) -> bytes:
            reply = None
            if answers is not None and message is not None:
                reply = answers.reply(message, body, caller)
            return general(caller.guard(self._engine), body, context) if reply is None else reply

        return answer

    def _lookup_stream(
        self, bodies: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        try:
            caller = caller_of(self._admission, context)
            reader = self._open_stream(bodies, context.peer())
        except GatherdError as error:
            self._admission.telemetry.failures.note(error)
            abort(context, error)
        is_logged = self._admission.telemetry.is_access_logged
        answer = self._logged_answer if is_logged else self._stream_answer
        try:
            for body in reader:
                if caller.is_revoked:
                    caller = _asked_anew(self._admission, context)
                yield answer(body, caller)[0]
        finally:
            self._close_stream(reader)
        if not reader.has_ended:
            # Every received lookup was answered, but the client may be about to send another.
            abort(context, Unavailable("the server is stopping; open another stream"))

    def _open_stream(self, bodies: Iterator[bytes], peer: str) -> RequestReader:
        """Take a place for a stream of the connection `peer`. Overloaded when there is none."""
        reader = RequestReader(bodies)
        with self._lock:
            if len(self._streams) >= self._streams_max:
                raise self._too_many_streams("the server", "streams_max", self._streams_max)
            connection_max = self._connection_streams_max
            if [*self._streams.values()].count(peer) >= connection_max:
                raise self._too_many_streams(
                    "the connection", "connection_streams_max", connection_max
                )
            if self._drain_deadline is not None:
                reader.drain(self._drain_deadline)
            self._streams[reader] = peer
        reader.start()
        return reader

    def _close_stream(self, reader: RequestReader) -> None:
        reader.close()
        with self._lock:
            self._streams.pop(reader, None)

    def _too_many_streams(self, whose: str, limit: str, maximum: int) -> Overloaded:
        self._admission.telemetry.threads.add(SHED_REQUESTS, limit)
        return Overloaded(
            f"{whose} has {maximum} streams open, as many as it may; try again after a pause",
            {"limit": limit, "max": str(maximum)},
            RETRY_AFTER_SECONDS,
        )

    def _logged_answer(self, body: bytes, caller: Caller) -> tuple[bytes, str]:
        """`_stream_answer`, with a line in the access log."""
        noted = Noted(GRPC, LOOKUP_STREAM.path, request_bytes=len(body))
        noted.caller = NOBODY if caller.grant is None else caller.grant.name
        with noting(noted):
            reply, noted.status = self._stream_answer(body, caller)
            noted.reply_bytes = len(reply)
            return reply, noted.status

    def _stream_answer(self, body: bytes, caller: Caller) -> tuple[bytes, str]:
        """The reply to a message of a stream, and the code that it counts under."""
        begun_ns = now_ns()
        request = embedding_pb2.LookupStreamRequest()
        failure: GatherdError | None = None
        try:
            self._admission.count(caller)
            with self._admission.request(caller) as held:
                held.grow(len(body))
                lookups.parse(request, body, self._engine.limits)
                gathered = caller.guard(self._engine).lookup(lookups.lookup_of(request.lookup))
                reply = b"".join(lookups.stream_reply(request.id, gathered))
        except GatherdError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - logged; the stream's other lookups go on
            failure = unexpected(error)
        code = "ok" if failure is None else code_of(failure)
        count(self._admission.telemetry, LOOKUP_STREAM.name, code, begun_ns)
        if failure is None:
            return reply, code
        self._admission.telemetry.failures.note(failure)
        refusal = embedding_pb2.LookupStreamResponse(id=request.id, error=status_message(failure))
        return refusal.SerializeToString(), code


def _read(answered: ReadProcedure) -> _General:
    kind, prepare = answered.procedure.request, answered.prepare

    def read(engine: AnyEngine, body: bytes, context: grpc.ServicerContext) -> bytes:
        prepared = prepare(engine, lookups.parse(kind(), body, engine.limits))
        if prepared.stopping is not None and not context.add_callback(prepared.stopping.stop):
            prepared.stopping.stop()  # the call has ended already
        return b"".join(prepared.make())

    return read


def _updated(answered: UpdateProcedure) -> _General:
    kind = answered.procedure.request

    def update(engine: AnyEngine, body: bytes, context: grpc.ServicerContext) -> bytes:
        future = answered.begin(engine, lookups.parse(kind(), body, engine.limits))
        return answered.encode(_outcome(future, context, answered.may_be_done))

    return update


def _asked_anew(admission: Admission, context: grpc.ServicerContext) -> Caller:
    """The new caller of a stream whose token's line changed; ends the stream when it is gone."""
    try:
        return caller_of(admission, context)
    except GatherdError as error:
        abort(context, error)


def _answer(context: grpc.ServicerContext, work: Callable[[], bytes]) -> bytes:
    try:
        _check_deadline(context)
        return work()
    except GatherdError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - logged, and answered with a fixed text
        failure = unexpected(error)
    return abort(context, failure)


def _outcome(future: Future[T], context: grpc.ServicerContext, may_be_done: str) -> T:
    """The outcome of an update, which is done or not whether anybody still waits or not."""
    # Without a deadline grpc gives more seconds than a lock can wait for.
    seconds = min(context.time_remaining(), threading.TIMEOUT_MAX)
    done, _ = futures.wait([future], seconds)
    if not done:
        raise DeadlineExceeded(f"the call's deadline passed; {may_be_done}")
    return future.result()


def _check_deadline(context: grpc.ServicerContext) -> None:
    # A call may have waited for a thread until its answer is of no use any more.
    if not context.is_active() or context.time_remaining() <= 0:
        raise DeadlineExceeded("the call's deadline passed before it was begun")
