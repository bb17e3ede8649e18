"""One request of the fast path: its place, its body, its time, and how it is answered and counted.

How the answer is found is lookup_cycle.py's and push_cycle.py's.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from starlette.responses import Response
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from gatherd.errors import DeadlineExceeded, GatherdError, Overloaded
from gatherd_proto.errors import CANCELED
from gatherd_server.access.admission import Admission
from gatherd_server.access.body_room import SMALL_BYTES, Held
from gatherd_server.access.callers import Caller
from gatherd_server.errors import unexpected
from gatherd_server.http.body import JOIN_BYTES_MAX, PartsResponse
from gatherd_server.http.fast.answers import LoopAnswers
from gatherd_server.http.fast.busy_loop import BusyLoop
from gatherd_server.http.fast.routes import Route
from gatherd_server.http.observed import NO_TRAIL, HeadTrail, note_failure
from gatherd_server.http.offload import Offload
from gatherd_server.link.inbox import Inbox
from gatherd_server.observe.metrics.telemetry import now_ns
from gatherd_server.observe.tracing import Spans
from gatherd_server.observe.trail import REQUEST_ID_HEADER, Trail, following
from gatherd_server.wire.codes import code_of
from gatherd_server.wire.lookups import Part, byte_count

HEAD_END: Final = b"\r\n"
"""Of a connection that is kept, behind the last line."""


class Prefixes:
    """The start of a reply's head, kept while uvicorn's default headers (the date) are the same."""

    def __init__(self) -> None:
        self._defaults: list[tuple[bytes, bytes]] | None = None
        self._ok = b""

    def ok(self, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """Status line and default headers of a 200."""
        if defaults is not self._defaults:
            self._ok = STATUS_LINE[200] + _lines(defaults)
            self._defaults = defaults
        return self._ok


class FastConnection(Protocol):
    """The part of a connection that a request uses; uvicorn's protocol class has most of it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    tasks: set[asyncio.Task[None]]
    server_state: ServerState
    admission: Admission
    offload: Offload
    prefixes: Prefixes
    compiled: LoopAnswers
    spans: Spans | None
    answers: Inbox
    busy_loop: BusyLoop

    def on_response_complete(self) -> None:
        """Go on with the next request."""

    def write(self, data: memoryview) -> None:
        """Write `data`, which is kept until it is sent."""

    def write_now(self, data: memoryview) -> None:
        """Write; `data` can be changed afterwards."""


class _NoEvent:
    """uvicorn wakes its own cycles by an event; a fast one needs no waking."""

    def set(self) -> None:
        pass


