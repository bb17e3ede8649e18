"""Ready time and memory of 1, 2 and 4 workers, and a table twice as large as a memory limit.

The limit is a cgroup's, which root can make; the server in it is asked from outside. Its table lies
on a disk, because a file in /dev/shm can't leave the memory. `MADV_RANDOM` is what the server
advises by itself when a table outgrows the memory (`--preload auto`); beside it the kernel's
default, which reads around each row (`--preload none`).
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.harness import (
    TABLE,
    Call,
    IdSource,
    Plan,
    Report,
    Table,
    check,
    number,
    process_tree,
    timed,
)
from gatherd import Client
from support.server import RunningServer, pss_bytes

WORKERS = (1, 2, 4)
MB = 1e6
LIMIT_BYTES = 768 << 20
# What a server takes besides its table.
SERVER_BYTES = 256 << 20
SIZES = (1, 64, 1024)
SECONDS = 3.0


def run(plan: Plan) -> Report:
    """Both tables."""
    report = Report(
        "Start and memory",
        "The table is in the page cache; times run from the command until the server is ready.",
    )
    report.tables.append(_starts(plan))
    is_quick = plan.rows < 1_000_000
    with tempfile.TemporaryDirectory(dir=plan.disk) as name:
        table = _under_a_limit(Path(name), plan, report, 1.0 if is_quick else SECONDS)
    if table is not None:
        report.tables.append(table)
    return report


def _starts(plan: Plan) -> Table:
    rows = []
    for workers in WORKERS:
        begin = time.perf_counter()
        with plan.serve("--workers", str(workers)) as server:
            seconds = time.perf_counter() - begin
            # The writer maps the tables too, where it is a process of its own.
            pids = [*server.worker_pids(), *server.writer_pids()]
            shares = [pss_bytes(pid, plan.weights.name) / MB for pid in pids]
            others = [pss_bytes(pid) / MB - share for pid, share in zip(pids, shares, strict=True)]
        rows.append(
            (
                str(workers),
                f"{seconds:.2f}",
                " ".join(f"{share:.0f}" for share in shares),
                f"{sum(shares):.0f}",
                " ".join(f"{other:.0f}" for other in others),
            )
        )
    header = ("workers", "ready, s", "PSS of the table, MB", "sum", "other memory, MB")
    title = f"{plan.rows:,} × {plan.dim} float32, {plan.weights.stat().st_size / MB:,.0f} MB"
    return Table(title, header, tuple(rows))


# --- less memory than table ---


class Unavailable(Exception):
    """No cgroup can be made here."""


@contextmanager
def memory_limit(byte_count: int) -> Iterator[Path]:
    """A cgroup, version 2 or 1, that holds so much memory; its file `cgroup.procs` takes pids."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        parent, limit = root, "memory.max"
        controllers = (root / "cgroup.subtree_control").read_text().split()
        if "memory" not in controllers:
            raise Unavailable("the memory controller isn't handed down by the root cgroup")
    elif (root / "memory").is_dir():
        parent, limit = root / "memory", "memory.limit_in_bytes"
    else:
        raise Unavailable("no cgroup file system with a memory controller is mounted")
    group = parent / f"gatherd-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Unavailable(f"{group} can't be made ({error.strerror}); it takes root") from None
    try:
        try:
            (group / limit).write_text(str(byte_count))
        except OSError as error:
            raise Unavailable(f"{group / limit}: {error.strerror}") from None
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Once the last process in it has ended, which may take a moment."""
    deadline = time.monotonic() + 10
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                print(f"{group} couldn't be removed", file=sys.stderr)
                return
            time.sleep(0.1)


@contextmanager
def _inside(group: Path) -> Iterator[None]:
    """Processes that are started meanwhile belong to the cgroup; this one only until the end."""
    own = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if ":memory:" in line or line.startswith("0::")
    )
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        home = group.parent / own.lstrip("/")
        (home / "cgroup.procs").write_text(str(os.getpid()))


def _under_a_limit(folder: Path, plan: Plan, report: Report, seconds: float) -> Table | None:
    row_count = 2 * LIMIT_BYTES // (plan.dim * 4)
    path = folder / "large.npy"
    rows = []
    try:
        with memory_limit(LIMIT_BYTES + SERVER_BYTES) as group:
            _write(path, row_count, plan.dim)
            for advice, preload in (("MADV_RANDOM", "auto"), ("the default", "none")):
                _forget(path)
                with _inside(group):
                    server = RunningServer(
                        f"{TABLE}={path}", "--preload", preload, log_path=folder / "log"
                    )
                    server.__enter__()
                try:
                    rows.append((advice, preload, *_measure(server, path, row_count, seconds)))
                finally:
                    server.stop()
    except Unavailable as reason:
        report.skipped.append(f"a table that outgrows a memory limit: {reason}")
        return None
    header = (
        "advice",
        "--preload",
        *(f"{size:,} ids" for size in SIZES),
        "faults an id",
        "MB read an id",
    )
    title = (
        f"{row_count * plan.dim * 4 / MB:,.0f} MB of table under a limit of "
        f"{LIMIT_BYTES / MB:,.0f} MB, and {SERVER_BYTES / MB:,.0f} MB for the server; p50 (p99) in "
        "µs, Zipf ids, answers compared with the file"
    )
    return Table(title, header, tuple(rows))


def _write(path: Path, row_count: int, dim: int) -> None:
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (row_count, dim))
    rng = np.random.default_rng(5)
    for start in range(0, row_count, 100_000):
        part = rows[start : start + 100_000]
        part[:] = rng.random(part.shape, np.float32)
    rows.flush()


def _forget(path: Path) -> None:
    """Out of the page cache, so that who reads it next is charged for it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _counted(pids: list[int]) -> tuple[int, int]:
    """Major faults, and bytes read from the disk, of processes so far."""
    faults = sum(
        int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9]) for pid in pids
    )
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    read = sum(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
    return faults, read


def _measure(server: RunningServer, path: Path, row_count: int, seconds: float) -> tuple[str, ...]:
    source = IdSource(row_count, seed=6)
    cells, asked = [], 0
    pids = process_tree(server.process.pid)
    with Client(server.http, timeout=60) as client:

        def call(ids: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> object:
            return client.lookup(TABLE, ids)

        answers: dict[str, Call] = {"the server under a limit": call}
        faults_before, read_before = _counted(pids)
        for size in SIZES:
            times = timed(call, source.batches("zipf", size, max(200, 131_072 // size)), seconds)
            asked += len(times) * size
            p50, p99 = np.percentile(times, (50, 99))
            cells.append(f"{number(float(p50))} ({number(float(p99))})")
        faults, read = _counted(pids)
        check(answers, np.load(path, mmap_mode="r"), source.draw("uniform", 1024))
    per_id = (faults - faults_before) / asked, (read - read_before) / MB / asked
    return (*cells, number(per_id[0]), f"{per_id[1]:.4f}")
