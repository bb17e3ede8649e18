"""The composition root of a worker: builds everything, starts it and stops it in order.

Start: the writer recovers the data dir, tables mapped and populated, kernels compiled or loaded,
gRPC, HTTP, readiness. Stop: readiness off, both transports drain, the log is checkpointed, tables
are closed.

With one worker the writer is in the worker's process. With several it is a process of its own
(writer.py), which the workers reach over a Unix socket.
"""

import asyncio
import gc
import logging
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from gatherd.errors import FailedPrecondition, GatherdError, UpdatesStopped
from gatherd.store.kernels import compiled
from gatherd_server.access.admission import Admission
from gatherd_server.access.tls import Tls
from gatherd_server.access.token_file import TokenFile
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.uploads.store import Uploads
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.noting_engine import NotingEngine
from gatherd_server.engine.tables import ServedTables, open_sources
from gatherd_server.http.app import create_app
from gatherd_server.http.connection import guarded_protocol
from gatherd_server.http.connection_limit import HANDSHAKE_SECONDS
from gatherd_server.http.fast.connection import fast_protocol
from gatherd_server.http.fast.routes import FastRoutes
from gatherd_server.http.offload import THREADS_A_CORE, Offload
from gatherd_server.link.link import DirectLink, Link, RefusingLink, in_process
from gatherd_server.link.worker_end import SocketLink
from gatherd_server.observe.logs import configure_logging, set_level
from gatherd_server.observe.metrics.names import (
    CONNECTIONS,
    HELD_BODY_BYTES,
    REQUESTS_IN_FLIGHT,
    TOKENS_REFUSED,
    UPDATES_IN_FLIGHT,
)
from gatherd_server.observe.metrics.telemetry import Telemetry
from gatherd_server.processes.brief import WorkerBrief
from gatherd_server.processes.channel import Channel, run_child
from gatherd_server.processes.new_files import NewFiles
from gatherd_server.processes.sockets import WRITER_SOCKET_NAME, open_beside
from gatherd_server.processes.writer import open_writer
from gatherd_server.rpc.server import ConnectionBounds, RpcServer
from gatherd_server.storage.files import Files
from gatherd_server.types import UpdatesState
from gatherd_server.wire.compiled.serving import CompiledAnswers
from gatherd_server.writer.writer import Writer

logger = logging.getLogger("gatherd")

# Listeners close after so many quiet passes of the event loop: one to accept what waits in the
# queue, one to build its transport, one to start reading, one to read, and as many again.
SETTLE_PASSES = 8
# Passes at most, however many connections arrive: the rest is turned away.
SETTLE_PASSES_MAX = 20_000
# How often the files of tokens and certificates are checked for changes.
WATCH_SECONDS = 1.0
# How often uploads are looked at, which may have expired.
SWEEP_SECONDS_MAX = 60.0
# The time for a TLS handshake; after it a connection has to send a request.


