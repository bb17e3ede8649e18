"""Whether a request may go on: the one place that every wire asks, before it does any work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gatherd.errors import Overloaded
from gatherd_server.metrics.names import SHED_REQUESTS
from gatherd_server.metrics.telemetry import Telemetry
from gatherd_server.types import Limits

RETRY_AFTER_SECONDS = 1.0


class Admission:
    """Counts the requests under way in this process and keeps them bounded. Thread-safe."""

    def __init__(self, limits: Limits, telemetry: Telemetry | None = None) -> None:
        """Counts into `telemetry`, or for nobody."""
        self.limits = limits
        self.telemetry = telemetry or Telemetry()
        self.is_ready = False
        """Whether new traffic should be sent here: true from start-up's end until draining begins.
        Requests that come all the same are answered."""
        self._in_flight = 0
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Requests admitted and not yet answered."""
        return self._in_flight

    def enter(self) -> None:
        """Take a place for one request, before its body is read; `leave` gives it back.

        Overloaded when all places are taken: shedding early keeps the others fast.
        """
        with self._lock:
            if self._in_flight < self.limits.requests_in_flight_max:
                self._in_flight += 1
                return
        self.telemetry.threads.add(SHED_REQUESTS, "requests_in_flight_max")
        raise Overloaded(
            f"the server has {self._in_flight} requests in flight, "
            "as many as it takes; try again after a pause",
            {"limit": "requests_in_flight_max"},
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    def leave(self) -> None:
        """Give a place back, once its request is answered."""
        with self._lock:
            self._in_flight -= 1

    @contextmanager
    def request(self) -> Iterator[None]:
        """Hold a place for one request; see `enter`."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def check_request_bytes(self, byte_count: int) -> None:
        """LimitExceeded when a request's body is, or claims to be, longer than the server takes."""
        self.limits.check("request_bytes_max", "the request's body has", byte_count)
