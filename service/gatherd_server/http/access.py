"""Finds the caller of every HTTP request outside the fast path, before it is routed.

So a new route is closed until it is opened on purpose (OPEN_PATHS in access/admission.py), and a
client without a token doesn't learn which paths exist.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from gatherd.errors import GatherdError, PermissionDenied, Unauthenticated
from gatherd_proto.headers import AUTHORIZATION
from gatherd_proto.procedures import PATH_PREFIX
from gatherd_server.access.admission import METRICS_PATH, Admission, Place
from gatherd_server.access.body_room import Held
from gatherd_server.access.callers import NOBODY, Caller
from gatherd_server.access.callers import Scope as Need
from gatherd_server.access.web import Web
from gatherd_server.http.connection_limit import Standing
from gatherd_server.http.errors import connect_error, problem

# Key in a scope's state: whether the connection came over a Unix socket.
IS_LOCAL: Final = "gatherd.is_local"
# Key in a scope's state: the connection's Standing, see connection_limit.py.
STANDING: Final = "gatherd.standing"
_CALLER: Final = "gatherd.caller"
_HELD: Final = "gatherd.held"
_AUTHORIZATION: Final = AUTHORIZATION.encode()
_READING: Final = frozenset(("GET", "HEAD", "OPTIONS"))


def caller_of(scope: Scope) -> Caller:
    """The caller that `Authenticate` found."""
    caller: Caller = scope[_CALLER]
    return caller


def known_caller(scope: Scope) -> Caller | None:
    """The caller that `Authenticate` found, or None of a request that it refused."""
    caller: Caller | None = scope.get(_CALLER)
    return caller


def held_of(scope: Scope) -> Held:
    """The bytes that the request holds of its body, once `placed` has given it a place."""
    held: Held = scope[_HELD]
    return held


@contextmanager
def placed(scope: Scope, place: Place, needed: Need) -> Iterator[None]:
    """Hold one of `place`'s places for a caller with the permission `needed`.

    PermissionDenied or Overloaded, before the body is read.
    """
    caller = caller_of(scope)
    caller.check(needed)
    with place(caller) as held:
        scope[_HELD] = held
        yield


class Authenticate:
    """ASGI middleware: puts the caller into the scope, or answers 401, 403 or 429."""

    def __init__(self, app: ASGIApp, admission: Admission, web: Web) -> None:
        self._app = app
        self._admission = admission
        self._web = web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app if the caller is allowed to."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        try:
            scope[_CALLER] = self._admitted(scope, path)
        except GatherdError as error:
            answer = connect_error if path.startswith(PATH_PREFIX) else problem
            await answer(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admitted(self, scope: Scope, path: str) -> Caller:
        admission = self._admission
        given = [value for name, value in scope["headers"] if name == _AUTHORIZATION]
        state = scope.get("state", {})
        is_local = state.get(IS_LOCAL, False)
        standing: Standing | None = state.get(STANDING)
        if admission.is_open(path):
            try:
                return admission.caller(given, is_local=is_local)
            except Unauthenticated:
                return NOBODY
        caller = admission.caller(given, is_local=is_local)
        admission.count(caller)
        if path == METRICS_PATH:
            caller.check_metrics()
        if standing is not None and not standing.know() and path != METRICS_PATH:
            raise standing.refusal()
        if caller.grant is None:
            self._check_origin(scope)
        return caller

    def _check_origin(self, scope: Scope) -> None:
        """PermissionDenied for a request that a page of another site made a browser send.

        A browser on the server's machine reaches a server without tokens, and sends a request
        without a body (a rollback) without a preflight. Its Origin header names the page's site.
        """
        if scope["method"] in _READING:
            return
        headers = dict(scope["headers"])
        given = headers.get(b"origin")
        if given is None:
            return
        origin = given.decode("latin-1").lower()
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if urlsplit(origin).netloc != host and not self._web.allows(origin):
            raise PermissionDenied(
                f"a page of {origin[:128]!r} isn't of this server; browsers of other sites aren't "
                "answered, except of those in cors_origins"
            )
