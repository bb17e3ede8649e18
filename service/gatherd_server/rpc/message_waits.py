"""Waits of calls for their message, without a place among the calls that are being answered.

grpc's sync server begins a call when its headers arrive, and waits for the message on the thread
that is to answer it, for as long as the client likes. So a unary method is registered here as one
that takes a stream, and we read its only message ourselves: we can end the wait, and take one of
`places` only after it. The pool has a thread for every call that the server accepts.

Left out on purpose: LookupStream, which may be idle for as long as it likes (streams_max bounds the
number of streams); health's Watch and reflection, which grpc's own packages answer.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any, Final

import grpc

SWEEP_SECONDS: Final = 1.0

_Unary = Callable[[Any, grpc.ServicerContext], Any]


class MessageWaits:
    """The waits of one server. Safe to use from many threads."""

    def __init__(self, seconds: float, places: int) -> None:
        """A message must arrive whole within about `seconds`."""
        self._seconds = seconds
        self._since: dict[grpc.ServicerContext, float] = {}
        # Written in C, so cheaper than a semaphore.
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(places):
            self._places.put(None)
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="message-waits", daemon=True)

    def start(self) -> None:
        """Begin to end waits that take too long."""
        self._sweeper.start()

    def close(self) -> None:
        """Stop ending waits."""
        self._closing.set()
        self._sweeper.join()

    def bounded(self, handler: Any, *, takes_place: bool = True) -> Any:
        """A unary method's handler that waits here; any other handler as it is."""
        if handler.unary_unary is None:
            return handler
        answer: _Unary = handler.unary_unary
        return grpc.stream_unary_rpc_method_handler(
            self._placed(answer) if takes_place else self._awaited(answer),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _awaited(self, answer: _Unary) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        def call(bodies: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return answer(self._message(bodies, context), context)

        return call

    def _placed(self, answer: _Unary) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        places = self._places

        def call(bodies: Iterator[Any], context: grpc.ServicerContext) -> Any:
            body = self._message(bodies, context)
            places.get()
            try:
                return answer(body, context)
            finally:
                places.put(None)

        return call

    def _message(self, bodies: Iterator[Any], context: grpc.ServicerContext) -> Any:
        self._since[context] = time.monotonic()
        try:
            for body in bodies:
                return body
        finally:
            del self._since[context]
        # The same answer as grpc's own to a unary call without a message.
        return context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "the call takes exactly one request message"
        )

    def _sweep(self) -> None:
        while not self._closing.wait(SWEEP_SECONDS):
            deadline = time.monotonic() - self._seconds
            for context, since in self._since.copy().items():
                if since < deadline:
                    context.cancel()


class BoundedServer:
    """Passed to a package in place of a grpc server, to bound the waits of its handlers."""

    def __init__(self, server: grpc.Server, waits: MessageWaits) -> None:
        self._server = server
        self._waits = waits

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """Does nothing: the same handlers are registered by name too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Called by grpc's packages."""
        bounded = {
            name: self._waits.bounded(handler, takes_place=False)
            for name, handler in handlers.items()
        }
        generic = grpc.method_handlers_generic_handler(service, bounded)
        self._server.add_generic_rpc_handlers((generic,))
