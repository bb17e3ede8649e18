"""What a commit costs beside the bare append and sync of the same bytes, alternating in one run.

Both sides write into files whose blocks are reserved. Then small pushes, one pusher against 32,
also with 5 ms added to every sync through the fault seam. `PYTHONPATH=tests python
tests/bench/commit_bench.py`, half a minute. The marks: 1,024 rows × 128 float32 at most 1.5 times
the bare append; 32 pushers at least 4 times the rate of one, and 20 times with the slow sync.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gatherd.store.memory import tune_allocator
from gatherd_server.storage.files import Files
from gatherd_server.types import (
    Push,
    SessionSequence,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer
from support.server import run_cli

ROWS, DIM, IDS, ROUNDS = 200_000, 128, 1_024, 101
SMALL_IDS, PUSHERS, SECONDS = 4, 32, 3.0
SEGMENT_BYTES = 256 << 20


class SlowFiles(Files):
    """A disk that takes 5 ms longer to sync."""

    def sync_data(self, fd: int, path: Path) -> None:
        """As any, and then some."""
        super().sync_data(fd, path)
        time.sleep(0.005)


class Pusher:
    """One session's pushes of `id_count` random rows."""

    def __init__(self, writer: Writer, number: int, id_count: int) -> None:
        self._writer = writer
        self._session = os.urandom(16)
        self._sequence = 0
        rng = np.random.default_rng(number)
        self._ids = rng.choice(ROWS, id_count, replace=False)
        self._values = rng.random((id_count, DIM), np.float32)

    def push(self) -> None:
        """Push, and wait until it is durable and visible."""
        self._sequence += 1
        request_id = SessionSequence(self._session, self._sequence)
        update = TableUpdate("items", self._ids, self._values)
        push = Push(UpdateOp.SCATTER_ADD, (update,), request_id)
        self._writer.submit(push, push_digest(push)).result()


def milliseconds(call: Callable[[], object]) -> float:
    """What one call takes."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def beside_bare_append(writer: Writer, folder: Path) -> None:
    """A push of 1,024 rows, and its bytes by hand."""
    pusher = Pusher(writer, 1, IDS)
    frame = os.urandom(IDS * (DIM * 4 + 8) + 400)
    fd = os.open(folder / "bare", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.posix_fallocate(fd, 0, SEGMENT_BYTES)
    position = 0

    def bare() -> None:
        nonlocal position
        os.pwrite(fd, frame, position)
        os.fdatasync(fd)
        position += len(frame)

    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(milliseconds(bare))
        ours.append(milliseconds(pusher.push))
    os.close(fd)
    commit, append = statistics.median(ours), statistics.median(theirs)
    print(f"{IDS} rows × {DIM} float32, median of {ROUNDS}")
    print(f"  bare append + fdatasync  {append:7.2f} ms")
    print(f"  commit                   {commit:7.2f} ms   ×{commit / append:.2f} (mark 1.5)")


def rate(writer: Writer, first: int, pushers: int) -> float:
    """Pushes a second of so many threads."""
    counts = [0] * pushers
    stop = time.monotonic() + SECONDS

    def run(number: int) -> None:
        pusher = Pusher(writer, first + number, SMALL_IDS)
        while time.monotonic() < stop:
            pusher.push()
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(pushers)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def together(writer: Writer, what: str, mark: float) -> None:
    """One pusher and 32, alternating."""
    ones, many = [], []
    for round_number in range(3):
        ones.append(rate(writer, 1_000 + 100 * round_number, 1))
        many.append(rate(writer, 2_000 + 100 * round_number, PUSHERS))
    one, all_ = statistics.median(ones), statistics.median(many)
    print(f"pushes of {SMALL_IDS} rows, {what}, medians of 3")
    print(f"  one pusher   {one:9.0f} a second")
    print(f"  {PUSHERS} pushers   {all_:9.0f} a second   ×{all_ / one:.1f} (mark {mark:g})")


def main() -> None:
    """Everything, in a temporary folder of the current one: /tmp may be memory."""
    tune_allocator()
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as name:
        data_dir = Path(name) / "data"
        run_cli(
            *("create", "items", "--rows", str(ROWS), "--dim", str(DIM)),
            *("--optimizer", "sgd", "--data-dir", data_dir),
        )
        limits = WriterLimits(segment_bytes=SEGMENT_BYTES, checkpoint_bytes=1 << 40)
        for files, what, mark in ((Files(), "", 4.0), (SlowFiles(), "5 ms more a sync", 20.0)):
            writer = Writer(data_dir, files, limits)
            if not what:
                Pusher(writer, 0, IDS).push()
                beside_bare_append(writer, Path(name))
            together(writer, what or "the disk as it is", mark)
            writer.close()


if __name__ == "__main__":
    main()
