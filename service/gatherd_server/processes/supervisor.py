"""The process of `gatherd serve`: it binds the sockets, starts the workers and restarts them.

It serves nothing itself. Workers are spawned, never forked, so that they inherit no thread or gRPC
state. They exit when their channel closes, also when the supervisor is killed; see channel.py.
"""

import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gatherd.errors import GatherdError
from gatherd.store.catalog import read_catalog
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.errors import StartError
from gatherd_server.observe.logs import set_level
from gatherd_server.observe.metrics.telemetry import SupervisorMetrics, make_server_page
from gatherd_server.processes.brief import WorkerBrief
from gatherd_server.processes.checking import check_secrets, check_settings, named_twice
from gatherd_server.processes.child import Child, describe_exit
from gatherd_server.processes.compiling import COMPILING, Progress, are_compiled, compile_kernels
from gatherd_server.processes.descriptors import check_limit, raise_limit
from gatherd_server.processes.kernel_cache import use_kernel_cache
from gatherd_server.processes.replacing import Replacements
from gatherd_server.processes.sockets import (
    SERVER_SOCKET_NAME,
    UNIX_SOCKET_MODE,
    WRITER_SOCKET_MODE,
    WRITER_SOCKET_NAME,
    bind_http,
    bind_unix,
    check_loopback,
    join_address,
    open_beside,
    remove_socket,
    reserve_grpc,
)
from gatherd_server.processes.writer import WriterBrief
from gatherd_server.settings import RELOADABLE, ServeSettings, merge_reloaded
from gatherd_server.storage.files import is_read_only

