"""Shared by REST and Connect: bounded bodies in, buffers out."""

import asyncio
import contextlib
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gatherd.errors import MalformedRequest
from gatherd_server.access.admission import Admission
from gatherd_server.access.body_room import Held
from gatherd_server.http.media import content_encoding
from gatherd_server.wire.lookups import Part, byte_count

# Replies up to this are joined: the copy costs less than the ASGI messages and socket
# writes that it saves. p50 in µs through uvicorn over loopback, joined against one by one: 1 id
# 106-156 against 135-182, 0.5 MB 460-550 against 710-750, 8 MB 5,000-5,400 against 4,100-4,600.
JOIN_BYTES_MAX: Final = 1 << 20

# About 3 ms.
INFLATED_AT_ONCE_BYTES: Final = 1 << 20

T = TypeVar("T")


async def read_body(
    headers: Mapping[bytes, bytes], receive: Receive, admission: Admission, held: Held
) -> bytes:
    """The request's whole body, inflated if it is compressed; `held` counts both forms.

    LimitExceeded as soon as either form, or its Content-Length, is longer than the server takes;
    Overloaded when the worker holds too much already; ClientDisconnect when the client leaves
    before it has sent all of it.
    """
    body = await _read_all(headers, receive, admission, held)
    if content_encoding(headers) == "identity":
        return body
    return await _inflated(body, admission, held)


async def _inflated(body: bytes, admission: Admission, held: Held) -> bytes:
    # 31 stands for gzip's header.
    inflater = zlib.decompressobj(wbits=31)
    pieces: list[bytes] = []
    inflated_bytes = 0
    while not inflater.eof:
        try:
            piece = inflater.decompress(body, INFLATED_AT_ONCE_BYTES)
        except zlib.error as error:
            raise MalformedRequest(f"the body isn't the gzip it claims to be: {error}") from None
        body = inflater.unconsumed_tail
        if not piece and not body:
            break
        inflated_bytes += len(piece)
        admission.check_request_bytes(inflated_bytes)
        held.grow(len(piece))
        pieces.append(piece)
        # Let other tasks run: a small body can inflate to a thousand times its size.
        await asyncio.sleep(0)
    if not inflater.eof or inflater.unused_data:
        raise MalformedRequest("the body isn't one whole gzip stream")
    return b"".join(pieces)


async def _read_all(
    headers: Mapping[bytes, bytes], receive: Receive, admission: Admission, held: Held
) -> bytes:
    announced = headers.get(b"content-length")
    if announced is not None:
        if not announced.isdigit() or len(announced) > 18:
            raise MalformedRequest("the Content-Length header isn't a number of bytes")
        admission.check_request_bytes(int(announced))
    chunks: list[bytes] = []
    received_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        received_bytes += len(chunk)
        admission.check_request_bytes(received_bytes)
        held.grow(len(chunk))
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


async def outcome(future: Future[T]) -> T:
    """Await the outcome of another thread's work.

    Cancelling the wait doesn't cancel the work, as it would with asyncio.wrap_future. An update
    that was handed to the writer is done or not, whether its client is still there or not.
    """
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    def tell(_future: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(tell)
    await woken
    return future.result()


class PartsResponse(Response):
    """A reply of several buffers, sent without joining them when they are large."""

    def __init__(self, parts: Sequence[Part], headers: Mapping[str, str]) -> None:
        """`headers` go out as they are, with a Content-Length added."""
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in headers.items()
        ]
        self.parts = parts

    # ASGI passes scope and receive to every application.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the parts."""
        total_bytes = byte_count(self.parts)
        length = (b"content-length", str(total_bytes).encode())
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": [*self.raw_headers, length],
            }
        )
        if total_bytes <= JOIN_BYTES_MAX:
            await send({"type": "http.response.body", "body": b"".join(self.parts)})
            return
        *first, last = self.parts
        for part in first:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": last})
