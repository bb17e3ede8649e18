"""Work that is ended when its client leaves, or its time is up."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gatherd_server.engine.searching import Stopping
from gatherd_server.http.offload import Offload

T = TypeVar("T")


async def until_gone(
    offload: Offload, work: Callable[[], T], stopping: Stopping, receive: Receive
) -> T:
    """The result of `work`, which a thread does; it is stopped when nobody waits for it any more.

    ClientDisconnect when the client left. The request's body must have been received.
    """
    done = asyncio.ensure_future(offload.run(work, is_long=True))
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        raise ClientDisconnect
    finally:
        stopping.stop()
        done.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
