"""A served data dir under fire: clients push, tables are switched, and processes are killed.

`Siege` runs it; verdict.py holds what is left of it against the oracle.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crash.oracle import Oracle, Switched
from crash.workload import OPEN_ROWS_MAX, TABLES, TrainedTable
from gatherd import Client
from gatherd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    RetryableError,
    VersionMismatch,
    VersionNotFound,
)
from gatherd.store.control import ControlPage
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.open_spec import OpenSpec
from gatherd_server.storage.wal_format import WAL_NAME, FrameKind
from gatherd_server.storage.wal_reader import LogReader
from gatherd_server.types import CreateTable, OptimizerSpec
from gatherd_server.writer.checkpoint import read_checkpoint
from support.server import RunningServer, clean_environment, wait_until
from support.tables import drawn_table, make_data_dir

# Small, so that segments fill and are deleted all the time.
SETTINGS = ("--segment-bytes", "65536", "--checkpoint-seconds", "0.3", "--drain-seconds", "20")
CLIENT_PROCESSES = 2
THREADS = 3
RECOVERY_SECONDS = 60.0
# Kills of single processes before everything is killed: the supervisor's pause before it starts
# another in a place doubles with each.
KILLS_A_LIFE = {1: 3, 2: 9}


def make_tables(data_dir: Path, tables: tuple[TrainedTable, ...] = TABLES) -> None:
    """Create the tables, each with a seed of its own."""
    drawn = [
        drawn_table(
            table.name, table.rows, table.dim, dtype=table.dtype, init="uniform", seed=seed,
            optimizer=table.optimizer, options=table.options,
        )
        for seed, table in enumerate(tables)
        if not table.is_open
    ]  # fmt: skip
    opened = [open_table(table) for table in tables if table.is_open]
    make_data_dir(data_dir, *drawn, *opened)


def open_table(table: TrainedTable) -> CreateTable:
    """The change that makes an open table."""
    spec = OpenSpec(KeyKind.INT64, OPEN_ROWS_MAX, 7, Initializer.parse("normal"))
    optimizer = OptimizerSpec(table.optimizer, table.options)
    return CreateTable(table.name, 0, table.dim, DType(table.dtype), spec.init, 7, optimizer, spec)


class Switcher:
    """Publishes, rolls back and takes snapshots, one after the other, and finds out what was done.

    An answer that was lost isn't asked for again: a change has no request id. But changes are made
    in their order, so that when the next is answered it shows whether the lost one was made.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.switches: list[Switched] = []
        self.snapshots: list[tuple[Path, int]] = []
        self._client = Client(url, timeout=RECOVERY_SECONDS, retries=100)
        self._random = random.Random(seed)
        self._live = {table.name: 1 for table in TABLES}
        self._newest = dict(self._live)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._count = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait for the change that is under way. Raises what it died of."""
        self._stop.set()
        self._thread.join()
        self._client.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._random.uniform(0.02, 0.4)):
                self._change(self._random.choice(TABLES).name)
        except BaseException as error:  # noqa: BLE001 - raised by stop
            self._failure = error

    def _change(self, table: str) -> None:
        live = self._live[table]
        kind = self._random.choices(("publish", "rollback", "snapshot"), (5, 3, 2))[0]
        try:
            if kind == "snapshot":
                self._count += 1
                made = self._client.snapshot(f"s{self._count}")
                self.snapshots.append((Path(made.path), made.lsn))
                return
            if kind == "publish":
                result = self._client.publish(table, if_version=live)
            else:
                result = self._client.rollback(table, if_version=live)
        except VersionNotFound:
            return  # there is none before it
        except (RetryableError, DeadlineExceeded, VersionMismatch):
            self._find_out(table)
        except FailedPrecondition as error:
            # The worker that should have mapped the version was killed meanwhile.
            assert "can't be served" in error.message, error  # noqa: PT017
            self._find_out(table)
        else:
            self._note(table, result.version, result.lsn)

    def _find_out(self, table: str) -> None:
        """Wait until every change before this one is made or never will be; note what is live."""
        while True:
            try:
                self._client.publish(table, if_version=10**9)
            except VersionMismatch:
                break
            except (RetryableError, DeadlineExceeded):
                continue
            raise AssertionError("a version was published that insisted on another")
        version = self._client.table(table).version
        if version != self._live[table]:
            self._note(table, version, None)

    def _note(self, table: str, version: int, lsn: int | None) -> None:
        copied = version > self._newest[table]
        self.switches.append(Switched(lsn, table, self._live[table], version, copied))
        self._live[table] = version
        self._newest[table] = max(version, self._newest[table])


class Pusher:
    """A client process; see pusher.py."""

    def __init__(self, number: int, log: Path, urls: list[str]) -> None:
        self.log = log
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.pusher", str(number * 10**9), str(THREADS), log, *urls],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), "PYTHONPATH": os.pathsep.join(filter(None, path))},
        )

    def outcome_bytes(self) -> int:
        """How long its log is: it grows with every push that is answered."""
        return self.log.stat().st_size if self.log.exists() else 0

    def check(self) -> None:
        """AssertionError when it has died."""
        if self._process.poll() is not None:
            _, errors = self._process.communicate()
            raise AssertionError(f"a client ended before it was told to:\n{errors}")

    def finish(self) -> None:
        """Have every push that is under way answered. AssertionError when one failed."""
        _, errors = self._process.communicate(timeout=RECOVERY_SECONDS)
        assert self._process.returncode == 0, errors

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Siege:
    """A data dir in `folder`, served by `workers` workers; `seed` is for when and whom to kill."""

    def __init__(self, folder: Path, workers: int, seed: int) -> None:
        self._folder = folder
        self._workers = workers
        self._seed = seed
        self._chance = random.Random(seed)
        self._pushers: list[Pusher] = []
        self.data_dir = folder / "data"
        self.server_log = folder / "server.log"
        self.kills: Counter[str] = Counter()
        self.logged: dict[int, object] = {}
        """The request ids that were found in the log's frames, by LSN."""
        make_tables(self.data_dir)
        self.oracle = Oracle.begin(self.data_dir)
        self.first_lsn = applied_lsn(self.data_dir)

    def run(self, kill_count: int) -> None:
        """Serve, push and kill `kill_count` times, and stop in good order."""
        server = self._server("127.0.0.1:0", "127.0.0.1:0").__enter__()
        addresses = urlsplit(server.http).netloc, urlsplit(server.grpc).netloc
        self.switcher = Switcher(server.http, self._seed)
        urls = [server.http, server.grpc]
        try:
            self._pushers = [
                Pusher(number, self._folder / f"client{number}.log", urls)
                for number in range(1, CLIENT_PROCESSES + 1)
            ]
            self.switcher.start()
            while (left := kill_count - self.kills.total()) > 0:
                for _ in range(min(left - 1, KILLS_A_LIFE[self._workers])):
                    self._kill_one(server)
                self._await_moment()
                server.kill()
                self.kills["everything"] += 1
                self._read_log()
                server = self._server(*addresses).__enter__()
            self._await_pushes(50)
            self.switcher.stop()
            for pusher in self._pushers:
                pusher.finish()
            assert server.stop() == 0
        finally:
            for pusher in self._pushers:
                pusher.kill()
            if server.process.poll() is None:
                server.kill()

    def _server(self, http: str, grpc: str) -> RunningServer:
        return RunningServer(
            "--data-dir", self.data_dir, "--snapshot-dir", self._folder / "snapshots",
            "--workers", str(self._workers), "--http", http, "--grpc", grpc, *SETTINGS,
            log_path=self.server_log,
        )  # fmt: skip

    def _kill_one(self, server: RunningServer) -> None:
        """SIGKILL for a worker or the writer, at a random moment."""
        self._await_moment()
        name, pids = "worker", server.worker_pids
        if self._workers == 1:
            name = "worker with the writer in it"
        elif self._chance.random() < 0.5:
            name, pids = "writer", server.writer_pids
        wait_until(lambda: bool(pids()), f"there is a {name} again", RECOVERY_SECONDS)
        os.kill(self._chance.choice(pids()), signal.SIGKILL)
        self.kills[name] += 1

    def _await_moment(self) -> None:
        """Some pushes later, or some time, in which nothing at all may have come up again."""
        if self._chance.random() < 0.6:
            self._await_pushes(self._chance.randint(1, 60))
        else:
            time.sleep(self._chance.uniform(0, 0.4))

    def _await_pushes(self, count: int) -> None:
        byte_count = self._outcome_bytes() + 50 * count
        deadline = time.monotonic() + RECOVERY_SECONDS
        while self._outcome_bytes() < byte_count:
            for pusher in self._pushers:
                pusher.check()
            assert time.monotonic() < deadline, (
                f"no {count} pushes are answered within {RECOVERY_SECONDS} s; {dict(self.kills)}; "
                f"the server's log ends with\n{self.server_log.read_text()[-3000:]}"
            )
            time.sleep(0.005)

    def _outcome_bytes(self) -> int:
        return sum(pusher.outcome_bytes() for pusher in self._pushers)

    def _read_log(self) -> None:
        """Note what the log has of pushes, now that nobody writes it."""
        checkpoint = read_checkpoint(self.data_dir)
        for frame in LogReader(self.data_dir / WAL_NAME, checkpoint.lsn):
            if frame.kind is FrameKind.PUSHES:
                for offset, (request_id, *_) in enumerate(frame.record.directory["pushes"]):
                    lsn = frame.first_lsn + offset
                    assert self.logged.setdefault(lsn, request_id) == request_id, lsn

    def outcomes(self) -> list[list[Any]]:
        """Every line of every client's log."""
        return [
            json.loads(line)
            for pusher in self._pushers
            for line in pusher.log.read_text().splitlines()
        ]


def applied_lsn(data_dir: Path) -> int:
    """The last LSN that is in the tables."""
    page = ControlPage(data_dir)
    try:
        return page.applied_lsn
    finally:
        page.close()
