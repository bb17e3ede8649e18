"""Lookups answered inside uvicorn's own protocol class, without ASGI between.

Requests that fast_routes.py has a route for are answered from `data_received` itself: a task, a
scope and three messages are most of what a small lookup costs. Every other request, and whatever
isn't plain about one (chunked or compressed bodies, `Expect`, repeated headers, a full server),
goes on to the application. A client can't tell the two apart but by the clock.

To uvicorn a fast request is a cycle like its own: it stands in `self.cycle`, waits in
`self.pipeline` behind those before it, and ends with `on_response_complete()`. So replies keep the
order of the requests, idle connections expire and a drain waits. What that needs of uvicorn's class
is listed in tests/http/test_fast_path.py, which fails when uvicorn changes it.

Large replies are gathered and written piece by piece, with the loop's other work between two
pieces; no more of one is held than the peer has room for. Left out on purpose: updates, which wait
for the disk anyway.
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gatherd.errors import DeadlineExceeded, GatherdError
from gatherd_server.admission import Admission
from gatherd_server.engine.rows import Rows
from gatherd_server.errors import unexpected
from gatherd_server.http.body import JOIN_BYTES_MAX, PartsResponse, Workers
from gatherd_server.http.fast_routes import FastRoutes, Route, Work
from gatherd_server.proto_codec import Part, byte_count

# What is gathered and written at a time: small enough to stay in a core's cache in between and not
# to keep others waiting, about 40 µs.
PIECE_BYTES: Final = 256 << 10
# Where a reply's rows begin in their buffer.
ALIGN_BYTES: Final = 64
LENGTH_DIGITS_MAX: Final = 18
TIMEOUT_DIGITS_MAX: Final = 10


def fast_protocol(
    routes: FastRoutes, admission: Admission, workers: Workers
) -> type[HttpToolsProtocol]:
    """A protocol class for `uvicorn.Config(http=…)` that answers the lookups of `routes`."""
    return type(
        "FastPathProtocol",
        (_FastPath,),
        {"routes": routes, "admission": admission, "workers": workers, "prefixes": _Prefixes()},
    )


class _Prefixes:
    """The begin of a reply's head, kept while uvicorn's default headers, the date, are the same."""

    def __init__(self) -> None:
        self._defaults: list[tuple[bytes, bytes]] | None = None
        self._ok = b""

    def ok(self, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """Status line and default headers of a 200."""
        if defaults is not self._defaults:
            self._ok = STATUS_LINE[200] + _lines(defaults)
            self._defaults = defaults
        return self._ok


class _FastPath(HttpToolsProtocol):
    """One connection."""

    routes: FastRoutes
    admission: Admission
    workers: Workers
    prefixes: _Prefixes
    # uvicorn's cycles and fast ones, which it treats alike.
    cycle: Any
    pipeline: deque[tuple[Any, Any]]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun = self._ended = 0
        self._seen: _SeenHead | None = None

    def data_received(self, data: bytes) -> None:
        """Parse what came, which answers whatever is complete."""
        seen = self._seen
        if seen is not None and len(data) == seen.total and data.startswith(seen.head):
            before = self.cycle
            if before.response_complete and self._begun == self._ended and not self._is_full():
                # The parser has nothing to tell that it hasn't told of the same bytes before.
                self._unset_keepalive_if_required()
                self.cycle = cycle = _FastCycle(self, seen.route, seen.seconds, keep_alive=True)
                cycle.take(data[len(seen.head) :])
                cycle.end()
                cycle.start()
                return
        begun, ended = self._begun, self._ended
        super().data_received(data)
        cycle = self.cycle
        if not isinstance(cycle, _FastCycle):
            return
        if begun == ended and self._begun == self._ended == begun + 1:
            self._seen = cycle.seen(data)
        else:
            cycle.wait()

    def on_message_begin(self) -> None:
        """Put off what only the application needs."""
        self._begun += 1
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        cycle = self._fast_cycle()
        if cycle is None:
            url, headers, expect = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expect
            self.headers.extend(headers)
            super().on_headers_complete()
            return
        before, self.cycle = self.cycle, cycle
        if before is None or before.response_complete:
            cycle.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, None))

    def _fast_cycle(self) -> "_FastCycle | None":
        route = self.routes.find(self.url)
        parser = self.parser
        if route is None or parser.get_method() != b"POST" or self.expect_100_continue:
            return None
        headers = dict(self.headers)
        if len(headers) < len(self.headers) or not route.takes(headers):
            return None
        length = headers.get(b"content-length", b"")
        timeout = headers.get(b"connect-timeout-ms", b"")
        if (
            not length.isdigit()
            or len(length) > LENGTH_DIGITS_MAX
            or int(length) > self.admission.limits.request_bytes_max
            or (timeout and not (timeout.isdigit() and len(timeout) <= TIMEOUT_DIGITS_MAX))
            or b"transfer-encoding" in headers
            or b"content-encoding" in headers
            or parser.should_upgrade()
            or parser.get_http_version() != "1.1"
            or self._is_full()
        ):
            return None
        seconds = int(timeout) / 1000 if timeout else None
        return _FastCycle(self, route, seconds, parser.should_keep_alive())

    def _is_full(self) -> bool:
        limit = self.limit_concurrency
        return limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if isinstance(self.cycle, _FastCycle):
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Answer, now or when it is this request's turn."""
        self._ended += 1
        if isinstance(self.cycle, _FastCycle):
            self.cycle.end()
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to be answered."""
        super().connection_lost(exc)
        if isinstance(self.cycle, _FastCycle):
            self.cycle.abandon()
        for cycle, _ in self.pipeline:
            if isinstance(cycle, _FastCycle):
                cycle.abandon()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, _FastCycle):
            # Not from here, where the request before it has just ended: a thousand pipelined ones
            # would be as many calls deep.
            self.loop.call_soon(cycle.start)
        else:
            super()._start_asgi_task(cycle, app)


@dataclass(frozen=True, slots=True)
class _SeenHead:
    """The head of a connection's last request, when it came in one piece with its body.

    A client's next request most often has the same, byte for byte.
    """

    head: bytes
    total: int
    route: Route
    seconds: float | None


class _NoEvent:
    """uvicorn wakes its own cycles by an event; a fast one needs no waking."""

    def set(self) -> None:
        pass


class _FastCycle:
    """One request and its reply. Everything happens on the event loop but `Work` that is long."""

    __slots__ = (
        "_body",
        "_deadline",
        "_holds_place",
        "_is_read",
        "_is_started",
        "_length",
        "_protocol",
        "_route",
        "_seconds",
        "_tasks_count",
        "_timer",
        "disconnected",
        "keep_alive",
        "response_complete",
    )
    message_event: Final = _NoEvent()

    def __init__(
        self, protocol: _FastPath, route: Route, seconds: float | None, keep_alive: bool
    ) -> None:
        self._protocol = protocol
        self._route = route
        self._seconds = seconds
        self._deadline = 0.0
        self._body: list[bytes] = []
        self._length = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks_count = 0
        self._holds_place = self._is_read = self._is_started = False
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False

    def take(self, body: bytes) -> None:
        """A piece of the body; the parser sees to it that there is no more than was announced."""
        self._length += len(body)
        if not self.response_complete:
            self._body.append(body)

    def end(self) -> None:
        """The body is complete."""
        self._is_read = True
        if self._is_started and not self.response_complete:
            self._run()

    def seen(self, data: bytes) -> _SeenHead | None:
        """What `data`, this request and nothing else, begins with; None when it is the last one."""
        if not self.keep_alive:
            return None
        head = data[: len(data) - self._length]
        return _SeenHead(head, len(data), self._route, self._seconds)

    def start(self) -> None:
        """Every request before this one is answered."""
        self._is_started = True
        if self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds
        try:
            self._protocol.admission.enter()
        except GatherdError as error:
            self._respond(self._route.error(error))
            return
        self._holds_place = True
        if self._is_read:
            self._run()

    def wait(self) -> None:
        """The rest of the body comes later, or never."""
        if self._is_started and not self._is_read and self._seconds is not None and not self._timer:
            self._timer = self._protocol.loop.call_later(self._seconds, self._expire)

    def abandon(self) -> None:
        """The connection is gone."""
        self.disconnected = True
        if not self._tasks_count:
            self._let_go()

    @property
    def _is_gone(self) -> bool:
        # uvicorn tells only the last of several pipelined requests that nobody waits any more.
        return self.disconnected or self._protocol.transport.is_closing()

    def _track(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as one of the tasks that a drain waits for."""
        protocol = self._protocol
        self._tasks_count += 1
        task = protocol.loop.create_task(self._watched(work))
        protocol.tasks.add(task)
        task.add_done_callback(protocol.tasks.discard)

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - logged; part of an answer may be written
            unexpected(error)
            self._protocol.transport.abort()
        finally:
            self._tasks_count -= 1
            if not self._tasks_count and self._is_gone:
                self._let_go()

    def _expire(self) -> None:
        if not self.response_complete and not self.disconnected:
            self._respond(self._route.error(self._too_late()))

    def _run(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        protocol = self._protocol
        if protocol.flow.write_paused:
            # The peer hasn't read the replies before this one: nothing is gathered until it does.
            self._track(self._run_later())
            return
        try:
            found = self._route.begin(self._whole_body())
            if isinstance(found, Work):
                self._work(found)
            elif found.nbytes <= PIECE_BYTES:
                self._write_whole(found)
            else:
                found.check()
                self._check_time()
                self._track(self._stream(found))
        except GatherdError as error:
            self._respond(self._route.error(error))
        except Exception as error:  # noqa: BLE001 - logged, and answered as the wire wants it
            self._respond(self._route.error(unexpected(error)))

    async def _run_later(self) -> None:
        await self._protocol.flow.drain()
        if not self._is_gone:
            self._run()

    def _whole_body(self) -> bytes:
        pieces, self._body = self._body, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _write_whole(self, rows: Rows) -> None:
        """Answer with one buffer: the head, and the rows gathered behind it."""
        head = self._head(rows)
        buffer, begin = _buffer_for(head, rows.nbytes)
        rows.read(0, rows.count, buffer, begin)
        self._check_time()
        self._protocol.transport.write(buffer.data[begin - len(head) :])
        self._complete()

    async def _stream(self, rows: Rows) -> None:
        """Answer piece by piece; all ids are known to have rows."""
        protocol = self._protocol
        head = self._head(rows)
        step = max(1, PIECE_BYTES // max(1, rows.row_bytes))
        for start in range(0, rows.count, step):
            stop = min(start + step, rows.count)
            buffer, begin = _buffer_for(head, (stop - start) * rows.row_bytes)
            try:
                rows.read(start, stop, buffer, begin)
            except GatherdError as error:
                if start == 0:
                    self._respond(self._route.error(error))
                else:
                    # Too late for another answer: the client sees that this one isn't whole.
                    protocol.transport.abort()
                return
            protocol.transport.write(buffer.data[begin - len(head) :])
            head = b""
            # The write goes out, and others have their turn.
            await asyncio.sleep(0)
            if protocol.flow.write_paused:
                await protocol.flow.drain()
            if self._is_gone:
                return
        self._complete()

    def _work(self, work: Work) -> None:
        if work.is_long:
            self._track(self._run_elsewhere(work))
            return
        response = work.run()
        self._check_time()
        self._respond(response)

    async def _run_elsewhere(self, work: Work) -> None:
        try:
            async with asyncio.timeout(self._seconds and self._deadline - time.monotonic()):
                response = await self._protocol.workers.run(work.run, is_long=True)
            self._check_time()
        except GatherdError as error:
            response = self._route.error(error)
        except TimeoutError:
            response = self._route.error(self._too_late())
        except Exception as error:  # noqa: BLE001 - logged, and answered as the wire wants it
            response = self._route.error(unexpected(error))
        if not self._is_gone:
            self._respond(response)

    def _check_time(self) -> None:
        if self._seconds is not None and time.monotonic() >= self._deadline:
            raise self._too_late()

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the request wasn't answered within its {self._seconds:g} s")

    def _head(self, rows: Rows) -> bytes:
        protocol = self._protocol
        lines, begin = self._route.head(rows)
        ok = protocol.prefixes.ok(protocol.server_state.default_headers)
        return b"%b%bcontent-length: %d\r\n%b\r\n%b" % (
            ok,
            lines,
            len(begin) + rows.nbytes,
            b"" if self.keep_alive else b"connection: close\r\n",
            begin,
        )

    def _respond(self, response: Response) -> None:
        """Write a response that was made for ASGI."""
        parts: list[Part]
        headers = response.raw_headers
        if isinstance(response, PartsResponse):
            parts = [*response.parts]
            headers = [*headers, (b"content-length", b"%d" % byte_count(parts))]
        else:
            parts = [bytes(response.body)]
        protocol = self._protocol
        head = STATUS_LINE[response.status_code] + _lines(protocol.server_state.default_headers)
        head += _lines(headers) + (b"" if self.keep_alive else b"connection: close\r\n") + b"\r\n"
        if byte_count(parts) <= JOIN_BYTES_MAX:
            parts = [b"".join((head, *parts))]
        else:
            parts.insert(0, head)
        for part in parts:
            protocol.transport.write(part)
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._let_go()
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._holds_place:
            self._holds_place = False
            self._protocol.admission.leave()


def _lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _buffer_for(head: bytes, nbytes: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """Room for `head`, which is put in, and `nbytes` behind it, and where those begin."""
    begin = len(head) + -len(head) % ALIGN_BYTES
    buffer = np.empty(begin + nbytes, np.uint8)
    buffer.data[begin - len(head) : begin] = head
    return buffer, begin
