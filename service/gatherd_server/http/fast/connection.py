"""Lookups and updates answered inside uvicorn's own protocol class, without ASGI between.

Requests that routes.py has a route for are answered from `data_received` itself: a task, a scope
and three messages are most of a small lookup's cost. Every other request, and every one that isn't
plain (chunked or compressed bodies, `Expect`, repeated headers), goes on to the application. A
client can tell the two apart only by the time they take.

To uvicorn a fast request is a cycle like its own: `self.cycle` refers to it, it waits in
`self.pipeline` behind those before it, and ends with `on_response_complete()`. So replies keep the
order of the requests, idle connections expire and a drain waits. tests/http/test_fast_path.py lists
the parts of uvicorn's class that this needs, and fails when uvicorn changes them.

cycle.py has what becomes of a request, lookup_cycle.py and push_cycle.py how it is answered. Left
out on purpose: changes of tables, which are rare.
"""

import asyncio
import os
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gatherd.busy_poll import BUSY_POLL_US
from gatherd.errors import Unauthenticated
from gatherd_proto.headers import AUTHORIZATION, CONNECT_TIMEOUT, TIMEOUT_DIGITS_MAX
from gatherd_server.access.admission import Admission
from gatherd_server.access.callers import Caller
from gatherd_server.http.connection import GuardedProtocol, Sweeper
from gatherd_server.http.connection_limit import ConnectionLimit
from gatherd_server.http.fast.answers import LongReply, LoopAnswers
from gatherd_server.http.fast.busy_loop import BusyLoop
from gatherd_server.http.fast.cycle import HEAD_END, FastCycle, Prefixes
from gatherd_server.http.fast.lookup_cycle import CompiledCycle, JsonCycle
from gatherd_server.http.fast.push_cycle import PushCycle
from gatherd_server.http.fast.routes import FastRoutes, JsonRoute, LookupRoute, PushRoute, Route
from gatherd_server.http.observed import HeadTrail, head_trail
from gatherd_server.http.offload import Offload
from gatherd_server.link.inbox import Inbox
from gatherd_server.observe.metrics.telemetry import now_ns
from gatherd_server.observe.tracing import Spans
from gatherd_server.wire.compiled.serving import CompiledAnswers

LENGTH_DIGITS_MAX: Final = 18
_TIMEOUT: Final = CONNECT_TIMEOUT.encode()
_AUTHORIZATION: Final = AUTHORIZATION.encode()
# A request with less time may miss its deadline meanwhile, so a cycle watches it.
PLAIN_SECONDS_MIN: Final = 0.05
# Heads that a connection remembers, some 300 bytes each: batches come in a few sizes.
SEEN_MAX: Final = 32
_BLANK_LINE: Final = b"\r\n\r\n"


def fast_protocol(
    routes: FastRoutes,
    answers: CompiledAnswers,
    admission: Admission,
    offload: Offload,
    receive_seconds: float = 20.0,
    busy_poll_us: int = BUSY_POLL_US,
    *,
    has_cors: bool = False,
) -> type[GuardedProtocol]:
    """A protocol class for `uvicorn.Config(http=…)` that answers the lookups of `routes`.

    With `has_cors`, requests of browsers' pages go to the application, which writes the headers.
    """
    limit = ConnectionLimit(admission.telemetry)
    return type(
        "FastPathProtocol",
        (_FastPath,),
        {
            "routes": routes,
            "admission": admission,
            "offload": offload,
            "prefixes": Prefixes(),
            "answers": Inbox(),
            "spans": admission.telemetry.spans,
            "sweeper": Sweeper(receive_seconds, limit),
            "limit": limit,
            "compiled": LoopAnswers(answers),
            "busy_loop": BusyLoop(busy_poll_us),
            "has_cors": has_cors,
        },
    )