logger = logging.getLogger("gatherd.supervisor")


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses at which a running server answers."""

    http: str
    grpc: str
    unix: str | None


class Supervisor:
    """Runs a server: `run()` blocks from start to drained stop."""

    def __init__(
        self,
        settings: ServeSettings,
        on_ready: Callable[[Addresses], None],
        read_settings: Callable[[], ServeSettings],
        compiling: Callable[[Iterator[Progress]], None] | None = None,
    ) -> None:
        """`on_ready` is called once, when all workers answer for the first time.

        `read_settings` reads the settings anew, at SIGHUP. `compiling` shows the progress while the
        kernels are compiled, which the log tells by default.
        """
        self._show_compiling = compiling or _log_compiling
        self._settings = settings
        self._on_ready = on_ready
        self._read_settings = read_settings
        self._is_reload_due = False
        self._had_terminal = sys.stdin is not None and sys.stdin.isatty()
        self._selector = selectors.DefaultSelector()
        self._workers = [
            Child(
                f"worker-{number}",
                "gatherd_server.processes.worker",
                partial(self._worker_brief, number),
                self._worker_inherits,
                self._selector,
            )
            for number in range(settings.workers)
        ]
        self._owned_dir = settings.data_dir
        """The data dir, if this server changes it."""
        if settings.data_dir is not None and is_read_only(settings.data_dir):
            self._owned_dir = None
        self._writer: Child | None = None
        if self._owned_dir is not None and settings.workers > 1:
            self._writer = Child(
                "writer",
                "gatherd_server.processes.writer",
                self._writer_brief,
                lambda: (self._writer_listener, self._lock_fd, self._metrics_fd),
                self._selector,
            )
        self._writer_listener = self._lock_fd = self._metrics_fd = -1
        self._metrics: SupervisorMetrics | None = None
        self._listeners: list[socket.socket] = []
        self._replacements = Replacements(self._count_reload)
        self._grpc_address = ""
        self._was_ready = False
        self._failure: str | None = None
        self._stop_signals = 0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. StartError when the server can't start."""
        with ExitStack() as stack:
            addresses = self._open(stack)
            use_kernel_cache(self._settings.data_dir)
            self._watch_signals(stack)
            stack.callback(self._kill_children)
            self._compile_kernels()
            self._start_children()
            while not self._stop_signals and self._failure is None:
                self._step(self._next_restart())
                if self._is_reload_due:
                    self._reload()
                self._replacements.begin(self._workers)
                if not self._was_ready and all(worker.is_ready for worker in self._workers):
                    self._was_ready = True
                    self._on_ready(addresses)
            self._drain()
        if self._failure is not None:
            raise StartError(self._failure)

    def _compile_kernels(self) -> None:
        """Compile the kernels that aren't there yet, on all cores."""
        if are_compiled():
            return
        self._show_compiling(compile_kernels(lambda: not self._stop_signals))

    def _open(self, stack: ExitStack) -> Addresses:
        """Before the first spawn, check everything and take every resource that exists once."""
        settings = self._settings
        check_limit(settings, raise_limit())
        self._metrics_fd = make_server_page(settings.workers)
        stack.callback(os.close, self._metrics_fd)
        self._metrics = SupervisorMetrics(self._metrics_fd, settings.workers)
        stack.callback(self._replacements.close)
        sources = settings.sources()
        check_settings(settings, sources)
        is_authenticated = check_secrets(settings)
        if self._owned_dir is not None:
            owned = stack.enter_context(
                # An empty volume is a data dir without tables; a missing one is a mistake.
                own_data_dir(self._owned_dir, create=self._owned_dir.is_dir())
            )
            self._lock_fd = owned.lock_fd
        if settings.data_dir is not None:
            catalog = read_catalog(settings.data_dir)
            named = {*catalog.tables, *catalog.aliases}
            for source in sources:
                if source.name in named:
                    raise named_twice(source.name)
        for source in sources:
            self._replacements.open(source)
        http = stack.enter_context(bind_http(settings.http, settings.backlog))
        if not is_authenticated:
            check_loopback("http", http.getsockname()[0])
        self._listeners.append(http)
        holder, self._grpc_address = reserve_grpc(settings.grpc)
        stack.enter_context(holder)
        if not is_authenticated:
            check_loopback("grpc", holder.getsockname()[0])
        if settings.unix is not None:
            self._listeners.append(stack.enter_context(bind_unix(settings.unix, settings.backlog)))
            stack.callback(remove_socket, settings.unix)
        if self._owned_dir is not None:
            self._open_data_dir_sockets(self._owned_dir, stack)
        elif settings.data_dir is not None:
            logger.warning(
                "data dir %s is on a read-only file system: it is served as its files are, and "
                "updates are refused",
                settings.data_dir,
            )
        unix = str(settings.unix) if settings.unix is not None else None
        return Addresses(join_address(*http.getsockname()[:2]), self._grpc_address, unix)

    def _open_data_dir_sockets(self, data_dir: Path, stack: ExitStack) -> None:
        """Listen in the data dir: for clients on this machine, and for our workers.

        We hold its lock, so any earlier server there is gone.
        """
        names = [SERVER_SOCKET_NAME] + [WRITER_SOCKET_NAME] * (self._writer is not None)
        for name in names:
            folder, path = open_beside(data_dir, name)
            stack.callback(os.close, folder)
            path.unlink(missing_ok=True)
            mode = WRITER_SOCKET_MODE if name == WRITER_SOCKET_NAME else UNIX_SOCKET_MODE
            listener = stack.enter_context(bind_unix(path, self._settings.backlog, mode))
            stack.callback(remove_socket, path)
            if name == SERVER_SOCKET_NAME:
                self._listeners.append(listener)
            else:
                self._writer_listener = listener.fileno()

    def _worker_brief(self, number: int, is_restart: bool) -> bytes:
        listeners = tuple(sock.fileno() for sock in self._listeners)
        return WorkerBrief(
            self._settings,
            self._grpc_address,
            listeners,
            tuple(file.fd for file in self._replacements.files),
            tuple(file.version for file in self._replacements.files),
            is_restart,
            number,
            self._metrics_fd,
            self._owned_dir is not None,
        ).encode()

    def _worker_inherits(self) -> tuple[int, ...]:
        own_lock = (self._lock_fd,) if self._lock_fd >= 0 and self._writer is None else ()
        listeners = (sock.fileno() for sock in self._listeners)
        files = (file.fd for file in self._replacements.files)
        return (*listeners, *files, *own_lock, self._metrics_fd)

    def _writer_brief(self, is_restart: bool) -> bytes:
        settings = self._settings
        assert settings.data_dir is not None
        return WriterBrief(
            settings.data_dir,
            settings.writer_limits(),
            self._writer_listener,
            is_restart,
            settings.log_level,
            settings.log_format,
            self._metrics_fd,
            settings.workers,
            settings.traces,
            settings.stop_seconds,
            settings.metrics_per_table,
        ).encode()

    def _start_children(self) -> None:
        """Start the writer first; when it has recovered the data dir, start the workers."""
        if self._writer is not None:
            self._start(self._writer)
            while not (self._writer.is_ready or self._stop_signals or self._failure is not None):
                self._step(None)
        if not self._stop_signals and self._failure is None:
            for worker in self._workers:
                self._start(worker)

    def _children(self) -> list[Child]:
        return [*self._workers, *([self._writer] if self._writer else [])]

    def _watch_signals(self, stack: ExitStack) -> None:
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            stack.enter_context(end)
            end.setblocking(False)
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, previous)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
        self._selector.register(reader, selectors.EVENT_READ, None)
        stack.callback(self._selector.close)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP and not (self._had_terminal and not sys.stdin.isatty()):
            self._is_reload_due = True
        elif number != signal.SIGCHLD:
            self._stop_signals += 1

    def _reload(self) -> None:
        """Use the reloaded settings that may change, and tell the children.

        Served files that were replaced are looked for next, whether or not the settings are right.
        """
        self._is_reload_due, self._replacements.is_due = False, True
        try:
            self._settings, ignored = merge_reloaded(self._settings, self._read_settings())
        except GatherdError as error:
            self._count_reload("refused")
            logger.error("the settings stay as they are: %s", error.message)  # noqa: TRY400 - says it all
            return
        self._count_reload("done")
        set_level(self._settings.log_level)
        changed = self._settings.model_dump(mode="json", include=set(RELOADABLE))
        told = ", ".join(f"{name} {value}" for name, value in changed.items())
        rest = f"; a restart would change {', '.join(ignored)}" if ignored else ""
        logger.info("settings reloaded: %s%s", told, rest)
        for child in self._children():
            child.tell(json.dumps(changed).encode() + b"\n")

    def _count_reload(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.reloaded(outcome)

    def _start(self, child: Child) -> None:
        if self._metrics is not None:
            self._metrics.started(child.name, is_restart=child.was_started)
        child.start()

    def _step(self, timeout_seconds: float | None) -> None:
        """Wait for one round of events, and act on them."""
        for key, _ in self._selector.select(timeout_seconds):
            if key.data is None:
                with suppress(BlockingIOError):
                    key.fileobj.recv(4096)  # type: ignore[union-attr]  # the wakeup socket
            else:
                self._listen(key.data)
        for worker in self._children():
            if worker.process is not None and worker.process.poll() is not None:
                self._on_exit(worker, worker.process.returncode)
            elif worker.restart_at is not None and worker.restart_at <= time.monotonic():
                self._start(worker)

    def _next_restart(self) -> float | None:
        times = [worker.restart_at for worker in self._children() if worker.restart_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _listen(self, worker: Child) -> None:
        for event in worker.read():
            self._on_event(worker, event)

    def _on_event(self, worker: Child, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            self._note_up(worker, is_up=True)
            logger.info("%s is ready", worker.name)
        elif event["event"] == "mapped":
            self._replacements.on_answer(event["number"], event["message"], worker, self._workers)
        elif event["event"] == "failed":
            logger.error("%s can't start: %s", worker.name, event["message"])
            if not self._was_ready:
                self._failure = event["message"]

    def _note_up(self, child: Child, *, is_up: bool) -> None:
        child.is_ready = is_up
        if self._metrics is not None:
            self._metrics.is_up(child.name, is_up)

    def _on_exit(self, worker: Child, status: int) -> None:
        """Note the end of a child; restart it unless the server never came up or is stopping."""
        assert worker.process is not None
        pid = worker.process.pid
        # Its last lines, if any, are still unread.
        self._listen(worker)
        worker.close_channel()
        worker.process = None
        if worker in self._workers:
            self._replacements.on_exit(worker, self._workers)
        if self._stop_signals or self._failure is not None:
            return
        how = describe_exit(status)
        if not self._was_ready:
            self._failure = f"{worker.name} (pid {pid}) {how} while starting"
            return
        worker.restart_later()
        self._note_up(worker, is_up=False)
        logger.error(
            "%s (pid %d) %s; a new one starts in %.1f s",
            worker.name,
            pid,
            how,
            worker.restart_seconds,
        )

    def _drain(self) -> None:
        """Let the workers answer their requests, for a bounded time; another signal ends it."""
        settings = self._settings
        if self._was_ready:
            logger.info("stopping: requests under way get %.0f s", settings.drain_seconds)
        # Our listeners close first: no worker would answer connections that arrive later.
        for listener in self._listeners:
            listener.close()
        deadline = time.monotonic() + settings.stop_seconds
        # The writer goes on until the workers have answered their pending updates.
        for some in (self._workers, [self._writer] if self._writer is not None else []):
            if not self._drain_some(some, deadline):
                return

    def _drain_some(self, children: list[Child], deadline: float) -> bool:
        """Have `children` end, and wait for it; False when they have to be killed."""
        for child in children:
            child.ask_to_end()
        signals = self._stop_signals
        while any(child.process is not None for child in children):
            left = deadline - time.monotonic()
            if left <= 0 or self._stop_signals > max(1, signals):
                logger.warning("killing the processes that are left")
                return False
            self._step(left)
        return True

    def _kill_children(self) -> None:
        for child in self._children():
            child.kill()


def _log_compiling(steps: Iterator[Progress]) -> None:
    begin = time.monotonic()
    for step in steps:
        seconds = time.monotonic() - begin
        logger.info("%s: %d of %d modules, %.0f s", COMPILING, step.done, step.total, seconds)
