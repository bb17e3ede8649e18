"""A client process of the crash suite: pushes from several threads until its standard input closes.

    python -m crash.pusher FIRST_NUMBER THREADS LOG URL…

Each line of LOG is the outcome of one push: [number, lsn, {table: version}], or [number, null,
reason] for one that was refused, or [number, null, null] for one that was given up, so that nobody
knows. No other ends without an answer: what lost it is sent again by the same request id.
"""

import json
import os
import random
import sys
import threading
import time
from collections import deque

from crash.workload import DrawnPush, Way, drawn_push, key_of
from gatherd import Client
from gatherd.errors import DeadlineExceeded, GatherdError, NonfiniteValues, RetryableError

NUMBERS_A_THREAD = 10**7
# Longer than any restart: a push that gets no answer in this time is a failure of the suite.
PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = 0.005
LATE_MAX = 4


class PushingThread:
    """Pushes one after the other; those whose answer was lost are sent again some pushes later."""

    def __init__(self, first: int, clients: list[Client], log: int) -> None:
        self._number = first
        self._clients = clients
        self._log = log
        self._random = random.Random(first)
        self._late: deque[tuple[int, DrawnPush]] = deque()

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(self._random.uniform(0, PAUSE_SECONDS)):
            self._number += 1
            self._push(self._number, drawn_push(self._number))
            if len(self._late) > self._random.randint(0, LATE_MAX):
                self._push_late()
        while self._late:
            self._push_late()

    def _push(self, number: int, push: DrawnPush) -> None:
        if push.way not in (Way.KEY, Way.ABANDONED):
            self._finish(number, push, None)
            return
        try:
            outcome = push.send(self._client(), key_of(number), push.patience_seconds)
        except (DeadlineExceeded, RetryableError):
            if push.way is Way.KEY:
                self._late.append((number, push))
            else:
                self._write(number, None, None)
            return
        self._write(number, *outcome)
        if self._random.random() < 0.3:
            # Done already: the same answer is due, and the log's reader holds the two together.
            self._late.append((number, push))

    def _push_late(self) -> None:
        number, push = self._late.popleft()
        self._finish(number, push, key_of(number))

    def _finish(self, number: int, push: DrawnPush, key: str | None) -> None:
        """Push until it is answered."""
        try:
            outcome = push.send(self._client(), key, PATIENCE_SECONDS)
        except NonfiniteValues as error:
            self._write(number, None, error.reason)
        else:
            self._write(number, *outcome)

    def _client(self) -> Client:
        return self._random.choice(self._clients)

    def _write(self, *outcome: object) -> None:
        os.write(self._log, json.dumps(outcome).encode() + b"\n")


def main(first: int, thread_count: int, path: str, urls: list[str]) -> int:
    """Push until standard input closes; 0 when every push has its outcome."""
    clients = [Client(url, timeout=PATIENCE_SECONDS, retries=100) for url in urls]
    stop = threading.Event()
    failures: list[BaseException] = []
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def run(thread: PushingThread) -> None:
        try:
            thread.run(stop)
        except BaseException as error:  # noqa: BLE001 - shown, and the exit status
            failures.append(error)
            metadata = error.metadata if isinstance(error, GatherdError) else {}
            print(f"{time.time():.3f} {error!r} {metadata}", file=sys.stderr, flush=True)

    threads = [
        threading.Thread(
            target=run, args=(PushingThread(first + index * NUMBERS_A_THREAD, clients, log),)
        )
        for index in range(thread_count)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