@dataclass(frozen=True, slots=True)
class _SeenHead:
    """The head of an earlier request of a connection, which came in one piece with its body.

    A client's next request of the same length most often has the same head, byte for byte.
    """

    head: bytes
    kind: type[FastCycle]
    route: Route
    seconds: float | None
    caller: Caller
    trail: HeadTrail | None
    plain: LookupRoute | None
    """The route again, if a request like it needs no cycle: see `_answered`."""


class _FastPath(GuardedProtocol):
    """One connection."""

    routes: FastRoutes
    admission: Admission
    offload: Offload
    prefixes: Prefixes
    spans: Spans | None
    compiled: LoopAnswers
    answers: Inbox
    busy_loop: BusyLoop
    has_cors: bool
    # uvicorn's own cycles and fast ones, which it treats alike.
    cycle: Any
    pipeline: deque[tuple[Any, Any]]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seen: dict[int, _SeenHead] = {}
        self._fd = -1
        self._answered_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and transport.get_extra_info("sslcontext") is None:
            self._fd = sock.fileno()

    def data_received(self, data: bytes) -> None:
        """Parse the data, which answers every request that is complete."""
        seen = self._seen.get(len(data))
        if (
            seen is not None
            and data.startswith(seen.head)
            and self.cycle.response_complete
            and self._begun == self._ended
            and not seen.caller.is_revoked
        ):
            # Same head bytes: parsing them again would yield nothing new.
            body = data[len(seen.head) :]
            begun = None
            if seen.plain is not None:
                answered = self._answered(seen.plain, seen.caller, body)
                if answered is True:
                    return
                begun = answered
            self._unset_keepalive_if_required()
            self.cycle = cycle = seen.kind(
                self, seen.route, seen.seconds, seen.caller, seen.trail, keep_alive=True
            )
            if isinstance(cycle, CompiledCycle):
                cycle.begun = begun
            cycle.take(body)
            cycle.end()
            cycle.start()
            return
        begin, ended, before = self._begun, self._ended, self.cycle
        super().data_received(data)
        cycle = self.cycle
        if not isinstance(cycle, FastCycle):
            return
        if begin == ended and self._begun == self._ended == begin + 1:
            if cycle.keep_alive and cycle is not before:
                self._learn(cycle, data)
        else:
            cycle.wait()

    def _learn(self, cycle: FastCycle, data: bytes) -> None:
        """Remember how a request that arrived in one read was routed."""
        size = len(data) - cycle.body_bytes
        if data.find(_BLANK_LINE) + len(_BLANK_LINE) != size:
            return  # more than the body follows the head: there are blank lines around
        plain = None
        if (
            isinstance(cycle, CompiledCycle)
            and (cycle.seconds is None or cycle.seconds >= PLAIN_SECONDS_MIN)
            # A token's limits count requests one by one, and spans are made one by one.
            and cycle.caller.limiter is None
            and self.spans is None
        ):
            plain = cycle.route
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen[len(data)] = _SeenHead(
            data[:size],
            type(cycle),
            cycle.route,
            cycle.seconds,
            cycle.caller,
            cycle.trail,
            plain,
        )

    def _answered(
        self, route: LookupRoute, caller: Caller, body: bytes
    ) -> LongReply | Literal[True] | None:
        """Answer without a cycle: True if that was possible, or a reply that a cycle has to write.

        Such a request takes no place among those in flight: it would give it back before anybody
        could see it.
        """
        if self.transport.get_write_buffer_size() or self.admission.is_full:
            return None
        begun_ns = now_ns()
        begin = self.prefixes.ok(self.server_state.default_headers)
        reply = self.compiled.reply(route, body, caller, begin, HEAD_END)
        if not isinstance(reply, memoryview):
            return reply if isinstance(reply, LongReply) else None
        self.write_now(reply)
        route.counted.done("ok", now_ns() - begun_ns)
        # The timer started after the last cycle looks at this when it fires.
        self._answered_at = self.loop.time()
        if not self.compiled.is_patient:
            self.compiled.answered_at = self._answered_at
        self.server_state.total_requests += 1
        self.busy_loop.answered(self.loop)
        return True

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for the whole time."""
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            super().timeout_keep_alive_handler()
            return
        self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)

    def write(self, data: memoryview) -> None:
        """Write `data`, which nobody changes any more."""
        sent = self._sent_now(data)
        if sent < len(data):
            self.transport.write(data[sent:])

    def write_now(self, data: memoryview) -> None:
        """Write `data`, which may be changed afterwards."""
        sent = self._sent_now(data)
        if sent < len(data):
            self.transport.write(bytes(data[sent:]))

    def _sent_now(self, data: memoryview) -> int:
        """How many bytes the socket took at once; all of them if the connection is gone.

        The event loop would write only when its pass ends, after other work. A waiting client
        shouldn't have to wait for that.
        """
        transport = self.transport
        if transport.is_closing():
            return len(data)
        if self._fd < 0 or transport.get_write_buffer_size():
            return 0
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            transport.abort()
            return len(data)

    def on_message_begin(self) -> None:
        """Put off what only the application needs."""
        self._begin()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        if not self._is_head_taken():
            return
        cycle = self._fast_cycle()
        if cycle is None:
            url, headers, expect = self.url, self.headers, self.expect_100_continue
            # Not StreamProtocol's method, which has counted this request already.
            HttpToolsProtocol.on_message_begin(self)
            self.url, self.expect_100_continue = url, expect
            self.headers.extend(headers)
            self._to_application()
            return
        self._is_in_head = False
        before, self.cycle = self.cycle, cycle
        if before is None or before.response_complete:
            cycle.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, None))

    def _fast_cycle(self) -> "FastCycle | None":
        parser = self.parser
        if parser.get_method() != b"POST" or self.expect_100_continue:
            return None
        headers = dict(self.headers)
        route = self.routes.find(self.url, headers)
        if route is None or len(headers) < len(self.headers):
            return None
        length = headers.get(b"content-length", b"")
        timeout = headers.get(_TIMEOUT, b"")
        if (
            not length.isdigit()
            or len(length) > LENGTH_DIGITS_MAX
            or int(length) > route.body_bytes_max
            or (timeout and not (timeout.isdigit() and len(timeout) <= TIMEOUT_DIGITS_MAX))
            or b"transfer-encoding" in headers
            or b"content-encoding" in headers
            or parser.get_http_version() != "1.1"
        ):
            return None
        given = headers.get(_AUTHORIZATION)
        try:
            caller = self.admission.caller(
                () if given is None else (given,), is_local=self.is_local
            )
        except Unauthenticated:
            return None
        if b"origin" in headers and (self.has_cors or caller.grant is None):
            return None
        if not self.standing.know():
            return None
        kind: type[FastCycle] = CompiledCycle
        if isinstance(route, JsonRoute):
            kind = JsonCycle
        elif isinstance(route, PushRoute):
            # Spans of a commit are linked to those of requests, which ASGI's way notes.
            if self.spans is not None or not route.admits(caller):
                return None
            kind = PushCycle
        seconds = int(timeout) / 1000 if timeout else None
        return kind(
            self,
            route,
            seconds,
            caller,
            head_trail(headers),
            keep_alive=parser.should_keep_alive(),
        )

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if isinstance(self.cycle, FastCycle):
            self._body_bytes += len(body)
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Answer, now or when it is this request's turn."""
        if isinstance(self.cycle, FastCycle) and not self._is_upgrade:
            self._ended += 1
            self.cycle.end()
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Abandon the requests: nobody is left to be answered."""
        super().connection_lost(exc)
        if isinstance(self.cycle, FastCycle):
            self.cycle.abandon()
        for cycle, _ in self.pipeline:
            if isinstance(cycle, FastCycle):
                cycle.abandon()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, FastCycle):
            # Not called from here, where the request before has just ended: a thousand pipelined
            # requests would make a thousand nested calls.
            self.loop.call_soon(cycle.start)
        else:
            super()._start_asgi_task(cycle, app)
