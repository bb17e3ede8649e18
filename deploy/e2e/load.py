"""Clients of the deployment: pushers that count every push, and slow readers."""

import contextlib
import http.client
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gatherd import Client, GatherdError, IdOutOfRange

TABLE: Final = "siege"
ROWS: Final = 2000
DIM: Final = 16
IDS: Final = 50
# A push outlives a restart: the SDK retries it, and the server does it once.
PUSH_SECONDS: Final = 60.0


class _Threads(ABC):
    """A thread for each URL, from the start of a `with` block to its end."""

    def __init__(self, urls: list[str], token: str) -> None:
        self._stop = threading.Event()
        self._token = token
        self._threads = [
            threading.Thread(target=self._use, args=(number, url))
            for number, url in enumerate(urls)
        ]

    @abstractmethod
    def _use(self, number: int, url: str) -> None:
        """Run in thread `number` until `_stop` is set."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Pushers(_Threads):
    """Threads that add small whole numbers to random rows, each summing its acknowledged pushes.

    Sums of whole numbers are exact in float32 in any order, so `expected` is bit for bit what the
    table has to hold.
    """

    def __init__(self, urls: list[str], token: str) -> None:
        """One thread for each URL."""
        super().__init__(urls, token)
        self._sums = [np.zeros((ROWS, DIM), np.float32) for _ in urls]
        self.acknowledged = [0] * len(urls)
        self.errors: list[GatherdError] = []

    def _use(self, number: int, url: str) -> None:
        rng = np.random.default_rng(number)
        with Client(url, token=self._token, timeout=PUSH_SECONDS, retries=100) as client:
            while not self._stop.is_set():
                ids = rng.integers(0, ROWS, IDS)
                deltas = rng.integers(-3, 4, (IDS, DIM)).astype(np.float32)
                try:
                    client.scatter_add(TABLE, ids, deltas)
                except GatherdError as error:
                    self.errors.append(error)
                    return
                np.add.at(self._sums[number], ids, deltas)
                self.acknowledged[number] += 1

    def expected(self) -> NDArray[np.float32]:
        """The table by the acknowledged pushes. Call it when all threads have ended."""
        total: NDArray[np.float32] = np.sum(self._sums, axis=0, dtype=np.float32)
        return total


@dataclass(slots=True)
class SlowReader:
    """A large lookup whose reply has begun: certainly in flight until `finish`."""

    connection: http.client.HTTPConnection
    reply: http.client.HTTPResponse
    ids: NDArray[np.int64]
    begun: bytes = field(default=b"")

    @classmethod
    def begin(cls, host: str, token: str, ids: NDArray[np.int64]) -> Self:
        """Ask for rows of `tokens`, and read the beginning of the reply."""
        connection = http.client.HTTPConnection(host, timeout=60)
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/octet-stream",
            "Accept": "application/octet-stream",
        }
        body = ids.astype("<i8").tobytes()
        connection.request("POST", "/v1/tables/tokens:lookup", body, headers)
        reply = connection.getresponse()
        if reply.status != 200:
            raise AssertionError(f"a large lookup got {reply.status}: {reply.read(500)!r}")
        return cls(connection, reply, ids, reply.read(4096))

    def finish(self, table: NDArray[Any]) -> int:
        """Read the rest and compare it with the table; returns the number of bytes."""
        data = self.begun + self.reply.read()
        self.connection.close()
        rows = np.frombuffer(data, np.float32).reshape(len(self.ids), -1)
        if not np.array_equal(rows, table[self.ids]):
            raise AssertionError("a reply that was in flight at the stop came wrong")
        return len(data)


class Traffic(_Threads):
    """Threads that look up, pool, push and make errors until the end of a `with` block."""

    def __init__(self, urls: list[str], token: str) -> None:
        """One thread for each URL."""
        super().__init__(urls, token)
        self.requests = [0] * len(urls)

    def _use(self, number: int, url: str) -> None:
        rng = np.random.default_rng(number)
        with Client(url, token=self._token) as client:
            while not self._stop.wait(0.05):
                ids = rng.integers(0, 32_000, 200)
                client.lookup("tokens", ids)
                client.lookup_bags("words", ids, [0, 50, 100], mode="mean")
                client.scatter_add(TABLE, ids[:20] % ROWS, np.zeros((20, DIM), np.float32))
                with contextlib.suppress(IdOutOfRange):
                    client.lookup("tokens", [10**9])
                self.requests[number] += 4
