"""A real web server in a thread of this process."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from gatherd_server.access.web import Web
from gatherd_server.http.app import create_app
from gatherd_server.http.connection import guarded_protocol
from gatherd_server.http.fast.connection import fast_protocol
from gatherd_server.http.fast.routes import FastRoutes
from gatherd_server.wire.compiled.serving import CompiledAnswers
from support.small_engine import SmallEngine
from support.training_engine import Training

Served = SmallEngine | Training
RECEIVE_SECONDS = 20.0


@dataclass(frozen=True)
class Twins:
    """Two servers of the same tables, the second without the fast path."""

    fast: str
    asgi: str
    served: SmallEngine


@contextlib.contextmanager
def web_server(
    served: Served,
    *,
    is_fast: bool = True,
    app: Any = None,
    http: Any = None,
    busy_poll_us: int = 0,
    web: Web | None = None,
    **options: Any,
) -> Iterator[str]:
    """Run a web server, with or without the fast path and with uvicorn's `options`.

    `app` stands in for the application, `http` for the protocol class.
    """
    # Connections are accepted from here on; those that come before the app is up wait in the queue.
    listener = socket.create_server(("127.0.0.1", 0))
    web = web or Web()
    app = app or create_app(served.engine, served.admission, served.offload, web)
    if http is None and is_fast:
        http = fast_protocol(
            FastRoutes(served.engine, root_path=web.root_path),
            CompiledAnswers(served.engine),
            served.admission,
            served.offload,
            busy_poll_us=busy_poll_us,
            has_cors=bool(web.cors_origins),
        )
    elif http is None:
        http = guarded_protocol(RECEIVE_SECONDS)
    server = uvicorn.Server(
        uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None, **options)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
