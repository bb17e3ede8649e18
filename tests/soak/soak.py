"""A server under mixed lookups and pushes for a long time: `make soak` (SOAK_SECONDS, 600).

One server of two workers with real processes; client processes look up over http, grpc and local,
rows, bags and keys, and push scatter_add, apply_gradients and assign, while a publish, a rollback
or a snapshot comes now and then. It fails when

- anything is an error, or a lookup isn't what NumPy says it is: of rows that nobody changes, and of
  those that its client alone pushes to, right after the push was acknowledged;
- a process holds more private memory at the end than after the warm-up, by more than GROWTH_BYTES;
- the log was larger than checkpoints can leave it, LOG_BYTES_MAX;
- the tables' last rows aren't what all acknowledged pushes make, and what a restart finds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from gatherd import Client
from soak.client import DIM, KEYED_ROWS, OWN_ROWS, Oracle, fixed_rows, key_of
from support.cli import invoke
from support.server import RunningServer, clean_environment, private_bytes
from support.tables import drawn_table, make_data_dir

MIB = 1 << 20
# Small segments and frequent checkpoints: a log that isn't cut shows within a minute.
CHECKPOINT_SECONDS, CHECKPOINT_BYTES, SEGMENT_BYTES = 2.0, 16 * MIB, 4 * MIB
# What checkpoints leave, what is written while one is under way or a snapshot pins the log, and a
# segment that is reserved ahead.
LOG_BYTES_MAX = 6 * CHECKPOINT_BYTES
# Between the median of the fifth of the time after the warm-up and that of the last fifth. Freed
# memory isn't given back at once, and metrics and caches fill up to their named maxima.
GROWTH_BYTES = 24 * MIB
WARM_UP_PART = 0.25
SAMPLE_SECONDS = 1.0
STOP_SECONDS = 120.0
CLIENTS = ("http", "grpc", "local")
CHANGE_SECONDS = 7.0
SNAPSHOTS_KEPT = 2


@dataclass(slots=True)
class Samples:
    """A process's private bytes over the time."""

    name: str
    pid: int
    at: list[tuple[float, int]] = field(default_factory=list)

    def between(self, begin: float, end: float) -> int:
        """The median of what was seen then."""
        seen = [count for seconds, count in self.at if begin <= seconds <= end]
        return int(statistics.median(seen)) if seen else 0


def make_tables(root: Path) -> Path:
    """What is served: a table that nobody changes, a keyed one, and one for each way to push."""
    data = root / "data"
    np.save(root / "fixed.npy", fixed_rows())
    np.save(root / "keyed.npy", fixed_rows()[:KEYED_ROWS])
    (root / "keys").write_bytes(b"\n".join(map(key_of, range(KEYED_ROWS))) + b"\n")
    invoke("import", "fixed", root / "fixed.npy", "--data-dir", data)
    invoke("import", "keyed", root / "keyed.npy", "--keys", root / "keys", "--data-dir", data)
    rows = OWN_ROWS * len(CLIENTS)
    make_data_dir(
        data,
        drawn_table("added", rows, DIM, optimizer="sgd", options={"lr": 0.5}),
        drawn_table("trained", rows, DIM, optimizer="adagrad", options={"lr": 0.5}),
        drawn_table("assigned", rows, DIM, optimizer="adam"),
        drawn_table("switched", 1_000, DIM, init="uniform", optimizer="sgd"),
    )
    return data


