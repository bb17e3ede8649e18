"""A served data dir under fire: clients push, tables are switched, and processes are killed.

`Siege` runs it; `verdict` then holds every client's log and every file against the oracle.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import crash
from crash.oracle import Acknowledged, Oracle, Switched, placed
from crash.workload import TABLES, TrainedTable
from gatherd import Client
from gatherd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    GatherdError,
    RetryableError,
    VersionMismatch,
    VersionNotFound,
)
from gatherd.store.control import ControlPage
from gatherd_server.writer.snapshot import verify_snapshot
from support.server import RunningServer, clean_environment, run_cli, wait_until

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
    for seed, table in enumerate(tables):
        options = [part for option in table.options for part in ("--optimizer-option", option)]
        run_cli(
            "create", table.name, "--rows", str(table.rows), "--dim", str(table.dim),
            "--dtype", table.dtype, "--seed", str(seed), "--optimizer", table.optimizer,
            *options, "--data-dir", data_dir,
        )  # fmt: skip


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
        self._thread = threading.Thread(target=self._run)
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
            while not self._stop.wait(self._random.uniform(0.1, 1.0)):
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
            assert "can't be served" in error.message, error
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


@dataclass(slots=True)
class Verdict:
    """What was found to be as it has to be."""

    acknowledged: int
    repeated: int
    refused: int
    switches: int
    snapshots: int
    versions: int
    lsn: int


@dataclass(slots=True)
class Siege:
    """A data dir in `folder`, served by `workers` workers, with `seed` for everything random."""

    folder: Path
    workers: int
    seed: int
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def server_log(self) -> Path:
        return self.folder / "server.log"

    def run(self, kill_count: int) -> None:
        """Serve, push and kill until `kill_count` processes or whole servers were killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chance = random.Random(self.seed)
        with ExitStack() as stack:
            server = stack.enter_context(self._server("127.0.0.1:0", "127.0.0.1:0"))
            addresses = urlsplit(server.http).netloc, urlsplit(server.grpc).netloc
            stack.enter_context(self._pushing(server))
            switcher = Switcher(server.http, self.seed)
            switcher.start()
            stack.callback(switcher.stop)
            try:
                while sum(self.kills.values()) < kill_count:
                    left = kill_count - sum(self.kills.values())
                    self._live_and_die(server, chance, min(left - 1, KILLS_A_LIFE[self.workers]))
                    server = stack.enter_context(self._server(*addresses))
            except BaseException:
                # Clients that wait for a server that is gone would do so for minutes.
                switcher_error = None if self._is_up(server) else server.log[-2000:]
                if switcher_error:
                    print(switcher_error, file=sys.stderr)
                raise
            self._wait_for_pushes(20)
            self.switches = switcher  # read by the verdict

    def _server(self, http: str, grpc: str) -> RunningServer:
        return RunningServer(
            "--data-dir", self.data_dir, "--snapshot-dir", self.folder / "snapshots",
            "--workers", str(self.workers), "--http", http, "--grpc", grpc, *SETTINGS,
            log_path=self.server_log,
        )  # fmt: skip
