"""gRPC's health service, which follows the tables as they come and go.

The server, its two services and every table (as "tables/NAME") have a status. A check is answered
from the tables of that moment. A watcher gets a change within POLL_SECONDS: readers find a new
catalog only when they look at it.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import grpc

# Without maintained type stubs.
from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped]

from gatherd.errors import GatherdError

TABLE_HEALTH_PREFIX: Final = "tables/"
POLL_SECONDS: Final = 1.0

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
# A watcher's status for an unknown service; a check gets NOT_FOUND.
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class TableHealth(health.HealthServicer):  # type: ignore[misc]  # has no types
    """The health of `services` and of the tables; safe to use from many threads."""

    def __init__(
        self,
        services: tuple[str, ...],
        table_states: Callable[[], Mapping[str, str]],
        pool: ThreadPoolExecutor,
        check_table: Callable[[Any, str], None],
    ) -> None:
        """`table_states` is Engine.table_states. Nothing is serving before `set_serving`.

        `check_table` takes a call's context and a table's name, and ends the call when its caller
        may not know of the table.
        """
        super().__init__(experimental_non_blocking=True, experimental_thread_pool=pool)
        self._services = services
        self._table_states = table_states
        self._check_table = check_table
        self._told: dict[str, Any] = {}
        self._is_serving = False
        self._refreshing = threading.Lock()
        self._closing = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="health", daemon=True)
        self._refresh()
        self._poller.start()

    def set_serving(self, serving: bool) -> None:
        """Set the status of the server, its services, and every table that isn't refused."""
        self._is_serving = serving
        self._refresh()

    def close(self) -> None:
        """Stop following the tables."""
        self._closing.set()
        self._poller.join()

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Called by grpc."""
        self._check(request, context)
        self._refresh()
        response = super().Check(request, context)
        if response.status == _UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
        return response

    def Watch(self, request: Any, context: Any, send: Any = None) -> Any:  # noqa: N802 - as above
        """Called by grpc."""
        self._check(request, context)
        return super().Watch(request, context, send)

    def _check(self, request: Any, context: Any) -> None:
        if request.service.startswith(TABLE_HEALTH_PREFIX):
            self._check_table(context, request.service.removeprefix(TABLE_HEALTH_PREFIX))

    def _refresh(self) -> None:
        with self._refreshing:
            status = _SERVING if self._is_serving else _NOT_SERVING
            now = dict.fromkeys(self._services, status)
            states: Mapping[str, str] = {}
            # Without a readable catalog no table is served; lookups say why.
            with suppress(GatherdError):
                states = self._table_states()
            for name, refused in states.items():
                now[TABLE_HEALTH_PREFIX + name] = _NOT_SERVING if refused else status
            gone = dict.fromkeys(self._told.keys() - now.keys(), _UNKNOWN)
            for service, found in {**now, **gone}.items():
                if self._told.get(service) != found:
                    self.set(service, found)
            self._told = now

    def _poll(self) -> None:
        while not self._closing.wait(POLL_SECONDS):
            self._refresh()
