"""The path prefix at which a proxy serves this server."""

from starlette.types import ASGIApp, Receive, Scope, Send


class StripPrefix:
    """ASGI middleware: a request below the prefix is one for the rest of its path.

    A proxy may have removed the prefix itself: a path that lacks it is taken as it is. What the
    prefix is, only the OpenAPI document and links need to know.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app."""
        path: str = scope.get("path", "")
        if path == self._prefix or path.startswith(self._prefix + "/"):
            scope = {**scope, "path": path[len(self._prefix) :] or "/"}
        await self._app(scope, receive, send)
