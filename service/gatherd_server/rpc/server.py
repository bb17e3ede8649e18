"""The gRPC server: threads, options, health, reflection, start and stop."""

import contextlib
import errno
import os
import socket
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from typing import Final

import grpc

# The package has no maintained type stubs.
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped]

from gatherd_proto.procedures import SERVICES
from gatherd_server.access.admission import Admission
from gatherd_server.engine.engine import Engine
from gatherd_server.errors import AddressInUse, StartError
from gatherd_server.rpc.access import Authenticator, check_table
from gatherd_server.rpc.message_waits import BoundedServer, MessageWaits
from gatherd_server.rpc.servicer import Servicer
from gatherd_server.rpc.table_health import TableHealth
from gatherd_server.wire.compiled.serving import CompiledAnswers

# A LookupRequest's bytes beside its ids, with the longest table name and shape.
MESSAGE_OVERHEAD_BYTES: Final = 4096
# Bytes of one call's headers.
METADATA_BYTES_MAX: Final = 16 << 10
HANDSHAKE_SECONDS: Final = 20
# Streams get this part of the grace to answer what they received; the rest is for sending.
STREAM_GRACE_PART: Final = 0.8


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """How many gRPC connections there may be, and how much one of them may hold."""

    connections_max: int = 4096
    calls_max: int = 100
    streams_max: int = 8
    message_seconds: float = 60.0


class RpcServer:
    """gatherd.v1 over gRPC, with health and, if asked for, reflection."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        *,
        address: str,
        threads: int,
        streams_max: int,
        bounds: ConnectionBounds = ConnectionBounds(),
        answers: CompiledAnswers | None = None,
        reflection: bool,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """Answers `threads` unary calls at once, and updates and streams beside them.

        Lookups are answered by `answers`, if given, where it can. Without `credentials` connections
        aren't encrypted.
        """
        self._engine = engine
        self._admission = admission
        self._address = address
        self._threads = threads
        self._streams_max = streams_max
        self._bounds = bounds
        self._reflection = reflection
        self._credentials = credentials
        self._servicer = Servicer(engine, admission, answers, streams_max, bounds.streams_max)
        self._health: TableHealth | None = None
        self._server: grpc.Server | None = None
        self._pool: futures.ThreadPoolExecutor | None = None
        self._waits: MessageWaits | None = None

    def start(self) -> int:
        """Bind, serve and return the port. Health says NOT_SERVING until `set_serving`.

        The socket has SO_REUSEPORT, so that every worker can bind it; another server with
        SO_REUSEPORT goes unnoticed. AddressInUse or StartError when the address can't be bound.
        """
        # Threads start as they are needed; most of them only ever wait for a message.
        pool = futures.ThreadPoolExecutor(self._calls_max(), thread_name_prefix="gatherd-rpc")
        waits = MessageWaits(self._bounds.message_seconds, self._threads)
        server = grpc.server(
            pool,
            handlers=self._servicer.handlers(waits),
            interceptors=[Authenticator(self._admission)] if self._admission.has_tokens else [],
            options=_options(self._admission, self._bounds),
            maximum_concurrent_rpcs=self._calls_max(),
        )
        told = ("", *SERVICES)
        self._health = TableHealth(
            told, self._engine.table_states, pool, partial(check_table, self._admission)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, BoundedServer(server, waits))
        if self._reflection:
            # Here, because it is off by default.
            from gatherd_server.rpc.reflection import add_reflection

            add_reflection(server, [*SERVICES, health.SERVICE_NAME])
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self._address)
            else:
                port = server.add_secure_port(self._address, self._credentials)
        except RuntimeError:
            self._health.close()
            pool.shutdown(wait=False)
            raise _why_not_bound(self._address) from None
        self._server, self._pool, self._waits = server, pool, waits
        waits.start()
        server.start()
        return port

    def _calls_max(self) -> int:
        # More calls would only wait for a thread; grpc itself turns them away.
        limits = self._admission.limits
        return limits.requests_in_flight_max + limits.updates_in_flight_max + self._streams_max

    def set_serving(self, serving: bool) -> None:
        """Set the health of the server, its services, and every table that isn't refused."""
        if self._health is not None:
            self._health.set_serving(serving)

    def stop(self, grace_seconds: float) -> None:
        """Turn new calls away, answer those under way for `grace_seconds`, cancel the rest.

        Returns when all of that is done. Streams answer the requests that they received and end,
        with UNAVAILABLE unless the client had sent everything. grpc's core cancels a call that
        arrives at the very moment of the stop, before a thread has it: its client reads CANCELLED
        (https://github.com/grpc/grpc/issues/41785), and nothing was done.
        """
        if self._server is None or self._pool is None or self._health is None:
            return
        self.set_serving(False)
        stopped = self._server.stop(grace_seconds)
        self._servicer.drain(grace_seconds * STREAM_GRACE_PART)
        stopped.wait()
        self._health.close()
        self._pool.shutdown(wait=True)
        if self._waits is not None:
            self._waits.close()
        self._server = self._pool = self._waits = None


def _options(admission: Admission, bounds: ConnectionBounds) -> list[tuple[str, int]]:
    limits = admission.limits
    return [
        ("grpc.so_reuseport", 1),
        # Each takes a descriptor; further connections are closed.
        ("grpc.max_allowed_incoming_connections", bounds.connections_max),
        ("grpc.max_receive_message_length", limits.request_bytes_max + MESSAGE_OVERHEAD_BYTES),
        # Calls on one connection; a client makes further calls wait.
        ("grpc.max_concurrent_streams", bounds.calls_max),
        # Headers: above the first size grpc refuses calls at random, above the second always.
        ("grpc.max_metadata_size", METADATA_BYTES_MAX // 2),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        # A connection that never reaches HTTP/2 is closed.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        # The engine bounds replies by reply_bytes_max; grpc's own limit would be 4 MiB.
        ("grpc.max_send_message_length", -1),
        # Larger reads and frames: fewer wake-ups for messages of 0.5 MB and up.
        ("grpc.http2.lookahead_bytes", 4 << 20),
        ("grpc.http2.max_frame_size", 1 << 20),
        # A vanished peer is noticed within 80 s. Clients may ping once a second; the SDK pings
        # every 4 s while a call waits.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ]


def _why_not_bound(address: str) -> StartError:
    """The reason of a failed bind: grpc doesn't give it, so the bind is tried once more."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return StartError(f"gRPC can't listen on {address!r}; give it as HOST:PORT")
    with contextlib.suppress(socket.gaierror):
        for family, kind, _, _, target in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    probe.bind(target)
            except OSError as error:
                return _bind_error(address, error)
    return StartError(f"gRPC can't listen on {address}; is the host one of this machine?")


def _bind_error(address: str, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"gRPC can't listen on {address}: the port is taken; choose another")
    return StartError(f"gRPC can't listen on {address}: {os.strerror(error.errno or 0)}")