class DrainingServer(uvicorn.Server):
    """A uvicorn server that leaves signals to its owner and answers requests sent before."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls = tls

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the worker's own."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does on Unix sockets, and with TLS, if it is on, on the others."""
        listeners = sockets or []
        plain = [one for one in listeners if not self._tls or one.family == socket.AF_UNIX]
        await super().startup(plain)
        if self._tls is None:
            return
        self.started = False
        for listener in listeners:
            if listener not in plain:
                server = await asyncio.get_running_loop().create_server(
                    self._new_protocol,
                    sock=listener,
                    ssl=self._tls,
                    backlog=self.config.backlog,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                )
                self.servers.append(server)
        self.started = True

    def _new_protocol(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = made(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what already waits on the listeners, then stop as uvicorn does."""
        state = self.server_state
        quiet, before = 0, (0, 0, 0)
        for _ in range(SETTLE_PASSES_MAX):
            await asyncio.sleep(0)
            now = (len(state.connections), len(state.tasks), state.total_requests)
            quiet, before = (quiet + 1 if now == before else 0), now
            if quiet == SETTLE_PASSES:
                break
        await super().shutdown(sockets)


class Worker:
    """One serving process."""

    def __init__(self, brief: WorkerBrief) -> None:
        self._brief = brief
        settings = brief.settings
        self._limits = settings.limits()
        self._telemetry = Telemetry.inherited(
            brief.metrics_fd,
            settings.workers,
            worker=brief.number,
            has_writer=brief.has_writer and settings.workers == 1,
            is_told=settings.metrics,
            is_per_table=settings.metrics_per_table,
            is_access_logged=settings.access_log,
            traces=settings.traces,
        )
        self._tokens = TokenFile(settings.tokens) if settings.tokens is not None else None
        self._admission = Admission(
            self._limits,
            self._tokens,
            open_metrics=settings.open_metrics,
            telemetry=self._telemetry,
        )
        self._offload = Offload(THREADS_A_CORE * (os.cpu_count() or 1))
        files = settings.tls_files()
        self._tls = Tls(files) if files is not None else None

    async def run(self, channel: Channel) -> None:
        """Serve until the channel closes or SIGTERM comes; returns when everything is answered."""
        settings = self._brief.settings
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, self._telemetry.close)
            owner = self._open_writer(stack)
            sources = dict(zip(self._brief.sources, settings.sources(), strict=True))
            tables = open_sources(
                sources, settings.data_dir, settings.preload, self._brief.versions
            )
            for fd in self._brief.sources:
                os.close(fd)
            compiled.warm()
            link = await self._open_link(stack, owner, tables)
            self._telemetry.pulse.before(tables.look_at_residency)
            made = NotingEngine if settings.access_log else Engine
            engine = made(tables, self._limits, link, self._telemetry, self._uploads())
            for name, reason in engine.table_states().items():
                if reason:
                    logger.error("table %r is refused: %s", name, reason)
            is_fast = settings.fast_path and not settings.access_log
            answers = CompiledAnswers(engine, self._telemetry) if is_fast else None
            files = NewFiles(tables, settings.sources(), channel)
            await self._serve(engine, answers, channel, files)

    async def _serve(
        self, engine: Engine, answers: CompiledAnswers | None, channel: Channel, files: NewFiles
    ) -> None:
        settings = self._brief.settings

        def change(told: dict[str, Any]) -> None:
            files.take(told) if "files" in told else self._change(told)

        stop = channel.closed(change, settings.stop_seconds)
        rpc = RpcServer(
            engine,
            self._admission,
            address=self._brief.grpc_address,
            threads=settings.grpc_threads,
            streams_max=settings.streams_max,
            bounds=ConnectionBounds(
                settings.grpc_connections_max,
                settings.connection_calls_max,
                settings.connection_streams_max,
                settings.message_seconds,
            ),
            answers=answers,
            reflection=settings.reflection,
            credentials=self._tls.grpc_credentials() if self._tls is not None else None,
        )
        rpc.start()
        http = DrainingServer(
            self._http_config(engine, answers), self._tls.context if self._tls is not None else None
        )
        self._telemetry.pulse.before(lambda: self._measure(http))
        self._telemetry.pulse.start()
        listeners = [socket.socket(fileno=fd) for fd in self._brief.listeners]
        serving = asyncio.ensure_future(http.serve(sockets=listeners))
        while not http.started and not serving.done():
            await asyncio.sleep(0.005)
        # Objects made until here stay; the garbage collector needn't look at them each time.
        gc.freeze()
        gc.enable()
        self._admission.is_ready = engine.is_ready = True
        rpc.set_serving(True)
        channel.tell_ready()
        watching = asyncio.ensure_future(self._watch_files())
        sweeping = asyncio.ensure_future(self._sweep_uploads(engine))
        await asyncio.wait(
            (serving, asyncio.ensure_future(stop.wait())), return_when=asyncio.FIRST_COMPLETED
        )
        watching.cancel()
        sweeping.cancel()
        self._admission.is_ready = engine.is_ready = False
        rpc.set_serving(False)
        if not serving.done():
            await asyncio.sleep(settings.unready_seconds)
        http.should_exit = True
        await asyncio.gather(serving, asyncio.to_thread(rpc.stop, settings.drain_seconds))
        # What the last requests counted.
        await asyncio.to_thread(self._telemetry.pulse.beat)
        await asyncio.to_thread(self._telemetry.pulse.close)

    def _uploads(self) -> Uploads | None:
        settings = self._brief.settings
        if settings.data_dir is None:
            return None
        return Uploads(Files(), settings.data_dir, settings.upload_limits())

    def _measure(self, http: uvicorn.Server) -> None:
        recorder = self._telemetry.threads
        recorder.set(REQUESTS_IN_FLIGHT, value=self._admission.in_flight)
        recorder.set(UPDATES_IN_FLIGHT, value=self._admission.updates_in_flight)
        recorder.set(CONNECTIONS, value=len(http.server_state.connections))
        recorder.set(HELD_BODY_BYTES, value=self._admission.bodies.held_bytes)
        refused = self._tokens is not None and self._tokens.is_refused
        recorder.set(TOKENS_REFUSED, value=int(refused))

    def _change(self, changed: dict[str, Any]) -> None:
        """Apply settings that were reloaded; settings.RELOADABLE lists the possible ones."""
        set_level(changed["log_level"])
        # The new limit doesn't apply to requests that were admitted under the old one.
        self._admission.limits = replace(
            self._admission.limits, requests_in_flight_max=changed["requests_in_flight_max"]
        )

    async def _watch_files(self) -> None:
        """Load tokens and certificates again when their files change, for ever."""
        watched = [one for one in (self._tokens, self._tls) if one is not None]
        while watched:
            await asyncio.sleep(WATCH_SECONDS)
            for one in watched:
                # On a thread: the file may be on a dead disk.
                await asyncio.to_thread(one.refresh)

    async def _sweep_uploads(self, engine: Engine) -> None:
        """Delete uploads for which nothing came for too long, now and then, for ever."""
        settings = self._brief.settings
        while settings.data_dir is not None and self._brief.has_writer:
            try:
                await asyncio.to_thread(engine.uploads.sweep)
            except GatherdError as error:
                logger.warning("expired uploads can't be deleted: %s", error)
            await asyncio.sleep(min(SWEEP_SECONDS_MAX, settings.upload_seconds / 2))

    def _open_writer(self, stack: AsyncExitStack) -> tuple[Writer, Changes] | UpdatesStopped | None:
        """The writer, if this process has it; UpdatesStopped if it can't be started.

        At the first start that error is raised. Later it isn't, because lookups have to go on.
        """
        settings = self._brief.settings
        if settings.data_dir is None or not self._brief.has_writer or settings.workers > 1:
            return None
        is_restart = self._brief.is_restart
        try:
            owner = open_writer(
                settings.data_dir,
                settings.writer_limits(),
                self._telemetry,
                is_restart=is_restart,
            )
        except GatherdError as error:
            if not is_restart:
                raise
            logger.critical("updates are stopped: %s", error)
            return UpdatesStopped(f"updates are stopped: {error}")
        writer, changes = owner
        stack.push_async_callback(asyncio.to_thread, writer.close)
        stack.push_async_callback(asyncio.to_thread, changes.close)
        return owner

    async def _open_link(
        self,
        stack: AsyncExitStack,
        owner: tuple[Writer, Changes] | UpdatesStopped | None,
        tables: ServedTables,
    ) -> Link | None:
        settings = self._brief.settings
        data_dir = settings.data_dir

        def check_unused(table: str, version: int) -> None:
            self._telemetry.pulse.beat()  # the compiled answer tells then what it answered
            tables.check_unused(table, version)

        if isinstance(owner, UpdatesStopped):
            return RefusingLink(owner, UpdatesState.STOPPED)
        if owner is not None:
            writer, changes = owner
            changes.prepare = in_process(tables.prepare_version)
            changes.check_unused = in_process(check_unused)
            direct = DirectLink(writer, changes, settings.writer_hung_seconds)
            stack.push_async_callback(direct.close)
            direct.watch()
            return direct
        if data_dir is None:
            return None
        if not self._brief.has_writer:
            return RefusingLink(_nothing_changes(data_dir), UpdatesState.NONE)
        folder, path = open_beside(data_dir, WRITER_SOCKET_NAME)
        stack.callback(os.close, folder)
        link = SocketLink(path, tables.prepare_version, check_unused, settings.writer_hung_seconds)
        stack.push_async_callback(link.close)
        await link.connect()
        link.watch()
        return link

    def _protocol(self, engine: Engine, answers: CompiledAnswers | None) -> type[asyncio.Protocol]:
        settings = self._brief.settings
        web = settings.web()
        if answers is None:
            return guarded_protocol(settings.receive_seconds, self._telemetry)
        return fast_protocol(
            FastRoutes(engine, self._telemetry, web.root_path),
            answers,
            self._admission,
            self._offload,
            settings.receive_seconds,
            settings.busy_poll_us,
            has_cors=bool(web.cors_origins),
        )

    def _http_config(self, engine: Engine, answers: CompiledAnswers | None) -> uvicorn.Config:
        settings = self._brief.settings
        return uvicorn.Config(
            create_app(engine, self._admission, self._offload, settings.web()),
            http=self._protocol(engine, answers),
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


def _nothing_changes(data_dir: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"data dir {data_dir} is on a read-only file system, so this server changes nothing; send "
        "updates to the server that owns it, or mount it writable and start again"
    )


async def _run(channel: Channel, line: bytes) -> None:
    brief = WorkerBrief.decode(line)
    configure_logging(brief.settings.log_level, brief.settings.log_format)
    await Worker(brief).run(channel)


if __name__ == "__main__":
    run_child(_run)
