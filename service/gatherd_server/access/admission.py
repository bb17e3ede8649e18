"""Admits requests: every wire asks here, and only here, before it does any work.

First it finds the caller (`caller`), then whether this is one request too many (`count`, `enter`).
The engine that the caller gets checks its permissions; see callers.py.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final, TypeAlias

from gatherd.errors import Overloaded, Unauthenticated
from gatherd_proto.headers import TOKEN_CHARS_MAX
from gatherd_server.access.body_room import BodyRoom, Held
from gatherd_server.access.callers import ANYBODY, Caller
from gatherd_server.access.token_file import TokenFile
from gatherd_server.observe.metrics.names import SHED_REQUESTS
from gatherd_server.observe.metrics.telemetry import Telemetry
from gatherd_server.types import Limits

RETRY_AFTER_SECONDS = 1.0
METRICS_PATH: Final = "/metrics"
# For probes, which have no token: whether the process is alive, and takes traffic.
OPEN_PATHS: Final = frozenset(("/healthz", "/readyz"))
# For browsers, which have no token when they load a page. The pages are the same on every server;
# what they show of this one they ask for with a token.
PAGE_PATHS: Final = frozenset(
    (
        *("/", "/redoc", "/docs"),
        *("/docs/docs.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"),
    )
)

Place: TypeAlias = Callable[[Caller], AbstractContextManager[Held]]
"""`Admission.request`, `update` or `unplaced`."""


class Admission:
    """Finds callers, counts the requests under way in this process and bounds them.

    Thread-safe.
    """

    def __init__(
        self,
        limits: Limits,
        tokens: TokenFile | None = None,
        *,
        open_metrics: bool = False,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Without `tokens` anybody may do everything. Counts into `telemetry`, if given."""
        self.limits = limits
        self.telemetry = telemetry or Telemetry()
        self.has_tokens = tokens is not None
        self._tokens = tokens
        self._open_paths = (
            OPEN_PATHS | PAGE_PATHS | ({METRICS_PATH} if open_metrics else frozenset())
        )
        self.is_ready = False
        """Whether new traffic should be sent here: true from start-up's end until draining begins.
        Requests that still arrive are answered."""
        self.bodies = BodyRoom(
            limits.bodies_bytes_max,
            lambda: self.telemetry.threads.add(SHED_REQUESTS, "bodies_bytes_max"),
        )
        self._in_flight = 0
        self._updates_in_flight = 0
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Requests admitted and not yet answered, updates among them."""
        return self._in_flight + self._updates_in_flight

    @property
    def updates_in_flight(self) -> int:
        """Updates and changes of tables admitted and not yet answered."""
        return self._updates_in_flight

    @property
    def is_full(self) -> bool:
        """Whether `enter` would refuse every caller."""
        return self._in_flight >= self.limits.requests_in_flight_max

    def caller(self, authorizations: Sequence[bytes], *, is_local: bool = False) -> Caller:
        """The caller, by a request's Authorization headers. Unauthenticated without a valid one.

        `is_local` says that the request came over a Unix socket. A client that may open the socket
        may do everything; if it sends a token, it is held to that token.
        """
        if self._tokens is None or (is_local and not authorizations):
            return ANYBODY
        if not authorizations:
            raise Unauthenticated(
                "this server takes a token: send it as `Authorization: Bearer TOKEN`, as the SDK "
                "does with token= or token_file="
            )
        scheme, _, token = authorizations[0].strip().partition(b" ")
        token = token.strip()
        if len(authorizations) > 1 or scheme.lower() != b"bearer" or not token:
            raise Unauthenticated(
                "the Authorization header can't be read; it has to be one `Bearer TOKEN`",
                {"error": "invalid_request"},
            )
        found = self._tokens.find(token) if len(token) <= TOKEN_CHARS_MAX else None
        if found is None:
            # Without the token or any part of it: clients log errors.
            raise Unauthenticated(
                "the token isn't one of this server's, or no longer", {"error": "invalid_token"}
            )
        return found

    def is_open(self, path: str) -> bool:
        """Whether an HTTP path is answered without a token."""
        return path in self._open_paths

    def count(self, caller: Caller) -> None:
        """Count one request of `caller`. Overloaded when its token's rate is exceeded."""
        if caller.limiter is not None:
            with self._counting_shed():
                caller.limiter.count()

    def enter(self, caller: Caller = ANYBODY) -> None:
        """Take a place for one request, before its body is read; `leave` gives it back.

        Overloaded when all places, or all of the caller's, are taken: shedding early keeps the
        others fast.
        """
        limiter = caller.limiter
        if limiter is not None:
            with self._counting_shed():
                limiter.enter()
        with self._lock:
            if self._in_flight < self.limits.requests_in_flight_max:
                self._in_flight += 1
                return
        if limiter is not None:
            limiter.leave()
        raise self._shed("requests_in_flight_max", f"{self._in_flight} requests")

    def enter_update(self, caller: Caller = ANYBODY) -> None:
        """Take a place for one update or change, as `enter` does; `leave_update` gives it back.

        These places are separate: an update waits for a disk; lookups mustn't wait behind it.
        """
        limiter = caller.limiter
        if limiter is not None:
            with self._counting_shed():
                limiter.enter()
        with self._lock:
            if self._updates_in_flight < self.limits.updates_in_flight_max:
                self._updates_in_flight += 1
                return
        if limiter is not None:
            limiter.leave()
        raise self._shed("updates_in_flight_max", f"{self._updates_in_flight} updates")

    def leave_update(self, caller: Caller = ANYBODY) -> None:
        """Give a place back, once its update is answered."""
        with self._lock:
            self._updates_in_flight -= 1
        if caller.limiter is not None:
            caller.limiter.leave()

    @contextmanager
    def update(self, caller: Caller = ANYBODY) -> Iterator[Held]:
        """Hold a place for one update or change, see `enter_update`, as `request` does."""
        self.enter_update(caller)
        held = self.held_by(caller)
        try:
            yield held
        finally:
            held.release()
            self.leave_update(caller)

    def _shed(self, limit: str, what: str) -> Overloaded:
        self.telemetry.threads.add(SHED_REQUESTS, limit)
        return Overloaded(
            f"the server has {what} in flight, as many as it takes; try again after a pause",
            {"limit": limit},
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    @contextmanager
    def _counting_shed(self) -> Iterator[None]:
        try:
            yield
        except Overloaded as error:
            self.telemetry.threads.add(SHED_REQUESTS, f"token_{error.metadata['limit']}")
            raise

    def leave(self, caller: Caller = ANYBODY) -> None:
        """Give a place back, once its request is answered."""
        with self._lock:
            self._in_flight -= 1
        if caller.limiter is not None:
            caller.limiter.leave()

    @contextmanager
    def request(self, caller: Caller = ANYBODY) -> Iterator[Held]:
        """Hold a place for one request, see `enter`; yields the count of its body's bytes."""
        self.enter(caller)
        held = self.held_by(caller)
        try:
            yield held
        finally:
            held.release()
            self.leave(caller)

    @contextmanager
    def unplaced(self, caller: Caller = ANYBODY) -> Iterator[Held]:
        """For a request of `caller` that needs no place; yields the count of its body's bytes."""
        held = self.held_by(caller)
        try:
            yield held
        finally:
            held.release()

    def held_by(self, caller: Caller) -> Held:
        """A count of the bytes that a request of `caller` holds of its body: none yet."""
        return Held(self.bodies, "" if caller.grant is None else caller.grant.name)

    def check_request_bytes(self, byte_count: int) -> None:
        """LimitExceeded when a request's body is, or claims to be, longer than the server takes."""
        self.limits.check("request_bytes_max", "the request's body has", byte_count)
