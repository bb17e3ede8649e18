"""Writes the access log's lines of HTTP requests; there is no such middleware without the log."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatherd_proto.errors import CANCELED
from gatherd_server.http.access import known_caller
from gatherd_server.observe import trail
from gatherd_server.observe.access_log import Noted, noting


class AccessLog:
    """ASGI middleware: writes a line for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # As it was sent: a decoded path could hold a line feed.
        path = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]
        noted = Noted(scope["method"], path.decode("latin-1"), status=CANCELED)

        async def received() -> Message:
            message = await receive()
            noted.request_bytes += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                noted.status = str(message["status"])
            noted.reply_bytes += len(message.get("body", b""))
            await send(message)

        with noting(noted):
            try:
                await self._app(scope, received, sent)
            finally:
                caller = known_caller(scope)
                if caller is not None and caller.grant is not None:
                    noted.caller = caller.grant.name
                noted.follow(trail.current())