class FastCycle:
    """One request and its reply; a subclass has `_answer`, called when its body is there."""

    __slots__ = (
        "_begun_ns",
        "_body",
        "_code",
        "_connection",
        "_deadline",
        "_held",
        "_holds_place",
        "_is_read",
        "_is_started",
        "_refusal",
        "_tasks_count",
        "_timer",
        "body_bytes",
        "caller",
        "disconnected",
        "keep_alive",
        "response_complete",
        "route",
        "seconds",
        "trail",
    )
    message_event: Final = _NoEvent()
    _enter = staticmethod(Admission.enter)
    _leave = staticmethod(Admission.leave)
    route: Route

    def __init__(
        self,
        connection: FastConnection,
        route: Any,
        seconds: float | None,
        caller: Caller,
        trail: HeadTrail | None,
        *,
        keep_alive: bool,
    ) -> None:
        self._begun_ns = now_ns()
        self._code = "ok"
        self.trail = trail
        self._connection = connection
        self.route = route
        self.seconds = seconds
        self.caller = caller
        self._deadline = 0.0
        self._body: list[bytes] = []
        self.body_bytes = 0
        self._held: Held | None = None
        self._refusal: Overloaded | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks_count = 0
        self._holds_place = self._is_read = self._is_started = False
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False

    def take(self, body: bytes) -> None:
        """Take a piece of the body; the parser passes on no more than was announced."""
        self.body_bytes += len(body)
        if self.response_complete or self._refusal is not None:
            return
        self._body.append(body)
        if self.body_bytes > SMALL_BYTES:
            self._hold(len(body))

    def _hold(self, nbytes: int) -> None:
        """Count the received bytes of a body that isn't small; answer if there is no room."""
        if self._held is None:
            self._held = self._connection.admission.held_by(self.caller)
            nbytes = self.body_bytes
        try:
            self._held.grow(nbytes)
        except Overloaded as error:
            self._body.clear()
            self._refusal = error
            if self._is_started:
                self._fail(error)

    def end(self) -> None:
        """The body is complete."""
        self._is_read = True
        if self._is_started and not self.response_complete:
            self._run()

    def start(self) -> None:
        """Every request before this one is answered."""
        self._is_started = True
        if self.seconds is not None:
            self._deadline = time.monotonic() + self.seconds
        try:
            if self.caller.limiter is not None:
                self._connection.admission.count(self.caller)
            self._enter(self._connection.admission, self.caller)
        except GatherdError as error:
            self._fail(error)
            return
        self._holds_place = True
        if self._refusal is not None:
            self._fail(self._refusal)
        elif self._is_read:
            self._run()

    def wait(self) -> None:
        """The rest of the body comes later, or never."""
        if self._is_started and not self._is_read and self.seconds is not None and not self._timer:
            self._timer = self._connection.loop.call_later(self.seconds, self._expire)

    def abandon(self) -> None:
        """The connection is gone."""
        self.disconnected = True
        if self._holds_place and not self.response_complete:
            code = CANCELED if self._code == "ok" else self._code
            self._count(code)
        if not self._tasks_count:
            self._let_go()

    @property
    def _is_gone(self) -> bool:
        # uvicorn marks only the last of several pipelined requests as disconnected.
        return self.disconnected or self._connection.transport.is_closing()

    def _track(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as one of the tasks that a drain waits for."""
        connection = self._connection
        self._tasks_count += 1
        task = connection.loop.create_task(self._watched(work))
        connection.tasks.add(task)
        task.add_done_callback(connection.tasks.discard)

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - logged; part of an answer may be written
            unexpected(error)
            self._connection.transport.abort()
        finally:
            self._tasks_count -= 1
            if not self._tasks_count and self._is_gone:
                self._let_go()

    def _expire(self) -> None:
        if not self.response_complete and not self.disconnected:
            self._fail(self._too_late())

    def _run(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        connection = self._connection
        if connection.flow.write_paused:
            # The peer hasn't read the replies before this one: nothing is gathered until it does.
            self._track(self._run_later())
            return
        self._answer()

    def _answer(self) -> None:
        raise NotImplementedError

    async def _run_later(self) -> None:
        await self._connection.flow.drain()
        if not self._is_gone:
            self._run()

    def _whole_body(self) -> bytes:
        pieces, self._body = self._body, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_time(self) -> None:
        if self.seconds is not None and time.monotonic() >= self._deadline:
            raise self._too_late()

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the request wasn't answered within its {self.seconds:g} s")

    def _around(self) -> tuple[bytes, bytes]:
        """What a 200's head has before and behind the route's own lines."""
        connection = self._connection
        begin = connection.prefixes.ok(connection.server_state.default_headers)
        return begin, HEAD_END if self.keep_alive else b"connection: close\r\n\r\n"

    def _fail(self, error: GatherdError) -> None:
        self._code = code_of(error)
        request_id = Trail((self.trail or NO_TRAIL).get).request_id
        self._connection.admission.telemetry.failures.note(error, request_id)
        if self._is_gone:
            return
        response = self.route.error(error)
        response.headers[REQUEST_ID_HEADER] = request_id
        note_failure(self.route.counted, self._code, error.message, request_id)
        self._respond(response)

    def _fail_unexpected(self, error: Exception) -> None:
        trail = Trail((self.trail or NO_TRAIL).get)
        # An id that is drawn now must be the same in the log and in the answer.
        self.trail = HeadTrail(trail.request_id.encode(), b"")
        with following(trail):
            failure = unexpected(error)
        self._fail(failure)

    def _respond(self, response: Response) -> None:
        """Write a response that was made for ASGI."""
        parts: list[Part]
        headers = response.raw_headers
        if isinstance(response, PartsResponse):
            parts = [*response.parts]
            headers = [*headers, (b"content-length", b"%d" % byte_count(parts))]
        else:
            parts = [bytes(response.body)]
        connection = self._connection
        head = STATUS_LINE[response.status_code] + _lines(connection.server_state.default_headers)
        head += _lines(headers) + (b"" if self.keep_alive else b"connection: close\r\n") + b"\r\n"
        if byte_count(parts) <= JOIN_BYTES_MAX:
            parts = [b"".join((head, *parts))]
        else:
            parts.insert(0, head)
        for part in parts:
            connection.write(memoryview(part))
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._count(self._code)
        self._let_go()
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()

    def _count(self, code: str) -> None:
        elapsed_ns = now_ns() - self._begun_ns
        counted = self.route.counted
        counted.done(code, elapsed_ns)
        spans = self._connection.spans
        if spans is not None:
            trail = Trail((self.trail or NO_TRAIL).get)
            spans.request(counted.wire, counted.procedure, code, elapsed_ns, trail.traceparent)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._held is not None:
            self._held.release()
        if self._holds_place:
            self._holds_place = False
            self._leave(self._connection.admission, self.caller)


def _lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
