"""The composition root of a worker: builds everything, starts it and stops it in order.

Start: allocator, tables mapped and populated, kernels compiled or loaded, gRPC, HTTP, readiness.
Stop: readiness off, both transports drain, tables are let go.

A worker is `python -m gatherd_server.app FD`, FD being its end of the supervisor's channel. The
first line on it is the worker's brief; the worker answers with one line, ready or failed; when the
channel closes, the worker drains and exits.
"""

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
import uvloop

from gatherd.errors import GatherdError
from gatherd.store import kernels
from gatherd.store.memory import tune_allocator
from gatherd_server.admission import Admission
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.tables import open_sources
from gatherd_server.http.rest import create_app
from gatherd_server.rpc.server import RpcServer
from gatherd_server.settings import ServeSettings

logger = logging.getLogger("gatherd")

# Passes of the event loop before listeners close: one to accept what waits in the queue, one to
# build its transports, one to start reading, one to read, and as many again.
SETTLE_PASSES = 8


@dataclass(frozen=True, slots=True)
class WorkerBrief:
    """What the supervisor tells a worker.

    `listeners` are descriptors of listening sockets, `sources` descriptors of the files in
    `settings.tables`, in their order: a worker that comes back maps the very file that the others
    have mapped, also when its name has gone or means another file by now.
    """

    settings: ServeSettings
    grpc_address: str
    listeners: tuple[int, ...]
    sources: tuple[int, ...]

    def encode(self) -> bytes:
        """As one line."""
        settings = self.settings.model_dump(mode="json")
        document = {
            "settings": settings,
            "grpc_address": self.grpc_address,
            "listeners": self.listeners,
            "sources": self.sources,
        }
        return json.dumps(document).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "WorkerBrief":
        """From what `encode` gave."""
        document: dict[str, Any] = json.loads(line)
        return cls(
            ServeSettings(**document["settings"]),
            document["grpc_address"],
            tuple(document["listeners"]),
            tuple(document["sources"]),
        )


class DrainingServer(uvicorn.Server):
    """A uvicorn server that leaves signals to its owner and answers what it was sent before."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the worker's own."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what already waits on the listeners, then stop as uvicorn does."""
        for _ in range(SETTLE_PASSES):
            await asyncio.sleep(0)
        await super().shutdown(sockets)


class Worker:
    """One serving process."""

    def __init__(self, brief: WorkerBrief) -> None:
        self._brief = brief
        settings = brief.settings
        self._limits = settings.limits()
        self._admission = Admission(self._limits)

    async def run(self, channel: socket.socket) -> None:
        """Serve until the channel closes or SIGTERM comes; returns when all is answered."""
        settings = self._brief.settings
        sources = dict(zip(self._brief.sources, settings.sources(), strict=True))
        tables = open_sources(sources, settings.data_dir, settings.preload)
        kernels.warm()
        engine = Engine(tables, self._limits)
        for name, reason in engine.table_states().items():
            if reason:
                logger.error("table %r is refused: %s", name, reason)
        rpc = RpcServer(
            engine,
            self._admission,
            address=self._brief.grpc_address,
            threads=settings.grpc_threads,
            streams_max=settings.streams_max,
            reflection=settings.reflection,
        )
        rpc.start()
        http = DrainingServer(self._http_config(engine))
        listeners = [socket.socket(fileno=fd) for fd in self._brief.listeners]
        serving = asyncio.ensure_future(http.serve(sockets=listeners))
        stop = self._stop_event(channel)
        while not http.started and not serving.done():
            await asyncio.sleep(0.005)
        self._admission.is_ready = True
        rpc.set_serving(True)
        channel.sendall(b'{"event": "ready"}\n')
        await asyncio.wait(
            (serving, asyncio.ensure_future(stop.wait())), return_when=asyncio.FIRST_COMPLETED
        )
        self._admission.is_ready = False
        http.should_exit = True
        await asyncio.gather(serving, asyncio.to_thread(rpc.stop, settings.drain_seconds))

    def _http_config(self, engine: Engine) -> uvicorn.Config:
        settings = self._brief.settings
        return uvicorn.Config(
            create_app(engine, self._admission),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=settings.backlog,
            limit_concurrency=settings.connections_max,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )

    @staticmethod
    def _stop_event(channel: socket.socket) -> asyncio.Event:
        """Set when the supervisor closes the channel, dies, or the worker gets SIGTERM."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_channel() -> None:
            loop.remove_reader(channel)
            stop.set()

        loop.add_reader(channel, on_channel)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        return stop


def configure_logging(level: str) -> None:
    """Log to standard error, one line a record, with the process id."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # Says of each start and stop what the supervisor says better.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def main() -> None:
    """Run a worker on the channel that argv names."""
    # Ctrl-C reaches the whole process group; stopping is the supervisor's to order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    with channel.makefile("rb") as lines:
        line = lines.readline()
    if not line:
        return
    brief = WorkerBrief.decode(line)
    configure_logging(brief.settings.log_level)
    tune_allocator()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Worker(brief).run(channel))
    except GatherdError as error:
        channel.sendall(json.dumps({"event": "failed", "message": error.message}).encode() + b"\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
