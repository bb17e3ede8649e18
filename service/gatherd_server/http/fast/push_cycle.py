"""One update of the fast path: handed to the writer in one hop, and answered in another.

The loop waits for the writer neither by a task nor by a future of its own. The writer's thread puts
its answers into the loop's inbox, and wakes the loop once for all of a commit. A long update is
read and checked on a thread before.
"""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from gatherd.errors import DeadlineExceeded, GatherdError
from gatherd_server.access.admission import Admission
from gatherd_server.engine.engine import SHORT_BYTES
from gatherd_server.http.errors import stopping
from gatherd_server.http.fast.cycle import FastCycle
from gatherd_server.http.fast.routes import PushRoute
from gatherd_server.types import PushResult
from gatherd_server.wire.checks import UPDATE_MAY_BE_DONE


class PushCycle(FastCycle):
    """One update and its reply, all on the event loop but what the writer does.

    `_is_handed` says that a thread or the writer has it.
    """

    __slots__ = ("_is_handed", "_task")
    _enter = staticmethod(Admission.enter_update)
    _leave = staticmethod(Admission.leave_update)
    route: PushRoute

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_handed = False
        self._task: asyncio.Task[None] | None = None

    def _answer(self) -> None:
        body = self._whole_body()
        if len(body) > SHORT_BYTES:
            self._hand()
            self._task = self._connection.loop.create_task(self._begin_on_thread(body))
            return
        try:
            future = self.route.begin(body, self.caller)
        except GatherdError as error:
            self._fail(error)
            return
        except Exception as error:  # noqa: BLE001 - logged, and answered as the wire wants it
            self._fail_unexpected(error)
            return
        self._hand()
        future.add_done_callback(self._on_done)

    async def _begin_on_thread(self, body: bytes) -> None:
        try:
            future = await self._connection.offload.run(
                lambda: self.route.begin(body, self.caller), is_long=True
            )
        except Exception as error:  # noqa: BLE001 - as below
            self._answer_error(error)
            return
        future.add_done_callback(self._on_done)

    def _hand(self) -> None:
        connection = self._connection
        self._is_handed = True
        # A drain waits for it as for a task.
        connection.tasks.add(self)  # type: ignore[arg-type]
        if self.seconds is not None:
            left = self._deadline - time.monotonic()
            self._timer = connection.loop.call_later(max(0.0, left), self._expire)

    def _on_done(self, future: "Future[PushResult]") -> None:
        connection = self._connection
        connection.answers.put(connection.loop, self.answer, future)

    def answer(self, future: "Future[PushResult]") -> None:
        """Tell what became of the update, if anybody still waits for it."""
        error = future.exception()
        if error is not None:
            self._answer_error(error)
            return
        self._is_handed = False
        if not self.response_complete:  # else its time was up
            self._reply(future.result())

    def _answer_error(self, error: BaseException) -> None:
        self._is_handed = False
        if self.response_complete:
            return
        if isinstance(error, GatherdError):
            self._refuse(error)
        else:
            assert isinstance(error, Exception)
            self._fail_unexpected(error)
            self._forget()

    def _reply(self, result: PushResult) -> None:
        connection = self._connection
        if not self._is_gone:
            lines, body = self.route.reply(result)
            ok = connection.prefixes.ok(connection.server_state.default_headers)
            close = b"" if self.keep_alive else b"connection: close\r\n"
            reply = b"%b%bcontent-length: %d\r\n%b\r\n%b" % (ok, lines, len(body), close, body)
            # Before the write: who has read the reply may ask at once, and finds the place free.
            self._let_go()
            connection.write(memoryview(reply))
            self._complete()
            connection.busy_loop.answered(connection.loop)
        self._forget()

    def _refuse(self, error: GatherdError) -> None:
        self._fail(error)
        self._forget()

    def _forget(self) -> None:
        """Count an update whose client has gone, and give its place back."""
        if not self.response_complete:
            self.response_complete = True
            self._count(self._code)
            self._let_go()

    def abandon(self) -> None:
        """The connection is gone; an update that the writer has keeps its place."""
        if self._is_handed:
            self.disconnected = True
        else:
            super().abandon()

    def cancel(self, msg: str | None = None) -> None:  # noqa: ARG002 - as a task's
        """Wait no longer, at the end of a drain. Of uvicorn, which is looking through the tasks."""
        self._connection.loop.call_soon(self._stop)

    def _stop(self) -> None:
        if not self.response_complete:
            self._refuse(stopping())

    def _expire(self) -> None:
        if not self.response_complete:
            self._refuse(self._too_late())

    def _too_late(self) -> DeadlineExceeded:
        error = super()._too_late()
        return DeadlineExceeded(f"{error.message}; {UPDATE_MAY_BE_DONE}")

    def _let_go(self) -> None:
        super()._let_go()
        self._connection.tasks.discard(self)
