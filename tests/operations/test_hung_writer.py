"""A writer that is stopped, or whose disk stalls, and 600 pushers: lookups go on, and it is told.

Real servers. With several workers the writer is stopped by a signal; with one it is a thread in the
worker, and its fdatasync doesn't return.
"""

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from gatherd import Client
from gatherd.errors import Unavailable
from gatherd_proto.v1 import embedding_pb2, status_pb2
from gatherd_server.cli.top import Scrape
from support import alerts, raw_updates
from support.server import RunningServer, wait_until
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 1000, 4
PUSHERS = 600
# What is told of a writer that hangs is told within this.
TOLD_SECONDS = 5.0
STALLING = Path(__file__).parent.parent / "support/stalling"
CALL = f"/{raw_updates.SERVICE}/ScatterAdd"


@dataclass
class Stallable:
    server: RunningServer
    stall: Callable[[], None]
    let_go: Callable[[], None]
    workers: int

    def readiness(self) -> dict[str, Any]:
        reply = httpx.get(f"{self.server.http}/readyz", timeout=5)
        assert reply.status_code == 200, "lookups are answered: traffic has to stay"
        found: dict[str, Any] = reply.json()
        return found

    def scrape(self) -> Scrape:
        return Scrape.parse(httpx.get(f"{self.server.http}/metrics", timeout=5).text, 0.0)


@pytest.fixture(params=[1, 2], ids=["stalled disk, one worker", "stopped writer, two workers"])
def stallable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stallable]:
    make_data_dir(tmp_path / "data", drawn_table("items", ROWS, DIM))
    gate = tmp_path / "stalled"
    environment = {"PYTHONPATH": str(STALLING), "STALL_FILE": str(gate)}
    with RunningServer(
        "--data-dir", tmp_path / "data", "--workers", str(request.param),
        environment=environment, log_path=tmp_path / "log",
    ) as server:  # fmt: skip
        if request.param == 1:
            yield Stallable(server, gate.touch, lambda: gate.unlink(missing_ok=True), 1)
            return
        (pid,) = server.writer_pids()

        def send(number: signal.Signals) -> Callable[[], None]:
            return lambda: os.kill(pid, number)

        yield Stallable(server, send(signal.SIGSTOP), send(signal.SIGCONT), 2)


def push(number: int) -> bytes:
    """Plus one in row `number`, under an id of its own."""
    ones = raw_updates.update("items", [number], np.ones((1, DIM), np.float32))
    return raw_updates.request(ones, idempotency_key=f"push-{number}").SerializeToString()


@dataclass(frozen=True)
class Answer:
    code: str
    reason: str = ""
    outcome: str = ""
    retry_after: str | None = None


def details(raw: bytes, code: str, retry_after: str | None) -> Answer:
    info = status_pb2.ErrorInfo.FromString(raw)
    return Answer(code, info.reason, info.metadata.get("outcome", ""), retry_after)


async def push_http(url: str, number: int) -> Answer:
    """On a connection of its own, by nothing that tries again."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = push(number)
    head = f"POST {CALL} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/proto\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    reply = await reader.read()
    writer.close()
    lines, _, body = reply.partition(b"\r\n\r\n")
    if b" 200 " in lines.split(b"\r\n")[0]:
        return Answer("ok")
    document = httpx.Response(500, content=body).json()
    detail = document["details"][0]
    headers = httpx.Headers(
        {name: value for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n"))}
    )
    metadata = detail["debug"]["metadata"]
    return Answer(
        document["code"],
        detail["debug"]["reason"],
        metadata.get("outcome", ""),
        headers.get("retry-after"),
    )


async def push_grpc(channel: grpc.aio.Channel, number: int) -> Answer:
    call: Any = channel.unary_unary(CALL)
    try:
        await call(push(number))
    except grpc.aio.AioRpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        code = error.code().name.lower()
        raw: Any = trailers.get("grpc-status-details-bin")
        if raw is None:  # grpc's own refusal
            return Answer(code)
        status = status_pb2.Status.FromString(raw)
        return details(status.details[0].value, code, str(trailers.get("retry-after")))
    return Answer("ok")


async def push_all(server: RunningServer, numbers: list[int]) -> list[Answer]:
    """Half over either wire, all at once."""
    address = server.grpc.removeprefix("grpc://")
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(8)]
    try:
        return await asyncio.gather(
            *(
                push_http(server.http, number)
                if number % 2
                else push_grpc(channels[number // 2 % len(channels)], number)
                for number in numbers
            )
        )
    finally:
        for channel in channels:
            await channel.close()


@contextmanager
def pushing(server: RunningServer, answers: list[Answer]) -> Iterator[threading.Thread]:
    """All the pushers, on another thread."""
    thread = threading.Thread(
        target=lambda: answers.extend(asyncio.run(push_all(server, [*range(PUSHERS)])))
    )
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive(), "some pushers got no answer"


def look_up(server: RunningServer) -> None:
    """A lookup of one id on either wire, by a client that doesn't try again."""
    for url in (server.http, server.grpc):
        with Client(url, retries=0, timeout=5) as client:
            assert client.lookup("items", [ROWS - 1]).tolist() == [[0] * DIM]


