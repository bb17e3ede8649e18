"""`make overload`: three times the load that a server can take, and what becomes of it.

A worker on one core is asked from the other one, first by as many connections as it admits requests
(its capacity), then at three times the rate that this gave, whether it answers or not: requests are
due at fixed times, and a latency counts from when a request was due. Marks: the goodput, answers
other than refusals, stays within 20 % of the capacity, and the p99 of what was admitted within
three times that at capacity. A request that finds all CONNECTIONS of the client busy isn't sent,
and is told as such.

Left out on purpose: requests that take a few µs. Refusing one costs the server as much as answering
it, so none is refused but by the number of connections; docs/operations.md says what to do then.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from bench.harness import TABLE, IdSource, Mark, Plan, Report, Table, cores, number, pinned
from gatherd_proto.v1 import embedding_pb2, tensor_pb2

ADMITTED: Final = 16
CONNECTIONS: Final = 128
TIMES: Final = 3
SECONDS: Final = 4.0
ROUNDS: Final = 3
ROWS: Final = 200_000
IDS, BAGS = 8192, 8
PATH: Final = "/gatherd.v1.EmbeddingService/LookupBags"
GOODPUT_MARK, P99_MARK = 0.8, 3.0

Ask = Callable[[bytes], Awaitable[bool]]
"""Sends a body; whether it was answered (True) or refused. Anything else is an error."""


@dataclass(slots=True)
class Seen:
    """What became of the requests of one run; latencies in seconds, of those that were admitted."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    unsent: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def note(self, due: float, was_answered: bool) -> None:
        """Count a request."""
        taken = time.perf_counter() - due
        (self.latencies if was_answered else self.refusals).append(taken)

    def p99_ms(self) -> float:
        """Of the answers."""
        return float(np.percentile(self.latencies, 99)) * 1e3


def body() -> bytes:
    """A LookupBagsRequest that takes the server about a millisecond."""
    ids = IdSource(ROWS).draw("uniform", IDS)
    starts = np.arange(0, IDS, IDS // BAGS)
    request = embedding_pb2.LookupBagsRequest(
        lookup=embedding_pb2.LookupRequest(table=TABLE, ids=_tensor(ids)), offsets=_tensor(starts)
    )
    return request.SerializeToString()


def _tensor(values: "np.ndarray[Any, np.dtype[np.int64]]") -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.DTYPE_INT64, shape=[values.size], data=values.tobytes()
    )


# --- who asks ---


class HttpConnection:
    """One connection; a request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, url: str) -> "HttpConnection":
        """Connected."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22))

    async def ask(self, body: bytes) -> bool:
        """As Ask."""
        head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/proto\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await self._reader.readexactly(length)
        status = answer.split()[1]
        if status not in (b"200", b"429") or (status == b"429" and b"retry-after: " not in answer):
            raise AssertionError(answer.decode())
        return status == b"200"


class GrpcCalls:
    """Calls of one channel, so many at a time as there are instances."""

    def __init__(self, method: Any) -> None:
        self._method = method

    async def ask(self, body: bytes) -> bool:
        """As Ask."""
        import grpc

        try:
            await self._method(body)
        except grpc.aio.AioRpcError as error:
            # grpc itself turns calls away that are more than it may take, by UNAVAILABLE.
            refusals = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            if error.code() not in refusals:
                raise
            return False
        return True


async def _connected(url: str, count: int) -> list[Ask]:
    if url.startswith("http"):
        return [(await HttpConnection.to(url)).ask for _ in range(count)]
    import grpc

    channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"))
    return [GrpcCalls(channel.unary_unary(PATH)).ask for _ in range(count)]


async def _at_capacity(url: str, seconds: float) -> Seen:
    """As many requests at a time as are admitted, each sent when another was answered."""
    asks, asked, seen = await _connected(url, ADMITTED), body(), Seen()
    for ask in asks:
        await ask(asked)
    begin = time.perf_counter()

    async def go_on(ask: Ask) -> None:
        while (due := time.perf_counter()) < begin + seconds:
            seen.note(due, await ask(asked))

    await asyncio.gather(*map(go_on, asks))
    seen.seconds = time.perf_counter() - begin
    return seen


