"""The gRPC services, as handlers from bytes to bytes.

Requests are parsed and replies framed by proto_codec, so grpc's serializers are left out. A handler
must return real bytes (with a memoryview the call never ends), so a reply costs one copy more here
than over HTTP: the join of its parts.

An update holds its thread until the writer has answered: grpc's sync server has no other way to
wait. So `grpc_threads` bounds how many updates of gRPC clients one commit can take together.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from gatherd.errors import DeadlineExceeded, GatherdError, Overloaded, Unavailable
from gatherd_proto.v1 import embedding_pb2, table_pb2
from gatherd_server import proto_codec, proto_updates
from gatherd_server.admission import RETRY_AFTER_SECONDS, Admission
from gatherd_server.callers import ANYBODY, AnyEngine, Caller
from gatherd_server.engine.engine import Engine
from gatherd_server.errors import unexpected
from gatherd_server.metrics.names import SHED_REQUESTS
from gatherd_server.metrics.telemetry import now_ns
from gatherd_server.rpc.access import caller_of
from gatherd_server.rpc.errors import abort, code_of, status_message
from gatherd_server.rpc.observed import count, observed, told_code
from gatherd_server.rpc.repeats import Repeats
from gatherd_server.rpc.streams import RequestReader
from gatherd_server.types import LookupPlan, TableChange, UpdateOp
from gatherd_server.update_checks import CHANGE_MAY_BE_DONE, UPDATE_MAY_BE_DONE

EMBEDDING_SERVICE: Final = "gatherd.v1.EmbeddingService"
TABLE_SERVICE: Final = "gatherd.v1.TableService"

M = TypeVar("M", bound=Message)
T = TypeVar("T")

# A string, because only the stubs know the class as generic.
_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
_Answer: TypeAlias = Callable[[AnyEngine, bytes, grpc.ServicerContext], bytes]


class Servicer:
    """Answers the calls of both services. Safe to use from many threads."""

    def __init__(self, engine: Engine, admission: Admission, streams_max: int) -> None:
        self._engine = engine
        self._repeats = Repeats(engine)
        self._admission = admission
        self._streams_max = streams_max
        self._streams: set[RequestReader] = set()
        self._drain_deadline: float | None = None
        self._lock = threading.Lock()

    def drain(self, seconds: float) -> None:
        """Let every stream end once what it received is answered, after `seconds` at the latest."""
        with self._lock:
            self._drain_deadline = time.monotonic() + seconds
            for reader in self._streams:
                reader.drain(self._drain_deadline)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc server has to be given."""
        unary = self._unary
        embedding: dict[str, _Handler] = {
            "Lookup": self._lookup(),
            "LookupMany": unary(_lookup_many),
            "LookupBags": unary(_lookup_bags),
            "LookupBagsMany": unary(_lookup_bags_many),
            "KeysOf": unary(_keys_of),
            "ScatterAdd": unary(_push(UpdateOp.SCATTER_ADD)),
            "ApplyGradients": unary(_push(UpdateOp.APPLY_GRADIENTS)),
            "Assign": unary(_push(UpdateOp.ASSIGN)),
            "LookupStream": grpc.stream_stream_rpc_method_handler(self._lookup_stream),
        }
        tables: dict[str, _Handler] = {
            "ListTables": unary(_list_tables, is_admitted=False),
            "GetTable": unary(_get_table, is_admitted=False),
            "CreateTable": unary(_change(table_pb2.CreateTableRequest, proto_updates.create_table)),
            "DeleteTable": unary(_change(table_pb2.DeleteTableRequest, proto_updates.delete_table)),
            "Publish": unary(_change(table_pb2.PublishRequest, proto_updates.publish)),
            "Rollback": unary(_change(table_pb2.RollbackRequest, proto_updates.rollback)),
            "SetOptimizer": unary(
                _change(table_pb2.SetOptimizerRequest, proto_updates.set_optimizer)
            ),
            "Snapshot": unary(_snapshot),
        }
        telemetry = self._admission.telemetry
        return [
            grpc.method_handlers_generic_handler(service, observed(handlers, telemetry))
            for service, handlers in ((EMBEDDING_SERVICE, embedding), (TABLE_SERVICE, tables))
        ]

    def _lookup(self) -> _Handler:
        """As `_unary`'s, but for lookups that differ from an earlier one in their ids alone."""

        def answer(engine: AnyEngine, body: bytes, _context: grpc.ServicerContext) -> bytes:
            plan = proto_codec.lookup_plan(proto_codec.parse(embedding_pb2.LookupRequest(), body))
            reply = b"".join(proto_codec.lookup_reply(engine.lookup(plan)))
            self._repeats.learn(body, plan)
            return reply

        whole = self._unary(answer).unary_unary
        assert whole is not None

        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            return self._repeated(body, context) or whole(body, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _repeated(self, body: bytes, context: grpc.ServicerContext) -> bytes | None:
        """The answer to one that is short enough to be done before it could count as under way.

        Whoever mayn't have it, for want of a token or a place, gets none from here, and hears why
        from `_unary`.
        """
        admission = self._admission
        if admission.is_full:
            return None
        caller = ANYBODY
        if admission.has_tokens:
            try:
                caller = caller_of(admission, context)
            except GatherdError:
                return None
            if caller.limiter is not None:
                return None
        return self._repeats.answer(body, caller)

    def _unary(self, answer: _Answer, *, is_admitted: bool = True) -> _Handler:
        """A handler that gives `answer` the engine as its caller has it."""

        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            def work() -> bytes:
                caller = caller_of(self._admission, context)
                self._admission.count(caller)
                engine = caller.guard(self._engine)
                if not is_admitted:
                    return answer(engine, body, context)
                with self._admission.request(caller):
                    return answer(engine, body, context)

            return _answer(context, work)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _lookup_stream(
        self, bodies: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        try:
            caller = caller_of(self._admission, context)
            reader = self._open_stream(bodies)
        except GatherdError as error:
            abort(context, error)
        try:
            for body in reader:
                if caller.is_revoked:
                    caller = _asked_anew(self._admission, context)
                yield self._stream_answer(body, caller)
        finally:
            self._close_stream(reader)
        if not reader.has_ended:
            # Every lookup that came was answered, but the client may be about to send another.
            abort(context, Unavailable("the server is stopping; open another stream"))

    def _open_stream(self, bodies: Iterator[bytes]) -> RequestReader:
        reader = RequestReader(bodies)
        with self._lock:
            if len(self._streams) >= self._streams_max:
                self._admission.telemetry.threads.add(SHED_REQUESTS, "streams_max")
                raise Overloaded(
                    f"the server has {self._streams_max} streams open, as many as it takes; "
                    "try again after a pause",
                    {"limit": "streams_max", "max": str(self._streams_max)},
                    RETRY_AFTER_SECONDS,
                )
            if self._drain_deadline is not None:
                reader.drain(self._drain_deadline)
            self._streams.add(reader)
        reader.start()
        return reader

    def _close_stream(self, reader: RequestReader) -> None:
        reader.close()
        with self._lock:
            self._streams.discard(reader)

    def _stream_answer(self, body: bytes, caller: Caller) -> bytes:
        begun_ns = now_ns()
        request = embedding_pb2.LookupStreamRequest()
        failure: GatherdError | None = None
        try:
            self._admission.count(caller)
            with self._admission.request(caller):
                proto_codec.parse(request, body)
                gathered = caller.guard(self._engine).lookup(
                    proto_codec.lookup_plan(request.lookup)
                )
                reply = b"".join(proto_codec.stream_reply(request.id, gathered))
        except GatherdError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - logged; the stream's other lookups go on
            failure = unexpected(error)
        code = "ok" if failure is None else told_code(code_of(failure))
        count(self._admission.telemetry, "LookupStream", code, begun_ns)
        if failure is None:
            return reply
        return embedding_pb2.LookupStreamResponse(
            id=request.id, error=status_message(failure)
        ).SerializeToString()


def _lookup_many(engine: AnyEngine, body: bytes, _context: grpc.ServicerContext) -> bytes:
    request = proto_codec.parse(embedding_pb2.LookupManyRequest(), body)
    return _many(engine, [*map(proto_codec.lookup_plan, request.lookups)])


def _lookup_bags(engine: AnyEngine, body: bytes, _context: grpc.ServicerContext) -> bytes:
    request = proto_codec.parse(embedding_pb2.LookupBagsRequest(), body)
    return _one(engine, proto_codec.bags_plan(request))


def _lookup_bags_many(engine: AnyEngine, body: bytes, _context: grpc.ServicerContext) -> bytes:
    request = proto_codec.parse(embedding_pb2.LookupBagsManyRequest(), body)
    return _many(engine, [*map(proto_codec.bags_plan, request.bags)])


def _one(engine: AnyEngine, plan: LookupPlan) -> bytes:
    return b"".join(proto_codec.lookup_reply(engine.lookup(plan)))


def _many(engine: AnyEngine, plans: list[LookupPlan]) -> bytes:
    return b"".join(proto_codec.lookup_many_reply(engine.lookup_many(plans)))


def _keys_of(engine: AnyEngine, body: bytes, _context: grpc.ServicerContext) -> bytes:
    request = proto_codec.parse(embedding_pb2.KeysOfRequest(), body)
    keys, version = engine.keys_of(*proto_codec.keys_of_request(request))
    return proto_codec.keys_reply(keys, version)


def _list_tables(engine: AnyEngine, body: bytes, _context: grpc.ServicerContext) -> bytes:
    proto_codec.parse(table_pb2.ListTablesRequest(), body)
    return proto_codec.list_tables_reply(engine.tables(), engine.limits)


def _get_table(engine: AnyEngine, body: bytes, _context: grpc.ServicerContext) -> bytes:
    request = proto_codec.parse(table_pb2.GetTableRequest(), body)
    return proto_codec.get_table_reply(engine.table(request.table), engine.limits)


def _push(op: UpdateOp) -> _Answer:
    def push(engine: AnyEngine, body: bytes, context: grpc.ServicerContext) -> bytes:
        request = proto_codec.parse(embedding_pb2.UpdateRequest(), body)
        future = engine.push(proto_updates.push(op, request))
        return proto_updates.push_reply(_outcome(future, context, UPDATE_MAY_BE_DONE))

    return push


def _change(kind: type[M], read: Callable[[M], TableChange]) -> _Answer:
    def change(engine: AnyEngine, body: bytes, context: grpc.ServicerContext) -> bytes:
        future = engine.change(read(proto_codec.parse(kind(), body)))
        return proto_updates.change_reply(_outcome(future, context, CHANGE_MAY_BE_DONE))

    return change


def _snapshot(engine: AnyEngine, body: bytes, context: grpc.ServicerContext) -> bytes:
    request = proto_codec.parse(table_pb2.SnapshotRequest(), body)
    future = engine.snapshot(proto_updates.snapshot_name(request))
    return proto_updates.snapshot_reply(_outcome(future, context, CHANGE_MAY_BE_DONE))


def _asked_anew(admission: Admission, context: grpc.ServicerContext) -> Caller:
    """Who asks on a stream whose token's line has changed; ends the stream when it is gone."""
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
    """What became of an update. It is done or not, whether anybody still waits or not."""
    # Without a deadline grpc gives more seconds than a lock can wait for.
    seconds = min(context.time_remaining(), threading.TIMEOUT_MAX)
    done, _ = futures.wait([future], seconds)
    if not done:
        raise DeadlineExceeded(f"the call's deadline passed; {may_be_done}")
    return future.result()


def _check_deadline(context: grpc.ServicerContext) -> None:
    # A call may have waited for a thread until nobody wants its answer any more.
    if not context.is_active() or context.time_remaining() <= 0:
        raise DeadlineExceeded("the call's deadline passed before it was begun")