def test_lookups_go_on_while_the_writer_hangs_and_nothing_is_lost(
    stallable: Stallable, tmp_path: Path
) -> None:
    server, answers = stallable.server, list[Answer]()
    before = stallable.scrape()
    stallable.stall()
    begun = time.monotonic()
    lookups = 0
    try:
        with pushing(server, answers) as pushers:
            told = None
            while told is None or pushers.is_alive():
                look_up(server)
                lookups += 1
                if told is None and stallable.readiness()["updates"] == "hung":
                    told = time.monotonic() - begun
                assert time.monotonic() - begun < 30, "it isn't told"
        print(f"\ntold after {told:.2f} s; {lookups} lookups meanwhile; {Counter(answers)}")
        assert told < TOLD_SECONDS
        # Those that were handed over may be done, the others aren't, and each is told which it is.
        unknown = Answer("unavailable", "UNAVAILABLE", "unknown", "1")
        never = Answer("unavailable", "UNAVAILABLE", "not sent", "1")
        full = Answer("resource_exhausted", "OVERLOADED", "", "1")
        # Beyond what a worker's gRPC takes at all, grpc itself refuses.
        beyond = Answer("resource_exhausted")
        assert set(answers) <= {unknown, never, full, beyond}
        assert len(answers) == PUSHERS
        assert Counter(answers)[unknown] > 0
        # What comes now is refused at once, and changes too.
        for url in (server.http, server.grpc):
            with Client(url, retries=0, timeout=30) as client:
                asked = time.monotonic()
                with pytest.raises(Unavailable, match="no sign of life"):
                    client.scatter_add("items", [1], np.ones((1, DIM)), idempotency_key="late")
                with pytest.raises(Unavailable, match="no sign of life"):
                    client.publish("items", timeout=1)
                assert time.monotonic() - asked < 5
        # Whichever worker is asked.
        for _ in range(4 * stallable.workers):
            seen = stallable.scrape()
            assert seen.total("gatherd_writer_hung") == 1
            assert seen.total("gatherd_updates_up") == 0
            assert stallable.readiness()["updates"] == "hung"
        if alerts.promtool() is not None:
            assert alerts.fires(tmp_path, [before, seen], "GatherdWriterHung", 5) == ""
        look_up(server)
    finally:
        stallable.let_go()
    wait_until(
        lambda: all(stallable.readiness()["updates"] == "running" for _ in range(8)),
        "the writer is back",
    )
    with Client(server.http) as client:
        early = client.lookup("items", range(PUSHERS))
        assert set(np.unique(early)) <= {0, 1}
        for number in range(PUSHERS):
            again = embedding_pb2.UpdateRequest.FromString(push(number))
            client.scatter_add(
                "items", [number], np.ones((1, DIM)), idempotency_key=again.idempotency_key
            )
        found = client.lookup("items", range(PUSHERS))
    np.testing.assert_array_equal(found, np.ones((PUSHERS, DIM)))
    assert early.sum() > 0, "what was handed over before is done when the writer is back"
    assert stallable.scrape().total("gatherd_updates_up") == 1
    wait_until(
        lambda: stallable.scrape().total("gatherd_requests_in_flight") == 0, "all places are free"
    )
    assert server.stop() == 0
    assert server.log.count("CRITICAL") == stallable.workers
    assert server.log.count("the writer is back after") == stallable.workers


def test_what_outlasts_a_stop_is_told_so_and_the_stop_is_bounded(tmp_path: Path) -> None:
    make_data_dir(tmp_path / "data", drawn_table("items", ROWS, DIM))
    gate = tmp_path / "stalled"
    with RunningServer(
        "--data-dir", tmp_path / "data", "--drain-seconds", "1", log_path=tmp_path / "log",
        environment={"PYTHONPATH": str(STALLING), "STALL_FILE": str(gate)},
    ) as server:  # fmt: skip
        gate.touch()

        def in_flight() -> bool:
            text = httpx.get(f"{server.http}/metrics").text
            return Scrape.parse(text, 0.0).total("gatherd_updates_in_flight") == 2

        def push_rest() -> httpx.Response:
            body = {"ids": [0], "values": [[1.0] * DIM]}
            return httpx.post(
                f"{server.http}/v1/tables/items:scatterAdd", json=body, timeout=60,
                headers={"Idempotency-Key": "push-0"},
            )  # fmt: skip

        with ThreadPoolExecutor(2) as pool:
            connect = pool.submit(lambda: asyncio.run(push_http(server.http, 1)))
            rest = pool.submit(push_rest)
            wait_until(in_flight, "both updates wait", 2)
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 30
        assert connect.result() == Answer("unavailable", "UNAVAILABLE", "unknown", "1")
        assert rest.result().status_code == 503
        assert rest.result().json()["metadata"] == {"outcome": "unknown"}
    assert "Traceback" not in server.log