async def _at_rate(url: str, rate: float, seconds: float) -> Seen:
    """`rate` requests a second, whatever becomes of them."""
    free, asked, seen = await _connected(url, CONNECTIONS), body(), Seen()
    pending: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()

    async def one(ask: Ask, due: float) -> None:
        seen.note(due, await ask(asked))
        free.append(ask)

    for turn in range(int(rate * seconds)):
        due = begin + turn / rate
        pause = due - time.perf_counter()
        # Also when it is late: others have to have their turn.
        await asyncio.sleep(max(0.0, pause))
        if not free:
            seen.unsent += 1
            continue
        task = asyncio.ensure_future(one(free.pop(), due))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    seen.seconds = time.perf_counter() - begin
    return seen


def ask_all(url: str, core: int, rate: float | None, seconds: float) -> Seen:
    """In a process of its own, on one core."""
    with pinned(core):
        if rate is None:
            return asyncio.run(_at_capacity(url, seconds))
        return asyncio.run(_at_rate(url, rate, seconds))


# --- what is told ---


def run(plan: Plan) -> Report:
    """Capacity and overload, in turns, over Connect and gRPC."""
    report = Report(
        "Overload",
        f"{BAGS} bags of {IDS // BAGS} ids of {plan.dim} dimensions; a worker that admits "
        f"{ADMITTED} requests; medians of {ROUNDS} rounds of {SECONDS:g} s.",
    )
    pair = cores()
    if pair is None:
        report.skipped.append("overload: it takes two cores")
        return report
    rows = []
    with ExitStack() as stack:
        with pinned(pair[0]):
            limit = ("--requests-in-flight-max", str(ADMITTED))
            server = stack.enter_context(plan.serve(*limit))
        pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        for wire, url in (("Connect", server.http), ("gRPC", server.grpc)):
            goodputs, tails, capacities, p99s, refusals, unsent = [], [], [], [], [], 0
            for _ in range(ROUNDS):
                calm: Seen = pool.submit(ask_all, url, pair[1], None, SECONDS).result()
                rate = TIMES * calm.rate
                full: Seen = pool.submit(ask_all, url, pair[1], rate, SECONDS).result()
                capacities.append(calm.rate)
                p99s.append(calm.p99_ms())
                goodputs.append(full.rate / calm.rate)
                tails.append(full.p99_ms() / calm.p99_ms())
                refusals += full.refusals
                unsent += full.unsent
            goodput, tail = statistics.median(goodputs), statistics.median(tails)
            rows.append(
                (
                    wire,
                    number(statistics.median(capacities)),
                    number(statistics.median(p99s)),
                    f"{goodput:.2f}",
                    f"{tail:.2f}",
                    f"{len(refusals):,}",
                    number(float(np.median(refusals)) * 1e3) if refusals else "-",
                    f"{unsent:,}",
                )
            )
            report.marks += [
                Mark(f"{wire}: goodput at {TIMES} × over capacity", goodput, GOODPUT_MARK),
                Mark(f"{wire}: p99 of what is admitted", tail, P99_MARK, at_most=True),
            ]
    header = ("wire", "capacity, requests/s", "p99, ms", f"goodput at {TIMES} ×", "p99 at it")
    told = ("refused", "in ms, median", "not sent")
    report.tables.append(Table("Overload", header + told, tuple(rows)))
    return report


def main() -> None:
    """Print the report."""
    with tempfile.TemporaryDirectory(prefix="gatherd-overload-") as name:
        plan = Plan(Path(name), Path(name), rows=ROWS, dim=128)
        plan.make_table()
        print(run(plan).text())


if __name__ == "__main__":
    main()
