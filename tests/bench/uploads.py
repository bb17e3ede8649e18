"""Uploads beside a bare socket: bytes a second, and the most memory that both ends hold.

    python tests/bench/uploads.py [--bytes N] [--text-bytes N] [--rounds N] [--folder DIR]

The bare socket's receiver writes what comes to a file beside the data dir and syncs it, as scp with
a sync would; to a receiver that only reads, its bytes go several times as fast. The two take turns,
because the disk of a shared machine isn't always as fast, and the medians are compared.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gatherd import Client
from support.server import RunningServer, clean_environment
from support.tables import make_data_dir

MARK: Final = 0.6
DIM: Final = 128
RECEIVED_BYTES: Final = 1 << 20
CHUNKS_MAX: Final = 32 << 20
"""What either end may hold more than before: four chunks of 8 MiB, as grpc copies a message."""


def receive(listener: socket.socket, path: Path | None) -> None:
    """Take all bytes of one connection, into a file if there is a path, and answer when synced."""
    connection, _ = listener.accept()
    room = memoryview(bytearray(RECEIVED_BYTES))
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC) if path is not None else -1
    while count := connection.recv_into(room):
        if fd >= 0:
            os.write(fd, room[:count])
    if fd >= 0:
        os.fsync(fd)
        os.close(fd)
    connection.sendall(b"!")


def bare(data: memoryview, path: Path | None) -> float:
    """Bytes a second over a bare socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = multiprocessing.Process(target=receive, args=(listener, path))
        receiver.start()
        with socket.create_connection(listener.getsockname()) as sender:

            def send() -> None:
                sender.sendall(data)
                sender.shutdown(socket.SHUT_WR)
                sender.recv(1)

            seconds = timed(send)
        receiver.join()
    if path is not None:
        path.unlink()
    return data.nbytes / seconds


def timed(work: Callable[[], object]) -> float:
    """The seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def held_bytes(pid: int | str = "self") -> int:
    """Memory that a process holds of its own now: mapped files aren't counted."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (held,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return held * 1024


class Peaks:
    """The most that both ends hold beyond what they held before, looked at every millisecond."""

    def __init__(self, worker: int) -> None:
        self.most = [0, 0]
        self._worker = worker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        before = held_bytes(), held_bytes(self._worker)
        while not self._stop.wait(0.001):
            now = held_bytes(), held_bytes(self._worker)
            more = [one - was for one, was in zip(now, before, strict=True)]
            self.most = [max(most, one) for most, one in zip(self.most, more, strict=True)]


def verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def arrays(server: RunningServer, folder: Path, byte_count: int, rounds: int) -> None:
    """Create tables of one array over each wire, a bare socket in between."""
    rows = byte_count // (4 * DIM)
    vectors = np.random.default_rng(0).random((rows, DIM), np.float32)
    data = vectors.data.cast("B")
    (worker,) = server.worker_pids()
    rates: dict[str, list[float]] = {"read": [], "file": [], "http": [], "grpc": []}
    for number in range(rounds):
        rates["read"].append(bare(data, None))
        for wire in ("http", "grpc"):
            rates["file"].append(bare(data, folder / "bare"))
            with Client(getattr(server, wire), timeout=60) as client:
                name = f"{wire}-{number}"
                seconds = timed(lambda: client.create_table(name, vectors))  # noqa: B023
                client.delete_table(name)
            rates[wire].append(data.nbytes / seconds)
    median = {name: statistics.median(found) for name, found in rates.items()}
    print(f"create_table of {byte_count / 1e9:.2f} GB of float32, medians of {rounds} rounds:")
    print(f"  bare socket, read and dropped   {median['read'] / 1e6:8.0f} MB/s")
    print(f"  bare socket, into a synced file {median['file'] / 1e6:8.0f} MB/s")
    for wire in ("http", "grpc"):
        part = median[wire] / median["file"]
        mark = f"(mark {MARK}: {verdict(part >= MARK)})" if wire == "http" else ""
        print(f"  {wire:31} {median[wire] / 1e6:8.0f} MB/s, {part:.2f} of the file's {mark}")
    for wire in ("http", "grpc"):
        with Client(getattr(server, wire), timeout=60) as client:
            with Peaks(worker) as peaks:
                client.create_table("peak", vectors)
            client.delete_table("peak")
        ours, theirs = peaks.most
        told = verdict(max(ours, theirs) <= CHUNKS_MAX)
        print(
            f"  {wire}: most held beside the array, client {ours / 1e6:.0f} MB, worker "
            f"{theirs / 1e6:.0f} MB (at most {CHUNKS_MAX / 1e6:.0f}: {told})"
        )


def texts(server: RunningServer, folder: Path, byte_count: int) -> None:
    """`gatherd import --url` of a GloVe text."""
    path = folder / "words.txt"
    rng = np.random.default_rng(1)
    with path.open("w") as file:
        number = 0
        while file.tell() < byte_count:
            lines = [" ".join(f"{x:.5f}" for x in row) for row in rng.normal(size=(1000, 100))]
            file.writelines(f"word{number + i} {line}\n" for i, line in enumerate(lines))
            number += 1000
    (worker,) = server.worker_pids()
    for wire in ("http", "grpc"):
        before = held_bytes(worker)
        command = [sys.executable, "-m", "gatherd_server", "import", f"text-{wire}", str(path)]
        importing = subprocess.Popen(
            [*command, "--url", getattr(server, wire)],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        begun, ours, theirs = time.perf_counter(), 0, 0
        while importing.poll() is None:
            try:
                ours = max(ours, held_bytes(importing.pid))
            except (OSError, ValueError):
                break
            theirs = max(theirs, held_bytes(worker) - before)
            time.sleep(0.05)
        told, _ = importing.communicate()
        seconds = time.perf_counter() - begun
        print(
            f"gatherd import --url {wire}: {path.stat().st_size / 1e6:.0f} MB of text in "
            f"{seconds:.1f} s, {path.stat().st_size / seconds / 1e6:.0f} MB/s; most held: the "
            f"command {ours / 1e6:.0f} MB, the worker {theirs / 1e6:.0f} MB more than before"
        )
        print(f"  {told.splitlines()[0] if told else f'failed: {importing.returncode}'}")
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--text-bytes", type=int, default=450 * 10**6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gatherd-uploads-", dir=given.folder) as name:
        folder = Path(name)
        make_data_dir(folder / "data")
        with RunningServer("--data-dir", folder / "data", log_path=folder / "log") as server:
            arrays(server, folder, given.bytes, given.rounds)
            texts(server, folder, given.text_bytes)


if __name__ == "__main__":
    main()