class Soak:
    """One run."""

    def __init__(self, root: Path, seconds: float) -> None:
        self._root = root
        self._seconds = seconds
        self._begun = 0.0
        self.samples: dict[int, Samples] = {}
        self.log_bytes: list[int] = []
        self.changes = {"publish": 0, "rollback": 0, "snapshot": 0}
        self.problems: list[str] = []

    def run(self) -> int:
        """Everything; 0 when nothing was wrong."""
        data = make_tables(self._root)
        options = ("--workers", "2", "--snapshot-dir", self._root / "snapshots",
                   "--checkpoint-seconds", str(CHECKPOINT_SECONDS),
                   "--checkpoint-bytes", str(CHECKPOINT_BYTES),
                   "--segment-bytes", str(SEGMENT_BYTES))  # fmt: skip
        log = self._root / "server.log"
        with RunningServer("--data-dir", data, *options, log_path=log) as server:
            urls = {"http": server.http, "grpc": server.grpc, "local": f"local:{data}"}
            clients = [self._client(number, urls[kind]) for number, kind in enumerate(CLIENTS)]
            try:
                self._begun = time.monotonic()
                with Client(server.http, timeout=60) as client:
                    self._watch(server, data, client, clients)
            finally:
                results = [
                    self._finish(kind, one) for kind, one in zip(CLIENTS, clients, strict=True)
                ]
            self._check(server.http, results)
            self._tell(results)
        self._check_log(log)
        with RunningServer("--data-dir", data) as server:
            self._check(server.http, results)
        for problem in self.problems:
            print(f"WRONG: {problem}")
        print("soak: " + ("FAILED" if self.problems else "nothing wrong"))
        return 1 if self.problems else 0

    def _client(self, number: int, url: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "soak.client", str(number), url]
        environment = {**clean_environment(), "PYTHONPATH": str(Path(__file__).parents[1])}
        with open(self._root / f"client-{number}.json", "wb") as out:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, env=environment)

    def _watch(self, server: RunningServer, data: Path, client: Client, clients: list[Any]) -> None:
        next_change = CHANGE_SECONDS / 2
        while (now := time.monotonic() - self._begun) < self._seconds:
            self._sample(now, server)
            self.log_bytes.append(sum(p.stat().st_size for p in _existing(data / "wal")))
            if now >= next_change:
                next_change = now + CHANGE_SECONDS
                self._change(client)
            if any(one.poll() is not None for one in clients):
                self.problems.append("a client ended early")
                return
            time.sleep(SAMPLE_SECONDS)

    def _sample(self, now: float, server: RunningServer) -> None:
        named = {server.process.pid: "supervisor"}
        named |= dict.fromkeys(server.worker_pids(), "worker")
        named |= dict.fromkeys(server.writer_pids(), "writer")
        for pid, name in named.items():
            self.samples.setdefault(pid, Samples(name, pid)).at.append((now, private_bytes(pid)))

    def _change(self, client: Client) -> None:
        """A publish, a rollback or a snapshot, in turns."""
        kind = tuple(self.changes)[sum(self.changes.values()) % 3]
        self.changes[kind] += 1
        if kind == "publish":
            client.publish("switched")
        elif kind == "rollback":
            client.rollback("switched")
        else:
            client.snapshot(f"s{self.changes[kind]}")
            old = self._root / "snapshots" / f"s{self.changes[kind] - SNAPSHOTS_KEPT}"
            subprocess.run(["rm", "-rf", str(old)], check=True)

    def _finish(self, kind: str, client: "subprocess.Popen[bytes]") -> dict[str, Any]:
        assert client.stdin is not None
        client.stdin.close()
        try:
            status = client.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            client.kill()
            status = -1
        number = CLIENTS.index(kind)
        text = (self._root / f"client-{number}.json").read_text()
        if status or not text:
            self.problems.append(f"client {kind} ended with status {status}")
            return {"lookups": 0, "rows": 0, "pushes": {}, "oracle": None}
        result: dict[str, Any] = json.loads(text)
        self.problems += [f"client {kind}: {one}" for one in result["problems"]]
        return result

    def _check(self, url: str, results: list[dict[str, Any]]) -> None:
        """The tables hold just what was acknowledged."""
        with Client(url, timeout=60) as client:
            for number, result in enumerate(results):
                if result["oracle"] is None:
                    continue
                oracle = Oracle.from_json(number, result["oracle"])
                for table, expected in oracle.tables.items():
                    found = client.lookup(table, oracle.ids)
                    if not np.array_equal(found, np.repeat(expected[:, None], DIM, 1)):
                        wrong = int((found != expected[:, None]).any(axis=1).sum())
                        self.problems.append(f"{wrong} rows of {table} of client {number} differ")

    def _check_log(self, log: Path) -> None:
        lines = log.read_text().splitlines()
        bad = [
            line for line in lines if " ERROR" in line or " CRITICAL" in line or "Traceback" in line
        ]
        self.problems += [f"the server's log: {line}" for line in bad[:5]]

    def _tell(self, results: list[dict[str, Any]]) -> None:
        end = time.monotonic() - self._begun
        warm = WARM_UP_PART * end
        print(f"{end:.0f} s, {os.cpu_count()} processors; changes: "
              + ", ".join(f"{count} {kind}" for kind, count in self.changes.items()))  # fmt: skip
        print(f"{'CLIENT':8} {'LOOKUPS':>9} {'ROWS':>11}  PUSHES")
        for kind, result in zip(CLIENTS, results, strict=True):
            pushes = ", ".join(f"{count} {op}" for op, count in result["pushes"].items())
            print(f"{kind:8} {result['lookups']:9} {result['rows']:11}  {pushes}")
        bound = f"(bound {GROWTH_BYTES / 1e6:.0f})"
        print(f"{'PROCESS':12} {'WARM MB':>8} {'END MB':>8} {'MORE':>8} {bound}")
        for one in self.samples.values():
            first, last = one.between(warm, 1.8 * warm), one.between(0.8 * end, end)
            more = last - first
            print(f"{one.name:12} {first / 1e6:8.1f} {last / 1e6:8.1f} {more / 1e6:8.1f}")
            if not first or not last:
                self.problems.append(f"{one.name} {one.pid} wasn't there all the time")
            elif more > GROWTH_BYTES:
                self.problems.append(f"{one.name} grew by {more} bytes")
        print(f"log: at most {max(self.log_bytes) / 1e6:.1f} MB (bound {LOG_BYTES_MAX / 1e6:.0f})")
        if max(self.log_bytes) > LOG_BYTES_MAX:
            self.problems.append(f"the log had {max(self.log_bytes)} bytes")


def _existing(folder: Path) -> list[Path]:
    """Its files, but for those that have just gone."""
    return [path for path in folder.glob("*.log") if path.exists()]


def main() -> int:
    """Soak for SOAK_SECONDS."""
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        return Soak(Path(folder), seconds).run()


if __name__ == "__main__":
    sys.exit(main())
